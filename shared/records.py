"""Data set files: question-answer records over images, in the forms the field uses.

`.json` (a list), `.jsonl` (one record a line) and `.parquet` hold either

- LLaVA conversations: `{"id", "image": str | [str, ...], "conversations": [{"from": "human" |
  "gpt", "value"}, ...]}`,
  text-only where `image` is absent, with an optional `answer_type` of OPEN or CLOSED; one turn
  `"from": "system"` may stand first, or
- the MedHEval question form: `{"qid" | "id", "image", "question", "answer"}`, with an optional
  `choices` (or `options`) and `question_type`, as the authors' evaluation reads it.

The field of images has other spellings (`IMAGE_KEYS`). A record in which an unknown field holds an
image is refused, since it would be read as text alone.

`<image>` marks move to the front of their turn, as in the authors' preparation.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from shared.characters import broken_text
from shared.choices import options_of
from shared.errors import UserError

if TYPE_CHECKING:
    from shared.imaging.images import ImageReference

IMAGE_MARK = "<image>"
AnswerType = Literal["OPEN", "CLOSED"]
# Spellings of the field of images, in any case; the first that is there counts. `images` is that of
# LLaMA-Factory, ms-swift and TRL.
IMAGE_KEYS = (
    "image", "images", "img_name", "image_name", "image_path", "image_paths", "img_path",
    "image_file", "img", "file_name",
)  # fmt: skip
_TEXTS = ("conversations", "question", "answer", "choices", "options")
_IMAGE_FILE = re.compile(
    r"^\S.*\.(?:png|jpe?g|jp2|bmp|gif|webp|tiff?|dcm|dicom|nii|nii\.gz|mha|mp4|avi)(?:#\S*)?$",
    re.IGNORECASE,
)
# Other spellings of OPEN and CLOSED, letters alone.
_ANSWER_TYPES: dict[str, AnswerType] = {
    "OPEN": "OPEN", "OPENENDED": "OPEN", "CLOSED": "CLOSED", "CLOSE": "CLOSED",
    "CLOSEDENDED": "CLOSED", "CLOSEENDED": "CLOSED", "YESNO": "CLOSED",
}  # fmt: skip


class Turn(NamedTuple):
    """One utterance; images are `<image>` marks at the front of its text."""

    role: Literal["human", "gpt"]
    text: str


@dataclass(frozen=True)
class Record:
    """One conversation over zero or more images.

    Attributes
    ----------
    id
        As in the file; its position where the file has none.
    images
        One reference a `<image>` mark, in order, relative to the image root
        (`scan.nii.gz#axial=90`).
    turns
        Alternating, human first; the last answer may be missing in a file of questions.
    answer_type
        Whether the answer is free text or from a closed set; None where the file does not say.
    options
        The answers offered, where the file lists them.
    extra
        Every other field of the record, untouched.
    system
        The conversation's own system message; empty where the template's stands.
    """

    id: str
    images: tuple[str, ...]
    turns: tuple[Turn, ...]
    answer_type: AnswerType | None = None
    options: tuple[str, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict)
    system: str = ""

    def references(self, image_root: str | Path | None = None) -> list["ImageReference"]:
        """Return the images as paths below `image_root` and parts."""
        from shared.imaging.images import parse_reference

        root = None if image_root is None else Path(image_root)
        return [parse_reference(image, root) for image in self.images]

    @property
    def question(self) -> str:
        """The first human turn, without its image marks."""
        return strip_marks(self.turns[0].text)

    @property
    def answer(self) -> str:
        """The last answer; empty in a record that only asks."""
        return next((turn.text for turn in reversed(self.turns) if turn.role == "gpt"), "")


def load_records(path: str | Path, image_root: str | Path | None = None) -> list[Record]:
    """Read a data set file, in its order.

    Parameters
    ----------
    path
        `.json`, `.jsonl` or `.parquet`.
    image_root
        When given, every image file must exist below it.

    Raises
    ------
    UserError
        Names the file, the record and what is wrong with it.
    """
    path = Path(path)
    records: list[Record] = []
    faults: list[str] = []
    for number, (place, row) in enumerate(_rows(path)):
        if isinstance(row, _NotJson):
            faults.append(f"{place} is not JSON: {row.reason}")
            continue
        try:
            records.append(record_of(row, place, number))
        except UserError as error:
            faults.append(str(error))
    if faults:
        shown = "; ".join(faults[:3])
        many = f"{len(faults)} records are no records, first " if len(faults) > 1 else ""
        raise UserError(f"{path}: {many}{shown}")
    if not records:
        raise UserError(f"{path} holds no records")
    if image_root is not None:
        _check_images(records, path, Path(image_root))
    return records


def write_records(path: str | Path, records: Iterable[Record]) -> None:
    """Write LLaVA conversations (`.json`, `.jsonl` or `.parquet`).

    `load_records` gives the same records back.
    """
    path, records = Path(path), list(records)
    rows = [_row(record) for record in records]
    if path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    elif path.suffix == ".jsonl":
        path.write_text(
            "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
        )
    elif path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        if any(isinstance(row.get("image"), list) for row in rows):  # a column has one type
            rows = [
                row | {"image": list(record.images)}
                for row, record in zip(rows, records, strict=True)
            ]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        raise UserError(f"{path}: a data set file ends in .json, .jsonl or .parquet")


def image_root_of(data: str | Path, image_root: str | Path | None) -> Path:
    """Return the folder that image paths of `data` are relative to.

    `image_root`, or the data file's own folder.
    """
    return Path(data).parent if image_root is None else Path(image_root)


def front_images(text: str, images: int | None = None) -> str:
    r"""Move the `<image>` marks to the front.

    `"What is <image> this?"` becomes `"<image>\nWhat is this?"`.

    `images` sets their number; by default it stays.
    """
    count = text.count(IMAGE_MARK) if images is None else images
    return f"{IMAGE_MARK}\n" * count + strip_marks(text).strip() if count else text


def strip_marks(text: str) -> str:
    """Remove `<image>` marks and the white space around them.

    Text without a mark stays as it is.
    """
    if IMAGE_MARK not in text:
        return text
    pieces = [piece.strip() for piece in text.split(IMAGE_MARK)]
    return " ".join(piece for piece in pieces if piece)


def _rows(path: Path) -> Iterable[tuple[str, object]]:
    """Yield (where, row) for every record of the file."""
    try:
        if path.suffix == ".json":
            rows = _parsed(path.read_text(encoding="utf-8-sig"))
            if not isinstance(rows, list):
                raise UserError(f"{path}: expected a JSON list of records, found {_kind(rows)}")
            yield from ((f"record {number}", row) for number, row in enumerate(rows))
        elif path.suffix == ".jsonl":
            for number, line in enumerate(
                path.read_text(encoding="utf-8-sig").split("\n"), start=1
            ):
                if line.strip():
                    yield f"line {number}", _parse_line(line)
        elif path.suffix == ".parquet":
            import pyarrow.parquet

            table = pyarrow.parquet.read_table(path)
            # A column that only some records use reads as None elsewhere: there the field is
            # absent.
            for number, row in enumerate(table.to_pylist()):
                yield (
                    f"row {number}",
                    {key: value for key, value in row.items() if value is not None},
                )
        else:
            raise UserError(f"{path}: a data set file ends in .json, .jsonl or .parquet")
    except FileNotFoundError:
        raise UserError(f"no data set file at {path}") from None
    except (ValueError, OSError) as error:  # json, unicode and arrow errors are ValueErrors
        hint = "; a file of one record a line ends in .jsonl" if "Extra data" in str(error) else ""
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())}{hint}") from None


class _NotJson(NamedTuple):
    """A line that holds no record, in a file whose other lines may."""

    reason: str


def _parse_line(line: str) -> object:
    try:
        return _parsed(line)
    except ValueError as error:
        return _NotJson(str(error))


def _parsed(text: str) -> object:
    """Parse JSON; one field twice, which Python's parser lets pass, is a ValueError."""

    def fields(pairs: list[tuple[str, object]]) -> dict[str, object]:
        read = dict(pairs)
        if len(read) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"one record has the field {twice!r} twice")
        return read

    return json.loads(text, object_pairs_hook=fields)


