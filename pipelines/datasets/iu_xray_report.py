"""IU-Xray reports (Demner-Fushman et al. 2016) in three layouts.

R2Gen's, with its splits:

    SOURCE/annotation.json       {"train": [2,069], "val": [296], "test": [590]}
    SOURCE/images/<id>/0.png     the frontal view; 1.png is the lateral one

An item: {"id": "CXR2384_IM-0942", "report", "image_path": ["CXR2384_IM-0942/0.png", ...], "split"}.
As the authors do, only the frontal image is shown and the report is taken as it is, `XXXX` of the
de-identification included.

Lists of findings and impressions (`report_lists`), such as MedEvalKit's 296, for testing; and the
XML files of Open-i itself (`open_i`).
"""

from collections.abc import Sequence
from pathlib import Path

from pipelines.datasets.open_i import find_reports, read_reports
from pipelines.datasets.release import (
    DataSet,
    Release,
    find,
    find_optional,
    report_record,
    text_field,
)
from pipelines.datasets.report_lists import SECTIONS, find_lists, read_lists
from shared.errors import UserError
from shared.records import Record

SPLITS = {"train": "train", "validation": "val", "test": "test"}


def read(source: Path, out: Path, seed: int, sections: Sequence[str] = ()) -> Release:
    """Read the annotation file, whose splits are published, lists of sections, or Open-i's XML."""
    import json

    listed = find_lists(source)
    if listed and find_optional(source, "annotation.json", "iu_xray/annotation.json") is None:
        return read_lists(source, listed, sections or SECTIONS)
    files = find_reports(source)
    if files and find_optional(source, "annotation.json", "iu_xray/annotation.json") is None:
        return read_reports(files, source, sections or SECTIONS, seed)
    if sections:
        raise UserError(f"{source}: R2Gen's reports are not in sections; leave out --sections")
    file = find(source, "annotation file", "annotation.json", "iu_xray/annotation.json")
    image_root = find(source, "image folder", "images", "iu_xray/images")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file} is not JSON: {error}; download it again") from None
    lists = _lists(content, file)
    missing = [name for name in SPLITS.values() if name not in lists]
    if missing:
        raise UserError(
            f"{file}: no {', '.join(missing)}; R2Gen's file has the lists train, val and test"
        )
    splits = {
        split: [
            _record(row, f"{file}, {name} item {number}") for number, row in enumerate(lists[name])
        ]
        for split, name in SPLITS.items()
    }
    counts = {f"{split} reports": len(records) for split, records in splits.items()}
    return Release(
        "r2gen",
        splits,
        image_root,
        counts,
        ["only the frontal view (0.png) of each examination is shown"],
    )


def _lists(content: object, file: Path) -> dict[str, list[object]]:
    """Return the lists by split.

    A copy of R2Gen's file has blanks for the key of its test list; the items of a list name their
    split too.
    """
    found: dict[str, list[object]] = {}
    for key, rows in content.items() if isinstance(content, dict) else ():
        if not isinstance(rows, list):
            continue
        name = str(key).strip()
        named = {row.get("split") for row in rows if isinstance(row, dict)}
        if name not in SPLITS.values() and len(named) == 1:
            name = str(named.pop())
        if name in found:
            raise UserError(f"{file}: two lists of {name}; download it again")
        found[name] = rows
    return found


def _record(row: object, where: str) -> Record:
    if not isinstance(row, dict):
        raise UserError(f"{where}: expected an object, found a {type(row).__name__}")
    images = row.get("image_path")
    frontal = (
        [image for image in images if str(image).endswith("/0.png")]
        if isinstance(images, list)
        else []
    )
    if not frontal:
        raise UserError(f"{where}: no frontal image (ID/0.png) in `image_path`: {images!r}")
    return report_record(text_field(row, where, "id"), frontal[0], text_field(row, where, "report"))


IU_XRAY_REPORT = DataSet(
    name="iu-xray-report",
    title="IU-Xray reports (R2Gen)",
    task="report",
    download="the R2Gen archive (github.com/zhjohnchan/R2Gen); original: openi.nlm.nih.gov",
    licence="the terms of Open-i, Indiana University",
    access="open",
    layout="annotation.json and images/CXRn_IM-n/{0,1}.png, or test.json (lists of findings and "
    "impressions) and images/, or Open-i's ecgen-radiology/*.xml and its PNG files",
    read=read,
    published={
        "r2gen": {"train reports": 2069, "validation reports": 296, "test reports": 590},
        "lists": {"test reports": 296},
        "open-i": {"reports": 3955, "images": 7470},
    },
    counts_from="counted in a public copy of annotation.json "
    "(github.com/manavkapadnis/SERPENT-VLM, data/iu_xray/) and in MedEvalKit's list "
    "(github.com/chenz53/MedEvalKit, 9f20061, datas/IU_XRAY/test.json); Open-i's: Demner-Fushman "
    "et al. 2016",
    sections=SECTIONS,
)
