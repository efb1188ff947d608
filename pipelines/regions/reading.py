"""Files of regions: which places of which images have which label.

Two forms are read:

- ours: `{"records": [{"image", "boxes": [[x, y, width, height], ...], "label"?, "patient"?}]}`, as
  `medalign data prepare nih-rsna` writes it;
- COCO's: `{"images": [{"id", "file_name", "patient"?}], "annotations": [{"image_id", "bbox",
  "category_id"}], "categories": [{"id", "name"}]}`.

Boxes are in pixels of the image file. An image without a box is known to show no region.
"""

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, cast

from shared.errors import UserError

Box = tuple[float, float, float, float]  # x, y, width, height, in pixels of the image file


class Region(NamedTuple):
    """A labelled box."""

    label: str
    box: Box


class Regions(NamedTuple):
    """The regions of one image and whose it is (the image itself, where the file does not say)."""

    patient: str
    regions: tuple[Region, ...]


def read_regions(file: Path) -> dict[str, Regions]:
    """Read a file of regions: for each image, by its path as the file writes it, its regions.

    Raises
    ------
    UserError
        The file is not there, no JSON, of no known form, or a box is no box.
    """
    try:
        document = json.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise UserError(f"{file} is no JSON: {error}") from None
    if isinstance(document, dict) and isinstance(document.get("records"), list):
        return _ours(file, document["records"])
    if isinstance(document, dict) and isinstance(document.get("annotations"), list):
        return _coco(file, document)
    raise UserError(
        f"{file}: neither `records` with boxes nor COCO's `annotations`; docs/alignment.md shows "
        "both forms"
    )


def _ours(file: Path, rows: list[object]) -> dict[str, Regions]:
    found: dict[str, Regions] = {}
    for number, row in enumerate(rows):
        where = f"{file}, record {number}"
        if not isinstance(row, dict) or not isinstance(row.get("image"), str):
            raise UserError(f"{where}: no `image`")
        boxes = row.get("boxes")
        if not isinstance(boxes, list):
            raise UserError(f"{where}: `boxes` must be a list of [x, y, width, height]")
        label = str(row.get("label", "region"))
        regions = tuple(Region(label, box_of(box, where)) for box in boxes)
        patient = str(row.get("patient", row["image"]))
        if row["image"] in found:
            regions = (*found[row["image"]].regions, *regions)
        found[row["image"]] = Regions(patient, regions)
    return found


def _coco(file: Path, document: Mapping[str, object]) -> dict[str, Regions]:
    try:
        names = {
            one["id"]: str(one["name"])
            for one in cast("list[dict[str, object]]", document.get("categories", []))
        }
        boxes: dict[object, list[Region]] = defaultdict(list)
        for number, one in enumerate(cast("list[dict[str, object]]", document["annotations"])):
            where = f"{file}, annotation {number}"
            label = names.get(one.get("category_id"), "region")
            boxes[one["image_id"]].append(Region(label, box_of(one["bbox"], where)))
        return {
            str(one["file_name"]): Regions(
                str(one.get("patient", one["file_name"])), tuple(boxes[one["id"]])
            )
            for one in cast("list[dict[str, object]]", document["images"])
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file} is not COCO's form: {error!r} is missing or wrong") from None


def box_of(value: object, where: str) -> Box:
    """Read [x, y, width, height]; anything else is a UserError that names the place."""
    try:
        if not isinstance(value, list | tuple) or len(value) != 4:
            raise ValueError
        x, y, width, height = (float(side) for side in value)
    except (TypeError, ValueError):
        raise UserError(f"{where}: {value!r} is no box [x, y, width, height]") from None
    if not (x >= 0 and y >= 0 and width > 0 and height > 0 and x + width + y + height < 1e7):
        raise UserError(f"{where}: {value!r} is no box [x, y, width, height] inside an image")
    return x, y, width, height
