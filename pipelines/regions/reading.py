"""Files of regions: which places of which images have which label.

Four forms are read:

- ours: `{"records": [{"image", "boxes": [[x, y, width, height], ...], "masks"?: [file, ...],
  "value"?, "label"?, "patient"?, "view"?, "key"?, "size"?}]}`, as `medalign data prepare` writes it
  for nih-rsna and brain-atlas; masks are relative to the file, `value` is that of their pixels
  (else all but 0); with `key` (the content key, hexadecimal) and `size` ([width, height] in pixels)
  a store is scored without the image file;
- COCO's: `{"images": [{"id", "file_name", "patient"?}], "annotations": [{"image_id", "bbox",
  "category_id"}], "categories": [{"id", "name"}]}`;
- a folder of PNG masks, named as the images are (`masks`);
- SLAKE's `imgs/` with `detection.json` and `mask.png` beside each image (`masks`).

Boxes are in pixels of the image file. An image without a region is known to show none.
"""

import glob
import json
import re
from collections import defaultdict
from collections.abc import Collection, Mapping
from pathlib import Path, PurePosixPath
from typing import NamedTuple, cast

from pipelines.regions.masks import Mask, mask_folder
from shared.errors import UserError
from shared.imaging.images import ImageReference, parse_reference

DETECTION, SOURCE = "detection.json", "source"  # SLAKE's names in the folder of an image
Box = tuple[float, float, float, float]  # x, y, width, height, in pixels of the image file


class Region(NamedTuple):
    """A labelled place: a box, or the pixels of a mask."""

    label: str
    place: Box | Mask


class Seen(NamedTuple):
    """What a target needs of an image file: its content key, and its size in pixels."""

    key: bytes
    width: int
    height: int


class Regions(NamedTuple):
    """The regions of one image and whose it is (the image itself, where the file does not say).

    Where the file says it, `view` is how the image was taken, such as `axial` or `lateral`, and
    `seen` is its key and size.
    """

    patient: str
    regions: tuple[Region, ...]
    view: str | None = None
    seen: Seen | None = None


def read_regions(file: Path) -> dict[str, Regions]:
    """Read a file or folder of regions: for each image, by its path as the file writes it.

    A folder of masks knows the images' names without their endings; `regions_of` looks up both.

    Raises
    ------
    UserError
        The file is not there, no JSON, of no known form, or a box is no box in pixels; an
        annotation of an image that is not listed, or one image of two patients.
    """
    if file.is_dir():
        return _of_folder(file)
    found = _of_file(file)
    boxes = [
        one.place
        for regions in found.values()
        for one in regions.regions
        if not isinstance(one.place, Mask)
    ]
    if boxes and all(max(box) <= 1 for box in boxes):
        raise UserError(
            f"{file}: every box lies in [0, 1], which are fractions of the image: boxes are in "
            "pixels of the image file, multiply them by its width and height"
        )
    return found


def _of_file(file: Path) -> dict[str, Regions]:
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


def regions_of(known: Mapping[str, Regions], image: str) -> Regions | None:
    """Return the regions of an image by its path, or by its path without the ending."""
    return known.get(image) or known.get(str(PurePosixPath(image).with_suffix("")))


def reference_to(image: str, root: Path) -> ImageReference:
    """Return the image of a file of regions below `root`; its ending is found where it is left out.

    Raises
    ------
    UserError
        No such image.
    """
    reference = parse_reference(image, root)
    if reference.path.is_file():
        return reference
    folder, stem = reference.path.parent, reference.path.name
    ends = sorted(folder.glob(f"{glob.escape(stem)}.*")) if folder.is_dir() else []
    if not ends:
        raise UserError(f"the regions name {reference}, which is not there; pass --image-root")
    return ImageReference(ends[0])


def _of_folder(folder: Path) -> dict[str, Regions]:
    """Join SLAKE's boxes and the masks of a folder; a box is taken where a label has no mask."""
    found: dict[str, list[Region]] = defaultdict(list)
    for image, masks in mask_folder(folder).items():
        found[image] += [Region(label, mask) for label, mask in masks]
    for file in sorted(folder.rglob(DETECTION)):
        image = (file.parent / SOURCE).relative_to(folder).as_posix()
        masked = {region.label for region in found[image]}
        found[image] += [one for one in _detections(file) if one.label not in masked]
    if not any(found.values()):
        raise UserError(f"{folder} holds neither PNG masks nor a {DETECTION}")
    return {image: Regions(image, tuple(regions)) for image, regions in found.items()}


