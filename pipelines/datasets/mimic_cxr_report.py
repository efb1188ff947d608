"""MIMIC-CXR reports (Johnson et al. 2019) from the two PhysioNet projects.

The published split is by patient.

SOURCE holds both projects, as `wget -r` leaves them below `physionet.org/files/`:

    mimic-cxr-jpg/2.*/mimic-cxr-2.0.0-split.csv.gz        dicom_id, study_id, subject_id, split
    mimic-cxr-jpg/2.*/mimic-cxr-2.0.0-metadata.csv.gz     dicom_id, ..., ViewPosition
    mimic-cxr-jpg/2.*/files/p10/p10000032/s50414267/<dicom_id>.jpg
    mimic-cxr/2.*/mimic-cxr-reports/files/p10/p10000032/s50414267.txt

The last comes from mimic-cxr-reports.zip, unpacked. In its place may stand
`mimic_cxr_sectioned.csv` (study, findings, impression, ...), which PhysioNet's own script makes of
the reports. Or SOURCE holds lists of findings and impressions (`report_lists`).

One record a study: one frontal view (PA before AP) and the findings and impression of its report.
The authors rewrote the reports of 2,000 sampled images with a language model and publish neither
text nor prompt, so their numbers cannot be reproduced; `clean_report` is a rule in its place.
"""

import csv
import gzip
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from pipelines.datasets.release import DataSet, Release, find, find_optional, report_record
from pipelines.datasets.report_lists import SECTIONS, find_lists, read_lists
from shared.errors import UserError
from shared.records import Record

FRONTAL = ("PA", "AP")
SECTIONED = "mimic_cxr_sectioned.csv"
SPLITS = {"train": "train", "validation": "validate", "test": "test"}
_HEADING = re.compile(r"^[ \t]*([A-Z][A-Z0-9 /()&,-]*[A-Z)])[ \t]*:", re.MULTILINE)
# Some reports write their findings under the name of the examination: "CHEST, TWO VIEWS: ...".
_EXAMINATION = re.compile(r"\b(?:CHEST|VIEWS?|RADIOGRAPHS?)\b")
_ABOUT = re.compile(
    r"\b(?:EXAM\w*|COMPARISONS?|INDICATIONS?|HISTORY|TECHNIQUE|STUDY|REASON|TYPE)\b"
)
_WORDS = 5  # fewer name an examination and find nothing
_WANTED = {
    "FINDINGS": 0,
    "FINDING": 0,
    "FINDINGS AND IMPRESSION": 0,
    "IMPRESSION": 1,
    "IMPRESSIONS": 1,
    "CONCLUSION": 1,
}
_ENUMERATION = re.compile(r"(?:(?<=^)|(?<=[.:;] ))\d{1,2}[.)]\s+")


def read(source: Path, out: Path, seed: int, sections: Sequence[str] = ()) -> Release:
    """Read the tables, pick one frontal image per study and clean its report."""
    wanted = tuple(sections) or SECTIONS
    lists = find_lists(source)
    if lists and find_optional(source, *_both("mimic-cxr-2.0.0-split.csv")) is None:
        return read_lists(source, lists, wanted)
    split_file = find(source, "split table", *_both("mimic-cxr-2.0.0-split.csv"))
    views_file = find(source, "metadata table", *_both("mimic-cxr-2.0.0-metadata.csv"))
    image_root = find(source, "image folder", "mimic-cxr-jpg/2.*/files", "mimic-cxr-jpg/files")
    report_of = _reports(source, wanted)
    views = {
        row["dicom_id"]: row["ViewPosition"]
        for row in _table(views_file, "dicom_id", "ViewPosition")
    }
    counts = {f"{split} images": 0 for split in SPLITS}
    studies: dict[str, dict[tuple[str, str], list[tuple[int, str]]]] = {
        split: {} for split in SPLITS
    }
    names = {name: split for split, name in SPLITS.items()}
    for row in _table(split_file, "dicom_id", "study_id", "subject_id", "split"):
        if row["split"] not in names:
            raise UserError(f"{split_file}: split {row['split']!r} is none of {', '.join(names)}")
        split = names[row["split"]]
        counts[f"{split} images"] += 1
        view = views.get(row["dicom_id"])
        if view in FRONTAL:
            study = studies[split].setdefault((row["subject_id"], row["study_id"]), [])
            study.append((FRONTAL.index(view), row["dicom_id"]))
    absent = {"image": 0, "report": 0, "section": 0}
    splits = {
        split: list(_records(chosen, image_root, report_of, absent))
        for split, chosen in studies.items()
    }
    notes = [
        "the authors' references (2,000 images, rewritten by a language model) are not published; "
        "scores here are not comparable with Tables 1 and 2",
        f"{sum(map(len, studies.values()))} studies have a frontal view; left out: "
        f"{absent['image']} whose image is "
        f"not here, {absent['report']} without a report, {absent['section']} without "
        f"{' or '.join(wanted)}",
    ]
    if not any(splits.values()):
        raise UserError(
            f"{source}: no study has both a frontal image below {image_root} and a report with "
            f"{' or '.join(wanted)}"
        )
    return Release("physionet", splits, image_root, counts, notes)


