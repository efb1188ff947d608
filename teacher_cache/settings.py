"""What decides the numbers of a target, and the identity that follows from it."""

from typing import NamedTuple

import torch

from shared.console import size
from shared.errors import UserError
from shared.imaging.grid import Grid
from shared.targets import Difference, Identity, first_difference
from shared.targets.identity import default_precision
from shared.targets.numbers.triangle import triangle_length
from shared.vocabulary import (
    Dtype,
    Encoding,
    Features,
    Geometry,
    PoolingAttention,
    Precision,
    QueryHeads,
    QueryMethod,
)
from teacher_cache.encoder import encode
from teacher_cache.teachers.base import Teacher
from teacher_cache.teachers.registry import load_teacher
from teacher_cache.teachers.trained import NOT_SAID, Trained

DTYPES: dict[Dtype, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}

MAX_PATCHES = 4096  # 64 x 64: a record of 17 MB; the similarities of a batch are in memory


class Asked(NamedTuple):
    """`--query`: what later questions are asked of.

    `heads` is of `grad-eclip`. `tokenizer` is where the text tower's vocabulary lies if its weights
    come without; it decides nothing but what is found there.
    """

    method: QueryMethod
    rank: int
    heads: QueryHeads = "published"
    tokenizer: str | None = None


class Settings(NamedTuple):
    """What decides the numbers in the store, beside the teacher: part of the identity.

    `precision` None is the encoding's own: f16 for `matrix`, u8 for the others. `trained` is what
    the user says of bare weights: the teacher's own preprocessing follows from it.
    """

    geometry: Geometry = "pad"
    grid: Grid = Grid(24, 24)
    encoding: Encoding = "matrix"
    precision: Precision | None = None
    features: Features = "block"
    tolerance: float = 0.01
    dtype: Dtype = "fp32"
    trained: Trained = NOT_SAID
    attention: PoolingAttention = "pooled"
    query: Asked | None = None


def identity_of(teacher: Teacher, settings: Settings) -> Identity:
    """Return the identity of targets made by `teacher` under `settings`, without a query."""
    matrix, patches = settings.encoding == "matrix", settings.encoding == "patches"
    return Identity(
        teacher=teacher.name,
        architecture=teacher.architecture,
        weights=teacher.weights,
        features=settings.features,
        preprocessing=teacher.preprocessing,
        geometry=settings.geometry,
        dtype=settings.dtype,
        encoding=settings.encoding,
        grid=settings.grid if matrix else teacher.grid,
        precision=settings.precision or default_precision(settings.encoding),
        tolerance=settings.tolerance if settings.encoding == "factors" else None,
        width=_width(teacher, settings.features) if patches else None,
        rotation="hadamard" if patches else None,
        attention=settings.attention,
    )


def _width(teacher: Teacher, features: Features) -> int:
    """Return b, the channels of E_v: what a pass over a black image has."""
    size = teacher.preprocessing.size
    pixels = torch.zeros(1, 3, size, size).to(next(teacher.model.parameters()))
    return int(encode(teacher, pixels, features).tokens.shape[-1])


def settings_of(identity: Identity) -> Settings:
    """Return the settings that give `identity` again with the same teacher, without its query."""
    own = identity.preprocessing
    if identity.encoding == "maps":
        raise UserError("maps are no targets of a teacher's pass; `cache query maps` writes them")
    if identity.encoding == "texts":
        raise UserError("texts are no targets of a teacher's pass; `cache text` writes them")
    # Only open_clip's names leave the activation open; it is then part of the architecture.
    quick = (
        identity.architecture.endswith("-quickgelu")
        if identity.teacher.startswith("open_clip:")
        else None
    )
    return Settings(
        trained=Trained(own.mean, own.std, own.interpolation, quick),
        geometry=identity.geometry,
        grid=Grid(*identity.grid),
        encoding=identity.encoding,
        precision=identity.precision,
        features=identity.features,
        tolerance=Settings().tolerance if identity.tolerance is None else identity.tolerance,
        dtype=identity.dtype,
        attention=identity.attention,
    )


def load_for(
    teacher: str, weights: str | None, settings: Settings, device: str
) -> tuple[Teacher, Identity]:
    """Load a teacher ready to encode under `settings` on a torch device.

    Its targets' identity comes with it, without a query: `load_ready` adds that.

    Raises
    ------
    UserError
        As `load_teacher`; or a grid whose targets are too large, or `projected` features of a
        teacher without a projection.
    """
    _check_grid(settings)
    loaded = load_teacher(teacher, weights, settings.grid, settings.trained, settings.attention)
    if settings.features == "projected" and loaded.project is None:
        raise UserError(f"teacher {teacher} has no projection: use --features block")
    loaded.model.to(device=device, dtype=DTYPES[settings.dtype])
    return loaded, identity_of(loaded, settings)


def load_of(identity: Identity, weights: str | None, device: str, given: str) -> Teacher:
    """Load the teacher whose targets have `identity`, to encode more as it did.

    Parameters
    ----------
    weights
        File, folder or hub id; None where the teacher brings its own.
    device
        Of torch.
    given
        What the user calls `weights`, for the message.

    Raises
    ------
    UserError
        As `load_for`; or these are other weights than the identity's.
    """
    loaded, own = load_for(identity.teacher, weights, settings_of(identity), device)
    difference = teachers_differ(identity, own)
    if difference is not None:
        raise UserError(
            f"{given} is not the teacher of this store: {difference.field} is "
            f"{difference.second}, in the store {difference.first}"
        )
    return loaded


def teachers_differ(stored: Identity, own: Identity) -> Difference | None:
    """Return the first field in which a teacher's targets are not those stored, or None.

    The form of the store's files makes no difference to the numbers, nor does what can be asked.
    """
    plain = stored.without_query().model_copy(update={"format": own.format})
    return first_difference(plain, own.without_query())


def _check_grid(settings: Settings) -> None:
    """Refuse a grid whose similarities no record can hold: their number grows with its square."""
    patches = settings.grid.size
    if settings.encoding == "matrix" and patches > MAX_PATCHES:
        each = triangle_length(patches) * (1 if settings.precision == "u8" else 2)
        raise UserError(
            f"--grid {settings.grid.rows}x{settings.grid.columns} is {patches} patches, "
            f"{size(each)} an image: --encoding matrix takes at most {MAX_PATCHES} patches "
            "(64x64)"
        )