def _detections(file: Path) -> list[Region]:
    """Read SLAKE's `[{"Liver": [x, y, width, height]}, ...]`."""
    try:
        rows = json.loads(file.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise UserError(f"{file} is no JSON: {error}") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{file}: expected a list of {{label: [x, y, width, height]}}")
    return [
        Region(str(label), box_of(box, str(file))) for row in rows for label, box in row.items()
    ]


def _ours(file: Path, rows: list[object]) -> dict[str, Regions]:
    found: dict[str, Regions] = {}
    for number, row in enumerate(rows):
        where = f"{file}, record {number}"
        if not isinstance(row, dict) or not isinstance(row.get("image"), str):
            raise UserError(f"{where}: no `image`")
        boxes, masks = row.get("boxes", [] if "masks" in row else None), row.get("masks", [])
        if not isinstance(boxes, list) or not isinstance(masks, list):
            raise UserError(
                f"{where}: `boxes` must be a list of [x, y, width, height], `masks` one of files"
            )
        label = "region" if row.get("label") is None else str(row["label"])
        regions = tuple(Region(label, box_of(box, where)) for box in boxes)
        value = row.get("value")
        if not (value is None or isinstance(value, int)):
            raise UserError(f"{where}: `value` is {value!r}, no value of a mask's pixels")
        regions += tuple(Region(label, Mask(file.parent / str(mask), value)) for mask in masks)
        patient = _patient(row, row["image"])
        if row["image"] in found:
            _check_patient(where, row["image"], found[row["image"]].patient, patient)
            regions = (*found[row["image"]].regions, *regions)
        view = None if row.get("view") is None else str(row["view"])
        found[row["image"]] = Regions(patient, regions, view, _seen(row, where))
    return found


def _patient(row: Mapping[str, object], image: str) -> str:
    """Return whose an image is: its own where the file does not say."""
    return image if row.get("patient") is None else str(row["patient"])


def _check_patient(where: str, image: str, first: str, second: str) -> None:
    if first != second:
        raise UserError(f"{where}: {image} is of the patient {first} and of {second}; keep one")


def _seen(row: Mapping[str, object], where: str) -> Seen | None:
    key, size = row.get("key"), row.get("size")
    if key is None and size is None:
        return None
    whole = isinstance(size, list) and len(size) == 2 and all(isinstance(one, int) for one in size)
    if not (isinstance(key, str) and re.fullmatch("[0-9a-f]{64}", key) and whole):
        raise UserError(
            f"{where}: `key` must be 64 hexadecimal digits and `size` [width, height] in pixels"
        )
    width, height = cast("list[int]", size)
    return Seen(bytes.fromhex(key), width, height)


def _coco(file: Path, document: Mapping[str, object]) -> dict[str, Regions]:
    try:
        names = {
            one["id"]: str(one["name"])
            for one in cast("list[dict[str, object]]", document.get("categories", []))
        }
        boxes: dict[object, list[Region]] = defaultdict(list)
        images = cast("list[dict[str, object]]", document["images"])
        listed = {one["id"] for one in images}
        for number, one in enumerate(cast("list[dict[str, object]]", document["annotations"])):
            where = f"{file}, annotation {number}"
            _check_listed(one["image_id"], listed, f"{where}: image_id", "images")
            if names:
                _check_listed(one.get("category_id"), names, f"{where}: category_id", "categories")
            label = names.get(one.get("category_id"), "region")
            boxes[one["image_id"]].append(Region(label, box_of(one["bbox"], where)))
        found: dict[str, Regions] = {}
        for one in images:
            name, own = str(one["file_name"]), tuple(boxes[one["id"]])
            patient = _patient(one, name)
            if name in found:
                _check_patient(f"{file}, image {one['id']}", name, found[name].patient, patient)
                own = (*found[name].regions, *own)
            found[name] = Regions(patient, own)
        return found
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file} is not COCO's form: {error!r} is missing or wrong") from None


def _check_listed(given: object, listed: Collection[object], what: str, where: str) -> None:
    if given in listed:
        return
    twin = next((one for one in listed if str(one) == str(given)), None)
    hint = f"; {twin!r} is, of another type" if twin is not None else ""
    raise UserError(f"{what} {given!r} is not among the ids of `{where}`{hint}: write both alike")


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
