"""DICOM and NIfTI as a viewer shows them.

Against pydicom's own windowing, by hand, and on real files.
"""

import gzip
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image

from shared.imaging.dicom import is_dicom
from shared.imaging.images import open_image, parse_reference
from shared.imaging.pixels import UnreadableImage
from tests.fixtures.images import dicom_bytes, encoded, nifti_bytes, picture, real_dicom_folder

pytestmark = pytest.mark.unit
GRAY = picture()
DEEP = (GRAY.astype(np.int32) * 12 - 900).astype(np.int16)


def opened(tmp_path, data, part=None, name="image"):
    path = tmp_path / name
    path.write_bytes(data)
    return np.asarray(open_image(parse_reference(f"{path}#{part}") if part else path))


def stretched(values, deep=True):
    """Between the 0.5th and 99.5th percentile, which numpy knows; 8 bits from end to end."""
    low, high = np.percentile(values, (0.5, 99.5) if deep else (0, 100))
    return ((values - low) / (high - low) * 255).clip(0, 255)


@pytest.mark.parametrize("big_endian", [False, True])
@pytest.mark.parametrize("preamble", [True, False])
@pytest.mark.parametrize("pixels", [GRAY, DEEP], ids=["8 bits", "16 bits signed"])
def test_without_a_window_the_images_own_range(tmp_path, pixels, preamble, big_endian):
    found = opened(tmp_path, dicom_bytes(pixels, preamble=preamble, big_endian=big_endian))
    expected = stretched(pixels.astype(float), deep=pixels.dtype == np.int16)
    assert np.abs(found[..., 0] - expected).max() <= 0.501


def test_monochrome1_is_inverted(tmp_path):
    plain = opened(tmp_path, dicom_bytes(DEEP))
    assert (
        np.abs(opened(tmp_path, dicom_bytes(DEEP, "MONOCHROME1")).astype(int) - (255 - plain)).max()
        <= 1
    )
    window = {"WindowCenter": 600, "WindowWidth": 900}
    plain = opened(tmp_path, dicom_bytes(DEEP, **window))
    assert (
        np.abs(
            opened(tmp_path, dicom_bytes(DEEP, "MONOCHROME1", **window)).astype(int) - (255 - plain)
        ).max()
        <= 1
    )


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize(
    ("center", "width"), [(600, 900), (40, 400), (0, 1), (460.5, 1), (-100.5, 350.5)]
)
def test_windows_equal_pydicoms(tmp_path, function, center, width):
    """pydicom maps to the stored type's range, here -32768 x 1.5 + 10 to 32767 x 1.5 + 10."""
    from pydicom.pixels.processing import apply_windowing

    elements = {
        "RescaleSlope": 1.5,
        "RescaleIntercept": 10,
        "WindowCenter": center,
        "WindowWidth": width,
    }
    data = dicom_bytes(DEEP, VOILUTFunction=function, **elements)
    found = opened(tmp_path, data)
    dataset = pydicom.dcmread(tmp_path / "image")
    expected = apply_windowing(DEEP * 1.5 + 10, dataset)
    low, high = -32768 * 1.5 + 10, 32767 * 1.5 + 10
    assert np.abs(found[..., 0] - (expected - low) / (high - low) * 255).max() <= 0.501


def test_several_windows_the_first_counts(tmp_path):
    first = opened(tmp_path, dicom_bytes(DEEP, WindowCenter=600, WindowWidth=900))
    both = opened(tmp_path, dicom_bytes(DEEP, WindowCenter=[600, 0], WindowWidth=[900, 100]))
    assert np.array_equal(first, both)


@pytest.mark.parametrize("window", [(90_000, 10), (-90_000, 10), (600, 0), (600, -5)])
def test_a_window_beside_the_image_does_not_make_it_black(tmp_path, window):
    found = opened(tmp_path, dicom_bytes(DEEP, WindowCenter=window[0], WindowWidth=window[1]))
    assert np.abs(found[..., 0] - stretched(DEEP.astype(float))).max() <= 0.501


