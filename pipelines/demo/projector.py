"""The start of the demo student's projector: a ridge regression.

The projector starts as the regression from a patch's features to the names of the structures
in it, in proportion to the room they take; where no structure is, the name of the slice's plane. To
that come the names of all that the slice shows, less what an average slice shows: a patch's
features know their surroundings, and a small language model finds what every image token says
sooner than what one of them does. A name is the mean of its token embeddings, each counted the less
the more structures share it: "lobe" tells little. That takes seconds and leaves the warm-up little
to do.

n patches in all, f features of one, w width of the language model.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from pipelines.datasets.brain_atlas.questions import LEAST_VISIBLE
from pipelines.datasets.brain_atlas.writing import read_structures
from shared.records import load_records
from teacher_cache.teachers import vit_s_focus

if TYPE_CHECKING:
    from transformers import (
        CLIPImageProcessor,
        LlavaForConditionalGeneration,
        PreTrainedTokenizerBase,
    )

GRID = 8  # the student sees 8 x 8 patches
RIDGE = 0.01  # times the mean feature variance


class RidgeFit(NamedTuple):
    """The projector's start and how well it fits.

    Shares of variance explained on training and on test patches.
    """

    weight: Float[Tensor, "width features"]
    bias: Float[Tensor, " width"]
    explained_train: float
    explained_test: float


def ridge_start(
    model: "LlavaForConditionalGeneration",
    tokenizer: "PreTrainedTokenizerBase",
    processor: "CLIPImageProcessor",
    atlas: Path,
) -> RidgeFit:
    """Regress the features of the training slices' patches on the names of what they show."""
    names = read_structures(atlas) or {}
    embed = model.get_input_embeddings().weight.detach()
    slices = {
        split: sorted({record.extra["slice"] for record in load_records(atlas / f"{split}.json")})
        for split in ("train", "test")
    }
    masks = {split: [atlas / "masks" / f"{name}.png" for name in slices[split]] for split in slices}
    shown = {
        split: torch.stack([shows(mask, list(names)) for mask in masks[split]]) for split in slices
    }
    structures = name_embeddings(list(names.values()), tokenizer, embed)
    features, wanted = {}, {}
    for split, chosen in slices.items():
        images = [atlas / "images" / f"{name}.png" for name in chosen]
        features[split] = patch_features(model, processor, images)
        planes = name_embeddings([name.partition("-")[0] for name in chosen], tokenizer, embed)
        shares = [patch_shares(mask, list(names)) for mask in masks[split]]
        beyond = shown[split] - shown["train"].mean(dim=0)  # what an average slice does not show
        wanted[split] = torch.cat(
            [
                (share + whole) @ structures + (1 - share.sum(dim=1, keepdim=True)) * plane
                for share, plane, whole in zip(shares, planes, beyond, strict=True)
            ]
        )
    weight, bias = ridge(features["train"], wanted["train"])
    fitted = {split: features[split] @ weight.T + bias for split in features}
    explained = {split: explained_variance(fitted[split], wanted[split]) for split in fitted}
    return RidgeFit(weight, bias, explained["train"], explained["test"])


def name_embeddings(
    names: Sequence[str],
    tokenizer: "PreTrainedTokenizerBase",
    embed: Float[Tensor, "vocabulary width"],
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
    """Return weight (w, f) and bias (w,) of the ridge regression, solved in float64.

    The bias is not penalised.
    """
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
    model: "LlavaForConditionalGeneration",
    processor: "CLIPImageProcessor",
    images: Sequence[Path],
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
    """1 for each structure in `numbers` that the slice shows, else 0.

    By the measure of its questions.
    """
    from PIL import Image

    areas = np.bincount(np.asarray(Image.open(mask)).ravel(), minlength=max(numbers) + 1)
    return torch.from_numpy((areas[list(numbers)] >= LEAST_VISIBLE).astype(np.float32))


def _batches(
    images: Sequence[Path], processor: "CLIPImageProcessor", size: int = 16
) -> Iterator[Tensor]:
    from shared.imaging.images import ImageReference
    from shared.imaging.squares import image_reader
    from student_train.models.base import processor_size

    read = image_reader(processor, processor_size(processor))
    for start in range(0, len(images), size):
        yield torch.stack(
            [read(ImageReference(path, None)) for path in images[start : start + size]]
        )
