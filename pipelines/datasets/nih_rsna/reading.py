"""Chest X-rays with boxes of lung opacity: what a folder of them holds.

Two layouts are read.

    SOURCE/regions.json        {"records": [{"image", "patient", "rsna_class", "boxes"}, ...]},
    SOURCE/images/...          boxes are [x, y, width, height] in pixels of the image file

or the two releases as they are downloaded:

    SOURCE/stage_2_train_labels.csv           RSNA 2018: patientId,x,y,width,height,Target
    SOURCE/stage_2_detailed_class_info.csv    RSNA 2018: patientId,class
    SOURCE/*mappings_2018.json                RSNA 2018: subset_img_id -> img_id of NIH
    SOURCE/images/00000061_012.png ...        NIH ChestX-ray14, 1024 x 1024

The patient is the number before the underscore of NIH's file name.
"""

import csv
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from pipelines.datasets.release import find, json_rows, text_field
from shared.errors import UserError

Box = tuple[float, float, float, float]  # x, y, width, height, in pixels of the image file

REGIONS = "regions.json"
LABELS = "stage_2_train_labels.csv"
CLASSES = "stage_2_detailed_class_info.csv"
MAPPINGS = "*mappings_2018.json"


class Xray(NamedTuple):
    """One frontal chest X-ray.

    Attributes
    ----------
    file
        The image.
    patient
        Whose it is; one patient may have several.
    finding
        RSNA's class: "Lung Opacity", "No Lung Opacity / Not Normal" or "Normal".
    boxes
        Of each lung opacity; none where the class is another one.
    """

    file: Path
    patient: str
    finding: str
    boxes: tuple[Box, ...]


def read_xrays(source: Path) -> list[Xray]:
    """Read every X-ray of `source`, sorted by file name.

    Raises
    ------
    UserError
        A file or field is missing, a box is no box, or an image lies under no patient.
    """
    if (source / REGIONS).is_file():
        found = _regions(source)
    elif (source / LABELS).is_file():
        found = _challenge(source)
    else:
        raise UserError(
            f"{source} holds neither {REGIONS} nor {LABELS}; docs/datasets.md shows both layouts"
        )
    missing = [xray.file for xray in found if not xray.file.is_file()]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(found)} images are not there, first {missing[0]}; unpack the "
            "images there"
        )
    return sorted(found, key=lambda xray: xray.file.name)


def _regions(source: Path) -> list[Xray]:
    from pipelines.documents import read_document

    rows = read_document(source / REGIONS, 1, "see docs/datasets.md").get("records")
    if not isinstance(rows, list):
        raise UserError(f"{source / REGIONS}: `records` must be a list")
    found = []
    for number, row in enumerate(rows):
        where = f"{source / REGIONS}, record {number}"
        if not isinstance(row, dict):
            raise UserError(f"{where}: expected an object, found a {type(row).__name__}")
        boxes = row.get("boxes")
        if not isinstance(boxes, list):
            raise UserError(f"{where}: `boxes` must be a list of [x, y, width, height]")
        found.append(
            Xray(
                source / text_field(row, where, "image"),
                text_field(row, where, "patient"),
                text_field(row, where, "rsna_class"),
                tuple(_box(box, where) for box in boxes),
            )
        )
    return found


def _challenge(source: Path) -> list[Xray]:
    mapping = next(iter(sorted(source.glob(MAPPINGS))), None)
    if mapping is None:
        raise UserError(f"{source} lacks {MAPPINGS}, RSNA's list of NIH's file names")
    named = {
        text_field(row, where, "subset_img_id"): text_field(row, where, "img_id")
        for where, row in json_rows(mapping)
    }
    images = find(source, "folder of NIH's images", "images")
    boxes: dict[str, list[Box]] = defaultdict(list)
    for where, row in _table(source / LABELS, ("patientId", "x", "y", "width", "height")):
        if row["x"]:
            sides = [row[name] for name in ("x", "y", "width", "height")]
            boxes[row["patientId"]].append(_box(sides, where))
    classes = {row["patientId"]: row["class"] for _, row in _table(source / CLASSES, ("class",))}
    found = []
    for identifier, finding in classes.items():
        name = named.get(identifier)
        if name is None:
            raise UserError(f"{mapping} does not name {identifier} of {CLASSES}")
        file = images / name
        patient = name.partition("_")[0]
        found.append(Xray(file, patient, finding, tuple(boxes[identifier])))
    return found


def _table(file: Path, columns: tuple[str, ...]) -> list[tuple[str, dict[str, str]]]:
    if not file.is_file():
        raise UserError(f"{file} is missing; download it from the RSNA challenge of 2018")
    with file.open(newline="", encoding="utf-8-sig") as lines:
        reader = csv.DictReader(lines)
        lacking = [name for name in columns if name not in (reader.fieldnames or ())]
        if lacking:
            raise UserError(f"{file}: no column {', '.join(lacking)}")
        return [(f"{file}, row {number}", row) for number, row in enumerate(reader)]


def _box(value: object, where: str) -> Box:
    try:
        if not isinstance(value, list) or len(value) != 4:
            raise ValueError
        x, y, width, height = (float(side) for side in value)
    except (TypeError, ValueError):
        raise UserError(f"{where}: {value!r} is no box [x, y, width, height]") from None
    if not (x >= 0 and y >= 0 and width > 0 and height > 0 and x + width + y + height < 1e6):
        raise UserError(f"{where}: {value!r} is no box [x, y, width, height] inside an image")
    return x, y, width, height
