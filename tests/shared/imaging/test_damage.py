"""Damage that no decoder tells: it shows in lengths, in scans that are not there, in numbers."""

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.encaps import get_frame
from pydicom.uid import JPEG2000Lossless, JPEGBaseline8Bit, RLELossless

from shared.imaging.images import open_image
from shared.imaging.pixels import UnreadableImage
from tests.fixtures.images import (
    dicom_bytes,
    dicom_of_frame,
    edited,
    encoded,
    frame_of,
    tiff_bytes,
)
from tests.fixtures.truth import assert_true, colours, opened, truth, whole

pytestmark = pytest.mark.unit
EIGHT = whole(255, np.uint8)
TWELVE = whole(4095, np.uint16)
BITS_12 = {"BitsStored": 12, "HighBit": 11}
GARBAGE = np.random.default_rng(7).integers(0, 255, 400, dtype=np.uint8).tobytes()  # no FF
PLACES = [0.3, 0.5, 0.7]


def overwritten(data, place):
    start = int(place * len(data))
    return (data[:start] + GARBAGE + data[start + 400 :])[: len(data)]


# JPEG-LS, made by other software (the files of pydicom's tests).

JPEG_LS = ["MR_small_jpeg_ls_lossless.dcm", "JPEGLSNearLossless_16.dcm"]
FAULTS = {
    "cut and closed": lambda data: data[: len(data) // 2] + b"\xff\xd9",
    "bytes left out": lambda data: data[: len(data) // 2] + data[len(data) // 2 + 100 :],
    "garbage": lambda data: overwritten(data[:-2], 0.4) + b"\xff\xd9",
}


def jpeg_ls(name):
    path = str(get_testdata_file(name))
    dataset = pydicom.dcmread(path)
    return path, dataset, get_frame(dataset.PixelData, 0, number_of_frames=1).rstrip(b"\0")


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", JPEG_LS[:1])
def test_damaged_jpeg_ls_is_refused(tmp_path, name, fault):
    path, dataset, data = jpeg_ls(name)
    open_image(path)
    plane = np.zeros((dataset.Rows, dataset.Columns), np.uint16)
    file = dicom_of_frame(FAULTS[fault](data), dataset.file_meta.TransferSyntaxUID, plane)
    with pytest.raises(UnreadableImage):
        opened(tmp_path, file)


@pytest.mark.parametrize(
    "name", [*JPEG_LS, "JPEGLSNearLossless_08.dcm", "SC_rgb_jls_lossy_sample.dcm"]
)
def test_whole_jpeg_ls_is_read(name):
    # The last is flat at its end, where other bytes may say the same.
    assert np.ptp(np.asarray(open_image(jpeg_ls(name)[0]))) > 100


@pytest.mark.parametrize("name", JPEG_LS)
def test_bytes_between_a_jpeg_ls_picture_and_its_end_are_refused(tmp_path, name):
    """The picture is whole, and what follows is none of it: some other picture's data."""
    _, dataset, data = jpeg_ls(name)
    plane = np.zeros((dataset.Rows, dataset.Columns), np.uint16)
    longer = data[:-2] + b"\x12\x34" * 32 + data[-2:]
    file = dicom_of_frame(longer, dataset.file_meta.TransferSyntaxUID, plane)
    with pytest.raises(UnreadableImage, match="the picture ends before its data does"):
        opened(tmp_path, file)


# JPEG of several scans.


def scans_of(data):
    return [place for place in range(len(data) - 1) if data[place : place + 2] == b"\xff\xda"]


@pytest.mark.parametrize("kept", [1, 2, -1])
@pytest.mark.parametrize("pixels", [EIGHT, colours(255, np.uint8)], ids=["gray", "colour"])
@pytest.mark.parametrize("in_dicom", [False, True])
def test_a_jpeg_without_its_last_scans_is_refused(tmp_path, pixels, kept, in_dicom):
    data = encoded(Image.fromarray(pixels), "JPEG", quality=95, progressive=True)
    cut = data[: scans_of(data)[kept]] + data[-2:]

    def file(frame):
        return dicom_of_frame(frame, JPEGBaseline8Bit, pixels) if in_dicom else frame

    assert_true(opened(tmp_path, file(data)))
    with pytest.raises(UnreadableImage, match="ends before its last scan"):
        opened(tmp_path, file(cut))


@pytest.mark.parametrize(("place", "coefficient"), [(-3, 2), (-2, 62)], ids=["first", "last"])
def test_a_jpeg_whose_last_scan_leaves_one_coefficient_out_is_refused(tmp_path, place, coefficient):
    """Its refinement tells coefficients 1 to 63 (ISO 10918-1, B.2.3); of 63 bits one is missing."""
    halves = np.repeat(np.array([60, 200], np.uint8), 32)[None].repeat(
        64, 0
    )  # of flat blocks: no AC
    data = encoded(Image.fromarray(halves), "JPEG", quality=95, progressive=True)
    assert np.ptp(opened(tmp_path, data)) > 100
    header = bytearray(data)
    end = scans_of(data)[-1] + 2 + int.from_bytes(data[scans_of(data)[-1] + 2 :][:2], "big")
    assert bytes(header[end - 3 : end]) == bytes([1, 63, 0x10])
    header[end + place] = coefficient
    with pytest.raises(UnreadableImage, match="ends before its last scan"):
        opened(tmp_path, bytes(header))


# PackBits, in TIFF and in DICOM's RLE.

PACKED = {
    "tiff": (
        lambda: encoded(Image.fromarray(TWELVE), "TIFF", compression="packbits"),
        lambda data: data,
    ),
    "tiff rgb": (
        lambda: encoded(Image.fromarray(colours(255, np.uint8)), "TIFF", compression="packbits"),
        lambda data: data,
    ),
    "dicom rle": (
        lambda: frame_of(TWELVE, RLELossless),
        lambda data: dicom_of_frame(data, RLELossless, TWELVE),
    ),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", PACKED)
def test_packed_rows_of_other_lengths_are_refused(tmp_path, kind, place, capfd):
    make, file = PACKED[kind]
    data = make()
    assert_true(opened(tmp_path, file(data)))
    with pytest.raises(UnreadableImage):
        opened(tmp_path, file(overwritten(data, place)))
    assert "panicked" not in capfd.readouterr().err  # as the decoder of RLE would


@pytest.mark.parametrize(("rows", "columns"), [(128, 96), (192, 64), (384, 32)])
def test_an_rle_frame_of_other_rows_is_refused(tmp_path, rows, columns):
    file = dicom_of_frame(frame_of(TWELVE, RLELossless), RLELossless, TWELVE)
    with pytest.raises(UnreadableImage, match=f"rows of 128 bytes, where {columns} are told"):
        opened(tmp_path, edited(file, Rows=rows, Columns=columns))


def test_rows_that_are_packed_in_one_go_are_read(tmp_path):
    """Some writers let a packet run over the end of a row."""

    def segment(plane):
        data = plane.tobytes()
        pieces = [data[start : start + 100] for start in range(0, len(data), 100)]
        packed = b"".join(bytes([len(piece) - 1]) + piece for piece in pieces)
        return packed + b"\0" * (len(packed) % 2)

    high, low = segment((TWELVE >> 8).astype(np.uint8)), segment((TWELVE & 255).astype(np.uint8))
    offsets = [2, 64, 64 + len(high), *[0] * 13]
    frame = np.array(offsets, "<u4").tobytes() + high + low
    assert_true(opened(tmp_path, dicom_of_frame(frame, RLELossless, TWELVE)))


# What is not compressed.


@pytest.mark.parametrize("change", [{"Rows": 90}, {"Columns": 127}])
def test_more_numbers_than_the_header_tells_are_refused(tmp_path, change):
    with pytest.raises(UnreadableImage, match="bytes more than"):
        opened(tmp_path, edited(dicom_bytes(TWELVE), **change))


def test_pixel_data_of_no_bytes(tmp_path):
    with pytest.raises(UnreadableImage, match="a DICOM file without pixel data"):
        opened(tmp_path, edited(dicom_bytes(TWELVE), PixelData=b""))


def test_what_a_writer_fills_up_with_is_no_fault(tmp_path):
    data = TWELVE.tobytes()
    assert_true(opened(tmp_path, edited(dicom_bytes(TWELVE), PixelData=data + bytes(256))))


# JPEG 2000: what the reversible wavelet gives back stays within the bits of the picture.

EDGES = np.where(truth() > 0.3, 4095, 0).astype(np.uint16)  # any error goes beyond


@pytest.mark.parametrize("place", PLACES)
def test_a_damaged_reversible_codestream_is_refused(tmp_path, place):
    data = frame_of(EDGES, JPEG2000Lossless, 12)
    file = dicom_of_frame(overwritten(data, place), JPEG2000Lossless, EDGES, **BITS_12)
    with pytest.raises(UnreadableImage):
        opened(tmp_path, file)
    whole_file = dicom_of_frame(data, JPEG2000Lossless, EDGES, **BITS_12)
    assert np.array_equal(opened(tmp_path, whole_file)[..., 0], EDGES // 4095 * 255)


def test_a_damaged_jpeg_2000_file_is_refused(tmp_path):
    data = encoded(Image.fromarray(TWELVE), "JPEG2000")
    with pytest.raises(UnreadableImage, match="beyond its bits"):
        opened(tmp_path, overwritten(data, 0.5))


@pytest.mark.parametrize("irreversible", [False, True])
@pytest.mark.parametrize("rate", [10, 40, 100])
def test_a_rate_that_was_kept_is_no_damage(tmp_path, rate, irreversible):
    """Its numbers overshoot at edges."""
    picture = Image.fromarray((EDGES // 4095 * 255).astype(np.uint8))
    data = encoded(picture, "JPEG2000", quality_layers=[rate], irreversible=irreversible)
    shown = opened(tmp_path, data)[..., 0].astype(float)
    assert np.corrcoef(shown.ravel(), np.asarray(picture).ravel())[0, 1] > 0.8


# Layouts that Pillow does not know.


@pytest.mark.parametrize("kind", [np.float64, np.float16, np.uint64])
@pytest.mark.parametrize("order", "<>")
def test_a_tiff_of_a_layout_that_is_not_read_says_so(tmp_path, kind, order):
    with pytest.raises(UnreadableImage, match="a TIFF whose numbers are laid out"):
        opened(tmp_path, tiff_bytes((truth() * 1000).astype(kind), order))
