"""Masks: PNG files whose pixels say where a region is.

A folder of masks is laid out as the images are: `a/17.png` is the mask of `a/17.jpg`. Every pixel
that is not 0 belongs to the region, whose label is `region`.

In SLAKE's release the mask of `xmlab1/source.jpg` is `xmlab1/mask.png`; `mask.txt`, beside the
folder `imgs` or in it, gives the value of each organ, a line `Liver:250` each. Without `mask.txt`
these masks say nothing, and the boxes of `detection.json` are all.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shared.errors import UserError

SLAKE, VALUES, REGION = "mask.png", "mask.txt", "region"


class Mask(NamedTuple):
    """The pixels of a mask file that are `value` (None: all but 0); `flipped` left to right."""

    file: Path
    value: int | None = None
    flipped: bool = False


def pixels_of(mask: Mask, width: int, height: int) -> NDArray[np.bool_]:
    """Read a mask as (height, width) booleans.

    Raises
    ------
    UserError
        It cannot be read, or is not of the image's size.
    """
    values = values_of(mask.file)
    if values.shape != (height, width):
        raise UserError(
            f"{mask.file} is {values.shape[1]} x {values.shape[0]} pixels, its image "
            f"{width} x {height}: a mask must have its image's size"
        )
    chosen: NDArray[np.bool_] = values != 0 if mask.value is None else values == mask.value
    return chosen[:, ::-1] if mask.flipped else chosen


def values_of(file: Path) -> NDArray[np.int64]:
    """Return a mask's values (height, width); of a coloured one the largest channel."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file) as opened:
            values = np.asarray(opened.convert("RGB") if opened.mode == "RGBA" else opened)
    except (OSError, UnidentifiedImageError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"the mask {file} cannot be read: {reason}") from None
    return (values.max(axis=2) if values.ndim == 3 else values).astype(np.int64)


def mask_folder(folder: Path) -> dict[str, list[tuple[str, Mask]]]:
    """Find the labelled masks below a folder, by the image's path without its ending.

    Only the regions that a SLAKE mask shows are listed.
    """
    files = sorted(folder.rglob("*.png"))
    values = next((_labels(file) for file in (folder / VALUES, folder.parent / VALUES)
                   if file.is_file()), {})  # fmt: skip
    found: dict[str, list[tuple[str, Mask]]] = {}
    release = any(file.name == SLAKE for file in files)
    for file in files:
        if release and file.name != SLAKE:
            continue  # SLAKE has pictures as PNG too
        if release:
            shown = set(np.unique(values_of(file)).tolist()) if values else set()
            masks = [(label, Mask(file, one)) for label, one in values.items() if one in shown]
            image = file.with_name("source")
        else:
            masks, image = [(REGION, Mask(file))], file.with_suffix("")
        found[image.relative_to(folder).as_posix()] = masks
    return found


def _labels(file: Path) -> dict[str, int]:
    """Read `Liver:250` a line."""
    labels = {}
    for number, line in enumerate(file.read_text(encoding="utf-8-sig").split("\n"), start=1):
        if not line.strip():
            continue
        label, _, value = line.rpartition(":")
        if not label.strip() or not value.strip().isdecimal():
            raise UserError(f"{file}, line {number}: {line!r} is not LABEL:VALUE")
        labels[label.strip()] = int(value)
    return labels
