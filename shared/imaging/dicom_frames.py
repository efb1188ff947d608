"""The stored numbers of one DICOM frame: decoded, whole, and without bits of something else.

A stored number takes `BitsStored` bits up to `HighBit` (PS3.5 8.1.1). The bits around it are no
part of it: older files keep overlays there. Compressed pixel data is decoded by pylibjpeg, after
`shared.imaging.jpeg` found it whole; JPEG 2000 and RLE decoders find that themselves.
"""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from shared.imaging.jpeg import check_jpeg, check_unwarned_jpeg
from shared.imaging.pixels import UnreadableImage

if TYPE_CHECKING:
    from pydicom import Dataset

Pixels = NDArray[np.integer]


def decode_frame(dataset: "Dataset", index: int, frames: int) -> Pixels:
    """Return one frame, (rows, columns) or (rows, columns, 3) in RGB."""
    from pydicom.pixels import pixel_array
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
    # Unused bits are cleared below: pydicom never asks for HighBit, and lets JPEG 2000 be.
    pixels = np.asarray(pixel_array(dataset, index=index, correct_unused_bits=False))
    return pixels if pixels.dtype.kind == "f" else _stored(dataset, pixels, compressed)


def _check_frame(dataset: "Dataset", index: int, frames: int) -> None:
    """Raise UnreadableImage where a frame in a JPEG of some kind is cut or damaged."""
    from pydicom.encaps import get_frame
    from pydicom.uid import (
        JPEG2000TransferSyntaxes,
        JPEGBaseline8Bit,
        JPEGExtended12Bit,
        JPEGTransferSyntaxes,
    )

    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax not in JPEGTransferSyntaxes or syntax in JPEG2000TransferSyntaxes:
        return
    table = ("ExtendedOffsetTable", "ExtendedOffsetTableLengths")
    extended = (dataset[table[0]].value, dataset[table[1]].value) if table[0] in dataset else None
    data = get_frame(dataset.PixelData, index, number_of_frames=frames, extended_offsets=extended)
    eight = syntax == JPEGExtended12Bit and int(dataset.BitsStored) <= 8
    if syntax == JPEGBaseline8Bit or eight:
        check_jpeg(data)
    else:
        check_unwarned_jpeg(data)


def _stored(dataset: "Dataset", pixels: Pixels, compressed: bool) -> Pixels:
    """Return the bits that are the stored number, right-justified and with their sign."""
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
        return pixels  # a codestream holds numbers, whatever their place once was
    if shift < 0 or bits + shift > room or (compressed and shift):
        raise UnreadableImage(f"BitsStored {bits} and HighBit {high} do not fit the data")
    if compressed and dataset.file_meta.TransferSyntaxUID in _lossy():
        return _overshoot(pixels, lowest, highest)
    left = room - bits - shift  # to the left and back: the sign, or zeros, fill what is above it
    stored: Pixels = np.right_shift(np.left_shift(pixels, left), left + shift)
    return stored


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
