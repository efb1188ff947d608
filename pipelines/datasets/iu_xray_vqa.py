r"""IU-Xray VQA.

The factuality questions of CARES (Xia et al. 2024) about Indiana University chest X-rays.

    SOURCE/iuxray_factuality.jsonl (or data/IU-Xray/...)   2,573 lines
    SOURCE/images/CXR3030_IM-1405/0.png    the R2Gen image folder (also iu_xray/images)

A line: {"question": "Is there ...? Please choose from the following two options: [yes,
no]\n<image>", "answer": "Yes.", "image": "CXR3030_IM-1405/0.png", "question_id": 0, "text": the
question again}. `question_id` is 0 in every line of the release, so a record's id is the number of
its line.

The answers were written by a language model: "No", "- No.", "No (based on the report stating the
lungs are clear)." Where one opens with yes or no, that word is the answer and the sentence stays in
`released_answer`. The others are left out: they say that the report does not tell, or hold the next
question of the list.

CARES publishes no split, and the authors' (1,783 train, 784 test) is not in it. Here about 70% of
the questions are for training, drawn by patient with a seed: no examination is on both sides.
"""

import re
from pathlib import Path

from pipelines.datasets.release import (
    DataSet,
    Release,
    Row,
    answer_counts,
    answer_field,
    answered,
    find,
    json_rows,
    question_record,
    split_groups,
    text_field,
)
from shared.records import Record

TRAIN_SHARE = 0.7
_OPENS = re.compile(r"[\s-]*(yes|no)\s*(?:$|[.,;(])", re.IGNORECASE)


def read(source: Path, out: Path, seed: int) -> Release:
    """Read the questions and split them by patient."""
    name = "iuxray_factuality.jsonl"
    rows = list(
        json_rows(find(source, "question file", name, f"IU-Xray/{name}", f"data/IU-Xray/{name}"))
    )
    image_root = find(
        source, "image folder (R2Gen's)", "images", "iu_xray/images", "IU-Xray/images"
    )
    records = [_record(row, where, number) for number, (where, row) in enumerate(rows)]
    counts = {
        name: count
        for name, count in answer_counts("released", records).items()
        if "open" not in name
    }
    kept, _ = answered({"released": records})
    train, test = split_groups(kept["released"], patient, TRAIN_SHARE, seed)
    notes = [
        f"split drawn by patient with seed {seed}; the authors' split (1,783 / 784) is not "
        "published with the set",
        f"{len(records) - len(kept['released'])} questions whose answer does not open with yes or "
        "no are left out",
    ]
    return Release("jsonl", {"train": train, "test": test}, image_root, counts, notes)


def _record(row: Row, where: str, number: int) -> Record:
    released = answer_field(row, where)
    opening = _OPENS.match(released)
    return question_record(
        str(number),
        text_field(row, where, "image"),
        text_field(row, where, "question"),
        opening[1].capitalize() if opening else "",
        "CLOSED",
        extra={"released_answer": released},
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
    published={
        "jsonl": {"released questions": 2573, "released images": 587, "released yes/no": 2491}
    },
    counts_from="counted in the file of CARES' repository (commit a743fe0) by the rule of this "
    "reader",
)
