"""The training files of a recipe: one, or several with weights that make one set."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from shared.errors import UserError
from shared.recipe import Recipe
from shared.records import Record, image_root_of, load_records


class TrainingFile(NamedTuple):
    """A file of records, the folder of its images, and how often an epoch takes each record."""

    path: str
    root: Path
    weight: float


class Share(NamedTuple):
    """Records of one file, which stand together in a set, and how many of them an epoch takes."""

    records: int
    taken: int


def training_files(recipe: Recipe) -> list[TrainingFile]:
    """Return what `data.train` names, in its order; nothing where it names nothing."""
    data = recipe.data
    if data.train is None:
        return []
    paths = [data.train] if isinstance(data.train, str) else data.train
    roots = data.image_root if isinstance(data.image_root, list) else [data.image_root] * len(paths)
    weights = data.weights or [1.0] * len(paths)
    return [
        TrainingFile(path, image_root_of(path, root), weight)
        for path, root, weight in zip(paths, roots, weights, strict=True)
    ]


def validation_root(recipe: Recipe) -> Path:
    """Return the folder of the validation file's images: its own where each file has a root."""
    root = recipe.data.image_root
    return image_root_of(str(recipe.data.validation), None if isinstance(root, list) else root)


def name_of(files: Sequence[TrainingFile]) -> str:
    """Return how errors call the files."""
    return " + ".join(file.path for file in files)


def load_set(files: Sequence[TrainingFile]) -> tuple[list[Record], Path, list[Share] | None]:
    """Read the files' records; return them, the folder of their images, and the files' shares.

    One file keeps its own paths and, at weight 1, has no shares. Of several, the image paths begin
    with their own folders, so that one folder, the working directory, serves all.

    Raises
    ------
    UserError
        A file cannot be read, or its weight takes no record.
    """
    if len(files) == 1:
        [file] = files
        records = load_records(file.path)
        return records, file.root, None if file.weight == 1 else [_share(records, file.weight)]
    found: list[Record] = []
    shares = []
    for file in files:
        records = load_records(file.path)
        found += [
            replace(one, images=tuple(str(file.root / image) for image in one.images))
            for one in records
        ]
        shares.append(_share(records, file.weight))
    plain = all(file.weight == 1 for file in files)
    return found, Path(), None if plain else shares


def _share(records: Sequence[Record], weight: float) -> Share:
    taken = round(weight * len(records))
    if records and not taken:
        raise UserError(
            f"data.weights: {weight:g} of {len(records)} records are less than one an epoch; raise "
            "it, or leave the file out"
        )
    return Share(len(records), taken)
