"""The student under training: a base model with LoRA (PEFT), rotations and the attention tap.

Its adapter on disk.

An adapter folder holds

- `adapter_config.json`, `adapter_model.safetensors`: PEFT's own files, whose LoRA part bare PEFT
  loads;
- `rotation.safetensors`: W of every distillation layer (`<layer>.weight`, or `<layer>.u` and
  `<layer>.v`), which bare
  PEFT would drop without a word, so `load` is the way to use the folder;
- `recipe.yaml`: the resolved recipe, which names the base model.

`load` is strict: a weight that is missing, unexpected or of another shape is an error. The authors'
loader is not, and loses 11 LoRA pairs around layer l, whose modules were renamed after the adapter
was made; here nothing is renamed.
"""

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from shared.errors import UserError
from shared.files import whole_file
from shared.recipe import LoraSection, Recipe, load_recipe, save_recipe
from student_train.attention import Channel, install
from student_train.rotation import Rotation

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
ROTATION_WEIGHTS, RECIPE = "rotation.safetensors", "recipe.yaml"


@dataclass
class Student:
    """A hooked model and what its losses need to know of it."""

    model: Any  # PeftModel
    channel: Channel
    layers: tuple[int, ...]
    # PiSSA and OLoRA move a part of the base weights into A and B; the pairs they began with, to
    # undo that on saving.
    initial: dict[str, Tensor] | None = None


def make_student(model: Any, image_token_id: int, recipe: Recipe) -> Student:
    """Put LoRA, rotations and hooks on a base model (in place); everything else is frozen.

    Parameters
    ----------
    model
        A transformers image-text model such as `LlavaForConditionalGeneration`.
    image_token_id
        Id of the image placeholder in its token ids.
    recipe
        Its `lora`, `rotation` and `losses.layer` are read.

    Raises
    ------
    UserError
        A distillation layer outside 1..L-1, or LoRA targets that name no linear layer.
    """
    from peft import LoraConfig

    layers = recipe.losses.layers
    check_layers(model, layers)
    lora = recipe.lora
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora_targets(model, lora),
        use_rslora=lora.rslora,
        use_dora=lora.dora,
        init_lora_weights=True if lora.init == "default" else lora.init,
        bias="none",
        task_type="CAUSAL_LM",
    )
    peft_model = _with_adapter(model, config)
    student = Student(peft_model, _hook(model, image_token_id, recipe), layers)
    if lora.init in ("pissa", "olora"):
        student.initial = {
            name: tensor.detach().clone() for name, tensor in _lora_state(student.model).items()
        }
    return student


def _with_adapter(model: Any, config: Any) -> Any:
    from peft import get_peft_model

    with (
        warnings.catch_warnings()
    ):  # PEFT 0.21 asks the model by a name that transformers 5.23 has renamed
        warnings.filterwarnings(
            "ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning
        )
        return get_peft_model(model, config)


def _hook(model: Any, image_token_id: int, recipe: Recipe) -> Channel:
    """Register the rotations at the model's top (new names, no other name changes) and install the hooks."""
    layers = recipe.losses.layers
    rotations = nn.ModuleDict()
    if recipe.rotation.kind != "none":
        width = int(model.get_decoder().config.hidden_size)
        for layer in layers:
            rotations[str(layer)] = Rotation(width, recipe.rotation.kind, recipe.rotation.rank)
        rotations.to(model.device)
    model.rotation = rotations
    model.alignment = install(model, rotations, layers, image_token_id)
    return model.alignment  # type: ignore[no-any-return]


def check_layers(model: Any, layers: tuple[int, ...]) -> None:
    """Raise a `UserError` for a distillation layer that this model does not have."""
    count = len(model.get_decoder().layers)
    for layer in layers:
        if not 1 <= layer < count:
            raise UserError(
                f"losses.layer={layer}: this model has {count} decoder layers, so l must be in "
                f"1..{count - 1}"
            )


