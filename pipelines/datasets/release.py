"""What the readers of releases share.

Finding files, checking rows, making records, splitting by image.

A reader (one file per set) turns a release, laid out as its users download it, into a `Release`.
Everything it expects and does not find is a `UserError` that names the place.
"""

import json
import random
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from pipelines.metrics.vqa import is_yes_no
from shared.errors import UserError
from shared.records import AnswerType, Record, Turn, front_images

T = TypeVar("T")
Row = Mapping[str, object]  # of a release: fields by name, read by `text_field` and its like
Rows = Iterator[tuple[str, Row]]


class Release(NamedTuple):
    """A release, read.

    Attributes
    ----------
    form
        Which of the published forms of the set this is; the published counts depend on it.
    splits
        Records of `train`, `test` and, where there is one, `validation`.
    image_root
        What the records' images are relative to.
    counts
        What was counted in the release, before anything was left out.
    notes
        What the user has to know: what was left out, and why.
    """

    form: str
    splits: dict[str, list[Record]]
    image_root: Path
    counts: dict[str, int]
    notes: list[str]


class DataSet(NamedTuple):
    """One entry of the registry.

    What a set is, where it comes from, under which terms, and who reads it.

    Attributes
    ----------
    read
        `read(source, out, seed) -> Release`; `out` is for images that the release embeds. With
        `sections`, `read(source, out, seed, sections)`.
    published
        Published counts by form; `prepare` compares them with what was counted.
    counts_from
        Where the published counts stand, or in which public copy they were counted.
    sections
        Sections of reports that may be chosen; none where the set has no such sections.
    """

    name: str
    title: str
    task: str
    download: str
    licence: str
    access: str
    layout: str
    read: Callable[..., Release]
    published: Mapping[str, Mapping[str, int]]
    counts_from: str
    sections: tuple[str, ...] = ()


def find(source: Path, what: str, *candidates: str) -> Path:
    """Return the first of `candidates` (relative to `source`, glob patterns allowed) that exists.

    Raises
    ------
    UserError
        Says what was expected where, what is there instead, and which archive to unpack.
    """
    found = find_optional(source, *candidates)
    if found is not None:
        return found
    if not source.is_dir():
        raise UserError(
            f"{source} is not a folder; --source is the folder with the release, unpacked"
        )
    names = sorted(entry.name + "/" * entry.is_dir() for entry in source.iterdir())
    archives = [name for name in names if name.endswith((".zip", ".tar", ".tar.gz", ".tgz"))]
    hint = f"; unpack {', '.join(archives)} first" if archives else ""
    shown = (
        ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
        or "nothing"
    )
    raise UserError(f"{source}: no {what}; expected {' or '.join(candidates)}, found {shown}{hint}")


def find_optional(source: Path, *candidates: str) -> Path | None:
    """Return the first of `candidates` that exists, or None."""
    for candidate in candidates:
        hits = sorted(source.glob(candidate))
        if hits:
            return hits[0]
    return None