def test_voi_lut(tmp_path):
    item = pydicom.Dataset()
    item.LUTDescriptor = [256, 0, 12]
    table = (np.arange(256) ** 1.5).astype(np.uint16)
    item.LUTData = table.tolist()
    item.add_new("LUTData", "US", table.tolist())
    found = opened(
        tmp_path, dicom_bytes(GRAY, VOILUTSequence=[item], WindowCenter=1, WindowWidth=1)
    )
    assert np.abs(found[..., 0] - np.minimum(table[GRAY] / 4095, 1) * 255).max() <= 0.5


def test_modality_lut(tmp_path):
    item = pydicom.Dataset()
    item.LUTDescriptor = [256, 0, 16]
    item.ModalityLUTType = "US"
    table = (np.arange(256) ** 2).astype(np.uint16)
    item.add_new("LUTData", "US", table.tolist())
    found = opened(tmp_path, dicom_bytes(GRAY, ModalityLUTSequence=[item]))
    assert np.abs(found[..., 0] - stretched(table[GRAY].astype(float), deep=False)).max() <= 0.5


def test_padding_values_do_not_spoil_the_range(tmp_path):
    padded = DEEP.copy()
    padded[:10] = -32000
    data = dicom_bytes(padded, PixelPaddingValue=-32000)
    found = opened(tmp_path, data)
    assert (found[:10] == 0).all()
    assert np.abs(found[10:, :, 0] - stretched(DEEP[10:].astype(float))).max() <= 0.501


def test_frames_and_the_middle_one_by_default(tmp_path):
    frames = np.stack([picture(seed=seed) for seed in range(4)])
    frames[0] = 0  # as an ultrasound run often begins
    data = dicom_bytes(frames)
    for number in (1, 2, 3):
        found = opened(tmp_path, data, f"frame={number}")
        assert (
            np.abs(found[..., 0] - stretched(frames[number].astype(float), deep=False)).max() <= 0.5
        )
    assert np.array_equal(opened(tmp_path, data), opened(tmp_path, data, "frame=2"))
    with pytest.raises(UnreadableImage, match="has 4 frames"):
        opened(tmp_path, data, "frame=4")
    with pytest.raises(UnreadableImage, match="every pixel has the value 0"):
        opened(tmp_path, data, "frame=0")


def test_frames_are_found_by_an_extended_offset_table(tmp_path):
    import io

    from pydicom.encaps import encapsulate_extended
    from pydicom.uid import JPEGBaseline8Bit

    frames = [encoded(Image.fromarray(picture(seed=seed)), "JPEG", quality=95) for seed in (1, 2)]
    dataset = pydicom.dcmread(io.BytesIO(dicom_bytes(np.stack([GRAY, GRAY]))))
    dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    data, offsets, lengths = encapsulate_extended(frames)
    dataset.PixelData, dataset["PixelData"].is_undefined_length = data, True
    dataset["PixelData"].VR = "OB"
    dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths = offsets, lengths
    pydicom.dcmwrite(tmp_path / "frames.dcm", dataset, enforce_file_format=True)
    for number, frame in enumerate(frames):
        found = np.asarray(open_image(parse_reference(f"{tmp_path / 'frames.dcm'}#frame={number}")))
        expected = stretched(np.asarray(Image.open(io.BytesIO(frame))).astype(float), deep=False)
        assert np.abs(found[..., 0] - expected).max() <= 2


HEADS = {
    "explicit, little-endian": (b"\x08\0\x05\0CS", True),
    "explicit, big-endian": (b"\0\x08\0\x05CS", True),
    "implicit, little-endian": (b"\x08\0\x05\0\x0a\0\0\0", True),
    "implicit, big-endian": (b"\0\x08\0\x05\0\0\0\x0a", True),
    "no element is so far into its group, little-endian": (b"\x08\0\x05\x01CS", False),
    "no element is so far into its group, big-endian": (b"\0\x08\x01\x05CS", False),
    "no first element is so long": (b"\x08\0\x05\0\x41\0\0\0", False),
    "another group": (b"\x10\0\x05\0CS", False),
}


