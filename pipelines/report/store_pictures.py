"""What a page shows of the store: attention beside the teacher's, one similarity matrix, sizes."""

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypedDict

import numpy as np
from numpy.typing import NDArray

from pipelines.evaluation.loading import Loaded, load_base_student, load_student
from pipelines.evaluation.observed import Seen, observe
from pipelines.regions.alignment import cosines, similarity_correlation
from pipelines.report.figures import (
    AttentionRow,
    Picture,
    Similar,
    attention_figure,
    similarity_figure,
)
from pipelines.report.sinks import sink_lines
from pipelines.report.words import WORDS, word_maps
from shared.console import warn
from shared.imaging.images import ImageReference
from shared.recipe import Recipe
from shared.records import Record, strip_marks
from shared.targets import Target, TargetStore
from shared.targets.numbers.triangle import pairs_of

if TYPE_CHECKING:
    from student_train.models.base import BaseStudent

SHOWN_SLICES = 3


class StoreSizes(TypedDict):
    """Bytes of a namespace beside those of the pickles it replaces."""

    images: int
    bytes: int
    per_image: int
    pickle_per_image: int
    grid: str
    namespace: str


class StorePictures(TypedDict):
    """Figures as SVG and sizes; None where the run has no store, or no image shown is in it."""

    attention: str | None
    similarity: str | None
    sinks: list[str]
    store: StoreSizes | None


NO_PICTURES: StorePictures = {"attention": None, "similarity": None, "sinks": [], "store": None}


class Shown(NamedTuple):
    """A held-out image whose targets are in the store."""

    record: Record
    images: list[ImageReference]
    key: bytes  # of the first image
    picture: Picture  # the square that the student sees of it


def store_pictures(
    recipe: Recipe,
    arms: Mapping[str, Path],
    records: Sequence[Record],
    root: Path,
    began: str | None = None,
) -> StorePictures:
    """Draw and measure everything that needs the store.

    Parameters
    ----------
    recipe, arms
        The recipe that names the store and the model, and the adapters by name.
    records, root
        The test set, and the folder of its images.
    began
        Where the base model is, if not where the recipe says.

    Raises
    ------
    UserError
        The store or the model is not where it should be.
    """
    from student_train.adapter.loading import base_section
    from student_train.models import load_base

    if recipe.targets.store is None:
        return NO_PICTURES
    folder = list(arms.values())[-1]
    base = load_base(base_section(folder, recipe, began))
    store = _open_store(recipe, base)
    sizes = store_sizes(Path(recipe.targets.store), store)
    shown = [
        Shown(record, images, key, _square(images[0], base.image_size * 2))
        for record, images, key in _held_out(records, root)
        if key in store
    ]
    if not shown:
        warn(
            "no held-out image is in the store; the report shows no attention and no similarity "
            "matrix"
        )
        return {**NO_PICTURES, "store": sizes}
    grid = (base.grid.rows, base.grid.columns)
    targets = store.batch([one.key for one in shown])
    found = _observed(recipe, arms, shown, grid, began)
    asked = [(one.key, strip_marks(one.record.question)) for one in shown]
    rows = _rows(found, shown, targets, grid, word_maps(recipe, store, asked))
    maps = {name: [row.maps[name] for row in rows] for name in rows[0].maps if name != WORDS}
    return {
        "attention": attention_figure(rows),
        "similarity": _similarity(
            shown[0], targets, grid, {name: seen[0].tokens for name, seen in found.items()}
        ),
        "sinks": sink_lines(maps),
        "store": sizes,
    }


def _open_store(recipe: Recipe, base: "BaseStudent") -> TargetStore:
    section = recipe.targets
    teacher, fingerprint = (  # of several teachers, the first
        value if value is None or isinstance(value, str) else value[0]
        for value in (section.teacher, section.fingerprint)
    )
    return TargetStore.open(str(section.store), teacher, fingerprint, base.grid)


def _held_out(
    records: Sequence[Record], root: Path
) -> list[tuple[Record, list[ImageReference], bytes]]:
    """Return records to show, each with its images and the content key of the first.

    One of each `plane`, or just the first ones.
    """
    from shared.imaging.keys import content_key

    chosen: dict[str, Record] = {}
    for record in records:
        if record.images and record.extra.get("kind") != "box":
            chosen.setdefault(str(record.extra.get("plane", record.images[0])), record)
    found = []
    for record in list(chosen.values())[:SHOWN_SLICES]:
        images = record.references(root)
        found.append((record, images, content_key(images[0].path, images[0].part)))
    return found


class _Held(NamedTuple):
    """What a student holds of the first image of an item: tokens (N, d), attention (N,)."""

    tokens: NDArray[np.float32]
    attention: NDArray[np.float32]