def lora_targets(model: Any, lora: LoraSection) -> str:
    """Return PEFT's target pattern.

    The wanted linear layers of the decoder, never the head, projector or tower.
    """
    decoder = model.get_decoder()
    prefix = next(name for name, module in model.named_modules() if module is decoder)
    linear = [
        name for name, module in decoder.layers[0].named_modules() if isinstance(module, nn.Linear)
    ]
    if lora.targets != "all-linear":
        wanted = set(lora.targets)
        unknown = sorted(
            name for name in wanted if not any(one.rpartition(".")[2] == name for one in linear)
        )
        if unknown:
            names = ", ".join(name.rpartition(".")[2] for name in linear)
            raise UserError(
                f"lora.targets: the decoder has no linear layer {', '.join(unknown)}; it has "
                f"{names}"
            )
        linear = [name for name in linear if name.rpartition(".")[2] in wanted]
    alternatives = "|".join(name.replace(".", r"\.") for name in linear)
    return rf"{prefix.replace('.', chr(92) + '.')}\.layers\.\d+\.({alternatives})"


def trainable_state(model: nn.Module) -> dict[str, Tensor]:
    """Return every trainable parameter by name, whole and on the CPU.

    Under ZeRO-3 all ranks must call it together.

    Where DeepSpeed holds a float32 master of a 16-bit parameter, the master is returned.
    """
    state = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            state[name] = _whole(parameter).detach().to("cpu", copy=True).contiguous()
    return state


def _whole(parameter: nn.Parameter) -> Tensor:
    sharded = hasattr(parameter, "_hp_mapping") or hasattr(parameter, "_z3_optimizer")
    if parameter.dtype != torch.float32 and sharded:
        from deepspeed.utils import safe_get_full_fp32_param

        master = safe_get_full_fp32_param(parameter)
        if master is not None:
            return master  # type: ignore[no-any-return]
    if hasattr(parameter, "ds_id"):
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter]):
            return parameter.data.clone()
    return parameter.data


def save_adapter(
    student: Student, recipe: Recipe, folder: Path, state: Mapping[str, Tensor] | None = None
) -> None:
    """Write the adapter folder.

    `state` is `trainable_state(student.model)` where it was gathered before.

    Every file appears whole under its name, the LoRA weights last.
    """
    from peft import get_peft_model_state_dict
    from safetensors.torch import save

    state = trainable_state(student.model) if state is None else state
    lora = get_peft_model_state_dict(
        student.model,
        state_dict={k: v for k, v in state.items() if "lora_" in k},
        save_embedding_layers=False,  # "auto" would ask the hub for the base model's config
    )
    config = student.model.peft_config["default"].to_dict()
    config["inference_mode"] = True
    if student.initial is not None:
        lora, config = _as_plain_lora(lora, student.initial, config)
    rotation = {
        name.partition(".rotation.")[2]: tensor
        for name, tensor in state.items()
        if ".rotation." in name
    }
    folder.mkdir(parents=True, exist_ok=True)
    whole_file(folder / RECIPE, lambda path: save_recipe(recipe, path))
    if rotation:
        kind = {"kind": recipe.rotation.kind, "format": "pt"}
        whole_file(
            folder / ROTATION_WEIGHTS, lambda path: path.write_bytes(save(rotation, metadata=kind))
        )
    text = json.dumps(config, indent=2, sort_keys=True, default=_jsonable)
    whole_file(folder / ADAPTER_CONFIG, lambda path: path.write_text(text, encoding="utf-8"))
    whole_file(
        folder / ADAPTER_WEIGHTS,
        lambda path: path.write_bytes(save(lora, metadata={"format": "pt"})),
    )


