"""NIfTI volumes: one slice along one of three directions.

The volume is turned to RAS+ (x grows to the right, y to the front, z upwards) by its affine, without resampling.
`axial=z`, `coronal=y` and `sagittal=x` count from 0 along those axes. The top of an axial slice is the front, that of
the others the head; left of the picture is the left of the body (neurological convention) or, sagittally, the back.
Values between the volume's 0.5th and 99.5th percentile become 0 to 255: the slices of one scan stay comparable.
"""

from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shared.imaging.images import UnreadableImage, check_size

AXES = {"sagittal": 0, "coronal": 1, "axial": 2}
Plane = Literal["axial", "coronal", "sagittal"]


def open_nifti(path: Path, part: str | None, max_pixels: int) -> Image.Image:
    """Return one slice as RGB; `part` such as `axial=90` is required, since no slice stands for a volume.

    Raises UnreadableImage for a broken file, a volume of one value, or a part that is not there.
    """
    name, _, number = (part or "").partition("=")
    if name not in AXES or not number.isdecimal():
        raise UnreadableImage("a NIfTI volume needs a slice: append #axial=N, #coronal=N or #sagittal=N to its path")
    volume = _volume(path, path.stat().st_mtime_ns)
    axis, position = AXES[name], int(number)
    if position >= volume.shape[axis]:
        raise UnreadableImage(f"part {part!r}: the volume has {volume.shape[axis]} {name} slices, counted from 0")
    plane = slice_of(volume, axis, position)
    check_size(plane.shape[1], plane.shape[0], max_pixels)
    return Image.fromarray(plane, "L").convert("RGB")


def slice_of(volume: NDArray[Any], axis: int, position: int) -> NDArray[Any]:
    """Cut a RAS+ volume (x, y, z): rows run downwards (front or head first), columns along the remaining axis."""
    return np.ascontiguousarray(np.take(volume, position, axis).T[::-1])


@lru_cache(maxsize=2)  # the slices of a volume are mostly asked for one after another
def _volume(path: Path, modified: int) -> NDArray[np.uint8]:
    """Return the volume in RAS+ orientation, windowed to uint8 (x, y, z)."""
    import nibabel

    try:
        image = nibabel.as_closest_canonical(nibabel.load(path))
        data = np.asarray(image.dataobj, dtype=np.float32)
    except Exception as error:  # nibabel and gzip raise a family of their own errors on broken files
        raise UnreadableImage(f"broken NIfTI file: {type(error).__name__}: {str(error)[:200]}") from None
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