def _records(
    studies: dict[tuple[str, str], list[tuple[int, str]]],
    image_root: Path,
    report_of: Callable[[str, str], str | None],
    absent: dict[str, int],
) -> Iterator[Record]:
    for (subject, study), images in studies.items():
        folder = f"p{subject[:2]}/p{subject}/s{study}"
        here = [
            dicom for _, dicom in sorted(images) if (image_root / folder / f"{dicom}.jpg").is_file()
        ]
        text = report_of(subject, study) if here else None
        if not here:
            absent["image"] += 1
        elif text is None:
            absent["report"] += 1
        elif text:
            shown = f"{folder}/{here[0]}.jpg"
            yield report_record(f"s{study}", shown, text, {"subject": subject})
        else:
            absent["section"] += 1


def _reports(source: Path, sections: Sequence[str]) -> Callable[[str, str], str | None]:
    """Return what gives the cleaned report of (subject, study); None where there is none."""
    folder = find_optional(
        source,
        "mimic-cxr/2.*/mimic-cxr-reports/files",
        "mimic-cxr/2.*/files",
        "mimic-cxr-reports/files",
    )
    table = find_optional(source, f"mimic-cxr/2.*/{SECTIONED}", SECTIONED)
    if folder is None and table is not None:
        rows = {row["study"]: row for row in _table(table, "study", *SECTIONS)}

        def of_table(subject: str, study: str) -> str | None:
            row = rows.get(f"s{study}")
            bodies = [_body(row[name] or "") for name in sections] if row else []
            return None if row is None else " ".join(filter(None, bodies))

        return of_table
    reports = find(
        source,
        f"report folder (mimic-cxr-reports.zip, unpacked) and no {SECTIONED}",
        "mimic-cxr/2.*/mimic-cxr-reports/files",
        "mimic-cxr/2.*/files",
        "mimic-cxr-reports/files",
    )

    def of_folder(subject: str, study: str) -> str | None:
        file = reports / f"p{subject[:2]}/p{subject}/s{study}.txt"
        if not file.is_file():
            return None
        return clean_report(file.read_text(encoding="utf-8"), sections)

    return of_folder


def clean_report(text: str, wanted: Sequence[str] = SECTIONS) -> str:
    """Return the findings and the impression of a report, or one of them, as one paragraph.

    Empty where it has none of the sections `wanted`.

    Headings are upper-case words before a colon at the start of a line. What stands under the name
    of the examination ("CHEST, TWO VIEWS:") is findings, where it is five words or more. List
    numbers, the underscores of the de-identification and line breaks are removed; nothing is
    reworded.
    """
    headings = list(_HEADING.finditer(text))
    sections: dict[int, list[str]] = {0: [], 1: []}
    for number, heading in enumerate(headings):
        name = heading[1].strip()
        place = _WANTED.get(name)
        end = headings[number + 1].start() if number + 1 < len(headings) else len(text)
        named = place is None and _EXAMINATION.search(name) and not _ABOUT.search(name)
        if named and len(text[heading.end() : end].split()) >= _WORDS:
            place = 0
        if place is not None:
            sections[place].append(_body(text[heading.end() : end]))
    chosen = [one for name in wanted for one in sections[SECTIONS.index(name)]]
    return " ".join(filter(None, chosen))


def _body(text: str) -> str:
    """Return a section without list numbers, underscores and line breaks; empty without a word."""
    body = " ".join(re.sub(r"_{2,}", " ", text).split())
    body = _ENUMERATION.sub("", body)
    body = re.sub(r"\s+([.,;:])", r"\1", body)
    return body if re.search(r"\w", body) else ""


def _both(name: str) -> tuple[str, ...]:
    return tuple(
        f"{folder}/{name}{end}"
        for folder in ("mimic-cxr-jpg/2.*", "mimic-cxr-jpg")
        for end in (".gz", "")
    )


def _table(path: Path, *columns: str) -> Iterator[dict[str, str]]:
    """Yield the rows of a (gzipped) CSV table that must have `columns`."""
    try:
        with (
            gzip.open(path, "rt", newline="")
            if path.suffix == ".gz"
            else path.open(newline="") as file
        ):
            reader = csv.DictReader(file)
            missing = [column for column in columns if column not in (reader.fieldnames or ())]
            if missing:
                raise UserError(
                    f"{path}: no column {', '.join(missing)}; it has "
                    f"{', '.join(reader.fieldnames or ())}"
                )
            yield from reader
    except (OSError, EOFError) as error:
        raise UserError(f"{path} cannot be read: {error}; download it again") from None


MIMIC_CXR_REPORT = DataSet(
    name="mimic-cxr-report",
    title="MIMIC-CXR reports",
    task="report",
    download="physionet.org: mimic-cxr-jpg 2.x (images, tables) and mimic-cxr 2.x "
    "(mimic-cxr-reports.zip)",
    licence="PhysioNet Credentialed Health Data License 1.5.0",
    access="credentialed: PhysioNet account, CITI training and a signed data use agreement; no "
    "redistribution, and no sending of images or reports to third-party services",
    layout="mimic-cxr-jpg/2.*/{mimic-cxr-2.0.0-split.csv.gz, mimic-cxr-2.0.0-metadata.csv.gz, "
    f"files/}} and mimic-cxr/2.*/mimic-cxr-reports/files/ or {SECTIONED}; or test.json (lists of "
    "findings and impressions) and images/",
    read=read,
    published={
        "physionet": {"train images": 368960, "validation images": 2991, "test images": 5159}
    },
    counts_from="public reports of the split table; they add up to PhysioNet's 377,110 images",
    sections=SECTIONS,
)