def load_adapter(model: Any, image_token_id: int, folder: Path, recipe: Recipe) -> Student:
    """Put the adapter of `folder` on a base model (in place), strictly.

    Raises
    ------
    UserError
        A file that is missing or damaged, a weight that is missing, unexpected or of another shape.
    """
    from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict

    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        if not (folder / name).is_file():
            raise UserError(
                f"{folder} holds no {name}: not an adapter folder, or its run was stopped before "
                "the end"
            )
    layers = recipe.losses.layers
    check_layers(model, layers)
    config = LoraConfig.from_pretrained(str(folder))
    config.inference_mode = True
    config.base_model_name_or_path = (
        None  # the recipe says where it is; PEFT would warn of a folder that has moved
    )
    config.init_lora_weights = (
        True  # the file brings the values; nothing is drawn or decomposed for them
    )
    peft_model = _with_adapter(model, config)
    student = Student(peft_model, _hook(model, image_token_id, recipe), layers)
    expected = get_peft_model_state_dict(student.model, save_embedding_layers=False)
    found = read_tensors(folder / ADAPTER_WEIGHTS)
    _compare(expected, found, folder / ADAPTER_WEIGHTS)
    set_peft_model_state_dict(student.model, found)
    _fill_rotations(model.rotation, folder)
    for parameter in student.model.parameters():
        parameter.requires_grad_(False)
    student.model.eval()
    return student


def load_rotation(model: Any, image_token_id: int, folder: Path, recipe: Recipe) -> Channel:
    """Put only the rotation of `folder` on a model whose LoRA is merged (`student export`), in place and strictly."""
    check_layers(model, recipe.losses.layers)
    channel = _hook(model, image_token_id, recipe)
    _fill_rotations(model.rotation, folder)
    model.rotation.requires_grad_(False)
    return channel


def _fill_rotations(rotations: nn.ModuleDict, folder: Path) -> None:
    path = folder / ROTATION_WEIGHTS
    if not len(rotations):
        if path.is_file():
            raise UserError(
                f"{path} is there, but the recipe beside it says rotation.kind=none; they are not "
                "of one run"
            )
        return
    if not path.is_file():
        raise UserError(
            f"{folder} holds no {ROTATION_WEIGHTS}, but its recipe trains W; copy the whole folder"
        )
    found = read_tensors(path)
    _compare(rotations.state_dict(), found, path)
    rotations.load_state_dict(found)


def adapter_recipe(folder: Path) -> Recipe:
    """Read the recipe that an adapter folder was trained with."""
    if not (folder / RECIPE).is_file():
        raise UserError(f"{folder} holds no {RECIPE}: not the output of `student train`")
    return load_recipe(folder / RECIPE)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file, or raise a `UserError` that names it."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)  # type: ignore[no-any-return]
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} cannot be read ({error}); copy it again from where it was made"
        ) from None


def _compare(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], path: Path) -> None:
    missing, unexpected = (
        sorted(expected.keys() - found.keys()),
        sorted(found.keys() - expected.keys()),
    )
    if missing or unexpected:
        parts = [
            f"{len(names)} {what}, first {names[0]}"
            for names, what in ((missing, "missing"), (unexpected, "unexpected"))
            if names
        ]
        raise UserError(f"{path} does not fit this base model: weights {'; '.join(parts)}")
    for name in sorted(expected):
        if expected[name].shape != found[name].shape:
            raise UserError(
                f"{path}: {name} is {tuple(found[name].shape)}, but this base model needs "
                f"{tuple(expected[name].shape)}"
            )


def _lora_state(model: Any) -> dict[str, Tensor]:
    from peft import get_peft_model_state_dict

    return get_peft_model_state_dict(model, save_embedding_layers=False)  # type: ignore[no-any-return]


def _as_plain_lora(
    lora: Mapping[str, Tensor], initial: Mapping[str, Tensor], config: dict[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Write an adapter that began as a part of the base weights as one of twice the rank on the untouched base.

    The base under training was W0 - s B0 A0, so s B A on it is s (B A - B0 A0) on W0: A stacked on
    A0, B beside -B0.
    """
    plain = {}
    for name, tensor in lora.items():
        start = initial[name].to(tensor)
        plain[name] = (
            torch.cat([tensor, start], 0) if "lora_A" in name else torch.cat([tensor, -start], 1)
        )
    scale = 2**0.5 if config.get("use_rslora") else 2
    return plain, {
        **config,
        "r": 2 * config["r"],
        "lora_alpha": scale * config["lora_alpha"],
        "init_lora_weights": True,
    }


def _jsonable(value: object) -> object:
    return sorted(value) if isinstance(value, set) else str(value)
