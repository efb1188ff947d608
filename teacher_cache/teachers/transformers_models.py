"""Vision towers in transformers' format: `hf:PLACE`, RAD-DINO, MedSigLIP, DINOv3 and C-RADIO.

E_v is the last block's output before any final norm. E_a is what pools an image:

| `model_type` | E_a |
|---|---|
| `dinov2`, `dinov2_with_registers`, `dinov3_vit`, `clip`, `vit` | the CLS token's row |
| `radio` | the row of the first CLS token, which is the first of the models it was distilled from |
| `siglip` | the probe's row of the attention pooling head (MAP) |

Query and key are seen where transformers hands them to its kernel, so that rotary positions and
norms are in them: no block is computed a second way.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from shared.errors import UserError
from shared.hub import NotFetchedError, snapshot
from shared.imaging.grid import Grid
from shared.vocabulary import Interpolation, PoolingAttention
from teacher_cache.teachers.base import Teacher, TeacherInfo, need_weights
from teacher_cache.teachers.checkpoints import weights_hash
from teacher_cache.teachers.trained import (
    Source,
    Trained,
    agreed,
    complete,
    of_mapping,
    preprocessing_of,
)

HF = TeacherInfo(
    "hf:PLACE",
    "a vision tower in transformers' format",
    "a folder or hub id with config.json and preprocessor_config.json",
    "see the weights",
)
RAD_DINO = TeacherInfo(
    "rad-dino",
    "Dinov2Model",
    "hub microsoft/rad-dino",
    "MIT",
    "37x37 @ 518",
    768,
    "no",
    gated=False,
)
MEDSIGLIP = TeacherInfo(
    "medsiglip",
    "SiglipVisionModel",
    "hub google/medsiglip-448",
    "Health AI Developer Foundations terms",
    "32x32 @ 448",
    1152,
    "SigLIP",
    gated=True,
)
DINOV3 = TeacherInfo(
    "dinov3",
    "DINOv3ViTModel",
    "hub facebook/dinov3-vitl16-pretrain-lvd1689m, or another of its family",
    "DINOv3 licence",
    "14x14 @ 224",
    1024,
    "no",
    gated=True,
)
C_RADIO = TeacherInfo(
    "c-radio-v4",
    "RadioModel",
    "hub nvidia/C-RADIOv4-SO400M, in transformers' format",
    "NVIDIA open model licence",
    "32x32 @ 512",
    1152,
    "no",
    gated=False,
)

CLASSES = {
    "clip": "CLIPVisionModel",
    "clip_vision_model": "CLIPVisionModel",
    "dinov2": "Dinov2Model",
    "dinov2_with_registers": "Dinov2WithRegistersModel",
    "dinov3_vit": "DINOv3ViTModel",
    "radio": "RadioModel",
    "siglip": "SiglipVisionModel",
    "siglip_vision_model": "SiglipVisionModel",
    "vit": "ViTModel",
}
# Windows and convolutions.
POOLED_BY_MEAN = ("convnext", "convnextv2", "efficientnet", "resnet", "swin", "swinv2")
KERNEL = "medalign-teacher"  # the name under which transformers finds the kernel below
_ROW = "medalign_cls_row"
_RESIZES: dict[int, Interpolation] = {2: "bilinear", 3: "bicubic"}  # PIL's numbers
_WANTED = ["config.json", "preprocessor_config.json", "*.safetensors", "*.safetensors.index.json"]


class TransformersViT(nn.Module):
    """A tower whose last block and pooling are observed in one forward pass."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower
        blocks = _blocks(tower)
        self.last = blocks[len(blocks) - 1]
        self.head = getattr(getattr(tower, "head", None), "attention", None)
        self.row: list[Tensor] = []  # the last block's CLS row, which the kernel leaves here
        for module in self.last.modules():
            setattr(module, _ROW, self.row)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the last block's tokens (B, T, b) and the pooling attention (B, T), float32.

        Of a tower without CLS token both have M columns: its patches alone.
        """
        seen: dict[str, Tensor] = {}

        def after(module: nn.Module, args: object, output: Tensor | tuple[Tensor, ...]) -> None:
            seen["tokens"] = output if isinstance(output, Tensor) else output[0]

        def pooled(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            seen["attention"] = _probe_attention(cast("nn.MultiheadAttention", module), *args[:2])

        hooks = [self.last.register_forward_hook(after)]
        if self.head is not None:
            hooks.append(self.head.register_forward_pre_hook(pooled))
        try:
            self.tower(pixels)
        finally:
            for hook in hooks:
                hook.remove()
        row = self.row.pop()
        return seen["tokens"], row if self.head is None else seen["attention"]


def _kernel(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """Fused attention on (B, H, T, c); of the last block the first token's row is kept."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    row: list[Tensor] | None = getattr(module, _ROW, None)
    if row is not None:
        logits = query[:, :, :1].float() @ key.float().transpose(2, 3) * scale
        row[:] = [logits.softmax(-1).mean(1).squeeze(1)]
    mixed = nn.functional.scaled_dot_product_attention(query, key, value, mask, scale=scale)
    return mixed.transpose(1, 2).contiguous(), None


