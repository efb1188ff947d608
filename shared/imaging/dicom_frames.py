"""The stored numbers of one DICOM frame: decoded, whole, and without bits of something else.

A stored number takes `BitsStored` bits up to `HighBit` (PS3.5 8.1.1). The bits around it are no
part of it: older files keep overlays there. Compressed pixel data is decoded by pylibjpeg, after
`shared.imaging.jpeg`, `wavelets` or `packbits` found it whole.
"""

from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shared.imaging.jpeg import check_jpeg, check_unwarned_jpeg
from shared.imaging.packbits import check_packed
from shared.imaging.pixels import UnreadableImage
from shared.imaging.wavelets import check_wavelets

if TYPE_CHECKING:
    from pydicom import Dataset

Pixels = NDArray[np.integer]


class Frame(NamedTuple):
    """One frame: numbers (rows, columns) or (rows, columns, 3), and where they are none.

    `padding` (rows, columns) says which pixels hold a number that is none of the picture's, as
    scanners write outside their circle.
    """

    pixels: Pixels
    padding: NDArray[np.bool_] | None = None


def colour_kinds(dataset: "Dataset") -> tuple[str, ...]:
    """Return the PhotometricInterpretations of colour that come out of the decoders as RGB."""
    from pydicom.uid import JPEG2000TransferSyntaxes

    kinds = ("RGB", "YBR_FULL", "YBR_FULL_422")
    wavelets = dataset.file_meta.TransferSyntaxUID in JPEG2000TransferSyntaxes
    return (*kinds, "YBR_RCT", "YBR_ICT") if wavelets else kinds


def decode_frame(dataset: "Dataset", index: int, frames: int) -> Frame:
    """Return one frame, colour in RGB."""
    from pydicom.pixels.utils import pixel_array
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    if (
        "TransferSyntaxUID" not in dataset.file_meta
    ):  # a file without its header: what pydicom found by trying
        implicit, little = dataset.original_encoding
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
    compressed = bool(dataset.file_meta.TransferSyntaxUID.is_compressed) and bool(
        dataset.file_meta.TransferSyntaxUID.is_encapsulated
    )
    if compressed:
        _check_frame(dataset, index, frames)
    else:
        _check_length(dataset, frames)
    # Unused bits are cleared below: pydicom never asks for HighBit, and lets JPEG 2000 be.
    pixels = np.asarray(pixel_array(dataset, index=index, correct_unused_bits=False))
    return Frame(pixels) if pixels.dtype.kind == "f" else _stored(dataset, pixels, compressed)


def _check_frame(dataset: "Dataset", index: int, frames: int) -> None:
    """Raise UnreadableImage where a compressed frame is cut or damaged, or of another size."""
    from libjpeg import utils as libjpeg
    from openjpeg import utils as openjpeg
    from pydicom.encaps import get_frame
    from pydicom.uid import (
        HTJ2KLossless,
        HTJ2KLosslessRPCL,
        JPEG2000Lossless,
        JPEG2000TransferSyntaxes,
        JPEGBaseline8Bit,
        JPEGExtended12Bit,
        JPEGLSTransferSyntaxes,
        JPEGTransferSyntaxes,
        RLELossless,
    )

    syntax = dataset.file_meta.TransferSyntaxUID
    jpegs = (*JPEGTransferSyntaxes, *JPEGLSTransferSyntaxes)
    if syntax not in (*jpegs, *JPEG2000TransferSyntaxes, RLELossless):
        return
    table = ("ExtendedOffsetTable", "ExtendedOffsetTableLengths")
    extended = (dataset[table[0]].value, dataset[table[1]].value) if table[0] in dataset else None
    data = get_frame(dataset.PixelData, index, number_of_frames=frames, extended_offsets=extended)
    if syntax == RLELossless:
        _check_runs(dataset, data)
        return
    wavelets = syntax in JPEG2000TransferSyntaxes
    said = openjpeg.get_parameters(data) if wavelets else libjpeg.get_parameters(data)
    if (said["rows"], said["columns"]) != (dataset.Rows, dataset.Columns):
        raise UnreadableImage(
            f"the frame has {said['columns']} x {said['rows']} pixels, not {dataset.Columns} x "
            f"{dataset.Rows}"
        )
    if wavelets:
        check_wavelets(data, whole=syntax in (JPEG2000Lossless, HTJ2KLossless, HTJ2KLosslessRPCL))
        return
    eight = syntax == JPEGExtended12Bit and int(dataset.BitsStored) <= 8
    if syntax == JPEGBaseline8Bit or eight:
        check_jpeg(data)
    else:
        check_unwarned_jpeg(data)


