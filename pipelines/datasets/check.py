"""Look through a data set file before hours of training depend on it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict

from pipelines.metrics.ceiling import ceilings
from pipelines.metrics.question_kind import inferred, question_kind
from shared.console import track
from shared.imaging.images import ImageReference, open_image
from shared.imaging.keys import content_key
from shared.imaging.pixels import UnreadableImage
from shared.records import Record, image_root_of, load_records


class Checked(TypedDict):
    """What was counted in a file, and `problems`: one line each, empty where it is sound."""

    file: str
    image_root: str
    records: int
    images: int
    distinct_images: int
    open: int
    closed: int
    answer_type_not_said: int
    scored_as: dict[str, int]  # records by kind: open, closed, choice, report
    inferred: dict[str, int]  # those of them whose kind the reference alone tells
    ceilings: dict[str, float]
    with_options: int
    without_image: int
    system_turns: int  # records that bring a system message of their own
    repeated: int  # records that repeat an earlier one: the same images, questions and answers
    first_repeated: list[str]  # the ids of the first such pair, the earlier one first
    problems: list[str]


def check(file: Path, image_root: Path | None = None, against: Path | None = None) -> Checked:
    """Read every record and open every image of a data set file.

    Parameters
    ----------
    image_root
        What its images are relative to; default: the file's own folder.
    against
        Another data set file; images (by content) that both show are a problem. Its images are
        relative to `image_root` if that is given, else to its own folder; what is not there is
        looked for at the other place.

    Raises
    ------
    UserError
        The file cannot be read, or a record has the wrong form.
    """
    root = image_root_of(file, image_root)
    records = load_records(file)
    references = sorted(
        {reference for record in records for reference in record.references(root)},
        key=lambda reference: (str(reference.path), reference.part or ""),
    )
    problems = _record_problems(records)
    keys = _content_keys(references, problems)
    if against is not None:
        own = image_root_of(against, image_root)
        places = (own, root if image_root is None else against.parent)
        problems += _leaks(records, keys, root, against, places)
    repeats = _repeats(records, keys, root)
    types = Counter(record.answer_type or "not said" for record in records)
    return {
        "file": str(file),
        "image_root": str(root),
        "records": len(records),
        "images": len(references),
        "distinct_images": len(set(keys.values())),
        "open": types["OPEN"],
        "closed": types["CLOSED"],
        "answer_type_not_said": types["not said"],
        "scored_as": dict(Counter(question_kind(one).kind for one in records if one.answer)),
        "inferred": inferred(records),
        "ceilings": ceilings([record for record in records if record.answer]),
        "with_options": sum(bool(record.options) for record in records),
        "without_image": sum(not record.images for record in records),
        "system_turns": sum(bool(record.system) for record in records),
        "repeated": len(repeats),
        "first_repeated": list(repeats[0]) if repeats else [],
        "problems": problems,
    }


def _record_problems(records: Sequence[Record]) -> list[str]:
    """Say which ids occur more than once, and what records lack."""
    problems = [
        f"the id {identifier} names {count} records"
        for identifier, count in Counter(record.id for record in records).items()
        if count > 1
    ]
    lacking = {
        "have no answer": [record.id for record in records if not record.answer.strip()],
        "ask nothing": [record.id for record in records if not record.question.strip()],
        "offer one choice alone": [record.id for record in records if len(record.options) == 1],
    }
    problems += [
        f"{len(names)} records {what}, first id {names[0]}"
        for what, names in lacking.items()
        if names
    ]
    return problems


def _repeats(
    records: Sequence[Record], keys: Mapping[ImageReference, bytes], root: Path
) -> list[tuple[str, str]]:
    """Return (earlier id, id) of each record that repeats another, its images by content."""
    first: dict[object, str] = {}
    found = []
    for record in records:
        images = tuple(keys.get(one, str(one)) for one in record.references(root))
        said = (images, record.turns, record.options, record.system)
        if said in first:
            found.append((first[said], record.id))
        first.setdefault(said, record.id)
    return found


def _leaks(
    records: Sequence[Record],
    keys: Mapping[ImageReference, bytes],
    root: Path,
    against: Path,
    places: tuple[Path, Path],
) -> list[str]:
    """Say how many images another file shows too, which records show them here, what is unknown."""
    others, absent = _keys_of(against, places)
    shared = set(keys.values()) & others
    unknown = (
        [
            f"{len(absent)} images of {against} are not there, so that nobody knows whether they "
            f"are shown here: {absent[0]}"
        ]
        if absent
        else []
    )
    shown = [
        record.id
        for record in records
        if any(keys.get(one) in shared for one in record.references(root))
    ]
    if not shared:
        return unknown
    return [
        f"{len(shared)} images are also in {against}; {len(shown)} records here show them, "
        f"first id {shown[0]}",
        *unknown,
    ]


def _content_keys(
    references: Sequence[ImageReference], problems: list[str]
) -> dict[ImageReference, bytes]:
    """Open every image and return the keys of those that can be; the others become problems."""
    keys: dict[ImageReference, bytes] = {}
    for reference in track(references, len(references), "images", "images"):
        try:
            open_image(reference)
            keys[reference] = content_key(reference.path, reference.part)
        except UnreadableImage as error:
            problems.append(f"{reference} cannot be read: {error}")
        except OSError as error:
            problems.append(f"{reference} cannot be opened: {error.strerror or error}")
    return keys


def _keys_of(file: Path, places: tuple[Path, Path]) -> tuple[set[bytes], list[str]]:
    """Return the content keys of another file's images, and those that lie at neither place."""
    keys: set[bytes] = set()
    absent: list[str] = []
    first, second = places
    pairs = {
        pair
        for record in load_records(file)
        for pair in zip(record.references(first), record.references(second), strict=True)
    }
    for pair in sorted(pairs, key=lambda pair: str(pair[0])):
        there = next((one for one in pair if one.path.is_file()), None)
        if there is None:
            absent.append(str(pair[0]))
        else:
            keys.add(content_key(there.path, there.part))
    return keys, absent
