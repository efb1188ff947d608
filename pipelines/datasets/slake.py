"""SLAKE (Liu et al. 2021).

English questions about CT, MRI and X-ray images, in the published splits.

    SOURCE/train.json, validation.json (or validate.json), test.json   lists of records
    SOURCE/imgs/xmlabN/source.jpg    with mask.png and detection.json beside it

A record: {"img_id", "img_name": "xmlab102/source.jpg", "question", "answer", "q_lang": "en" | "zh",
"location", "modality", "answer_type": "OPEN" | "CLOSED", "base_type", "triple", "qid",
"content_type"}. The release also asks in Chinese; the paper uses the English questions. One of them
(training, qid 1622) has an empty answer and is left out.
"""

from pathlib import Path

from pipelines.datasets.release import (
    DataSet,
    Release,
    Row,
    answer_counts,
    answered,
    find,
    json_rows,
    text_field,
    typed_record,
)
from shared.records import Record

KEPT = ("location", "modality", "content_type", "base_type", "triple", "q_lang")


def read(source: Path, out: Path, seed: int) -> Release:
    """Read the release.

    `out` and `seed` are not needed, images are files and the splits are published.
    """
    image_root = find(source, "image folder", "imgs")
    files = {
        "train": find(source, "training questions", "train.json"),
        "validation": find(source, "validation questions", "validation.json", "validate.json"),
        "test": find(source, "test questions", "test.json"),
    }
    splits: dict[str, list[Record]] = {}
    counts: dict[str, int] = {}
    for split, file in files.items():
        rows = list(json_rows(file))
        splits[split] = [
            _record(row, where) for where, row in rows if text_field(row, where, "q_lang") == "en"
        ]
        counts |= {f"{split} questions in both languages": len(rows)} | answer_counts(
            split, splits[split]
        )
    splits, notes = answered(splits)
    return Release("json", splits, image_root, counts, notes)


def _record(row: Row, where: str) -> Record:
    return typed_record(row, where, "img_name", KEPT)


SLAKE = DataSet(
    name="slake",
    title="SLAKE, English questions",
    task="vqa",
    download="Hugging Face BoKelvin/SLAKE, or Slake1.0 from med-vqa.com/slake; unpack imgs.zip",
    licence="CC BY 4.0",
    access="open",
    layout="train.json, validation.json (or validate.json), test.json, imgs/xmlabN/source.jpg",
    read=read,
    published={
        "json": {
            "train questions in both languages": 9835,
            "validation questions in both languages": 2099,
            "test questions in both languages": 2094,
            "train questions": 4919,
            "train images": 450,
            "validation questions": 1053,
            "test questions": 1061,
            "test images": 96,
            "test open": 645,
            "test closed": 416,
            "test yes/no": 355,
        }
    },
    counts_from="counted in a public copy of Slake1.0 "
    "(github.com/xiaoman-zhang/PMC-VQA, Slake1.0/)",
)