def _check_runs(dataset: "Dataset", data: bytes) -> None:
    """Check each segment of an RLE frame: a plane of one byte of every number (PS3.5 G.3)."""
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    count = int.from_bytes(data[:4], "little")
    ends = [int.from_bytes(data[4 * n : 4 * n + 4], "little") for n in range(1, 1 + min(count, 15))]
    for start, end in pairwise((*ends, len(data))):
        check_packed(data[start:end], rows * columns, columns, "RLE frame")


def _check_length(dataset: "Dataset", frames: int) -> None:
    """Raise UnreadableImage where more numbers than the header tells follow in the data.

    What is missing, pydicom finds. Zeros, or any one byte, are what writers fill up with.
    """
    if "PixelData" not in dataset:
        return
    if not dataset.PixelData:
        raise UnreadableImage("a DICOM file without pixel data")
    samples = int(dataset.get("SamplesPerPixel", 1))
    numbers = int(dataset.Rows) * int(dataset.Columns) * samples * frames
    if str(dataset.PhotometricInterpretation) == "YBR_FULL_422":
        numbers = numbers * 2 // 3
    more = dataset.PixelData[-(-numbers * int(dataset.BitsAllocated) // 8) :]
    if len(more) > 1 and more.count(more[:1]) < len(more):
        raise UnreadableImage(
            f"the data has {len(more)} bytes more than {dataset.Columns} x {dataset.Rows} pixels"
        )


def _stored(dataset: "Dataset", pixels: Pixels, compressed: bool) -> Frame:
    """Return the bits that are the stored number, right-justified and with their sign."""
    pixels = pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
    bits, room = int(dataset.BitsStored), 8 * pixels.dtype.itemsize
    high = int(dataset.get("HighBit", bits - 1))
    if not 0 < bits <= room:
        raise UnreadableImage(f"BitsStored is {bits} of {room}")
    signed = pixels.dtype.kind == "i"
    lowest, highest = (
        (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
    )
    smallest, largest = int(pixels.min()), int(pixels.max())
    shift = high + 1 - bits
    if lowest <= smallest and largest <= highest and (shift == 0 or compressed):
        return Frame(pixels)  # a codestream holds numbers, whatever their place once was
    if shift < 0 or bits + shift > room or (compressed and shift):
        raise UnreadableImage(f"BitsStored {bits} and HighBit {high} do not fit the data")
    if compressed and dataset.file_meta.TransferSyntaxUID in _lossy():
        return Frame(_overshoot(pixels, lowest, highest))
    padding = None if _has_overlay(dataset, high) else _padding(pixels, high, bits)
    left = room - bits - shift  # to the left and back: the sign, or zeros, fill what is above it
    stored: Pixels = np.right_shift(np.left_shift(pixels, left), left + shift)
    if padding is not None:
        stored[padding] = stored[~padding].min()
    return Frame(stored, padding)


def _has_overlay(dataset: "Dataset", high: int) -> bool:
    """Whether an overlay is said to lie in the bits above the numbers (PS3.3 C.9.2, retired)."""
    places = (dataset.get((group, 0x0102)) for group in range(0x6000, 0x6020, 2))
    return any(place is not None and int(place.value) > high for place in places)


def _padding(pixels: Pixels, high: int, bits: int) -> NDArray[np.bool_] | None:
    """Return which pixels use bits above the number: None where none does.

    Bits that repeat the sign are no use. One single such value is what scanners write outside the
    picture, often -2000 where all numbers are positive.

    Raises UnreadableImage where there are several values: the numbers have more bits than told.
    """
    width = np.dtype(f"u{pixels.dtype.itemsize}")
    above = pixels.view(width) >> width.type(high) >> width.type(1)
    beyond: NDArray[np.bool_] = above != 0
    if pixels.dtype.kind == "i":
        whole = (1 << (8 * width.itemsize - high - 1)) - 1
        negative = (pixels.view(width) >> width.type(high) & width.type(1)) != 0
        beyond &= ~(negative & (above == whole))
    if not beyond.any():
        return None
    used = pixels[beyond]
    if used.min() != used.max() or beyond.all() or pixels.ndim == 3:
        raise UnreadableImage(
            f"numbers use bits above HighBit {high} (BitsStored {bits}) and no overlay is said to "
            "lie there"
        )
    return beyond


def _lossy() -> tuple[str, ...]:
    from pydicom.uid import HTJ2K, JPEG2000, JPEGLSNearLossless

    return JPEG2000, HTJ2K, JPEGLSNearLossless


def _overshoot(pixels: Pixels, lowest: int, highest: int) -> Pixels:
    """Clip what a lossy codec leaves just beyond the range; more than that is something else."""
    allowed = (highest - lowest) // 16
    if int(pixels.min()) < lowest - allowed or int(pixels.max()) > highest + allowed:
        raise UnreadableImage("numbers beyond BitsStored in lossy data: an overlay, or no image")
    clipped: Pixels = np.clip(pixels, lowest, highest)
    return clipped