@pytest.mark.parametrize("kind", HEADS)
def test_a_file_without_a_preamble_is_known_by_its_first_element(kind):
    head, expected = HEADS[kind]
    assert is_dicom(head.ljust(132, b"\0")) is expected
    assert not is_dicom(head)  # no file of so few bytes is one


def test_functional_groups_of_enhanced_objects(tmp_path):
    def group(center, width, slope):
        window, rescale, item = pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
        window.WindowCenter, window.WindowWidth = center, width
        rescale.RescaleSlope, rescale.RescaleIntercept, rescale.RescaleType = slope, 0, "HU"
        item.FrameVOILUTSequence, item.PixelValueTransformationSequence = [window], [rescale]
        return item

    frames = np.stack([DEEP, DEEP])
    per_frame = dicom_bytes(
        frames, PerFrameFunctionalGroupsSequence=[group(600, 900, 1), group(1200, 1800, 2)]
    )
    expected = opened(tmp_path, dicom_bytes(DEEP, WindowCenter=600, WindowWidth=900))
    assert np.array_equal(opened(tmp_path, per_frame, "frame=0"), expected)
    assert np.abs(opened(tmp_path, per_frame, "frame=1").astype(int) - expected).max() <= 1
    shared = dicom_bytes(frames, SharedFunctionalGroupsSequence=[group(600, 900, 1)])
    assert np.array_equal(opened(tmp_path, shared, "frame=1"), expected)


def test_colour(tmp_path):
    pixels = np.stack([GRAY, GRAY[::-1], 255 - GRAY], -1)
    assert np.array_equal(opened(tmp_path, dicom_bytes(pixels)), pixels)


