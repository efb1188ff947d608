"""NIfTI volumes: one slice along one of three directions.

The volume is turned to RAS+ (x grows to the right, y to the front, z upwards) by its affine,
without resampling. `axial=z`, `coronal=y` and `sagittal=x` count from 0 along those axes. The top
of an axial slice is the front, that of the others the head; left of the picture is the left of the
body (neurological convention) or, sagittally, the back. Values between the volume's 0.5th and
99.5th percentile become 0 to 255: the slices of one scan stay comparable. Of several volumes in one
file (time, echoes, directions of diffusion) `axial=z,volume=3` takes one, with its own percentiles.
Complex numbers show their magnitude; RGB stays as it is.
"""

import gzip
import re
import threading
from collections import OrderedDict
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shared.imaging.levels import float_levels, rgb
from shared.imaging.pixels import UnreadableImage, check_size

Voxel = TypeVar("Voxel", bound=np.generic)

AXES = {"sagittal": 0, "coronal": 1, "axial": 2}
MAX_VOXELS = 1 << 30  # a whole-body CT has half of it; as float32 4 GiB
_HEADER = 352  # bytes to the end of a NIfTI-1 header; the magic of NIfTI-2 lies within them too
_REMEMBERED = 1024  # volumes that cannot be read
_PIECE = 1 << 20
_loading = threading.Lock()


def is_nifti(file: BinaryIO, head: bytes) -> bool:
    """Whether a file, or the gzip stream in it, is NIfTI-1 or -2 by its magic.

    `head` is its beginning; the file is left where it begins.
    """
    if head[:2] == b"\x1f\x8b":
        try:
            with gzip.GzipFile(fileobj=file) as stream:
                head = stream.read(_HEADER)
        except (OSError, EOFError):
            return False
        finally:
            file.seek(0)
    return head[344:348] in (b"n+1\0", b"ni1\0") or head[4:8] in (b"n+2\0", b"ni2\0")


class Slice(NamedTuple):
    """Which picture of a file: an axis of RAS+, a position along it, and the volume, if told."""

    axis: int
    position: int
    volume: int | None


def parse_slice(part: str | None) -> Slice:
    """Read `axial=90` or `axial=90,volume=3`; raises UnreadableImage for anything else."""
    found = re.fullmatch(r"(\w+)=([0-9]+)(?:,volume=([0-9]+))?", part or "")
    if found is None or found[1] not in AXES:
        raise UnreadableImage(
            "a NIfTI volume needs a slice: append #axial=N, #coronal=N or #sagittal=N to its path "
            "(of several volumes in one file, #axial=N,volume=M)"
        )
    return Slice(AXES[found[1]], int(found[2]), None if found[3] is None else int(found[3]))


def open_nifti(path: Path, part: str | None, max_pixels: int) -> Image.Image:
    """Return one slice as RGB.

    `part` such as `axial=90` is required, since no slice stands for a volume.

    Raises UnreadableImage for a broken file, a volume of one value, or a part that is not there.
    """
    wanted = parse_slice(part)
    state = path.stat()
    with _loading:  # threads that want slices of one volume load it once
        volume = _loaded(_Source(path, state.st_size, state.st_mtime_ns, wanted.volume))
    if wanted.position >= volume.shape[wanted.axis]:
        name = next(name for name, axis in AXES.items() if axis == wanted.axis)
        count = volume.shape[wanted.axis]
        raise UnreadableImage(
            f"part {part!r}: the volume has {count} {name} slices, counted from 0"
        )
    plane = slice_of(volume, wanted.axis, wanted.position)
    check_size(plane.shape[1], plane.shape[0], max_pixels)
    return Image.fromarray(plane, "RGB") if plane.ndim == 3 else rgb(plane)


def slice_of(volume: NDArray[Voxel], axis: int, position: int) -> NDArray[Voxel]:
    """Cut a RAS+ volume (x, y, z), or (x, y, z, 3).

    Rows run downwards (front or head first), columns along the remaining axis.
    """
    plane = np.take(volume, position, axis)
    return np.ascontiguousarray(np.swapaxes(plane, 0, 1)[::-1])


class _Source(NamedTuple):
    """A volume as it lies on the disk: another size or time is another file."""

    path: Path
    size: int
    modified: int
    number: int | None


_broken: "OrderedDict[_Source, str]" = OrderedDict()  # volumes that cannot be read, and why


def _loaded(source: _Source) -> NDArray[np.uint8]:
    """Return a volume, or say why it is broken without reading it again for each of its slices."""
    if source in _broken:
        raise UnreadableImage(_broken[source])
    try:
        return _volume(source)
    except UnreadableImage as error:
        _broken[source] = str(error)
        if len(_broken) > _REMEMBERED:
            _broken.popitem(last=False)
        raise


