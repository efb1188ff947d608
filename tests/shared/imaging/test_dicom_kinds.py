"""DICOM's ways to say what a stored number means: each shows the true picture, or is refused.

The expected picture is the one that the file was made of; no expectation comes from pydicom, whose
tables wrap.
"""

from collections.abc import Callable

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.uid import JPEG2000Lossless, JPEGBaseline8Bit

from shared.imaging.pixels import UnreadableImage
from tests.fixtures.images import dicom_bytes, dicom_of_frame, edited, encoded, frame_of
from tests.fixtures.truth import assert_true, colours, opened, truth, whole

pytestmark = pytest.mark.unit
EIGHT = whole(255, np.uint8)
TWELVE = whole(4095, np.uint16)
DEEP = whole(65535, np.uint16)
CENTRED = (DEEP.astype(np.int32) - 32768).astype(np.int16)
COLOUR = colours(255, np.uint8)
BITS_12 = {"BitsStored": 12, "HighBit": 11}


def table(descriptor, entries, signed=False, words=None):
    """An item of a LUT sequence, its entries as numbers, or as the bytes of words."""
    item = pydicom.Dataset()
    item.add_new("LUTDescriptor", "SS" if signed else "US", descriptor)
    if words is None:
        item.add_new("LUTData", "US", [int(entry) for entry in entries])
    else:
        item.add_new("LUTData", "OW", np.asarray(entries).astype(words).tobytes())
    item.ModalityLUTType = "US"
    return item


def palette(entries, bits, order="<", first=0):
    """A palette whose stored values run against its brightness."""
    count = len(entries)
    pixels = (count - 1 - whole(count - 1, np.uint16) + first).astype(
        np.uint16 if count > 256 else np.uint8
    )
    colours = ("Red", "Green", "Blue")
    data = np.asarray(entries)[::-1].astype(f"{order}u2").tobytes()
    return edited(
        dicom_bytes(pixels, "PALETTE COLOR", big_endian=order == ">"),
        *(
            (f"{colour}PaletteColorLookupTableDescriptor", "US", [count % 65536, first, bits])
            for colour in colours
        ),
        *((f"{colour}PaletteColorLookupTableData", "OW", data) for colour in colours),
    )


def coloured(pixels, **elements):
    """A colour file of any layout: its bytes are those of `pixels`."""
    kind = pixels.dtype.itemsize * 8
    plain = dicom_bytes(colours(255, np.dtype(f"u{pixels.dtype.itemsize}")))
    return edited(plain, ("PixelData", "OW" if kind > 8 else "OB", pixels.tobytes()), **elements)


def half_chroma():
    """YBR_FULL_422 by hand: two pixels are four bytes (PS3.3 C.7.6.3.1.2)."""
    ycc = np.asarray(Image.fromarray(COLOUR).convert("YCbCr"))
    pairs = np.empty((96, 64, 4), np.uint8)
    pairs[..., 0], pairs[..., 1] = ycc[:, ::2, 0], ycc[:, 1::2, 0]
    pairs[..., 2], pairs[..., 3] = ycc[:, ::2, 1], ycc[:, ::2, 2]
    return pairs


