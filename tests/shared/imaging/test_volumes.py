"""Volumes as files: read once whatever is asked of them, broken ones too, and whole to the end."""

import errno
import gzip
from collections import OrderedDict

import numpy as np
import pytest

from shared.imaging import nifti
from shared.imaging.images import open_image, parse_reference
from shared.imaging.pixels import UnreadableImage
from tests.fixtures.images import nifti_bytes

pytestmark = pytest.mark.unit
VOLUME = np.random.default_rng(0).integers(0, 900, (12, 10, 8)).astype(np.int16)


@pytest.fixture
def reads(monkeypatch):
    """The volumes that were read, one entry a time."""
    found = []
    real = nifti._read

    def counted(stream, number):
        found.append(number)
        return real(stream, number)

    monkeypatch.setattr(nifti, "_read", counted)
    return found


def show_all(path):
    """Ask for each of eight slices; return the reasons why there is none."""
    reasons = []
    for position in range(8):
        try:
            open_image(parse_reference(f"{path}#axial={position}"))
        except UnreadableImage as error:
            reasons.append(str(error))
    return reasons


def test_a_broken_volume_is_read_once_for_all_of_its_slices(tmp_path, reads):
    path = tmp_path / "scan.nii.gz"
    whole = nifti_bytes(VOLUME, np.eye(4), packed=True)
    path.write_bytes(whole[: len(whole) // 2])
    [reason] = set(show_all(path))
    assert "broken NIfTI" in reason
    assert len(reads) == 1
    path.write_bytes(whole)  # the file is mended: it is another one
    assert not show_all(path)
    assert len(reads) == 2


def test_no_more_broken_volumes_are_remembered_than_a_thousand(tmp_path, monkeypatch):
    monkeypatch.setattr(nifti, "_REMEMBERED", 3)
    monkeypatch.setattr(nifti, "_broken", OrderedDict())
    path = tmp_path / "scan.nii"
    for size in range(360, 370):
        path.write_bytes(nifti_bytes(VOLUME, np.eye(4))[:size])
        assert len(show_all(path)) == 8
        assert len(nifti._broken) <= 3


def test_the_oldest_broken_volume_is_forgotten_first(tmp_path, monkeypatch, reads):
    monkeypatch.setattr(nifti, "_REMEMBERED", 2)
    monkeypatch.setattr(nifti, "_broken", OrderedDict())
    paths = [tmp_path / f"{name}.nii" for name in "abc"]
    for path in paths:
        path.write_bytes(nifti_bytes(VOLUME, np.eye(4))[:360])
        assert len(show_all(path)) == 8
    assert len(reads) == 3
    for path in paths[1:]:
        assert len(show_all(path)) == 8
    assert len(reads) == 3
    assert len(show_all(paths[0])) == 8
    assert len(reads) == 4


def test_what_the_disk_says_is_not_remembered_as_the_files_fault(tmp_path, monkeypatch):
    path = tmp_path / "scan.nii"
    path.write_bytes(nifti_bytes(VOLUME, np.eye(4)))
    real = nifti._read

    def broken(stream, number):
        raise OSError(errno.EIO, "input/output error")

    monkeypatch.setattr(nifti, "_read", broken)
    with pytest.raises(OSError, match="input/output error"):
        open_image(parse_reference(f"{path}#axial=0"))
    monkeypatch.setattr(nifti, "_read", real)
    assert open_image(parse_reference(f"{path}#axial=0")).size == (12, 10)


@pytest.mark.parametrize("place", [0.3, 0.6, 0.9])
def test_a_damaged_gzip_stream_is_refused(tmp_path, place):
    """Data that are stored as they are unpack whatever they say: the checksum alone can tell."""
    packed = bytearray(gzip.compress(nifti_bytes(VOLUME, np.eye(4)), 0))
    packed[int(place * len(packed))] ^= 0x10
    path = tmp_path / "scan.nii.gz"
    path.write_bytes(packed)
    assert len(show_all(path)) == 8


@pytest.mark.parametrize("hole", [0, np.nan])
def test_an_affine_without_directions_is_refused(tmp_path, hole):
    affine = np.eye(4)
    data = bytearray(nifti_bytes(VOLUME, affine))
    data[280:284] = np.float32(hole).tobytes()  # srow_x[0]
    path = tmp_path / "scan.nii"
    path.write_bytes(data)
    [reason] = set(show_all(path))
    assert "\n" not in reason


@pytest.mark.parametrize("slope", [0, np.nan])
def test_no_slope_means_the_numbers_as_they_are(tmp_path, slope):
    """NIfTI-1: "if the scl_slope field is nonzero" only; nibabel takes NaN for absent too."""
    plain = nifti_bytes(VOLUME, np.eye(4))
    data = bytearray(plain)
    data[112:120] = np.array([slope, 5], "<f4").tobytes()
    shown = []
    for name, content in (("plain.nii", plain), ("scan.nii", bytes(data))):
        (tmp_path / name).write_bytes(content)
        shown.append(np.asarray(open_image(parse_reference(f"{tmp_path / name}#axial=3"))))
    assert np.array_equal(shown[0], shown[1])


def test_a_slope_with_no_number_as_its_intercept_is_refused(tmp_path):
    data = bytearray(nifti_bytes(VOLUME, np.eye(4)))
    data[112:120] = np.array([2, np.nan], "<f4").tobytes()
    path = tmp_path / "scan.nii"
    path.write_bytes(data)
    [reason] = set(show_all(path))
    assert "\n" not in reason


@pytest.mark.parametrize("slope", [-2, -1e-40, -1e38])
def test_a_falling_slope_turns_the_numbers_however_steep(tmp_path, slope):
    data = bytearray(nifti_bytes(VOLUME, np.eye(4)))
    data[112:120] = np.array([slope, 100], "<f4").tobytes()
    shown = []
    for name, content in (("plain.nii", nifti_bytes(VOLUME, np.eye(4))), ("scan.nii", bytes(data))):
        (tmp_path / name).write_bytes(content)
        picture = open_image(parse_reference(f"{tmp_path / name}#axial=3"))
        shown.append(np.asarray(picture).astype(int))
    assert np.abs(shown[0] + shown[1] - 255).max() <= 1


def test_numbers_that_32_bits_do_not_hold_are_refused(tmp_path):
    """As infinite ones they would be black."""
    path = tmp_path / "scan.nii"
    path.write_bytes(nifti_bytes(VOLUME * 1e300, np.eye(4)))
    [reason] = set(show_all(path))
    assert "32 bits" in reason
