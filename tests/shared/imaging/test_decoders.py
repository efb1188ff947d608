"""Every decoder against every way in which a picture goes wrong, with the true picture beside it.

One picture, a bright blob low on the left over a faint ramp, in every kind of file. Each cell of
the table shows it (correlation with the truth, and a range of levels) or is refused.
"""

import functools
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin
from pydicom.uid import JPEG2000Lossless, JPEGBaseline8Bit, JPEGLosslessSV1, RLELossless

from shared.imaging.pixels import UnreadableImage
from tests.fixtures.images import (
    dicom_bytes,
    dicom_of_floats,
    dicom_of_frame,
    encoded,
    frame_of,
    lossless_jpeg_bytes,
    nifti_bytes,
    png_bytes,
    tiff_bytes,
    with_overlay,
)
from tests.fixtures.truth import assert_true, colours, opened, truth, whole, with_alpha

pytestmark = pytest.mark.unit


DEEP = whole(65535, np.uint16)
TWELVE = whole(4095, np.uint16)
SIGNED = (whole(4095, np.int16) - 1500).astype(np.int16)
EIGHT = whole(255, np.uint8)
HOT = TWELVE.copy()
HOT[3, 100] = 65535
BIG = (np.rint(truth() * 1e6) + 2**31 + 5e8).astype(np.uint32)
VOLUME = np.repeat((truth() * 1000).astype(np.float32).T[:, ::-1, None], 3, 2)  # x, y up, z
FAR = 2**31 + np.repeat((truth() * 200).astype(np.int64).T[:, ::-1, None], 3, 2)
BITS_12 = {"BitsStored": 12, "HighBit": 11}
OVERLAY = (np.random.default_rng(0).integers(0, 16, (96, 128)) << 12).astype(np.uint16)
BIT = OVERLAY & 0x1000
JPEG = encoded(Image.fromarray(EIGHT), "JPEG", quality=95)
LOSSLESS = lossless_jpeg_bytes(TWELVE)
RGB24 = np.zeros(VOLUME.shape, np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
for _name in "RGB":
    RGB24[_name] = np.rint(VOLUME / VOLUME.max() * 255).astype(np.uint8)


def without_adobe(data):
    """Return a JPEG without its application segment 14."""
    start = data.index(b"\xff\xee")
    length = int.from_bytes(data[start + 2 : start + 4], "big")
    return data[:start] + data[start + 2 + length :]


def min_is_white():
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[262] = 0
    return tags


TRUE: dict[str, Callable[[], bytes]] = {
    "png 8 gray": lambda: encoded(Image.fromarray(EIGHT), "PNG"),
    "png 16 gray": lambda: encoded(Image.fromarray(DEEP), "PNG"),
    "png 12 in 16 gray": lambda: encoded(Image.fromarray(TWELVE), "PNG"),
    "png 12 in 16, a hot pixel": lambda: encoded(Image.fromarray(HOT), "PNG"),
    "png 12 in 16 gray, alpha": lambda: png_bytes(
        np.stack([TWELVE, np.full_like(TWELVE, 4095)], -1)
    ),
    "png 16 rgb": lambda: png_bytes(colours(65535, np.uint16)),
    "png 12 in 16 rgb": lambda: png_bytes(colours(4095, np.uint16)),
    "png 12 in 16 rgba": lambda: png_bytes(with_alpha(colours(4095, np.uint16), 4095)),
    "png 15 in 16 rgb": lambda: png_bytes(colours(32767, np.uint16)),
    "ppm 12 rgb": lambda: b"P6 128 96 4095\n" + colours(4095, np.uint16).astype(">u2").tobytes(),
    "ppm 8 rgb, a comment longer than what is read of the header": lambda: (
        b"P6\n#" + b"x" * 5000 + b"\n128 96 255\n" + colours(255, np.uint8).tobytes()
    ),
    "jpeg gray": lambda: encoded(Image.fromarray(EIGHT), "JPEG", quality=95),
    "jpeg rgb": lambda: encoded(Image.fromarray(colours(255, np.uint8)), "JPEG", quality=95),
    "jpeg cmyk": lambda: encoded(
        Image.fromarray(EIGHT).convert("RGB").convert("CMYK"), "JPEG", quality=95
    ),
    "jpeg 2000 12 bits": lambda: encoded(Image.fromarray(TWELVE), "JPEG2000"),
    "webp": lambda: encoded(Image.fromarray(EIGHT).convert("RGB"), "WEBP"),
    "gif": lambda: encoded(Image.fromarray(EIGHT), "GIF"),
    "bmp": lambda: encoded(Image.fromarray(EIGHT), "BMP"),
    **{
        f"tiff {order} {name}{' inverted' if white else ''}": functools.partial(
            tiff_bytes, np.max(pixels) - pixels if white else pixels, order, 0 if white else 1
        )
        for order in "<>"
        for white in (False, True)
        for name, pixels in {
            "8": EIGHT,
            "16": DEEP,
            "12 in 16": TWELVE,
            "32 float": truth().astype(np.float32),
            "32": whole(1e9, np.int32),
        }.items()
    },
    **{
        f"tiff {order} {name}": functools.partial(tiff_bytes, pixels, order, photometric)
        for order in "<>"
        for name, pixels, photometric in (
            ("unsigned 32 over 2^31", BIG, 1),
            ("a hot pixel", HOT, 1),
            ("rgb 16", colours(65535, np.uint16), 2),
            ("rgb 12 in 16", colours(4095, np.uint16), 2),
            ("rgba 12 in 16", with_alpha(colours(4095, np.uint16), 4095), 2),
            ("rgb 8", colours(255, np.uint8), 2),
        )
    },
    "tiff gray 16 deflated, said to be in planes": lambda: tiff_bytes(
        DEEP, compression=8, planar=2
    ),
    **{
        f"tiff {order} rgb 12 in 16, deflated": functools.partial(
            tiff_bytes, colours(4095, np.uint16), order, 2, compression=8
        )
        for order in "<>"
    },
    "tiff turned": lambda: tiff_bytes(np.rot90(DEEP), "<", 1, orientation=6),
    "tiff turned, rgb 12 in 16": lambda: tiff_bytes(
        np.rot90(colours(4095, np.uint16)), "<", 2, orientation=6
    ),
    "tiff 16 lzw inverted": lambda: encoded(
        Image.fromarray(65535 - DEEP), "TIFF", compression="tiff_lzw", tiffinfo=min_is_white()
    ),
    "tiff gray, alpha multiplied in": lambda: tiff_bytes(
        np.stack([EIGHT, np.full_like(EIGHT, 255)], -1), extra=1
    ),
    "tiff rgb 8 jpeg": lambda: encoded(
        Image.fromarray(colours(255, np.uint8)), "TIFF", compression="jpeg"
    ),
    "dicom 8": lambda: dicom_bytes(EIGHT),
    "dicom 12": lambda: dicom_bytes(TWELVE, BitsStored=12, HighBit=11),
    "dicom 16 big-endian": lambda: dicom_bytes(DEEP, big_endian=True),
    "dicom signed": lambda: dicom_bytes(SIGNED, BitsStored=13, HighBit=12),
    "dicom a hot pixel": lambda: dicom_bytes(HOT),
    "dicom monochrome1": lambda: dicom_bytes(65535 - DEEP, "MONOCHROME1"),
    "dicom monochrome1, inverse": lambda: dicom_bytes(
        65535 - DEEP, "MONOCHROME1", PresentationLUTShape="INVERSE"
    ),
    "dicom inverse": lambda: dicom_bytes(65535 - DEEP, PresentationLUTShape="INVERSE"),
    "dicom inverse, windowed": lambda: dicom_bytes(
        4095 - TWELVE, PresentationLUTShape="INVERSE", WindowCenter=2048, WindowWidth=4096
    ),
    "dicom identity": lambda: dicom_bytes(DEEP, PresentationLUTShape="IDENTITY"),
    "dicom left-justified": lambda: dicom_bytes(
        TWELVE << 4, BitsStored=12, HighBit=15, WindowCenter=2048, WindowWidth=4096
    ),
    "dicom left-justified, signed": lambda: dicom_bytes(
        (SIGNED << 3).astype(np.int16), BitsStored=13, HighBit=15
    ),
    "dicom overlay above": lambda: with_overlay(
        dicom_bytes(TWELVE | OVERLAY, BitsStored=12, HighBit=11), 12
    ),
    "dicom overlay below": lambda: dicom_bytes(
        TWELVE << 4 | OVERLAY >> 12, BitsStored=12, HighBit=15
    ),
    "dicom overlay of one bit": lambda: with_overlay(
        dicom_bytes(TWELVE | BIT, BitsStored=12, HighBit=11), 12
    ),
    "dicom overlay of one bit, signed": lambda: with_overlay(
        dicom_bytes((SIGNED & 0x1FFF | BIT << 1).astype(np.int16), BitsStored=13, HighBit=12), 13
    ),
    "dicom float 32": lambda: dicom_of_floats(truth().astype(np.float32)),
    "dicom float 64": lambda: dicom_of_floats(truth()),
    "dicom j2k": lambda: dicom_of_frame(
        frame_of(TWELVE, JPEG2000Lossless, 12), JPEG2000Lossless, TWELVE, **BITS_12
    ),
    "dicom j2k overlay": lambda: with_overlay(
        dicom_of_frame(
            frame_of(TWELVE | OVERLAY, JPEG2000Lossless), JPEG2000Lossless, TWELVE, **BITS_12
        ),
        12,
    ),
    "dicom rle": lambda: dicom_of_frame(frame_of(TWELVE, RLELossless), RLELossless, TWELVE),
    "dicom jpeg": lambda: dicom_of_frame(JPEG, JPEGBaseline8Bit, EIGHT),
    "dicom jpeg lossless": lambda: dicom_of_frame(LOSSLESS, JPEGLosslessSV1, TWELVE, **BITS_12),
    "dicom rgb 8": lambda: dicom_bytes(colours(255, np.uint8)),
    "dicom rgb 12 in 16": lambda: dicom_bytes(colours(4095, np.uint16)),
}


@pytest.mark.parametrize("kind", TRUE)
def test_every_kind_shows_the_truth(tmp_path, kind):
    assert_true(opened(tmp_path, TRUE[kind]()))


VOLUMES = {
    "plain": VOLUME,
    "complex": (VOLUME * np.exp(1j * VOLUME)).astype(np.complex64),
    "unsigned 32 over 2^31": (VOLUME * 1e5 + 3e9).astype(np.uint32),
    "64 bits far from zero": FAR,
    "float 64 far from zero": FAR.astype(np.float64),
    "16 bits": VOLUME.astype(np.int16),
    "rgb24": RGB24,
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", VOLUMES)
def test_every_kind_of_volume_shows_the_truth(tmp_path, kind, packed):
    affine = np.eye(4)
    data = nifti_bytes(VOLUMES[kind], affine, packed, dtype=VOLUMES[kind].dtype)
    assert_true(opened(tmp_path, data, "axial=1"))


def test_each_volume_of_a_series_is_read(tmp_path):
    series = np.stack([VOLUME, VOLUME.max() - VOLUME], -1)
    data = nifti_bytes(series, np.eye(4), packed=True)
    first = opened(tmp_path, data, "axial=1,volume=0")
    assert_true(first)
    assert_true(255 - opened(tmp_path, data, "axial=1,volume=1"))
    assert np.array_equal(
        first, opened(tmp_path, nifti_bytes(VOLUME, np.eye(4)), "axial=1,volume=0")
    )


GARBAGE = np.random.default_rng(7).integers(0, 255, 400, dtype=np.uint8).tobytes()  # no FF
CODECS = {  # the compressed data, and the file around it
    "jpeg": (JPEG, lambda data: data),
    "jpeg progressive": (
        encoded(Image.fromarray(EIGHT), "JPEG", quality=95, progressive=True),
        lambda data: data,
    ),
    "dicom jpeg": (JPEG, lambda data: dicom_of_frame(data, JPEGBaseline8Bit, EIGHT)),
    "dicom jpeg lossless": (
        LOSSLESS,
        lambda data: dicom_of_frame(data, JPEGLosslessSV1, TWELVE, **BITS_12),
    ),
    "dicom j2k": (
        frame_of(TWELVE, JPEG2000Lossless, 12),
        lambda data: dicom_of_frame(data, JPEG2000Lossless, TWELVE, **BITS_12),
    ),
    "dicom rle": (
        frame_of(TWELVE, RLELossless),
        lambda data: dicom_of_frame(data, RLELossless, TWELVE),
    ),
    "png 16 rgb": (png_bytes(colours(65535, np.uint16)), lambda data: data),
    "png 8": (encoded(Image.fromarray(EIGHT), "PNG"), lambda data: data),
    "tiff deflate": (tiff_bytes(DEEP, compression=8), lambda data: data),
    "tiff jpeg": (
        encoded(Image.fromarray(colours(255, np.uint8)), "TIFF", compression="jpeg"),
        lambda data: data,
    ),
}
FAULTS = {
    "cut": lambda data: data[: len(data) // 2],
    "cut late": lambda data: data[: len(data) * 19 // 20],
    "cut and closed": lambda data: data[: len(data) // 2] + data[-2:],
    "bytes left out": lambda data: data[: len(data) // 2] + data[len(data) // 2 + 100 :],
}
SUMMED = ("jpeg", "jpeg progressive", "dicom jpeg", "png 16 rgb", "png 8", "tiff deflate")


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("codec", CODECS)
def test_cut_data_is_refused_also_where_its_end_is_put_back(tmp_path, codec, fault):
    data, file = CODECS[codec]
    assert_true(opened(tmp_path, file(data)))
    with pytest.raises(UnreadableImage) as caught:
        opened(tmp_path, file(FAULTS[fault](data)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("place", [0.4, 0.5, 0.6])
@pytest.mark.parametrize("codec", [*SUMMED, "dicom jpeg lossless", "tiff jpeg"])
def test_garbage_amid_the_data_is_refused(tmp_path, codec, place):
    data, file = CODECS[codec]
    start = int(place * len(data))
    damaged = data[:start] + GARBAGE + data[start + 400 :]
    with pytest.raises(UnreadableImage):
        opened(tmp_path, file(damaged[: len(data)]))


@pytest.mark.parametrize("padding", [b"", b"\0", b"\xff", b"\0\0\0"])
def test_padding_behind_a_frame_is_no_fault(tmp_path, padding):
    assert_true(
        opened(tmp_path, dicom_of_frame(LOSSLESS + padding, JPEGLosslessSV1, TWELVE, **BITS_12))
    )
    assert_true(opened(tmp_path, dicom_of_frame(JPEG + padding, JPEGBaseline8Bit, EIGHT)))


REFUSED = {
    "jpeg cmyk that is not Adobe's": lambda: without_adobe(
        encoded(Image.fromarray(EIGHT).convert("RGB").convert("CMYK"), "JPEG")
    ),
    "tiff whose strips do not cover it": lambda: tiff_bytes(DEEP, rows=24),
    "dicom numbers above the bits told": lambda: dicom_bytes(TWELVE, BitsStored=10, HighBit=9),
    "dicom j2k numbers above the bits told": lambda: dicom_of_frame(
        frame_of(TWELVE, JPEG2000Lossless), JPEG2000Lossless, TWELVE, BitsStored=10, HighBit=9
    ),
    "ppm 12 in 16 rgb": lambda: (
        b"P6 128 96 65535\n" + colours(4095, np.uint16).astype(">u2").tobytes()
    ),
    "tiff rgb 16 in planes": lambda: tiff_bytes(
        np.ascontiguousarray(colours(4095, np.uint16)), "<", 2, planar=2
    ),
    "dicom bits beyond": lambda: dicom_bytes(TWELVE, BitsStored=17, HighBit=16),
    "dicom high bit beyond": lambda: dicom_bytes(TWELVE, BitsStored=12, HighBit=16),
    "dicom high bit below": lambda: dicom_bytes(DEEP, BitsStored=12, HighBit=7),
    "dicom j2k left-justified": lambda: dicom_of_frame(
        frame_of(TWELVE << 4, JPEG2000Lossless),
        JPEG2000Lossless,
        TWELVE,
        BitsStored=12,
        HighBit=15,
    ),
    "transparent 16 bits": lambda: png_bytes(with_alpha(colours(4095, np.uint16), 0)),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_shown_right_is_refused(tmp_path, kind):
    with pytest.raises(UnreadableImage) as caught:
        opened(tmp_path, REFUSED[kind]())
    assert "\n" not in str(caught.value)
