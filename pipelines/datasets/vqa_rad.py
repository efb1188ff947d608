"""VQA-RAD (Lau et al. 2018) in the three forms that circulate.

The JSON release, the parquet files of the hub, and the pairs that most papers before 2023 train on.

JSON release (OSF):

    SOURCE/VQA_RAD Dataset Public.json    2,248 records; those for testing have a `phrase_type`
                                          that starts with "test_"
    SOURCE/VQA_RAD Image Folder/synpicN.jpg

A record: {"qid", "phrase_type", "qid_linked_id", "image_case_url", "image_name", "image_organ",
"evaluation", "question", "question_rephrase", "question_relation", "question_frame",
"question_type", "answer" (text or a number), "answer_type": "OPEN" | "CLOSED" (some with a blank
after it)}.

Hub (`flaviagiammarino/vqa-rad`): SOURCE/data/train-*.parquet and test-*.parquet with `image`,
`question`, `answer`; duplicates are gone and there is no answer type: closed is what is answered by
yes or no.

Pairs (in the repositories of MEVF, CR, PubMedCLIP and others): SOURCE/trainset.json (3,064) and
testset.json (451), 3,515 in all, records as in the release but for `evaluation` and the
`question_*` fields. 1,267 of the training pairs are templates ("Is/Are the lungs normal size?"),
which the release of 2,248 does not have: their `phrase_type` is `frame`. The test pairs are those
of the release.

The published split asks about the same images in training and in testing.
"""

from pathlib import Path

from pipelines.datasets.release import (
    DataSet,
    Release,
    Row,
    answer_counts,
    answer_field,
    answered,
    embedded_image,
    find,
    find_optional,
    json_rows,
    parquet_rows,
    question_record,
    text_field,
    typed_record,
)
from pipelines.metrics.vqa import is_yes_no
from shared.errors import UserError
from shared.records import Record

PUBLIC = "VQA_RAD Dataset Public.json"
IMAGES = "VQA_RAD Image Folder"
TRAIN_PAIRS, TEST_PAIRS = "trainset.json", "testset.json"
FRAME = "frame"  # phrase_type of a template
KEPT = ("phrase_type", "qid_linked_id", "image_organ", "question_type", "image_case_url")


def read(source: Path, out: Path, seed: int) -> Release:
    """Read any form; images of the parquet form are written below `out`."""
    pairs = find_optional(source, TRAIN_PAIRS, f"data/{TRAIN_PAIRS}", f"data_RAD/{TRAIN_PAIRS}")
    if pairs is not None and find_optional(source, PUBLIC) is None:
        return _read_pairs(source, pairs)
    shards = {split: sorted(source.glob(f"**/{split}-*.parquet")) for split in ("train", "test")}
    if any(shards.values()) and find_optional(source, PUBLIC) is None:
        return _read_parquet(source, shards, out)
    rows = list(json_rows(find(source, "question file", PUBLIC, "data/train-*.parquet")))
    image_root = _image_root(source)
    splits: dict[str, list[Record]] = {"train": [], "test": []}
    for where, row in rows:
        test = text_field(row, where, "phrase_type").startswith("test_")
        splits["test" if test else "train"].append(_record(row, where))
    counts = {"questions": len(rows)}
    for split, records in splits.items():
        counts |= answer_counts(split, records)
    splits, notes = answered(splits)
    return Release("json", splits, image_root, counts, notes)


def _read_pairs(source: Path, train: Path) -> Release:
    files = {"train": train, "test": find(train.parent, "test pairs", TEST_PAIRS)}
    splits = {
        split: [_record(row, where) for where, row in json_rows(file)]
        for split, file in files.items()
    }
    frames = sum(record.extra.get("phrase_type") == FRAME for record in splits["train"])
    counts = {"questions": sum(map(len, splits.values())), "train frame questions": frames}
    for split, records in splits.items():
        counts |= answer_counts(split, records)
    note = (
        f"{frames} training questions are templates (`phrase_type` {FRAME}), which the release of "
        "2,248 questions does not have; scores of models trained on them are not comparable"
    )
    splits, notes = answered(splits)
    return Release("pairs", splits, _image_root(source), counts, [note, *notes])


def _image_root(source: Path) -> Path:
    return find(
        source, "image folder", IMAGES, "VQA_RAD_Image_Folder", "images", "data/images", "imgs"
    )


def _record(row: Row, where: str) -> Record:
    return typed_record(row, where, "image_name", KEPT)


def _read_parquet(source: Path, shards: dict[str, list[Path]], out: Path) -> Release:
    splits: dict[str, list[Record]] = {}
    counts: dict[str, int] = {}
    for split, paths in shards.items():
        if not paths:
            raise UserError(
                f"{source}: no {split}-*.parquet beside the other split; download the whole "
                "repository"
            )
        splits[split] = hub_records(split, paths, out)
        counts |= answer_counts(split, splits[split])
    note = (
        "this form has no answer type: closed is what is answered by yes or no, so denominators "
        "differ from the JSON"
    )
    splits, notes = answered(splits)
    return Release("parquet", splits, out, counts, [note, *notes])


def hub_records(split: str, paths: list[Path], out: Path) -> list[Record]:
    """Read parquet shards with `image`, `question` and `answer`.

    Closed is what is answered by yes or no.
    """
    return [
        question_record(
            f"{split}_{number}",
            embedded_image(row["image"], where, out),
            text_field(row, where, "question"),
            answer_field(row, where),
            "CLOSED" if is_yes_no(answer_field(row, where)) else "OPEN",
        )
        for number, (where, row) in enumerate(parquet_rows(paths, ("image", "question", "answer")))
    ]


VQA_RAD = DataSet(
    name="vqa-rad",
    title="VQA-RAD",
    task="vqa",
    download="osf.io/89kps (JSON and images), or Hugging Face flaviagiammarino/vqa-rad (parquet); "
    "the 3,515 pairs are in github.com/Awenbocc/med-vqa, data/",
    licence="CC0 1.0",
    access="open",
    layout=f"'{PUBLIC}' and '{IMAGES}/synpicN.jpg', or data/train-*.parquet and "
    f"data/test-*.parquet, or '{TRAIN_PAIRS}', '{TEST_PAIRS}' and images/",
    read=read,
    published={
        "json": {
            "questions": 2248,
            "train questions": 1797,
            "train images": 313,
            "test images": 203,
            "test questions": 451,
            "test open": 179,
            "test closed": 272,
        },
        "parquet": {"train questions": 1793, "test questions": 451},
        "pairs": {
            "questions": 3515,
            "train questions": 3064,
            "train frame questions": 1267,
            "train images": 314,
            "test questions": 451,
            "test images": 203,
            "test open": 179,
            "test closed": 272,
        },
    },
    counts_from="printed in a notebook of LLaVA-Med (llava/notebook/run_eval_metrics.ipynb); the "
    "hub's data set viewer; the pairs counted in a public copy (github.com/Awenbocc/med-vqa, "
    "0cca681, data/)",
)