TRUE: dict[str, Callable[[], bytes]] = {
    "a falling slope": lambda: dicom_bytes(4095 - TWELVE, RescaleSlope=-2, RescaleIntercept=7),
    "a falling slope alone": lambda: dicom_bytes(4095 - TWELVE, RescaleSlope=-2),
    "a falling slope, windowed": lambda: dicom_bytes(
        4095 - TWELVE, RescaleSlope=-1, RescaleIntercept=0, WindowCenter=-2048, WindowWidth=4096
    ),
    "monochrome1, falling": lambda: dicom_bytes(
        TWELVE, "MONOCHROME1", RescaleSlope=-1, RescaleIntercept=0
    ),
    "a VOI LUT of 4096 entries of 8 bits": lambda: dicom_bytes(
        TWELVE, **BITS_12, VOILUTSequence=[table([4096, 0, 8], np.arange(4096) // 16)]
    ),
    "a VOI LUT of 8 bits, two a word": lambda: dicom_bytes(
        TWELVE, **BITS_12, VOILUTSequence=[table([4096, 0, 8], np.arange(4096) // 16, words="u1")]
    ),
    "a VOI LUT of 12 bits that says 16": lambda: dicom_bytes(
        TWELVE, **BITS_12, VOILUTSequence=[table([4096, 0, 16], np.arange(4096))]
    ),
    "a VOI LUT of 65536 entries": lambda: dicom_bytes(
        DEEP, VOILUTSequence=[table([0, 0, 16], np.arange(65536), words="<u2")]
    ),
    "a VOI LUT from below zero": lambda: dicom_bytes(
        CENTRED, VOILUTSequence=[table([0, -32768, 16], np.arange(65536), True, "<u2")]
    ),
    "a VOI LUT from below zero, unsigned": lambda: dicom_bytes(
        CENTRED, VOILUTSequence=[table([0, 32768, 16], np.arange(65536), words="<u2")]
    ),
    "a modality LUT from below zero": lambda: dicom_bytes(
        CENTRED, ModalityLUTSequence=[table([0, -32768, 16], np.arange(65536), True, "<u2")]
    ),
    "a modality LUT, big-endian": lambda: dicom_bytes(
        TWELVE,
        big_endian=True,
        ModalityLUTSequence=[table([4096, 0, 16], np.arange(4096) * 16, words=">u2")],
    ),
    "a falling modality LUT": lambda: dicom_bytes(
        4095 - TWELVE, ModalityLUTSequence=[table([4096, 0, 16], np.arange(4095, -1, -1))]
    ),
    "a palette of 16 bits": lambda: palette(np.arange(256) * 257, 16),
    "a palette of 16 bits, big-endian": lambda: palette(np.arange(256) * 257, 16, ">"),
    "a palette of 12 bits in 16": lambda: palette(np.arange(256) * 16, 16),
    "a palette of 4096 entries": lambda: palette(np.arange(4096) * 16, 16),
    "a palette from 100": lambda: palette(np.arange(4096) * 16, 16, first=100),
    "left-justified, signed, big-endian": lambda: dicom_bytes(
        ((whole(1023, np.int16) - 512) << 4).astype(np.int16),
        big_endian=True,
        BitsStored=10,
        HighBit=13,
    ),
    "signs that are not repeated above": lambda: dicom_bytes(
        ((whole(4095, np.int16) - 2048) & 4095).astype(np.int16), **BITS_12
    ),
    "rgb in planes": lambda: coloured(
        np.ascontiguousarray(COLOUR.transpose(2, 0, 1)), PlanarConfiguration=1
    ),
    "rgb 12 in 16 in planes": lambda: coloured(
        np.ascontiguousarray(colours(4095, np.uint16).transpose(2, 0, 1)),
        PlanarConfiguration=1,
        **BITS_12,
    ),
    "rgb of 6 bits": lambda: coloured(colours(63, np.uint8), BitsStored=6, HighBit=5),
    "rgb of 32 bits": lambda: coloured(
        colours(4e9, np.uint32), BitsAllocated=32, BitsStored=32, HighBit=31
    ),
    "rgb left-justified": lambda: coloured(
        colours(4095, np.uint16) << 4, BitsStored=12, HighBit=15
    ),
    "ybr full": lambda: coloured(
        np.asarray(Image.fromarray(COLOUR).convert("YCbCr")), PhotometricInterpretation="YBR_FULL"
    ),
    "ybr full 422": lambda: coloured(half_chroma(), PhotometricInterpretation="YBR_FULL_422"),
}


@pytest.mark.parametrize("kind", TRUE)
def test_every_kind_shows_the_truth(tmp_path, kind):
    assert_true(opened(tmp_path, TRUE[kind]()))


def padded(pixels, value, **elements):
    """A file of which four rows are padding."""
    around = pixels.copy()
    around[:4] = value
    return dicom_bytes(around, **elements)


PADDING = {
    "within the bits": lambda: padded(TWELVE // 2, 4095, **BITS_12, PixelPaddingValue=4095),
    "above the bits": lambda: padded(TWELVE, 63536, **BITS_12, PixelPaddingValue=63536),
    "above the bits, not told": lambda: padded(TWELVE, 63536, **BITS_12),
    "above the bits, windowed": lambda: padded(
        TWELVE, 63536, **BITS_12, WindowCenter=2048, WindowWidth=4096
    ),
    "signed": lambda: padded(CENTRED // 4, -32000, PixelPaddingValue=-32000),
    "signed, told as unsigned": lambda: edited(
        padded(CENTRED // 4, -32000), ("PixelPaddingValue", "US", 33536)
    ),
    "unsigned, told as signed": lambda: edited(
        padded(TWELVE, 63536), ("PixelPaddingValue", "SS", -2000)
    ),
    "a range": lambda: padded(TWELVE + 100, 50, PixelPaddingValue=0, PixelPaddingRangeLimit=60),
}


@pytest.mark.parametrize("kind", PADDING)
def test_padding_is_black_and_the_rest_is_shown(tmp_path, kind):
    found = opened(tmp_path, PADDING[kind]())
    assert (found[:4] == 0).all()
    levels = found[5:, :, 0].astype(float)
    assert np.corrcoef(levels.ravel(), truth()[5:].ravel())[0, 1] > 0.99
    assert np.ptp(levels) >= 200


JPEG = encoded(Image.fromarray(EIGHT), "JPEG")
REFUSED = {
    "three samples of gray": (
        lambda: edited(dicom_bytes(COLOUR), PhotometricInterpretation="MONOCHROME1"),
        "MONOCHROME1",
    ),
    "HSV": (lambda: edited(dicom_bytes(COLOUR), PhotometricInterpretation="HSV"), "HSV"),
    "YBR_PARTIAL_422": (
        lambda: edited(dicom_bytes(COLOUR), PhotometricInterpretation="YBR_PARTIAL_422"),
        "YBR_PARTIAL_422",
    ),
    "a wavelet's colours without wavelets": (
        lambda: edited(dicom_bytes(COLOUR), PhotometricInterpretation="YBR_RCT"),
        "YBR_RCT",
    ),
    "one sample of colour": (lambda: dicom_bytes(EIGHT, "RGB"), "RGB"),
    "negative colours": (
        lambda: coloured((COLOUR.astype(int) - 128).astype(np.int8), PixelRepresentation=1),
        "negative",
    ),
    "a JPEG of another shape": (
        lambda: edited(dicom_of_frame(JPEG, JPEGBaseline8Bit, EIGHT), Rows=48, Columns=256),
        "128 x 96 pixels, not 256 x 48",
    ),
    "a J2K frame of another shape": (
        lambda: edited(
            dicom_of_frame(frame_of(TWELVE, JPEG2000Lossless), JPEG2000Lossless, TWELVE),
            Rows=48,
            Columns=256,
        ),
        "128 x 96 pixels, not 256 x 48",
    ),
    "a table that is too short": (
        lambda: dicom_bytes(TWELVE, VOILUTSequence=[table([4096, 0, 12], np.arange(4000))]),
        "4000 entries, not 4096",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_shown_right_is_refused(tmp_path, kind):
    make, reason = REFUSED[kind]
    with pytest.raises(UnreadableImage, match=reason) as caught:
        opened(tmp_path, make())
    assert "\n" not in str(caught.value)
