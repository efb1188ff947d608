r"""IU-Xray VQA: the factuality questions of CARES (Xia et al. 2024) about Indiana University chest X-rays.

    SOURCE/iuxray_factuality.jsonl (or data/IU-Xray/...)     2,573 lines
    SOURCE/images/CXR3030_IM-1405/0.png                      the R2Gen image folder (also iu_xray/images)

A line: {"question": "Is there ...? Please choose from the following two options: [yes, no]\n<image>",
"answer": "Yes.", "image": "CXR3030_IM-1405/0.png", "question_id": 0, "text"}. All are answered by yes or no.

CARES publishes no split, and the authors' (1,783 train, 784 test) is not in it. Here about 70% of the questions are for
training, drawn by patient with a seed: no examination is on both sides.
"""

from pathlib import Path
from typing import Any

from pipelines.datasets.release import (
    DataSet,
    Release,
    answer_counts,
    find,
    json_rows,
    question_record,
    split_groups,
    text_field,
)
from shared.manifest import Record

TRAIN_SHARE = 0.7


def read(source: Path, out: Path, seed: int) -> Release:
    """Read the questions and split them by patient."""
    name = "iuxray_factuality.jsonl"
    rows = list(json_rows(find(source, "question file", name, f"IU-Xray/{name}", f"data/IU-Xray/{name}")))
    image_root = find(source, "image folder (R2Gen's)", "images", "iu_xray/images", "IU-Xray/images")
    records = [_record(row, where) for where, row in rows]
    train, test = split_groups(records, patient, TRAIN_SHARE, seed)
    counts = answer_counts("released", records)
    note = f"split drawn by patient with seed {seed}; the authors' split (1,783 / 784) is not published with the set"
    return Release("jsonl", {"train": train, "test": test}, image_root, counts, [note])


def _record(row: dict[str, Any], where: str) -> Record:
    return question_record(
        text_field(row, where, "question_id"),
        text_field(row, where, "image"),
        text_field(row, where, "question"),
        text_field(row, where, "answer"),
        "CLOSED",
    )


def patient(record: Record) -> str:
    """Return the patient of a record: `CXR3030_IM-1405/0.png` is an image of CXR3030."""
    return record.images[0].split("/")[0].split("_")[0]


IU_XRAY_VQA = DataSet(
    name="iu-xray-vqa",
    title="IU-Xray VQA (CARES, factuality)",
    task="vqa",
    download="github.com/richard-peng-xia/CARES (data/IU-Xray) and the R2Gen archive of the images",
    licence="questions: CC BY 4.0 (CARES); images: the terms of Open-i, Indiana University",
    access="open",
    layout="iuxray_factuality.jsonl and images/CXRn_IM-n/0.png",
    read=read,
    published={"jsonl": {"released questions": 2573, "released yes/no": 2573}},
)
