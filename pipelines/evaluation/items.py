"""The items of an evaluation: records of the test set, named by what each shows and asks."""

import json
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from shared.errors import UserError
from shared.records import Record, image_root_of, load_records

T = TypeVar("T")


class Item(NamedTuple):
    """A question with its images; `prompt` is everything the model is shown, by content."""

    record: Record
    images: tuple[str, ...]  # content keys, hex
    prompt: str
    control: str = ""  # under which it is asked (`controls.py`)
    drawn_as: str = ""  # name of the item whose random numbers it draws; its own where empty

    @property
    def name(self) -> str:
        """Name of the item among those asked with it."""
        return f"{self.record.id}\x00{self.prompt}"

    @property
    def seed(self) -> str:
        """Seed of the item's random numbers."""
        return self.drawn_as or self.name


def read_test_set(data: Path, image_root: Path | None, limit: int | None) -> list[Record]:
    """Read the records of a test set: one question each, every one with its reference answer.

    Raises
    ------
    UserError
        A record holds several questions, has no reference answer, or shows an image that is not
        there.
    """
    records = sampled(load_records(data, image_root_of(data, image_root)), limit)
    talks = [record.id for record in records if len(record.turns) != 2]
    if talks and all(record.answer for record in records):
        raise UserError(
            f"{data}: {len(talks)} records hold several questions, first id {talks[0]}; one record "
            "a question"
        )
    twice = [one for one, count in Counter(record.id for record in records).items() if count > 1]
    if twice:
        raise UserError(
            f"{data}: {len(twice)} ids name more than one record, first {twice[0]}; answers are "
            "paired by id, so give every record its own"
        )
    unanswered = [record.id for record in records if not record.answer]
    if unanswered:
        raise UserError(
            f"{data}: {len(unanswered)} records have no reference answer, first id {unanswered[0]}"
        )
    return records


def sampled(records: list[T], limit: int | None) -> list[T]:
    """Return the `limit` records that an evaluation with that limit answers, in the file's order.

    A fixed random sample: the first records of a file are rarely like the others.
    """
    if limit is None or limit >= len(records):
        return records
    return [records[place] for place in sorted(random.Random(0).sample(range(len(records)), limit))]


def image_contents(records: Sequence[Record], image_root: Path) -> list[tuple[str, ...]]:
    """Return the content keys of each record's images, each image read once."""
    from shared.imaging.keys import content_key

    keys: dict[str, str] = {}
    for record in records:
        for image, reference in zip(record.images, record.references(image_root), strict=True):
            if image not in keys:
                keys[image] = content_key(reference.path, reference.part).hex()
    return [tuple(keys[image] for image in record.images) for record in records]


def items_of(
    records: Sequence[Record], contents: Sequence[tuple[str, ...]], template: str
) -> list[Item]:
    """Name every question by what it shows (`contents` of its images) and asks."""
    items = []
    for record, images in zip(records, contents, strict=True):
        told = {"system": record.system} if record.system else {}
        prompt = json.dumps(
            {"template": template, "question": record.question, "images": images} | told,
            ensure_ascii=False,
        )
        items.append(Item(record, images, prompt))
    return items


def named_items(items: Sequence[Item], names: Sequence[str]) -> list[Item]:
    """Return the items of these record ids; an unknown one is an error."""
    known = {item.record.id: item for item in items}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UserError(
            f"the test set has no item {unknown[0]!r}; its first is {items[0].record.id!r}"
        )
    return [known[name] for name in names]
