"""OmniMedVQA (Hu et al. 2024), its open-access part: multiple choice over many modalities.

    SOURCE/OmniMedVQA/QA_information/Open-access/<dataset>.json      (or SOURCE/QA_information/...)
    SOURCE/OmniMedVQA/Images/<dataset>/...

A record: {"dataset", "question_id", "question_type", "question", "gt_answer", "image_path":
"Images/...", "option_A", "option_B", "option_C"?, "option_D"?, "modality_type"}. The restricted
part names images that are not in the archive; it is left out, and the count of its questions shown.

No split is published with the set. Here about 70% of the questions are for training, drawn by image
with a seed; the authors use a subset that CARES chose (6,155 train, 2,642 test), which is not
published with the set either.
"""

from pathlib import Path

from pipelines.datasets.release import (
    DataSet,
    Release,
    Row,
    answer_counts,
    answer_field,
    answered,
    find,
    find_optional,
    json_rows,
    question_record,
    split_groups,
    text_field,
)
from shared.errors import UserError
from shared.records import Record

TRAIN_SHARE = 0.7
OPTIONS = ("option_A", "option_B", "option_C", "option_D")
KEPT = ("dataset", "question_type", "modality_type", *OPTIONS)


def read(source: Path, out: Path, seed: int) -> Release:
    """Read the open-access questions and split them by image."""
    folder = find(
        source,
        "question folder",
        "QA_information/Open-access",
        "OmniMedVQA/QA_information/Open-access",
    )
    root = folder.parent.parent
    find(root, "image folder", "Images")
    files = sorted(folder.glob("*.json"))
    if not files:
        raise UserError(f"{folder} holds no <dataset>.json; unpack OmniMedVQA.zip again")
    records = [_record(row, where) for file in files for where, row in json_rows(file)]
    restricted = find_optional(root, "QA_information/Restricted-access")
    closed_off = (
        sum(1 for file in sorted(restricted.glob("*.json")) for _ in json_rows(file))
        if restricted
        else 0
    )
    kept, empty = answered({"open-access": records})
    train, test = split_groups(
        kept["open-access"], lambda record: record.images[0], TRAIN_SHARE, seed
    )
    counts = answer_counts("open-access", records) | {"open-access data sets": len(files)}
    unlisted = sum(record.answer not in record.options for record in kept["open-access"])
    notes = [
        f"split drawn by image with seed {seed}; the authors' subset (6,155 / 2,642) is not "
        "published with the set",
        f"{closed_off} questions about restricted-access images are left out; those images come "
        "from their own sources",
        *empty,
    ]
    if unlisted:
        notes.append(
            f"{unlisted} answers are none of their options word for word; the most similar option "
            "counts"
        )
    return Release("open-access", {"train": train, "test": test}, root, counts, notes)


def _record(row: Row, where: str) -> Record:
    options = [str(row[name]) for name in OPTIONS if row.get(name) not in (None, "")]
    if len(options) < 2:
        raise UserError(
            f"{where}: {len(options)} options; expected option_A, option_B and perhaps option_C, "
            "option_D"
        )
    return question_record(
        text_field(row, where, "question_id"),
        text_field(row, where, "image_path"),
        f"{text_field(row, where, 'question')} options: {', '.join(options)}",
        answer_field(row, where, "gt_answer"),
        "CLOSED",
        options,
        extra={name: row[name] for name in KEPT if row.get(name) not in (None, "")},
    )


OMNIMEDVQA = DataSet(
    name="omnimedvqa",
    title="OmniMedVQA, open-access part",
    task="vqa",
    download="Hugging Face foreverbeliever/OmniMedVQA (OmniMedVQA.zip, 10.7 GB), unpacked",
    licence="varies by source data set; see the table in OmniMedVQA's paper",
    access="open (the restricted-access part needs each source's own permission and is not read)",
    layout="QA_information/Open-access/<dataset>.json and Images/<dataset>/",
    read=read,
    published={"open-access": {"open-access questions": 88996, "open-access images": 82059}},
    counts_from="papers that use the open-access part, such as Med-R1 (arXiv 2503.13939); the "
    "number of its source "
    "sets could not be confirmed and is not checked",
)