def record_of(row: object, where: str, number: int) -> Record:
    """Read one row of a data set file; `number` is its id where it has none.

    Raises
    ------
    UserError
        Says what is wrong with it, and `where` it stands.
    """
    if not isinstance(row, dict):
        raise UserError(f"{where}: a record is a mapping, found {_kind(row)}")
    fields = dict(row)
    identifier = fields.pop("id", None)
    if (
        "conversations" not in fields
    ):  # the question form prefers `qid`; an `id` beside it stays an extra field
        qid = fields.pop("qid", None)
        if qid is not None:
            if identifier is not None:
                fields["id"] = identifier
            identifier = qid
    name = str(number if identifier is None else identifier)
    where = f"{where} (id {name!r})" if broken_text(name) else f"{where} (id {name})"
    broken = broken_text(row)
    if broken is not None:
        shown = broken.encode("ascii", "backslashreplace").decode()
        raise UserError(
            f"{where}: {shown[:80]!r} holds half of a character (a cut emoji?), which no file can "
            "hold: mend or remove it"
        )
    images = _images(fields, where)
    answer_type = _answer_type(fields.pop("answer_type", None), fields)
    system = ""
    if "conversations" in fields:
        system, turns = _conversation(fields.pop("conversations"), where)
        options = options_of(fields.pop("options", None))
    elif "question" in fields:
        if fields.get("choices") is None and fields.get("options") is not None:
            fields["choices"] = fields.pop("options")
        options = options_of(fields.get("choices"), fields.get("answer"))
        turns = _question_form(fields, where)
    else:
        raise UserError(
            f"{where}: neither `conversations` nor `question`; found "
            f"{', '.join(map(str, row)) or 'nothing'}"
        )
    turns = _match_images(turns, len(images), where)
    return Record(name, images, turns, answer_type, options, fields, system)


