"""The authors' targets, as their notebooks pickle them, as a store.

`cosine_matrix_dict.pkl` maps a relative image path to S (N, N) float32, `attn_map_dict.pkl` to the
CLS attention (N,), for UniMed-CLIP divided by its maximum. The notebooks resize the short side and
cut the centre: geometry `crop`. What made the numbers cannot be checked from them, so that their
namespace has a teacher of its own name (`authors-unimed-l`) and the digest of both files in the
place of weights.

N student patches; pairs = N (N - 1) / 2.
"""

import hashlib
from collections.abc import Mapping
from importlib.metadata import version
from math import isqrt
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shared.console import track
from shared.errors import UserError
from shared.files import refused_as
from shared.imaging.images import ImageReference
from shared.imaging.keys import content_keys
from shared.targets import Identity, Preprocessing, TargetStore, TargetWriter
from shared.targets.numbers.arrays import Arrays
from shared.targets.numbers.triangle import pairs_of
from shared.vocabulary import Notebook, Precision
from teacher_cache.keeping.pickled import load_arrays
from teacher_cache.teachers.registry import TEACHERS
from teacher_cache.teachers.trained import OPENAI_MEAN, OPENAI_STD

_SIZES: dict[Notebook, int] = {"unimed-l": 336, "unimed-b": 224, "biomedclip": 224}
# A notebook may have kept float16, whose step below 1 is 0.0005.
TOLERANCE = 2e-3  # of the diagonal, of symmetry, and beyond [-1, 1]

Pickled = Mapping[str, NDArray[np.generic]]


class Imported(NamedTuple):
    """What was written: `images` asked for, of them `found` before, now `written`, the rest not.

    `repeated` counts names of an image that another name shows already.
    """

    namespace: str
    images: int
    found: int
    written: int
    repeated: int
    left_out: list[tuple[str, str]]

    def as_json(self) -> dict[str, object]:
        """Plain values for `--json`."""
        left_out = [{"image": name, "reason": reason} for name, reason in self.left_out]
        return {**self._asdict(), "left_out": left_out}


class _Unfit(ValueError):
    """Why an image's arrays are no target."""


def import_authors(
    cosine: Path,
    attention: Path,
    images: Path,
    store: str | Path,
    *,
    teacher: Notebook,
    precision: Precision = "f16",
    workers: int = 2,
) -> Imported:
    """Write the targets of both pickles under the content keys of their images.

    Values stay as they are: similarities in the store's precision, attention as it is scaled.

    Parameters
    ----------
    images
        Folder that the names in the pickles are relative to.
    teacher
        Whose notebook made them.
    workers
        Threads that read images, to name them by content.

    Raises
    ------
    UserError
        A file that is not a pickle of arrays, no square number of patches, or a store that cannot
        be written.
    """
    if not images.is_dir():
        raise UserError(f"no folder of images at {images}")
    identity = _identity(cosine, attention, teacher, precision)
    maps = load_arrays(attention)
    matrices = load_arrays(cosine)
    sides = _sides(matrices, cosine)
    identity = identity.model_copy(update={"grid": (sides, sides)})
    provenance = {
        "licence": TEACHERS[teacher].licence,
        "software": {"medalign": version("medalign")},
        "imported": "the authors' cosine_matrix_dict.pkl and attn_map_dict.pkl; attention as there",
    }
    keys, left_out = _keys(matrices, images, workers)
    with TargetWriter(store, identity, provenance) as writer:
        opened = TargetStore.open(store, identity=identity)
        missing = set(opened.missing(keys.values()))
        found, written = len(set(keys.values()) - missing), 0
        repeated = len(keys) - len(set(keys.values()))
        for name, key in track(keys.items(), len(keys), "importing", "images"):
            if key not in missing:
                continue
            try:
                arrays = _arrays(matrices[name], maps.get(name), identity)
            except _Unfit as error:
                left_out.append((name, str(error)))
                continue
            writer.add(key, arrays)
            missing.remove(key)
            written += 1
    return Imported(identity.namespace(), len(matrices), found, written, repeated, sorted(left_out))


def _identity(cosine: Path, attention: Path, teacher: Notebook, precision: Precision) -> Identity:
    """Return the identity, but for the grid."""
    made_of = "the authors' pickles " + " ".join(_digest(path) for path in (cosine, attention))
    return Identity(
        teacher=f"authors-{teacher}",
        architecture=TEACHERS[teacher].architecture,
        weights=hashlib.sha256(made_of.encode()).hexdigest(),
        features="projected" if teacher == "biomedclip" else "block",
        preprocessing=Preprocessing(size=_SIZES[teacher], mean=OPENAI_MEAN, std=OPENAI_STD),
        geometry="crop",
        dtype="fp32",
        encoding="matrix",
        grid=(1, 1),
        precision=precision,
    )


def _digest(path: Path) -> str:
    with refused_as(f"cannot read {path}"), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sides(matrices: Pickled, path: Path) -> int:
    """Return the side of the grid, which is that of most images' matrices."""
    sizes = [len(matrix) for matrix in matrices.values() if matrix.ndim == 2]
    patches = max(set(sizes), key=sizes.count, default=0)
    side = isqrt(patches)
    if not side or side * side != patches:
        raise UserError(
            f"{path} holds no similarities of a square grid: {patches} patches an image, such as "
            "576 of 24x24"
        )
    return side


def _keys(
    matrices: Pickled, images: Path, workers: int
) -> tuple[dict[str, bytes], list[tuple[str, str]]]:
    """Return the content key of each name whose file is there, and why others have none."""
    references: dict[str, ImageReference] = {}
    left_out: list[tuple[str, str]] = []
    for name in matrices:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\0" in name:
            left_out.append((name, f"the name leads out of {images}"))
        else:
            references[name] = ImageReference(images / path)
    named = dict(content_keys(references.values(), workers))
    keys: dict[str, bytes] = {}
    for name, reference in references.items():
        key = named[reference]
        if isinstance(key, bytes):
            keys[name] = key
        else:
            left_out.append((name, f"the file cannot be read: {key.strerror or key}"))
    return keys, left_out


def _arrays(
    matrix: NDArray[np.generic], weights: NDArray[np.generic] | None, identity: Identity
) -> Arrays:
    """Check S and E_a of one image and return them as they are stored."""
    patches = identity.patches
    if weights is None:
        raise _Unfit("no attention under this name")
    similarity = matrix.astype(np.float32)
    attention = weights.astype(np.float32).ravel()
    if similarity.shape != (patches, patches) or attention.shape != (patches,):
        raise _Unfit(
            f"similarities {matrix.shape} and attention {weights.shape} are not those of "
            f"{patches} patches"
        )
    if not (np.isfinite(similarity).all() and np.isfinite(attention).all()):
        raise _Unfit("values that are not finite")
    off = max(
        float(np.abs(np.diagonal(similarity) - 1).max()),
        float(np.abs(similarity - similarity.T).max()),
        float(np.abs(similarity).max()) - 1,
    )
    if off > TOLERANCE:
        raise _Unfit(f"similarities that are off a cosine matrix by {off:.2g}")
    if attention.min() < 0 or attention.max() <= 0:
        raise _Unfit("attention that is negative, or zero everywhere")
    triangle = similarity[pairs_of(patches)].clip(-1, 1)
    return {
        "similarity": triangle.astype(np.float16) if identity.precision == "f16" else triangle,
        "attention": attention,
        "coverage": np.full(patches, 255, np.uint8),  # a cut centre shows image everywhere
    }
