"""DICOM images through pydicom, as a viewer shows them first.

Gray values go through the modality LUT (or rescale), then the VOI LUT, else the first window (PS3.3
C.11.2), whose ends become 0 and 255. Without either, or where the window leaves one single value,
the image's own range without its padding value is used (`shared.imaging.levels`). Enhanced
multi-frame objects keep these in their functional groups. MONOCHROME1 and the presentation LUT
shape INVERSE are inverted (once, where a file says both: they are one statement), YBR and palette
colour become RGB. A multi-frame image without `frame=N` (0-based) shows its middle frame: the first
is often empty.
"""

from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shared.imaging.dicom_frames import Frame, Pixels, colour_kinds, decode_frame
from shared.imaging.dicom_luts import modality_values, palette_table, voi_values
from shared.imaging.levels import (
    Levels,
    counts_of,
    gray_levels,
    look_up,
    rgb,
    stretched,
    to_levels,
)
from shared.imaging.pixels import UnreadableImage, check_size, frame_number

if TYPE_CHECKING:
    from pydicom import Dataset

Values = NDArray[np.float64]
_GRAY_KINDS = ("MONOCHROME1", "MONOCHROME2")
_DATA = {"PixelData", "FloatPixelData", "DoubleFloatPixelData"}


def is_dicom(head: bytes) -> bool:
    """Whether a file's first 132 bytes say DICOM.

    By its mark, or, in old files without one, by a first data element.

    Such a file begins with group 0002 or 0008, and a value representation of two capitals or a
    short length.
    """
    if head[128:132] == b"DICM":
        return True
    if head[:2] in (b"\x02\0", b"\x08\0"):
        element, length = int.from_bytes(head[2:4], "little"), int.from_bytes(head[4:8], "little")
    elif head[:2] in (b"\0\x02", b"\0\x08"):
        element, length = int.from_bytes(head[2:4], "big"), int.from_bytes(head[4:8], "big")
    else:
        return False
    explicit = head[4:6].isalpha() and head[4:6].isupper()
    return len(head) >= 132 and element < 0x100 and (explicit or length <= 64)


def open_dicom(file: BinaryIO, part: str | None, max_pixels: int) -> Image.Image:
    """Return one frame as RGB.

    Raises UnreadableImage where there is no pixel data, it cannot be decoded, or it is more than
    `max_pixels` pixels.
    """
    import pydicom

    try:
        dataset = pydicom.dcmread(file, force=True)
        if not len(
            dataset
        ):  # what pydicom makes of a file that ends inside an element of undefined length
            raise UnreadableImage("a truncated DICOM file: it ends inside its data")
        if not _DATA & set(dataset.dir()):
            raise UnreadableImage("a DICOM file without pixel data")
        check_size(int(dataset.Columns), int(dataset.Rows), max_pixels)
        frames = int(dataset.get("NumberOfFrames") or 1)
        index = frames // 2 if part is None else frame_number(part, frames)
        frame = decode_frame(dataset, index, frames)
        for name in _DATA & set(dataset.dir()):
            del dataset[name]  # a mammogram's 44 MiB, which are not needed any more
        levels = _levels(dataset, frame, index)
        del frame
        return rgb(levels) if levels.ndim == 2 else Image.fromarray(levels, "RGB")
    except UnreadableImage:
        raise
    except BaseException as error:  # a broken file surfaces as many kinds of errors
        # A panic of pylibjpeg's decoder of RLE, written in Rust, is no Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = " ".join(str(error).split())[:200]
        raise UnreadableImage(f"broken DICOM file: {type(error).__name__}: {reason}") from None


def _levels(dataset: "Dataset", frame: Frame, index: int) -> Levels:
    kind, pixels = str(dataset.PhotometricInterpretation), frame.pixels
    if kind == "PALETTE COLOR" and pixels.ndim == 2:
        return _palette(dataset, pixels)
    if kind in _GRAY_KINDS and pixels.ndim == 2:
        levels = _gray(dataset, pixels, index)
        if frame.padding is not None:
            levels[frame.padding] = 0
        return levels
    if kind in colour_kinds(dataset) and pixels.ndim == 3:
        return _colour(pixels, int(dataset.BitsStored))
    raise UnreadableImage(
        f"PhotometricInterpretation {kind!r} of {pixels.shape[2:] or (1,)} samples is not read: "
        "convert it to RGB or MONOCHROME2"
    )


def _gray(dataset: "Dataset", pixels: Pixels, index: int) -> Levels:
    """Map each stored value once, then look up every pixel."""
    counts = counts_of(pixels)
    if counts is None:  # floating-point pixels: each is a value of its own
        values, number = pixels.ravel(), np.ones(pixels.size, np.int64)
    else:
        values, number = counts.values.astype(pixels.dtype), counts.counts
    table = to_levels(*_mapped(dataset, values, number, index))
    return table.reshape(pixels.shape) if counts is None else look_up(pixels, int(values[0]), table)