def _images(fields: dict[str, object], where: str) -> tuple[str, ...]:
    lowered = {key.lower(): key for key in fields}
    name = next(
        (lowered[key] for key in IMAGE_KEYS if fields.get(lowered.get(key, "")) is not None), None
    )
    for key in IMAGE_KEYS:  # one that says nothing is no field of its own
        if key in lowered and lowered[key] != name and not fields[lowered[key]]:
            fields.pop(lowered[key])
    if name is None:
        _refuse_lookalikes(fields, where)
        return ()
    value = fields.pop(name)
    images = [value] if isinstance(value, str) else value
    if not isinstance(images, list) or not all(
        isinstance(image, str) and image for image in images
    ):
        embedded = isinstance(value, (dict, bytes)) or (
            isinstance(value, list) and any(isinstance(one, (dict, bytes)) for one in value)
        )
        hint = "; save embedded images as files first" if embedded else ""
        raise UserError(
            f"{where}: `{name}` must be a path or a list of paths, found {_kind(value)}{hint}"
        )
    return tuple(images)


def _refuse_lookalikes(fields: dict[str, object], where: str) -> None:
    """Refuse a record without an image in which another field holds one.

    It would be read as text alone, and the model trained and asked blind.
    """
    for key, value in fields.items():
        first = value[0] if isinstance(value, list) and value else value
        if key not in _TEXTS and _holds_image(first):
            raise UserError(
                f"{where}: no field of images, but `{key}` holds one; rename it to `image` (read "
                f"are {', '.join(IMAGE_KEYS)})"
            )


def _holds_image(value: object) -> bool:
    """Whether a value is the path of an image or video file, or holds one.

    An embedded image is a mapping, as parquet files have it.
    """
    if isinstance(value, str):
        return bool(_IMAGE_FILE.search(value)) and not value.startswith(("http://", "https://"))
    if isinstance(value, Mapping):
        return bool({"bytes", "path"} & set(value)) or any(map(_holds_image, value.values()))
    return isinstance(value, bytes)


def _answer_type(value: object, fields: dict[str, object]) -> AnswerType | None:
    """Read OPEN or CLOSED past blanks and case (VQA-RAD has "CLOSED ") and in other spellings.

    Another scheme stays an extra field.
    """
    text = re.sub("[^A-Z]", "", value.upper()) if isinstance(value, str) else ""
    if value is not None and text not in _ANSWER_TYPES:
        fields["answer_type"] = value
    return _ANSWER_TYPES.get(text)