def json_rows(path: Path) -> Rows:
    """Yield (where, row) of a JSON list of objects, or of JSON lines."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".jsonl":
            rows = [json.loads(line) for line in text.split("\n") if line.strip()]
        else:
            rows = json.loads(text)
    except (ValueError, OSError) as error:
        raise UserError(f"{path} cannot be read: {error}; download it again") from None
    if not isinstance(rows, list):
        raise UserError(f"{path}: expected a JSON list of records, found a {type(rows).__name__}")
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise UserError(
                f"{path}, record {number}: expected an object, found a {type(row).__name__}"
            )
        yield f"{path}, record {number}", row


def parquet_rows(paths: Sequence[Path], columns: Sequence[str]) -> Rows:
    """Yield (where, row) of parquet shards; a missing column is an error that names it."""
    import pyarrow.parquet

    for path in paths:
        try:
            file = pyarrow.parquet.ParquetFile(path)
        except (ValueError, OSError) as error:
            raise UserError(f"{path} cannot be read: {error}; download it again") from None
        with file:
            names = set(file.schema_arrow.names)
            missing = [column for column in columns if column not in names]
            if missing:
                raise UserError(
                    f"{path}: no column {', '.join(missing)}; it has {', '.join(sorted(names))}"
                )
            number = 0
            for batch in file.iter_batches(batch_size=256, columns=list(columns)):
                for row in batch.to_pylist():
                    yield f"{path}, row {number}", row
                    number += 1


def text_field(row: Row, where: str, *names: str) -> str:
    """Return the first of the fields `names` that the row has, as text; a number becomes text.

    Raises
    ------
    UserError
        The row has none of them, or it is empty.
    """
    for name in names:
        value = row.get(name)
        if isinstance(value, str) and value.strip():
            return value
        if isinstance(value, int | float) and not isinstance(value, bool):
            return str(value)
    raise UserError(
        f"{where}: no `{'` or `'.join(names)}`; it has {', '.join(map(str, row)) or 'nothing'}"
    )


def answer_field(row: Row, where: str, name: str = "answer") -> str:
    """Return the answer as text without outer blanks, "" where the release has an empty one.

    A missing field is a UserError.
    """
    value = row.get(name)
    return (
        "" if isinstance(value, str) and not value.strip() else text_field(row, where, name).strip()
    )


def answered(splits: Mapping[str, list[Record]]) -> tuple[dict[str, list[Record]], list[str]]:
    """Return the records that have an answer, and a note of how many have none."""
    kept = {
        split: [record for record in records if record.answer] for split, records in splits.items()
    }
    empty = sum(map(len, splits.values())) - sum(map(len, kept.values()))
    return kept, [f"{empty} questions with an empty answer are left out"] if empty else []


def question_record(
    identifier: str,
    image: str,
    question: str,
    answer: str,
    answer_type: AnswerType | None = None,
    options: Iterable[str] = (),
    extra: Mapping[str, object] | None = None,
) -> Record:
    """Return one question about one image with its answer; `extra` are further fields."""
    turns = (Turn("human", front_images(question, 1)), Turn("gpt", answer))
    return Record(identifier, (image,), turns, answer_type, tuple(options), dict(extra or {}))


def typed_record(row: Row, where: str, image: str, kept: Iterable[str]) -> Record:
    """Return one question of a release that types its answers, as SLAKE and VQA-RAD do.

    Parameters
    ----------
    row, where
        With `qid`, `question`, `answer` and `answer_type`, OPEN or CLOSED; and where it stands.
    image
        The field that names the image.
    kept
        Further fields, kept where they are there.

    Raises
    ------
    UserError
        A field is missing, or the type is another.
    """
    answer_type = text_field(row, where, "answer_type").strip().upper()
    if answer_type not in ("OPEN", "CLOSED"):
        raise UserError(f"{where}: `answer_type` is {answer_type!r}, neither OPEN nor CLOSED")
    return question_record(
        text_field(row, where, "qid"),
        text_field(row, where, image),
        text_field(row, where, "question"),
        answer_field(row, where),
        "OPEN" if answer_type == "OPEN" else "CLOSED",
        extra={name: row[name] for name in kept if name in row},
    )


# as in the authors' data files
REPORT_PROMPT = "Analyze the chest X-ray and generate a concise medical report."


def report_record(
    identifier: str, image: str, report: str, extra: Mapping[str, object] | None = None
) -> Record:
    """Return one image with its report; `task` tells an evaluation to score it as a report."""
    fields = {"task": "report", **(extra or {})}
    return question_record(identifier, image, REPORT_PROMPT, report, extra=fields)


def embedded_image(value: object, where: str, out: Path) -> str:
    """Write an image embedded in a table (`{"bytes", "path"}`) once below `out`.

    Return its path from there.

    The name is the sha256 of the bytes, which is the image's content key: equal images become one
    file.
    """
    import hashlib

    content = value.get("bytes") if isinstance(value, Mapping) else value
    if not isinstance(content, bytes) or not content:
        raise UserError(
            f"{where}: the image holds no bytes; expected an image embedded in the table"
        )
    suffix = {b"\xff\xd8\xff": ".jpg", b"\x89PN": ".png"}.get(content[:3])
    if suffix is None:
        raise UserError(
            f"{where}: the image is neither JPEG nor PNG (it starts with {content[:4].hex()})"
        )
    path = out / "images" / (hashlib.sha256(content).hexdigest() + suffix)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return str(path.relative_to(out))


def split_groups(
    items: Sequence[T], group: Callable[[T], Hashable], share: float, seed: int
) -> tuple[list[T], list[T]]:
    """Split into two lists so that no group is in both; the first holds about `share` of the items.

    Depends on the items' groups and the seed alone, not on the order of the items.
    """
    members: dict[Hashable, int] = {}
    for item in items:
        key = group(item)
        members[key] = members.get(key, 0) + 1
    order = sorted(members, key=str)
    random.Random(seed).shuffle(order)
    first: set[Hashable] = set()
    taken = 0
    for key in order:
        if taken >= share * len(items):
            break
        first.add(key)
        taken += members[key]
    return [item for item in items if group(item) in first], [
        item for item in items if group(item) not in first
    ]


def answer_counts(split: str, records: Sequence[Record]) -> dict[str, int]:
    """Count a split's questions and images, and its open, closed and yes/no questions."""
    return {
        f"{split} questions": len(records),
        f"{split} images": len({image for record in records for image in record.images}),
        f"{split} open": sum(record.answer_type == "OPEN" for record in records),
        f"{split} closed": sum(record.answer_type == "CLOSED" for record in records),
        f"{split} yes/no": sum(is_yes_no(record.answer) for record in records),
    }


def join_by_image(records: Sequence[Record], turns: int, keep: Sequence[str]) -> list[Record]:
    """Join the single questions about each image, in their order, into conversations.

    An image is encoded once for all its turns, so an epoch costs a fraction of that over single
    questions.

    Parameters
    ----------
    turns
        Questions of one conversation at most.
    keep
        Extra fields of the first question that its conversation keeps.
    """
    about: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        about[record.images[0]].append(record)
    joined = []
    for image, asked in about.items():
        for part, start in enumerate(range(0, len(asked), turns)):
            first, *others = asked[start : start + turns]
            later = [
                turn
                for record in others
                for turn in (Turn("human", record.question), Turn("gpt", record.answer))
            ]
            extra = {key: first.extra[key] for key in keep} | {"kind": "conversation"}
            joined.append(
                Record(f"{Path(image).stem}-{part}", (image,), (*first.turns, *later), extra=extra)
            )
    return joined