def _observed(
    recipe: Recipe,
    arms: Mapping[str, Path],
    shown: Sequence[Shown],
    grid: tuple[int, int],
    began: str | None,
) -> dict[str, list[_Held]]:
    """Put each image's own question to the start and to every arm, at the layer of its training."""
    from student_train.adapter.files import adapter_recipe

    layer, patches = recipe.losses.layers[0], grid[0] * grid[1]
    start = load_base_student(list(arms.values())[-1], recipe, base=began)
    found = {"start": _held(start, shown, layer, patches)}
    del start  # one model in memory at a time
    for name, folder in arms.items():
        own = adapter_recipe(folder).losses.layers
        student = load_student(folder, base=began, named=False)
        found[name] = _held(student, shown, layer if layer in own else min(own), patches)
    return found


def _held(student: Loaded, shown: Sequence[Shown], layer: int, patches: int) -> list[_Held]:
    seen: list[Seen] = [
        observe(student, one.record.question, one.images, [layer], system=one.record.system)
        for one in shown
    ]
    return [_Held(one.tokens[layer][:patches], one.attention[layer][:patches]) for one in seen]


def _rows(
    found: Mapping[str, Sequence[_Held]],
    shown: Sequence[Shown],
    targets: Target,
    grid: tuple[int, int],
    words: Sequence[NDArray[np.float64] | None],
) -> list[AttentionRow]:
    rows = []
    for i, one in enumerate(shown):
        visible = np.asarray(targets.coverage[i]) > 0
        students = {
            name: renormalized(held[i].attention.astype(np.float64), visible)
            for name, held in found.items()
        }
        own = words[i]
        told = {} if own is None else {WORDS: renormalized(own, visible)}
        maps, apart = {**told, **students}, {}
        if targets.attention is not None:
            teacher = renormalized(np.asarray(targets.attention[i], dtype=np.float64), visible)
            maps = {"teacher": teacher, **maps}
            apart = {name: divergence(teacher, seen) for name, seen in students.items()}
        rows.append(
            AttentionRow(
                str(one.record.extra.get("slice", Path(one.record.images[0]).stem)),
                one.picture,
                {name: seen.reshape(grid) for name, seen in maps.items()},
                apart,
            )
        )
    return rows


def _similarity(
    one: Shown,
    targets: Target,
    grid: tuple[int, int],
    students: Mapping[str, NDArray[np.float32]],
) -> str:
    """Draw the first target, at the patch that the teacher looks at most, or in the middle.

    `students`: the tokens (N, d) of the same image, by who holds them.
    """
    triangle, patches = np.asarray(targets.similarity[0], dtype=np.float64), grid[0] * grid[1]
    visible = np.asarray(targets.coverage[0]) > 0
    patch = grid[0] // 2 * grid[1] + grid[1] // 2
    if targets.attention is not None:
        patch = int(np.argmax(np.where(visible, targets.attention[0], -1)))
    own = {
        name: Similar(cosines(tokens), similarity_correlation(tokens, triangle, visible))
        for name, tokens in students.items()
    }
    return similarity_figure(one.picture, full_matrix(triangle, patches), grid, patch, visible, own)


def renormalized(weights: NDArray[np.float64], visible: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return `weights` as a distribution over the visible patches."""
    kept = np.where(visible, weights, 0.0)
    return np.asarray(kept / kept.sum())


def divergence(teacher: NDArray[np.float64], student: NDArray[np.float64]) -> float:
    """KL(teacher || student) in nats."""
    on = teacher > 0
    return float(np.sum(teacher[on] * np.log(teacher[on] / np.maximum(student[on], 1e-12))))


def full_matrix(triangle: NDArray[np.float64], patches: int) -> NDArray[np.float64]:
    """Return the (N, N) matrix of a stored strict upper triangle; the diagonal is 1."""
    matrix = np.eye(patches)
    rows, columns = pairs_of(patches)
    matrix[rows, columns] = matrix[columns, rows] = triangle
    return matrix


def store_sizes(folder: Path, store: TargetStore) -> StoreSizes:
    """Measure the store's namespace, and the same an image as float32 pickles, the matrix whole."""
    namespace = folder / store.identity.namespace()
    files = namespace.rglob("*") if namespace.is_dir() else ()
    size = sum(file.stat().st_size for file in files if file.is_file())
    patches = store.grid[0] * store.grid[1]
    one: dict[str, NDArray[np.float32]] = {"similarity": np.zeros((patches, patches), np.float32)}
    if store.identity.attention == "pooled":
        one["attention"] = np.zeros(patches, np.float32)
    return {
        "images": len(store),
        "bytes": size,
        "per_image": round(size / len(store)),
        "pickle_per_image": len(pickle.dumps(one, protocol=pickle.HIGHEST_PROTOCOL)),
        "grid": "x".join(str(side) for side in store.identity.grid),
        "namespace": store.identity.namespace(),
    }


def _square(reference: ImageReference, size: int) -> Picture:
    from shared.imaging.images import open_image
    from shared.imaging.squares import square

    return np.asarray(square(open_image(reference), size, "pad", (0, 0, 0)))
