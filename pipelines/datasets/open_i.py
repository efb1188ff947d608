"""IU-Xray reports as Open-i publishes them (NLMCXR_reports.tgz, NLMCXR_png.tgz): an XML a report.

    SOURCE/ecgen-radiology/<n>.xml    <eCitation>: AbstractText by Label, parentImage by id
    SOURCE/images/<id>.png            or NLMCXR_png/, or the PNG files beside that folder

All views of an examination are shown. Open-i publishes no split: it is drawn by report, and each
report is of another patient.
"""

from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from pipelines.datasets.release import Release, Row, split_groups
from pipelines.datasets.report_lists import section_record
from shared.errors import UserError
from shared.records import Record

TRAIN_SHARE = 0.8
_FOLDERS = ("ecgen-radiology", "NLMCXR_reports/ecgen-radiology", "NLMCXR_reports", "reports", ".")
_IMAGES = ("images", "NLMCXR_png", ".")


def find_reports(source: Path) -> list[Path]:
    """Return the XML files of the reports, by name; none where there are none."""
    folders = (source / name for name in _FOLDERS)
    return next((found for one in folders if (found := sorted(one.glob("*.xml")))), [])


def read_reports(
    files: Sequence[Path], source: Path, sections: Sequence[str], seed: int
) -> Release:
    """Read the reports, with the sections asked for as the text.

    Raises
    ------
    UserError
        A file that is no such XML; no image folder; no report with an image and those sections.
    """
    rows = [(str(file), *_report(file)) for file in files]
    shown = [(where, row) for where, row, images in rows if images]
    name = next((images[0] for _, _, images in rows if images), "")
    root = next((source / one for one in _IMAGES if (source / one / name).is_file()), None)
    if not shown or root is None:
        raise UserError(
            f"{source}: no image {name or 'of any report'} in {', '.join(_IMAGES[:2])} or beside "
            "them; unpack NLMCXR_png.tgz there"
        )
    made = [section_record(row, where, sections) for where, row in shown]
    records = [record for record in made if record is not None]
    if not records:
        raise UserError(f"{source}: no report has {' or '.join(sections)}")
    train, test = split_groups(records, _identifier, TRAIN_SHARE, seed)
    notes = [
        f"split drawn by report with seed {seed}; Open-i publishes none",
        f"the report is its {' and its '.join(sections)}; all images of an item are shown",
        f"{len(rows) - len(shown)} reports without an image and {len(shown) - len(records)} "
        f"without {' or '.join(sections)} are left out",
    ]
    images = sum(len(images) for _, _, images in rows)
    return Release(
        "open-i",
        {"train": train, "test": test},
        root,
        {"reports": len(rows), "images": images},
        notes,
    )


def _identifier(record: Record) -> str:
    return record.id


def _report(file: Path) -> tuple[Row, list[str]]:
    """Read a report: its id and its sections by label, and the names of its images."""
    try:
        content = file.read_bytes().decode("utf-8")
        if "<!DOCTYPE" in content.replace("\0", ""):  # UTF-16, which expat detects, has zeros
            raise UserError(f"{file} declares a document type, which no report of Open-i does")
        tree = ElementTree.fromstring(content)
    except (UnicodeDecodeError, ElementTree.ParseError) as error:
        raise UserError(f"{file} is no XML ({error}); unpack it again") from None
    if tree.tag != "eCitation":
        raise UserError(f"{file} holds <{tree.tag}>, no report of Open-i (<eCitation>)")
    named = tree.find("uId")
    texts = {
        str(part.get("Label", "")).lower(): "".join(part.itertext())
        for part in tree.iter("AbstractText")
    }
    images = [f"{part.get('id')}.png" for part in tree.iter("parentImage")]
    identifier = file.stem if named is None else named.get("id")
    return {"id": identifier, "images": images, **texts}, images