@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("big_endian", [False, True])
@pytest.mark.parametrize("entry_bits", [8, 16])
def test_palette_colour(tmp_path, big_endian, entry_bits, alpha):
    """A table of opacity (PS3.3 C.7.9) serves a blending; the colours are those of the others."""
    rgb = np.random.default_rng(0).integers(0, 256, (3, 256))
    rgb[:, 0] = 255  # so that 16-bit entries are told from 8-bit ones
    elements: dict[str, Any] = {}
    for name, channel in zip(("Red", "Green", "Blue"), rgb, strict=True):
        scaled = channel * 257 if entry_bits == 16 else channel
        # Words either way: 8-bit entries lie two in a word.
        words = scaled.astype("<u2") if entry_bits == 16 else scaled.astype("u1").view("<u2")
        elements[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, entry_bits]
        elements[f"{name}PaletteColorLookupTableData"] = words.astype(
            ">u2" if big_endian else "<u2"
        ).tobytes()
    if alpha:
        elements["AlphaPaletteColorLookupTableData"] = bytes(256 * entry_bits // 8)
    found = opened(tmp_path, dicom_bytes(GRAY, "PALETTE COLOR", big_endian=big_endian, **elements))
    assert np.array_equal(found, rgb.T[GRAY].astype(np.uint8))


def test_eight_bit_entries_kept_in_sixteen_are_not_black(tmp_path):
    elements: dict[str, Any] = {}
    for name in ("Red", "Green", "Blue"):
        elements[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        elements[f"{name}PaletteColorLookupTableData"] = np.arange(256, dtype="<u2").tobytes()
    found = opened(tmp_path, dicom_bytes(GRAY, "PALETTE COLOR", **elements))
    assert np.array_equal(found[..., 0], GRAY)


def test_dicom_without_pixels_and_pixel_bombs(tmp_path):
    whole = dicom_bytes(GRAY)
    with pytest.raises(UnreadableImage, match="less than expected"):
        opened(tmp_path, whole[:-200])
    with pytest.raises(UnreadableImage, match="more than"):
        opened(tmp_path, dicom_bytes(GRAY, Rows=60_000, Columns=60_000))
    dataset = pydicom.dcmread(tmp_path / "image")
    del dataset.PixelData
    dataset.save_as(tmp_path / "image")
    with pytest.raises(UnreadableImage, match="without pixel data"):
        open_image(tmp_path / "image")


COMPRESSED = (
    "693_J2KR.dcm",
    "JPEG-LL.dcm",
    "SC_rgb_rle.dcm",
    "MR2_J2KI.dcm",
    "SC_rgb_jpeg_dcmtk.dcm",
    "examples_jpeg2k.dcm",
    "examples_ybr_color.dcm",
    "GDCMJ2K_TextGBR.dcm",
)


@pytest.mark.parametrize("name", COMPRESSED)
def test_compressed_transfer_syntaxes_and_truncations(tmp_path, name):
    """A cut file is refused or shows the very same picture; it never shows another."""
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    candidates = [*real_dicom_folder().rglob(name), *pydicom.data.get_testdata_files(name)]
    if not candidates:
        pytest.skip(f"{name} is not in this version of the packages")
    data = Path(candidates[0]).read_bytes()
    whole = opened(tmp_path, data)
    assert whole.std() > 1
    for share in (0.05, 0.3, 0.6, 0.9, 0.99):
        try:
            found = opened(tmp_path, data[: int(len(data) * share)])
        except UnreadableImage:
            continue
        assert np.array_equal(found, whole), share


def volume():
    """(x, y, z) with a bright block on the right, in front, at the top; sizes all different."""
    data = np.random.default_rng(0).normal(100, 3, (10, 12, 14)).astype(np.float32)
    data[7:, :, :] += 50  # right
    data[:, 9:, :] += 100  # front
    data[:, :, 11:] += 200  # top
    return data


def slices(tmp_path, data, name):
    return {
        part: opened(tmp_path, data, part, name)[..., 0]
        for part in ("axial=12", "coronal=10", "sagittal=8", "axial=3")
    }


@pytest.mark.parametrize("name", ["scan.nii.gz", "scan.nii", "scan.png", "scan"])
@pytest.mark.parametrize("packed", [True, False])
def test_nifti_by_content_and_its_orientation(tmp_path, packed, name):
    found = slices(tmp_path, nifti_bytes(volume(), np.eye(4), packed), name)
    axial, coronal, sagittal = found["axial=12"], found["coronal=10"], found["sagittal=8"]
    assert axial.shape == (12, 10)  # rows from the front, columns from the left
    assert coronal.shape == (14, 10)
    assert sagittal.shape == (14, 12)
    assert axial[:3].mean() > axial[3:].mean()  # the front is at the top
    assert axial[:, 7:].mean() > axial[:, :7].mean()  # the right is right
    assert coronal[:3].mean() > coronal[3:].mean()  # the head is at the top
    assert sagittal[:, 9:].mean() > sagittal[:, :9].mean()  # the front is right
    assert axial.mean() > found["axial=3"].mean()  # one window for the whole volume


@pytest.mark.parametrize("code", ["LPS", "PIR", "SAL", "RAS", "IPL"])
def test_every_storage_order_gives_the_same_slices(tmp_path, code):
    import nibabel

    image = nibabel.Nifti1Image(volume(), np.eye(4))
    turn = nibabel.orientations.ornt_transform(
        nibabel.io_orientation(image.affine), nibabel.orientations.axcodes2ornt(code)
    )
    turned = image.as_reoriented(turn)
    assert "".join(nibabel.aff2axcodes(turned.affine)) == code
    expected = slices(tmp_path, nifti_bytes(volume(), np.eye(4)), "plain.nii")
    found = slices(tmp_path, turned.to_bytes(), "turned.nii")
    assert all(np.array_equal(found[part], expected[part]) for part in expected)


def test_nifti_2_scaled_integers_and_a_time_axis_of_one(tmp_path):
    import nibabel

    data = (volume() * 10).astype(np.int16)
    image = nibabel.Nifti2Image(data[..., None], np.eye(4))
    image.header.set_slope_inter(0.1, 5)
    found = opened(tmp_path, image.to_bytes(), "axial=12")
    expected = opened(tmp_path, nifti_bytes(volume(), np.eye(4)), "axial=12")
    assert np.abs(found.astype(int) - expected).max() <= 1


def test_nifti_with_a_negative_slope_and_more_pixels_than_allowed(tmp_path):
    import nibabel

    data = (volume() * 10).astype(np.int16)
    image = nibabel.Nifti1Image(data, np.eye(4))
    image.header.set_slope_inter(-0.5, 3000)
    found = opened(tmp_path, image.to_bytes(), "axial=12")
    expected = opened(
        tmp_path, nifti_bytes((3000 - 0.5 * data).astype(np.float32), np.eye(4)), "axial=12"
    )
    assert np.abs(found.astype(int) - expected).max() <= 1
    reference = parse_reference(f"{tmp_path / 'image'}#axial=12")
    assert open_image(reference, max_pixels=120).size == (10, 12)
    with pytest.raises(UnreadableImage, match="more than"):
        open_image(reference, max_pixels=119)


SERIES = np.stack([volume(), 1000 - volume()], -1)
BROKEN_NIFTI = {
    "no part": (None, nifti_bytes(volume(), np.eye(4)), "append #axial=N"),
    "another part": ("frame=1", nifti_bytes(volume(), np.eye(4)), "append #axial=N"),
    "a slice beyond": ("axial=14", nifti_bytes(volume(), np.eye(4)), "has 14 axial slices"),
    "time": ("axial=0", nifti_bytes(SERIES, np.eye(4)), r"2 volumes: append ,volume=N .* 0 to 1"),
    "a volume beyond": ("axial=0,volume=2", nifti_bytes(SERIES, np.eye(4)), "has 2 volumes"),
    "volumes of several kinds": (
        "axial=0",
        nifti_bytes(np.stack([SERIES] * 2, -1), np.eye(4)),
        "three dimensions",
    ),
    "the volume before the slice": ("volume=1,axial=0", nifti_bytes(SERIES, np.eye(4)), "#axial=N"),
    "flat": (
        "axial=0",
        nifti_bytes(np.full((4, 4, 4), 3, np.float32), np.eye(4)),
        "no two different",
    ),
    "nothing finite": (
        "axial=0",
        nifti_bytes(np.full((4, 4, 4), np.nan, np.float32), np.eye(4)),
        "no two different",
    ),
    "truncated": ("axial=0", nifti_bytes(volume(), np.eye(4))[:2000], "broken NIfTI"),
    "truncated gzip": (
        "axial=0",
        nifti_bytes(volume(), np.eye(4), packed=True)[:2500],
        "broken NIfTI",
    ),
    "pair": (
        "axial=0",
        nifti_bytes(volume(), np.eye(4)).replace(b"n+1\0", b"ni1\0", 1),
        r"\.hdr/\.img pair",
    ),
}


@pytest.mark.parametrize("kind", BROKEN_NIFTI)
def test_broken_nifti(tmp_path, kind):
    part, data, message = BROKEN_NIFTI[kind]
    with pytest.raises(UnreadableImage, match=message):
        opened(tmp_path, data, part, "scan.nii")


def test_a_gzip_bomb_is_not_unpacked(tmp_path):
    header = bytearray(nifti_bytes(volume(), np.eye(4))[:352])
    header[40:48] = np.array([3, 30_000, 30_000, 30_000], "<i2").tobytes()
    with pytest.raises(UnreadableImage, match="voxels are more than"):
        opened(tmp_path, gzip.compress(bytes(header) + bytes(100_000)), "axial=0")