def _mapped(
    dataset: "Dataset", stored: Pixels, number: NDArray[np.int64], index: int
) -> tuple[Values, bool]:
    """Return stored values, `number` pixels each, on the scale 0 to 1, and whether 0 is white."""
    transformation = _group(dataset, "PixelValueTransformationSequence", index)
    values = modality_values(dataset, dataset if transformation is None else transformation, stored)
    inverted = (
        dataset.PhotometricInterpretation == "MONOCHROME1"
        or str(dataset.get("PresentationLUTShape") or "").upper() == "INVERSE"
    )
    window = _group(dataset, "FrameVOILUTSequence", index)
    shown = _windowed(dataset, values, dataset if window is None else window)
    there = shown[number > 0] if shown is not None else None
    if shown is None or there is None or there.min() == there.max():
        padding = _padding(dataset, stored)
        deep = int(dataset.get("BitsStored", 16)) > 8
        shown = stretched(values, np.where(padding, 0, number), deep=deep)
        shown[padding] = np.nan
    return shown, inverted


def _group(dataset: "Dataset", name: str, index: int) -> "Dataset | None":
    """Return a functional group of an enhanced multi-frame object (PS3.3 C.7.6.16).

    The frame's own, or the shared.
    """
    frames = dataset.get("PerFrameFunctionalGroupsSequence") or []
    for holder in (
        *frames[index : index + 1],
        *(dataset.get("SharedFunctionalGroupsSequence") or []),
    ):
        if holder.get(name):
            group: Dataset = holder[name][0]
            return group
    return None


def _windowed(dataset: "Dataset", values: Values, holder: "Dataset") -> Values | None:
    """Apply the VOI LUT or first window of `holder` (PS3.3 C.11.2).

    Values in [0, 1], or None where it has neither.
    """
    if holder.get("VOILUTSequence"):
        return voi_values(dataset, holder, values)
    if holder.get("WindowCenter") is None or holder.get("WindowWidth") is None:
        return None
    center, width = (
        float(np.ravel(holder[name].value)[0]) for name in ("WindowCenter", "WindowWidth")
    )
    return _window(
        values,
        center,
        width,
        str(holder.get("VOILUTFunction") or "LINEAR").upper(),
    )


def _window(x: Values, center: float, width: float, function: str) -> Values | None:
    """Map the window to [0, 1] (PS3.3 C.11.2.1.2 and C.11.2.1.3).

    None for an invalid one, as viewers ignore it.
    """
    if function == "LINEAR" and width >= 1:
        ramp = (
            (x - (center - 0.5)) / (width - 1) + 0.5
            if width > 1
            else (x > center - 0.5).astype(np.float64)
        )
    elif function == "LINEAR_EXACT" and width > 0:
        ramp = (x - center) / width + 0.5
    elif function == "SIGMOID" and width > 0:
        ramp = 1 / (1 + np.exp(np.clip(-4 * (x - center) / width, -700, 700)))
    else:
        return None
    return np.clip(ramp, 0, 1)


def _padding(dataset: "Dataset", pixels: Pixels) -> NDArray[np.bool_]:
    """Where stored values are padding around the image (PS3.3 C.7.5.1.1.2).

    No range should follow them.
    """
    value = dataset.get("PixelPaddingValue")
    if value is None:
        return np.zeros(pixels.shape, dtype=bool)
    limit = dataset.get("PixelPaddingRangeLimit")
    low, high = sorted(
        _as_stored(int(end), pixels) for end in (value, value if limit is None else limit)
    )
    inside: NDArray[np.bool_] = (pixels >= low) & (pixels <= high)
    return inside


def _as_stored(value: int, pixels: Pixels) -> int:
    """Return a number as the pixels would hold it: -2000 may be written as 63536, and back."""
    if pixels.dtype.kind not in "ui":
        return value
    room = 8 * pixels.dtype.itemsize
    value &= (1 << room) - 1
    return value - (1 << room) if pixels.dtype.kind == "i" and value >> (room - 1) else value


def _palette(dataset: "Dataset", pixels: Pixels) -> Levels:
    colours, first = palette_table(dataset)
    places = np.clip(pixels.astype(np.int64) - first, 0, len(colours) - 1)
    levels: Levels = colours[places]
    return levels


def _colour(pixels: Pixels, bits: int) -> Levels:
    """Return RGB of `bits` bits as levels; other than 8 from their own range."""
    colours = np.ascontiguousarray(pixels[..., :3])
    if int(colours.min()) < 0:
        raise UnreadableImage("colour of negative numbers")
    return colours.astype(np.uint8) if bits == 8 else gray_levels(colours)
