"""From a release to what an experiment needs.

Conversation files without image leakage, and `dataset.json`.

    OUT/train.json, test.json (and validation.json)   LLaVA conversations
    OUT/dataset.json   terms, counts beside the published ones, split hashes
    OUT/images/        only where the release embeds its images in tables

Images that are files stay where they are; `dataset.json` names the folder.
"""

import hashlib
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pipelines.datasets.description import (
    SCHEMA_NUMBER,
    Count,
    Description,
    SplitDescription,
    write_description,
)
from pipelines.datasets.registry import data_set
from pipelines.datasets.release import DataSet, Release
from pipelines.metrics.vqa import is_yes_no
from shared.console import track, warn
from shared.errors import UserError
from shared.files import check_new
from shared.records import Record, write_records

Split = Literal["by-image", "published"]
# Which split keeps an image that several show: scores stay comparable, training gives way.
PRECEDENCE = ("test", "validation", "train")


def prepare(
    name: str,
    source: Path,
    out: Path,
    *,
    split: Split = "by-image",
    seed: int = 0,
    train_records: int | None = None,
    allow_other_counts: bool = False,
    sections: Sequence[str] = (),
) -> Description:
    """Read the release of a set, check it, and write its conversation files.

    Parameters
    ----------
    source
        The folder with the release, unpacked.
    out
        A folder that does not exist yet or is empty.
    split
        `by-image`: no image (by content) is in two splits; the test set stays as published and
        training gives way. `published`: the splits as released, shared images and all.
    seed
        Of splits that are drawn here, and of `train_records`.
    train_records
        Draw this many training records, e.g. 2,000 of MIMIC-CXR as the authors do.
    allow_other_counts
        Go on although the release has other counts than the published ones.
    sections
        Of reports: findings, impression or both; default: both, where the release has them.

    Returns
    -------
    The content of `dataset.json`.

    Raises
    ------
    UserError
        A file, field or image is missing, a count differs from the published one, or `out` is not
        empty.
    """
    entry = data_set(name)
    check_new(out)
    release = _read(entry, source, out, seed, sections)
    counts = _compared_counts(source, entry, release, allow_other_counts)
    keys = content_keys(release)
    splits, leaks = release.splits, shared_images(release.splits, keys)
    if split == "by-image":
        splits = without_leaks(splits, keys)
    splits = {part: _unique_ids(records) for part, records in splits.items()}
    if train_records is not None:
        splits = splits | {"train": _draw(splits["train"], train_records, seed)}
    out.mkdir(parents=True, exist_ok=True)
    described = {}
    for part, records in splits.items():
        if not records:
            raise UserError(f"{source}: nothing is left of the {part} split; try --split published")
        file = out / f"{part}.json"
        write_records(file, records)
        described[part] = _described(file, records, len(release.splits[part]))
    about: Description = {
        "schema": SCHEMA_NUMBER,
        "name": entry.name,
        "title": entry.title,
        "task": entry.task,
        "form": release.form,
        "licence": entry.licence,
        "access": entry.access,
        "download": entry.download,
        "image_root": str(release.image_root.resolve()),
        "split": split,
        "seed": seed,
        "counts": counts,
        "counts_from": entry.counts_from,
        "shared_images": leaks,
        "splits": described,
        "notes": release.notes,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_description(out, about)
    return about


def _read(entry: DataSet, source: Path, out: Path, seed: int, sections: Sequence[str]) -> Release:
    if not entry.sections:
        if sections:
            raise UserError(f"{entry.name} has no sections; leave out --sections")
        return entry.read(source, out, seed)
    unknown = [name for name in sections if name not in entry.sections]
    if unknown:
        raise UserError(f"--sections {unknown[0]}: there are {', '.join(entry.sections)}")
    return entry.read(source, out, seed, [name for name in entry.sections if name in sections])


def _compared_counts(
    source: Path, entry: DataSet, release: Release, allow_other: bool
) -> dict[str, Count]:
    """Put each count of the release beside the published one; others are an error or a warning."""
    published = entry.published.get(release.form, {})
    counts: dict[str, Count] = {
        count: {"found": found, "published": published.get(count)}
        for count, found in release.counts.items()
    }
    different = [
        f"{count}: {pair['found']} instead of {pair['published']}"
        for count, pair in counts.items()
        if pair["published"] not in (None, pair["found"])
    ]
    if different and not allow_other:
        raise UserError(
            f"{source} is not the published {entry.title}: {'; '.join(different)}. Is the download "
            "complete? "
            "--allow-other-counts goes on with what is there"
        )
    if different:
        warn(f"other counts than the published ones: {'; '.join(different)}")
    return counts


def content_keys(release: Release) -> dict[str, str]:
    """Return the content key (hex) of every image that the records show.

    Raises
    ------
    UserError
        Image files are missing: how many, and the first.
    """
    from shared.imaging.keys import content_key

    images = sorted(
        {
            image
            for records in release.splits.values()
            for record in records
            for image in record.images
        }
    )
    missing = [image for image in images if not (release.image_root / image).is_file()]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(images)} images are not below {release.image_root}, first "
            f"{missing[0]}; "
            "unpack the images of the release there"
        )
    return {
        image: content_key(release.image_root / image).hex()
        for image in track(images, len(images), "content keys", "images")
    }


def shared_images(splits: Mapping[str, list[Record]], keys: Mapping[str, str]) -> dict[str, int]:
    """Count the images (by content) that each two splits share, e.g. {"test+train": 203}."""
    shown = {
        part: {keys[image] for record in records for image in record.images}
        for part, records in splits.items()
    }
    parts = [part for part in PRECEDENCE if part in splits]
    return {
        f"{first}+{second}": len(shown[first] & shown[second])
        for number, first in enumerate(parts)
        for second in parts[number + 1 :]
    }


def without_leaks(
    splits: Mapping[str, list[Record]], keys: Mapping[str, str]
) -> dict[str, list[Record]]:
    """Leave out of each split what shows an image of a split before it in `PRECEDENCE`."""
    taken: set[str] = set()
    kept: dict[str, list[Record]] = {}
    for part in (part for part in PRECEDENCE if part in splits):
        kept[part] = [
            record
            for record in splits[part]
            if not any(keys[image] in taken for image in record.images)
        ]
        taken |= {keys[image] for record in kept[part] for image in record.images}
    return {part: kept[part] for part in splits}


def _unique_ids(records: list[Record]) -> list[Record]:
    """Return the records with every id once (`17`, `17-2`).

    Answers are matched with records by it.
    """
    seen: Counter[str] = Counter()
    unique = []
    for record in records:
        seen[record.id] += 1
        unique.append(
            record if seen[record.id] == 1 else replace(record, id=f"{record.id}-{seen[record.id]}")
        )
    return unique


def _draw(records: list[Record], number: int, seed: int) -> list[Record]:
    if number > len(records):
        raise UserError(f"--train-records {number}: there are {len(records)}")
    chosen = set(random.Random(seed).sample(range(len(records)), number))
    return [record for place, record in enumerate(records) if place in chosen]


def _described(file: Path, records: list[Record], released: int) -> SplitDescription:
    return {
        "file": file.name,
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "records": len(records),
        "images": len({image for record in records for image in record.images}),
        "open": sum(record.answer_type == "OPEN" for record in records),
        "closed": sum(record.answer_type == "CLOSED" for record in records),
        "yes/no": sum(is_yes_no(record.answer) for record in records),
        "left_out": released - len(records),
    }