@lru_cache(maxsize=2)  # the slices of a volume are mostly asked for one after another
def _volume(source: _Source) -> NDArray[np.uint8]:
    """Return a volume in RAS+ orientation as levels, (x, y, z) or (x, y, z, 3) uint8."""
    from nibabel.orientations import apply_orientation, io_orientation

    try:
        with source.path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            stream = cast("BinaryIO", gzip.GzipFile(fileobj=file)) if packed else file
            data, affine = _read(stream, source.number)
            if packed:
                _read_to_the_end(stream)
        orientation = io_orientation(affine)
        if not np.isfinite(orientation).all():
            raise UnreadableImage("the affine does not say where the axes of the volume point")
    except UnreadableImage:
        raise
    # nibabel and gzip raise a family of their own errors on broken files.
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk's, not the file's
        reason = " ".join(str(error).split())[:200]
        raise UnreadableImage(f"broken NIfTI file: {type(error).__name__}: {reason}") from None
    try:
        levels = (
            data if data.dtype == np.uint8 else float_levels(data.astype(np.float32, copy=False))
        )
    except UnreadableImage:
        raise UnreadableImage("the volume has no two different finite values") from None
    del data
    turned: NDArray[np.uint8] = apply_orientation(levels, orientation)
    return turned


def _read_to_the_end(stream: BinaryIO) -> None:
    """Read what is left of a gzip stream: its checksum stands at the end."""
    while stream.read(_PIECE):
        pass


def _read(
    stream: BinaryIO, number: int | None
) -> tuple[NDArray[np.float32] | NDArray[np.uint8], NDArray[np.float64]]:
    """Read one volume whatever the file is called, as it lies in the file, and its affine.

    A slab at a time, so that float32 is all that is held: numbers (x, y, z), or RGB as uint8
    (x, y, z, 3).
    """
    import nibabel

    head = stream.read(_HEADER)
    if head[344:347] == b"ni1" or head[4:7] == b"ni2":
        raise UnreadableImage(
            "half of a .hdr/.img pair, which has two content keys: convert it to one .nii file"
        )
    stream.seek(0)
    kind = nibabel.Nifti2Image if head[4:8] == b"n+2\0" else nibabel.Nifti1Image
    image = kind.from_stream(stream)
    proxy, shape = image.dataobj, tuple(int(side) for side in image.shape)
    voxels = prod(shape[:3])
    if voxels > MAX_VOXELS:
        raise UnreadableImage(f"{voxels} voxels are more than the {MAX_VOXELS} allowed")
    sort = proxy.dtype
    first = _volume_number(shape, number) * voxels * sort.itemsize
    stream.seek(proxy.offset + first)
    sides = (*shape, 1, 1, 1)[:3]
    channels = (3,) if sort.fields else ()
    data = np.empty((*sides, *channels), np.uint8 if channels else np.float32, order="F")
    offset: float | None = None  # of wide types, whose numbers float32 would round
    for z in range(sides[2]):
        size = sides[0] * sides[1] * sort.itemsize
        raw = stream.read(size)
        if len(raw) < size:
            raise UnreadableImage("broken NIfTI file: it ends inside its data")
        slab = np.frombuffer(raw, sort).reshape(sides[:2], order="F")
        if channels:
            data[:, :, z] = np.stack([slab[name] for name in ("R", "G", "B")], -1)
            continue
        numbers = _scaled(slab, proxy.slope, proxy.inter)
        if numbers.dtype == np.float64:
            if offset is None and np.isfinite(numbers).any():
                offset = float(numbers[np.isfinite(numbers)][0])
            numbers = numbers - (offset or 0)
        with np.errstate(over="ignore"):
            data[:, :, z] = numbers
        if (np.isinf(data[:, :, z]) & np.isfinite(numbers)).any():
            raise UnreadableImage("the volume has numbers beyond those of 32 bits")
    return data, image.affine


def _scaled(
    slab: NDArray[np.number], slope: float, intercept: float
) -> NDArray[np.floating] | NDArray[np.integer]:
    """Return numbers that grow as those of the volume do, in float64 where float32 rounds them.

    Levels follow from percentiles, so that of real numbers only the sign of the slope matters; huge
    and tiny slopes would overflow.
    """
    if slab.dtype.kind == "c":
        return np.abs(slab.astype(np.complex128) * slope + intercept)
    if slope >= 0 and (slab.dtype.itemsize < 4 or slab.dtype == np.float32):
        return cast("NDArray[np.integer]", slab)
    numbers = slab.astype(np.float64)
    return -numbers if slope < 0 else numbers


def _volume_number(shape: tuple[int, ...], number: int | None) -> int:
    """Return which volume of a file is meant, counted through all axes beyond the third."""
    beyond = [side for side in shape[3:] if side != 1]
    if len(shape) < 3 or len(beyond) > 1:
        raise UnreadableImage(f"a volume of three dimensions is needed, this has {shape}")
    count = prod(beyond)
    if number is None and count > 1:
        raise UnreadableImage(
            f"the file has {count} volumes: append ,volume=N to the slice, N from 0 to {count - 1}"
        )
    if number is not None and number >= count:
        raise UnreadableImage(f"volume={number}: the file has {count} volumes, counted from 0")
    return number or 0
