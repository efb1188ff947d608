"""NIfTI volumes: one slice along one of three directions.

The volume is turned to RAS+ (x grows to the right, y to the front, z upwards) by its affine,
without resampling. `axial=z`, `coronal=y` and `sagittal=x` count from 0 along those axes. The top
of an axial slice is the front, that of the others the head; left of the picture is the left of the
body (neurological convention) or, sagittally, the back. Values between the volume's 0.5th and
99.5th percentile become 0 to 255: the slices of one scan stay comparable.
"""

import gzip
import threading
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import BinaryIO, TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shared.imaging.pixels import UnreadableImage, check_size

Voxel = TypeVar("Voxel", bound=np.generic)

AXES = {"sagittal": 0, "coronal": 1, "axial": 2}
MAX_VOXELS = 1 << 30  # a whole-body CT has half of it; as float32 4 GiB
_HEADER = 352  # bytes to the end of a NIfTI-1 header; the magic of NIfTI-2 lies within them too
_loading = threading.Lock()


def is_nifti(path: Path, head: bytes) -> bool:
    """Whether a file, or the gzip stream in it, is NIfTI-1 or -2 by its magic."""
    if head[:2] == b"\x1f\x8b":
        try:
            with gzip.open(path) as stream:
                head = stream.read(_HEADER)
        except (OSError, EOFError):
            return False
    return head[344:348] in (b"n+1\0", b"ni1\0") or head[4:8] in (b"n+2\0", b"ni2\0")


def open_nifti(path: Path, part: str | None, max_pixels: int) -> Image.Image:
    """Return one slice as RGB.

    `part` such as `axial=90` is required, since no slice stands for a volume.

    Raises UnreadableImage for a broken file, a volume of one value, or a part that is not there.
    """
    name, _, number = (part or "").partition("=")
    if name not in AXES or not number.isdecimal():
        raise UnreadableImage(
            "a NIfTI volume needs a slice: append #axial=N, #coronal=N or #sagittal=N to its path"
        )
    with _loading:  # threads that want slices of one volume load it once
        volume = _volume(path, path.stat().st_mtime_ns)
    axis, position = AXES[name], int(number)
    if position >= volume.shape[axis]:
        raise UnreadableImage(
            f"part {part!r}: the volume has {volume.shape[axis]} {name} slices, counted from 0"
        )
    plane = slice_of(volume, axis, position)
    check_size(plane.shape[1], plane.shape[0], max_pixels)
    return Image.fromarray(plane, "L").convert("RGB")


def slice_of(volume: NDArray[Voxel], axis: int, position: int) -> NDArray[Voxel]:
    """Cut a RAS+ volume (x, y, z).

    Rows run downwards (front or head first), columns along the remaining axis.
    """
    return np.ascontiguousarray(np.take(volume, position, axis).T[::-1])


@lru_cache(maxsize=2)  # the slices of a volume are mostly asked for one after another
def _volume(path: Path, modified: int) -> NDArray[np.uint8]:
    """Return the volume in RAS+ orientation, windowed to uint8 (x, y, z)."""
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            data = _read(cast("BinaryIO", gzip.GzipFile(fileobj=file)) if packed else file)
    except UnreadableImage:
        raise
    except (
        Exception
    ) as error:  # nibabel and gzip raise a family of their own errors on broken files
        reason = " ".join(str(error).split())[:200]
        raise UnreadableImage(f"broken NIfTI file: {type(error).__name__}: {reason}") from None
    while data.ndim > 3 and data.shape[-1] == 1:
        data = data[..., 0]
    if data.ndim != 3:
        raise UnreadableImage(f"a volume of three dimensions is needed, this has {data.shape}")
    finite = data[np.isfinite(data)]
    if finite.size == 0 or finite.min() == finite.max():
        raise UnreadableImage("the volume has no two different finite values")
    low, high = np.percentile(finite, (0.5, 99.5))
    if low == high:  # nearly everything has one value, such as a mask
        low, high = finite.min(), finite.max()
    scaled = np.clip((np.nan_to_num(data, nan=low) - low) / (high - low), 0, 1)
    windowed: NDArray[np.uint8] = np.rint(scaled * 255).astype(np.uint8)
    return windowed


def _read(stream: BinaryIO) -> NDArray[np.float32]:
    """Read a volume whatever the file is called, turned to RAS+."""
    import nibabel

    head = stream.read(_HEADER)
    if head[344:347] == b"ni1" or head[4:7] == b"ni2":
        raise UnreadableImage(
            "half of a .hdr/.img pair, which has two content keys: convert it to one .nii file"
        )
    stream.seek(0)
    kind = nibabel.Nifti2Image if head[4:8] == b"n+2\0" else nibabel.Nifti1Image
    image = kind.from_stream(stream)
    voxels = prod(image.shape)
    if voxels > MAX_VOXELS:
        raise UnreadableImage(f"{voxels} voxels are more than the {MAX_VOXELS} allowed")
    return np.asarray(nibabel.as_closest_canonical(image).dataobj, dtype=np.float32)