def _probe_attention(head: nn.MultiheadAttention, probe: Tensor, tokens: Tensor) -> Tensor:
    """Attention (B, M) of a pooling head's probe over its tokens, mean over heads."""
    width, heads = head.embed_dim, head.num_heads
    weight, bias = cast("Tensor", head.in_proj_weight), cast("Tensor", head.in_proj_bias)
    q = nn.functional.linear(probe, weight[:width], bias[:width])
    k = nn.functional.linear(tokens, weight[width : 2 * width], bias[width : 2 * width])
    batch = len(tokens)
    q, k = (one.view(batch, -1, heads, width // heads).transpose(1, 2).float() for one in (q, k))
    row: Tensor = (q @ k.transpose(2, 3) * q.shape[-1] ** -0.5).softmax(-1)
    return row.mean(1).squeeze(1)


def load_named(info: TeacherInfo, weights: str | None, grid: Grid | None = None) -> Teacher:
    """Load a named one from its published folder or hub id; its grid is its own."""
    teacher = load_transformers(info.name, need_weights(info, weights), None, Trained())
    found = teacher.architecture.partition(",")[0]
    if found != info.architecture:
        raise UserError(
            f"the weights are a {found}, and {info.name} is a {info.architecture}; name them as "
            f"hf:{weights}"
        )
    return teacher._replace(licence=info.licence)


def load_transformers(
    name: str,
    place: str,
    weights: str | None,
    said: Trained,
    attention: PoolingAttention = "pooled",
) -> Teacher:
    """Load the vision tower of a folder or hub id; for E_a it needs an attention that pools.

    Raises
    ------
    UserError
        No such folder; a model without a patch grid or an attention that pools; weights that are
        missing; settings that no file and no option says, or that they say differently.
    """
    folder = folder_of(weights or place, _WANTED)
    config = _document(folder / "config.json")
    tower = _tower(folder, config, attention)
    own = getattr(tower, "config")  # noqa: B009 - of every transformers model
    document = _document(folder / "preprocessor_config.json", needed=False)
    trained = agreed(
        name,
        [Source("preprocessor_config.json", _trained(document)), Source("the command line", said)],
    )
    if hasattr(tower, "input_conditioner"):  # RADIO normalises inside: done outside, as elsewhere
        conditioner = Trained(tuple(own.norm_mean), tuple(own.norm_std))
        trained = conditioner._replace(interpolation=trained.interpolation or said.interpolation)
        setattr(tower, "input_conditioner", nn.Identity())  # noqa: B010
    trained = complete(name, trained, ("mean", "std", "interpolation"), "")
    size = _size(document) or _side(own.image_size)
    patch = _side(own.patch_size)
    if size % patch:
        raise UserError(
            f"{folder}: images of {size} pixels do not divide into patches of {patch}: its "
            "preprocessor_config.json must say a multiple, as rad-dino's 518 of 14"
        )
    tower.eval().requires_grad_(False)
    # A store names no path of this machine.
    local = name.startswith("hf:") and Path(place).expanduser().is_dir()
    return Teacher(
        name=f"hf:{folder.absolute().name}" if local else name,
        architecture=f"{type(tower).__name__}, {size // patch}x{size // patch} @ {size}",
        model=TransformersViT(tower),
        grid=Grid(size // patch, size // patch),
        preprocessing=preprocessing_of(size, trained),
        weights=weights_hash(tower.state_dict()),
        licence=HF.licence,
    )


class _TowerClass(Protocol):
    def from_pretrained(
        self, folder: Path, **options: object
    ) -> tuple[nn.Module, Mapping[str, list[str]]]: ...


def _tower(folder: Path, config: Mapping[str, object], attention: PoolingAttention) -> nn.Module:
    import transformers

    layout = str(config.get("model_type"))
    if layout in POOLED_BY_MEAN:
        raise UserError(
            f"{folder}: a {layout} has no attention that pools its patches, but a mean of them: "
            "timm's model of its kind gives S_e alone (timm:NAME --attention none), and rad-dino "
            "has E_a too"
        )
    if layout not in CLASSES:
        raise UserError(
            f"{folder}: no reader for the layout {layout}; there are {', '.join(sorted(CLASSES))}, "
            "and rad-dino is a teacher of one"
        )
    transformers.AttentionInterface.register(KERNEL, _kernel)
    chosen: _TowerClass = getattr(transformers, CLASSES[layout])
    options = {"add_pooling_layer": False} if layout == "vit" else {}
    try:
        model, loading = chosen.from_pretrained(
            folder,
            dtype=torch.float32,
            attn_implementation=KERNEL,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            **options,
        )
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{folder} holds no usable {CLASSES[layout]} ({reason})") from None
    faults = [*loading["missing_keys"], *loading["mismatched_keys"]]
    if faults:
        raise UserError(
            f"{folder}: {len(faults)} weights of {CLASSES[layout]} are missing or misshapen, first "
            f"{min(map(str, faults))}; copy the folder again"
        )
    headless = CLASSES[layout] == "SiglipVisionModel" and not hasattr(model, "head")
    if headless and attention != "none":
        raise UserError(
            f"{folder}: this SigLIP has no pooling head, from which E_a is read: --attention none "
            "takes S_e alone, and medsiglip has the head"
        )
    return model


def _blocks(tower: nn.Module) -> nn.ModuleList:
    """Return the list of blocks: the one whose members are the most parameters."""
    lists = [one for one in tower.modules() if isinstance(one, nn.ModuleList)]
    return max(lists, key=lambda one: sum(weight.numel() for weight in one.parameters()))


def folder_of(place: str, wanted: list[str]) -> Path:
    """Return the folder of `place`; where it is a hub id, its `wanted` files are fetched.

    Raises
    ------
    UserError
        It is neither, or the hub does not give it.
    """
    path = Path(place).expanduser()
    if path.is_dir():
        return path
    if path.exists() or place.startswith((".", "/", "~")) or place.count("/") != 1:
        raise UserError(f"no folder at {place}, and it is no hub id such as owner/name either")
    try:
        return snapshot(place, wanted)
    except NotFetchedError as error:
        raise UserError(
            f"the hub did not give {place} ({error}); download the folder, and pass its path as "
            "--weights"
        ) from None


def _document(path: Path, *, needed: bool = True) -> Mapping[str, object]:
    if not needed and not path.is_file():
        return {}
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    if not isinstance(document, dict):
        raise UserError(f"{path} holds no JSON object")
    return document


def _trained(document: Mapping[str, object]) -> Trained:
    """Read the settings of a preprocessor_config.json; nothing where it says nothing."""
    said = {"mean": document.get("image_mean"), "std": document.get("image_std")}
    number = document.get("resample")
    if number is not None and number not in _RESIZES:
        said["interpolation"] = f"PIL's method {number}"
    elif isinstance(number, int):
        said["interpolation"] = _RESIZES[number]
    return of_mapping(said, "preprocessor_config.json")


def _size(document: Mapping[str, object]) -> int | None:
    """Return the side of the square that a preprocessor makes: of its crop, else of its size."""
    for key in ("crop_size", "size"):
        if key == "crop_size" and document.get("do_center_crop") is False:
            continue
        size = document.get(key)
        sides = size.values() if isinstance(size, Mapping) else [size]
        found = {one for one in sides if isinstance(one, int)}
        if len(found) == 1:
            return found.pop()
    return None


def _side(value: object) -> int:
    return int(value[0]) if isinstance(value, list | tuple) else int(cast("int", value))
