"""PathVQA (He et al. 2020): questions about pathology figures, in the published splits.

Three forms are read:

    hub (flaviagiammarino/path-vqa)
        data/{train,validation,test}-*.parquet with `image`, `question`, `answer`
    JSON
        train.json, val.json, test.json (or qas/...) and images/{train,val,test}/NAME.jpg
    the authors' archive (`pvqa`)
        qas/{split}/{split}_qa.pkl or qas/{split}_vqa.pkl, and images/ as above

A JSON record: {"qid", "image_name": "train_0422.jpg", "question", "answer", "answer_type": "yes/no"
| "other" | "number", "question_type"}. A pickled one: {"image": "train_0422", "question", "answer"}
or {"img_id", "question_id", "sent", "label": {answer: 1}, "answer_type", "question_type"}. Closed
is what is answered by yes or no, in every form.

A pickle can run any code when it is opened. These are opened by an unpickler that knows lists,
dictionaries, text and numbers and refuses everything else.
"""

import io
import pickle
from collections.abc import Mapping
from pathlib import Path

from pipelines.datasets.release import (
    DataSet,
    Release,
    Row,
    Rows,
    answer_counts,
    answer_field,
    answered,
    find,
    find_optional,
    json_rows,
    question_record,
    text_field,
)
from pipelines.datasets.vqa_rad import hub_records
from pipelines.metrics.vqa import is_yes_no
from shared.errors import UserError
from shared.records import Record

FOLDERS = {"train": "train", "validation": "val", "test": "test"}


def read(source: Path, out: Path, seed: int) -> Release:
    """Read any of the three forms; images of the parquet form are written below `out`."""
    shards = {split: sorted(source.glob(f"**/{split}-*.parquet")) for split in FOLDERS}
    if any(shards.values()):
        return _read_parquet(source, shards, out)
    image_root = find(source, "image folder", "images", "pvqa/images")
    splits = {}
    for split, short in FOLDERS.items():
        file = _question_file(image_root.parent, split, short)
        rows = pickle_rows(file) if file.suffix == ".pkl" else json_rows(file)
        splits[split] = [
            _record(row, where, short, number, image_root)
            for number, (where, row) in enumerate(rows)
        ]
    return _release("files", splits, image_root)


def _read_parquet(source: Path, shards: Mapping[str, list[Path]], out: Path) -> Release:
    missing = [f"{split}-*.parquet" for split, paths in shards.items() if not paths]
    if missing:
        raise UserError(
            f"{source}: no {', '.join(missing)} beside the others; download the whole repository"
        )
    splits = {split: hub_records(split, paths, out) for split, paths in shards.items()}
    return _release("parquet", splits, out)


def _question_file(root: Path, split: str, short: str) -> Path:
    """Find a split's questions under any of their names; `short` is the archive's for it."""
    return find(
        root,
        f"{split} questions",
        *(
            f"{folder}{name}.json"
            for folder in ("", "qas/", f"qas/{short}/")
            for name in (short, f"{short}_qa")
        ),
        *((f"{split}.json",) if split != short else ()),
        f"qas/{short}/{short}_qa.pkl",
        f"qas/{short}_vqa.pkl",
        *((f"data/{split}-*.parquet",) if split == "train" else ()),
    )


def _release(form: str, splits: dict[str, list[Record]], image_root: Path) -> Release:
    counts: dict[str, int] = {}
    for split, records in splits.items():
        counts |= answer_counts(split, records)
    splits, notes = answered(splits)
    return Release(form, splits, image_root, counts, notes)


def _record(row: Row, where: str, folder: str, number: int, image_root: Path) -> Record:
    name = text_field(row, where, "image_name", "image", "img_id")
    name = name if name.lower().endswith((".jpg", ".png")) else f"{name}.jpg"
    place = find_optional(image_root, f"{folder}/{name}", name)
    label = row.get("label")
    if "answer" not in row and isinstance(label, dict) and label:
        row = {**row, "answer": max(label, key=lambda answer: label[answer])}
    answer = answer_field(row, where)
    kept = {key: row[key] for key in ("question_type",) if key in row}
    identifier = row.get("qid", row.get("question_id", f"{folder}_{number}"))
    return question_record(
        str(identifier),
        f"{folder}/{name}" if place is None else str(place.relative_to(image_root)),
        text_field(row, where, "question", "sent"),
        answer,
        "CLOSED" if is_yes_no(answer) else "OPEN",
        extra=kept,
    )


class _Primitives(pickle.Unpickler):
    """Opens pickles of lists, dictionaries, text, numbers and None.

    Any class or function is refused.
    """

    def find_class(self, module: str, name: str) -> object:
        raise pickle.UnpicklingError(f"it wants to load {module}.{name}")

    def persistent_load(self, identifier: object) -> object:
        raise pickle.UnpicklingError("it refers to data outside itself")


def pickle_rows(path: Path) -> Rows:
    """Yield (where, row) of a pickled list of dictionaries, without the power to run code.

    Raises
    ------
    UserError
        The file holds anything but primitives, or is no pickle.
    """
    try:
        rows = _Primitives(io.BytesIO(path.read_bytes())).load()
    except Exception as error:
        raise UserError(
            f"{path} was not opened: {error}. Only lists, dictionaries, text and numbers are "
            "admitted; "
            "use the parquet or the JSON form instead"
        ) from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{path}: expected a list of records")
    for number, row in enumerate(rows):
        yield f"{path}, record {number}", row


PATH_VQA = DataSet(
    name="path-vqa",
    title="PathVQA",
    task="vqa",
    download="Hugging Face flaviagiammarino/path-vqa (parquet), or the pvqa archive of "
    "UCSD-AI4H/PathVQA",
    licence="MIT (the card of the Hugging Face release); figures come from textbooks and the PEIR "
    "library",
    access="open",
    layout="data/{train,validation,test}-*.parquet, or images/{train,val,test}/ with train.json "
    "... or qas/*.pkl",
    read=read,
    published={
        "parquet": {
            "train questions": 19654,
            "validation questions": 6259,
            "test questions": 6719,
            "test yes/no": 3362,
        },
        "files": {
            "train questions": 19755,
            "train images": 2599,
            "validation questions": 6279,
            "validation images": 832,
            "test questions": 6761,
            "test images": 858,
            "test yes/no": 3391,
        },
    },
    counts_from="files: printed in a notebook of LLaVA-Med "
    "(llava/notebook/run_eval_metrics.ipynb), 32,795 in all as "
    "on the card; parquet: the card of flaviagiammarino/path-vqa, yes/no as checked by public code "
    "that reads it",
)
