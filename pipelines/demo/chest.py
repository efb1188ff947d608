"""The small student of the study on chest X-rays: the demo's, with a start of its own.

The projector starts as the regression from a patch's features to what the patch shows, in the
language model's own words: opacity or clear in proportion to the room that boxes take, the
patient's side, the zone, and whether a drawn box marks it. To that comes what the whole X-ray shows
beyond an average one, as in `projector`. It is fitted on the training patients of one part alone.
"""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pipelines.datasets.nih_rsna.questions import ZONE_NAMES, ZONES
from pipelines.datasets.nih_rsna.reading import REGIONS, Box
from pipelines.datasets.nih_rsna.writing import ASIDE
from pipelines.demo.projector import (
    GRID,
    RidgeFit,
    explained_variance,
    name_embeddings,
    patch_features,
    ridge,
)
from pipelines.demo.student import (
    VISION_LAYERS,
    assemble,
    image_processor,
    language_model,
    write_student,
)
from pipelines.documents import read_document
from shared.console import say
from shared.errors import UserError
from shared.files import check_new
from shared.records import load_records

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NAMES = ("opacity", "clear", "right", "left", *ZONE_NAMES, "box")


class _Picture(NamedTuple):
    """An image that the regression sees: size, its opacities, and the box drawn on it."""

    file: Path
    width: int
    height: int
    opacities: list[Box]
    marked: list[Box]


def build_chest_student(
    folder: Path, part: str, out: Path, layers: int = VISION_LAYERS
) -> RidgeFit:
    """Write the student of `part` as a transformers `LlavaForConditionalGeneration` folder.

    Parameters
    ----------
    folder
        A set of `medalign data prepare nih-rsna`.
    part
        `choose` or a fold: the patients that the start must not see.
    out
        A folder that does not exist yet or is empty.
    layers
        Of the ViT-S/14, as its vision tower; 12 are the study's teacher itself.

    Raises
    ------
    UserError
        A package of weights is missing, `folder` is no such set, or `out` holds something.
    """
    check_new(out)
    pictures = {split: _pictures(folder, part, split) for split in ("train", "test")}
    say("student: reading SmolLM2-135M and the ViT-S/14")
    language, tokenizer = language_model()
    model = assemble(language, tokenizer, layers)
    processor = image_processor()
    say("student: ridge regression from patch features to what the patches show")
    words = _words(tokenizer, model.get_input_embeddings().weight.detach())
    features, wanted = {}, {}
    average = torch.tensor([bool(one.opacities) for one in pictures["train"]]).float().mean()
    for split, chosen in pictures.items():
        features[split] = patch_features(model, processor, [one.file for one in chosen])
        wanted[split] = torch.cat([_wanted(one, words, float(average)) for one in chosen])
    weight, bias = ridge(features["train"], wanted["train"])
    fitted = {split: features[split] @ weight.T + bias for split in features}
    explained = {split: explained_variance(fitted[split], wanted[split]) for split in fitted}
    fit = RidgeFit(weight, bias, explained["train"], explained["test"])
    write_student(model, tokenizer, processor, fit, out)
    return fit


def _pictures(folder: Path, part: str, split: str) -> list[_Picture]:
    """Every image that the records of a split show, each once."""
    from PIL import Image

    file = folder / part / f"{split}.json"
    if not file.is_file():
        raise UserError(
            f"{folder} has no {part}/{split}.json; `medalign data prepare nih-rsna` makes "
            f"{ASIDE} and the folds"
        )
    rows = read_document(folder / REGIONS, 1, "run `medalign data prepare nih-rsna` again")
    boxes = {row["image"]: row["boxes"] for row in rows["records"]}  # type: ignore[attr-defined]
    marked = {record.images[0]: record for record in load_records(file)}
    found = []
    for image, record in sorted(marked.items()):
        original = next(name for name in boxes if Path(name).stem == record.extra["xray"])
        with Image.open(folder / image) as opened:
            width, height = opened.size
        drawn = [record.extra["box"]] if "box" in record.extra else []
        found.append(_Picture(folder / image, width, height, boxes[original], drawn))
    return found


def _words(tokenizer: "PreTrainedTokenizerBase", embed: Tensor) -> dict[str, Tensor]:
    return dict(zip(NAMES, name_embeddings(NAMES, tokenizer, embed), strict=True))


def _wanted(
    picture: _Picture, words: dict[str, Tensor], average: float
) -> Float[Tensor, "patches width"]:
    """Return what the projector should say of each patch of the padded square, row-major."""
    opaque, marked = _share(picture, picture.opacities), _share(picture, picture.marked)
    places = (torch.arange(GRID) + 0.5) / GRID
    right = (places < 0.5).float().repeat(GRID)[:, None]
    zones = torch.bucketize(places, torch.tensor(ZONES)).repeat_interleave(GRID)
    zone = torch.stack([words[name] for name in ZONE_NAMES])[zones]
    beyond = float(bool(picture.opacities)) - average
    said: Tensor = (
        (opaque + beyond) * words["opacity"]
        + (1 - opaque) * words["clear"]
        + (right * words["right"] + (1 - right) * words["left"] + zone) / 2
        + marked * words["box"]
    )
    return said


def _share(picture: _Picture, boxes: list[Box]) -> Float[Tensor, "patches 1"]:
    """Share of each patch that the boxes take."""
    from PIL import Image, ImageDraw

    from shared.imaging.squares import square

    mask = Image.new("RGB", (picture.width, picture.height))
    for x, y, width, height in boxes:
        ImageDraw.Draw(mask).rectangle((x, y, x + width - 1, y + height - 1), fill=(255, 255, 255))
    side = GRID * 14
    cut = np.asarray(square(mask, side, "pad", (0, 0, 0)), dtype=np.float32)[..., 0] / 255
    shares = cut.reshape(GRID, side // GRID, GRID, side // GRID).mean(axis=(1, 3)).ravel()
    return torch.from_numpy(shares)[:, None]
