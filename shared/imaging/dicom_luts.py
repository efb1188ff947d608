"""The look-up tables of DICOM: modality LUT and rescale (PS3.3 C.11.1), VOI LUT (C.11.2), palette.

Written out, because pydicom 3.0 counts in the type of the entries or of the pixels, which wraps: a
table of 4,096 entries of 8 bits, as mammograms have, or one that begins far below zero.
"""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from pydicom import Dataset

Values = NDArray[np.float64]


def modality_values(dataset: "Dataset", holder: "Dataset", stored: NDArray[np.generic]) -> Values:
    """Return stored values through the modality LUT, else rescaled by what `holder` says of it."""
    if holder.get("ModalityLUTSequence"):
        entries, first, _ = _table(dataset, holder.ModalityLUTSequence[0])
        return _look_up(stored.astype(np.float64), entries, first)
    slope, intercept = (holder.get(f"Rescale{name}") for name in ("Slope", "Intercept"))
    values: Values = stored.astype(np.float64)
    if slope is not None:
        values = values * float(slope)
    return values if intercept is None else values + float(intercept)


def voi_values(dataset: "Dataset", holder: "Dataset", values: Values) -> Values:
    """Return values through the VOI LUT of `holder`, on the scale 0 to 1."""
    entries, first, bits = _table(dataset, holder.VOILUTSequence[0])
    return _look_up(values, entries, first) / top_of(entries, bits)


def top_of(entries: NDArray[np.generic], bits: int) -> int:
    """Return the largest number of entries of so many bits, or of the bits that they use.

    Some writers keep entries of 8 or 12 bits in 16: scaled as 16 bits they would all be black.
    """
    used = int(entries.max()).bit_length()
    return int((1 << min(bits, max(8, used))) - 1)


def palette_table(dataset: "Dataset") -> tuple[NDArray[np.uint8], int]:
    """Return the colours (entries, 3) of a palette, and the stored value of the first."""
    from pydicom.pixels.processing import apply_color_lut

    count, first, _ = (int(number) for number in dataset.RedPaletteColorLookupTableDescriptor)
    if first >= 1 << 15 and int(dataset.PixelRepresentation):
        first -= 1 << 16  # a signed number, written as an unsigned one
    if not dataset.original_encoding[1]:
        # pydicom takes tables of 16 bits for little-endian in any file.
        for colour in ("Red", "Green", "Blue"):
            name = f"{colour}PaletteColorLookupTableData"
            if name in dataset and dataset[name].VR == "OW":
                dataset[name].value = (
                    np.frombuffer(dataset[name].value, ">u2").astype("<u2").tobytes()
                )
    for colour in ("Red", "Green", "Blue"):
        dataset[f"{colour}PaletteColorLookupTableDescriptor"].value[1] = 0
    entries = apply_color_lut(np.arange(count or 1 << 16, dtype=np.int64), dataset)[:, :3]
    scale = 255 / top_of(entries, 8 * entries.dtype.itemsize)
    colours: NDArray[np.uint8] = np.rint(entries * scale).astype(np.uint8)
    return colours, first


def _table(dataset: "Dataset", item: "Dataset") -> tuple[NDArray[np.generic], int, int]:
    """Return a table's entries, the value that its first one is for, and their bits."""
    count, first, bits = (int(number) for number in item.LUTDescriptor)
    count = count or 1 << 16
    data = item.LUTData
    if isinstance(data, bytes):
        order = "<" if dataset.original_encoding[1] else ">"
        entries = np.frombuffer(data, "u1" if len(data) < 2 * count else f"{order}u2")
    else:
        entries = np.atleast_1d(np.asarray(data, np.uint16))
    if len(entries) < count:
        raise ValueError(f"a look-up table of {len(entries)} entries, not {count}")
    if first >= 1 << 15 and int(dataset.PixelRepresentation):
        first -= 1 << 16  # a signed number, written as an unsigned one
    return entries[:count], first, bits


def _look_up(values: Values, entries: NDArray[np.generic], first: int) -> Values:
    """Look up each value; those beyond an end of the table have the entry at that end."""
    places = np.clip(np.rint(values) - first, 0, len(entries) - 1)
    return entries[places.astype(np.int64)].astype(np.float64)
