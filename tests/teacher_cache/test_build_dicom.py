"""Every real DICOM file of the package pydicom-data goes into a store.

What no viewer could show is quarantined.
"""

import contextlib
import os

import pytest

from shared.imaging import Grid
from shared.imaging.images import open_image
from shared.imaging.pixels import UnreadableImage
from shared.targets import TargetStore
from teacher_cache.building import build
from teacher_cache.settings import Settings
from teacher_cache.sources import find_images
from tests.fixtures.images import real_dicom_folder
from tests.fixtures.tiny_teacher import TEACHER, tiny_weights

NO_PICTURE = {
    "emri_small_jpeg_2k_lossless_too_short.dcm": "a truncated DICOM file: it ends inside its data"
}


def real_files():
    return [one for one in find_images(str(real_dicom_folder())) if one.path.suffix == ".dcm"]


@pytest.mark.integration
def test_real_dicom_files_all_go_into_the_store(tmp_path):
    """CT, MR, CR, ultrasound, bone scan, test cards.

    Raw, RLE, JPEG, JPEG-LS, JPEG 2000, either byte order.
    """
    weights = tiny_weights(tmp_path / "tiny.safetensors")
    references = real_files()
    assert len(references) >= 60
    result = build(
        TEACHER, references, tmp_path / "store", weights=weights, settings=Settings(grid=Grid(5, 5))
    )
    assert {reference.path.name: reason for reference, reason in result.left_out} == NO_PICTURE
    assert result.encoded == result.distinct - 1 == len(TargetStore.open(tmp_path / "store"))


@pytest.mark.slow
def test_pydicoms_own_test_files_never_crash():
    """Structured reports, plans, waveforms, directories, broken headers.

    A picture or a reason, nothing else.
    """
    import pydicom.data

    shown = []
    for name in filter(os.path.isfile, pydicom.data.get_testdata_files("*")):
        with contextlib.suppress(UnreadableImage):
            shown.append(open_image(name).mode)
    assert set(shown) == {"RGB"}
    assert len(shown) >= 80