def _conversation(value: object, where: str) -> tuple[str, tuple[Turn, ...]]:
    """Return the text of the system turn that may stand first, and the other turns."""
    if not isinstance(value, list) or not value:
        raise UserError(f"{where}: `conversations` must be a list of turns, found {_kind(value)}")
    system = ""
    turns: list[Turn] = []
    for position, turn in enumerate(value):
        if not isinstance(turn, Mapping) or not isinstance(turn.get("value"), str):
            raise UserError(f'{where}: turn {position} must be {{"from": ..., "value": text}}')
        if position == 0 and turn.get("from") == "system":
            system = turn["value"].strip()
            continue
        expected: Literal["human", "gpt"] = "gpt" if len(turns) % 2 else "human"
        if turn.get("from") != expected:
            raise UserError(
                f"{where}: turn {position} is from {turn.get('from')!r}; human and gpt alternate, "
                "human first, and one system turn may stand before them"
            )
        turns.append(Turn(expected, turn["value"]))
    if not turns:
        raise UserError(f"{where}: `conversations` holds a system turn alone; add the question")
    if IMAGE_MARK in system:
        raise UserError(f"{where}: the system turn holds {IMAGE_MARK}; only questions show images")
    return system, tuple(turns)


def _question_form(fields: dict[str, object], where: str) -> tuple[Turn, ...]:
    """Ask as the authors' evaluation does.

    With the choices, or with the request for a yes or no.
    """
    question, answer, choices = (
        fields.pop("question"),
        fields.pop("answer", None),
        fields.pop("choices", None),
    )
    if not isinstance(question, str):
        raise UserError(f"{where}: `question` must be text, found {_kind(question)}")
    if isinstance(choices, Mapping):
        choices = list(options_of(choices))
    if isinstance(choices, list):
        choices = ", ".join(str(choice) for choice in choices)
    if (
        isinstance(choices, str) and len(choices) > 10
    ):  # the authors' rule; shorter ones are blanks and dashes
        question += f" Please choose from the following options: {choices}"
    if fields.get("question_type") == "binary":
        question += " Please answer Yes or No."
    turns = [Turn("human", question)]
    none = isinstance(answer, float) and not math.isfinite(answer)  # a table's missing cell
    known = answer is None or isinstance(answer, str | int | float)
    if isinstance(answer, bool) or none or not known:
        raise UserError(f"{where}: `answer` must be text or a number, found {_kind(answer)}")
    if answer is not None:
        turns.append(Turn("gpt", str(answer)))
    return tuple(turns)


def _match_images(turns: tuple[Turn, ...], images: int, where: str) -> tuple[Turn, ...]:
    """Give every image its mark, in front of its turn.

    A record with images and no mark shows them first.
    """
    marks = sum(turn.text.count(IMAGE_MARK) for turn in turns)
    if any(IMAGE_MARK in turn.text for turn in turns if turn.role == "gpt"):
        raise UserError(f"{where}: an answer contains {IMAGE_MARK}; only questions show images")
    if marks == 0 and images:
        return (turns[0]._replace(text=front_images(turns[0].text, images)), *turns[1:])
    if marks != images:
        raise UserError(
            f"{where}: {marks} {IMAGE_MARK} marks for {images} images; they must be as many"
        )
    return tuple(turn._replace(text=front_images(turn.text)) for turn in turns)


def _check_images(records: list[Record], path: Path, root: Path) -> None:
    known: dict[Path, bool] = {}
    missing = []
    for record in records:
        for reference in record.references(root):
            if not known.setdefault(reference.path, reference.path.is_file()):
                missing.append((record.id, reference.path))
    if missing:
        name, file = missing[0]
        rows = len({identifier for identifier, _ in missing})
        raise UserError(
            f"{path}: {rows} records show images that are not there, first {file} (id {name}); "
            f"is the image root {root} right?"
        )


def _row(record: Record) -> dict[str, object]:
    row: dict[str, object] = {"id": record.id}
    if record.images:
        row["image"] = record.images[0] if len(record.images) == 1 else list(record.images)
    system = [{"from": "system", "value": record.system}] if record.system else []
    turns = [{"from": turn.role, "value": turn.text} for turn in record.turns]
    row["conversations"] = [*system, *turns]
    if record.answer_type is not None:
        row["answer_type"] = record.answer_type
    if record.options:
        row["options"] = list(record.options)
    return row | {key: value for key, value in record.extra.items() if key not in row}


def _kind(value: object) -> str:
    """Name what was found; lists, mappings and text may be empty."""
    if value is None:
        return "nothing"
    empty = isinstance(value, list | dict | str) and not value
    return f"{'an empty' if empty else 'a'} {type(value).__name__}"
