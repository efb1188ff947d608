"""IU-Xray reports (Demner-Fushman et al. 2016) in the layout of R2Gen, with its splits.

    SOURCE/annotation.json       {"train": [2,069], "val": [296], "test": [590]}
    SOURCE/images/<id>/0.png     the frontal view; 1.png is the lateral one

An item: {"id": "CXR2384_IM-0942", "report", "image_path": ["CXR2384_IM-0942/0.png", ...], "split"}.
As the authors do, only the frontal image is shown and the report is taken as it is, `XXXX` of the
de-identification included.
"""

from pathlib import Path

from pipelines.datasets.release import DataSet, Release, find, report_record, text_field
from shared.errors import UserError
from shared.records import Record

SPLITS = {"train": "train", "validation": "val", "test": "test"}


def read(source: Path, out: Path, seed: int) -> Release:
    """Read the annotation file; the splits are published."""
    import json

    file = find(source, "annotation file", "annotation.json", "iu_xray/annotation.json")
    image_root = find(source, "image folder", "images", "iu_xray/images")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file} is not JSON: {error}; download it again") from None
    missing = [
        name for name in SPLITS.values() if not isinstance(content, dict) or name not in content
    ]
    if missing:
        raise UserError(
            f"{file}: no {', '.join(missing)}; R2Gen's file has the lists train, val and test"
        )
    splits = {
        split: [
            _record(row, f"{file}, {name} item {number}")
            for number, row in enumerate(content[name])
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
    layout="annotation.json and images/CXRn_IM-n/{0,1}.png",
    read=read,
    published={"r2gen": {"train reports": 2069, "validation reports": 296, "test reports": 590}},
    counts_from="counted in a public copy of annotation.json "
    "(github.com/manavkapadnis/SERPENT-VLM, data/iu_xray/)",
)
