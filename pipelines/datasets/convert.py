"""Data as people have them, as a file of records: `medalign data convert`.

Read are LLaMA-Factory's and ShareGPT's `messages` (or `conversations`) with `images`, LLaVA's
conversations, Hugging Face's parquet with images inside, and tables of questions and answers.
"""

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypedDict

from pipelines.datasets.release import embedded_image
from shared.errors import UserError
from shared.records import IMAGE_KEYS, IMAGE_MARK, Record, record_of, write_records

ROLES = {
    "user": "human", "human": "human", "assistant": "gpt", "gpt": "gpt", "system": "system",
}  # fmt: skip
SUFFIXES = (".json", ".jsonl", ".parquet", ".csv", ".tsv")


class Converted(TypedDict):
    """What was written, and the folder that its image paths are relative to."""

    file: str
    image_root: str
    records: int
    without_image: int
    embedded_images: int  # distinct images that were inside the source


def convert(source: Path, out: Path) -> Converted:
    """Write the records of `source` to `out`, and images inside it to `images/` beside `out`.

    Parameters
    ----------
    source
        `.json`, `.jsonl`, `.parquet`, `.csv` or `.tsv`. Image paths stay as they are.
    out
        A new data set file.

    Raises
    ------
    UserError
        `out` exists; a row has no form that is known, or a system turn that is not its first; some
        images are inside the source and some are paths.
    """
    if out.exists() or out.suffix not in (".json", ".jsonl"):
        reason = "exists" if out.exists() else "does not end in .json or .jsonl"
        raise UserError(f"{out} {reason}; name a new file with --out")
    records, inside, paths = [], 0, 0
    for number, (where, row) in enumerate(_rows(source)):
        plain = _conversation(row, f"{source} {where}")
        embedded = _save_images(plain, f"{source} {where}", out.parent)
        record = record_of(plain, f"{source} {where}", number)
        records.append(record)
        inside += embedded
        paths += bool(record.images) and not embedded
    if not records:
        raise UserError(f"{source} holds no records")
    if inside and paths:
        raise UserError(
            f"{source}: {inside} records hold their images and {paths} name files; convert them "
            "as two files"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    write_records(out, records)
    return {
        "file": str(out),
        "image_root": str(out.parent if inside else source.parent),
        "records": len(records),
        "without_image": sum(not record.images for record in records),
        "embedded_images": len(_images_of(records)) if inside else 0,
    }


def _images_of(records: list[Record]) -> set[str]:
    return {image for record in records for image in record.images}


def _rows(source: Path) -> Iterator[tuple[str, dict[str, object]]]:
    """Yield (where, row) of every row; cells and fields that say nothing are left out."""
    if source.suffix not in SUFFIXES:
        raise UserError(f"{source}: data to convert end in {', '.join(SUFFIXES)}")
    if not source.is_file():
        raise UserError(f"no data at {source}")
    try:
        for number, row in enumerate(_read(source)):
            if not isinstance(row, Mapping):
                raise UserError(f"{source}: row {number} is no record: {str(row)[:60]!r}")
            yield f"row {number}", {k: v for k, v in row.items() if v is not None and v != ""}
    except (ValueError, csv.Error) as error:  # json, unicode and arrow errors are ValueErrors
        raise UserError(f"{source} cannot be read: {' '.join(str(error).split())}") from None


def _read(source: Path) -> Iterator[object]:
    if source.suffix == ".parquet":
        import pyarrow.parquet

        for batch in pyarrow.parquet.ParquetFile(source).iter_batches(256):
            yield from batch.to_pylist()
    elif source.suffix in (".csv", ".tsv"):
        mark = "\t" if source.suffix == ".tsv" else ","
        with source.open(encoding="utf-8-sig", newline="") as file:
            for row in csv.DictReader(file, delimiter=mark, strict=True):
                if None in row or None in row.values():
                    raise UserError(f"{source}: a row has other cells than the head: {row}")
                yield {name.strip().lower(): cell for name, cell in row.items()}
    elif source.suffix == ".jsonl":
        lines = source.read_text(encoding="utf-8-sig").split("\n")
        yield from (json.loads(line) for line in lines if line.strip())
    else:
        rows = json.loads(source.read_text(encoding="utf-8-sig"))
        if not isinstance(rows, list):
            raise UserError(f"{source}: expected a JSON list of records")
        yield from rows


def _conversation(row: dict[str, object], where: str) -> dict[str, object]:
    """Return the row with its turns as LLaVA names them.

    A field `system` beside them, as LLaMA-Factory has it, becomes the first turn.
    """
    turns = row.pop("messages", None) or row.pop("conversations", None)
    if turns is None:
        return row
    if not isinstance(turns, list):
        raise UserError(f"{where}: its turns are no list")
    told = row.pop("system", None)
    system = [] if told is None else [{"role": "system", "content": told}]
    return row | {"conversations": [_turn(turn, where) for turn in [*system, *turns]]}


def _turn(turn: object, where: str) -> dict[str, str]:
    if not isinstance(turn, Mapping):
        raise UserError(f"{where}: a turn is no mapping: {str(turn)[:60]!r}")
    role = str(turn.get("role", turn.get("from")))
    text = _text(turn.get("content", turn.get("value")), where)
    if role not in ROLES:
        raise UserError(f"{where}: a turn of {role!r}; read are {', '.join(ROLES)}")
    return {"from": ROLES[role], "value": text}


def _text(content: object, where: str) -> str:
    """Return a turn's text; of a list of parts, the texts with a mark for each image."""
    if isinstance(content, str):
        return content
    pieces = []
    for part in content if isinstance(content, list) else [None]:
        found = part if isinstance(part, Mapping) else {}
        kind = found.get("type")
        if kind == "image":
            pieces.append(IMAGE_MARK)
        elif kind == "text" and isinstance(found.get("text"), str):
            pieces.append(str(found["text"]))
        else:
            raise UserError(f"{where}: a turn holds {str(part)[:60]!r}, neither text nor image")
    return "\n".join(pieces)


def _save_images(row: dict[str, object], where: str, folder: Path) -> bool:
    """Write images that the row holds, put their paths in their place, and say whether it did."""
    for name in [key for key in row if key.lower() in IMAGE_KEYS]:
        value = row[name]
        images = value if isinstance(value, list) else [value]
        if not any(isinstance(one, Mapping | bytes) for one in images):
            continue
        named = [one for one in images if isinstance(one, Mapping) and not one.get("bytes")]
        if len(named) == len(images):
            paths = [one.get("path") for one in named]  # only named, as some releases do
            if not all(isinstance(path, str) and path for path in paths):
                raise UserError(f"{where}: its `{name}` holds an image without bytes and path")
            row[name] = paths
            continue
        row[name] = [embedded_image(one, where, folder) for one in images]
        return True
    return False
