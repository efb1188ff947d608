"""What the system refuses is one line with a way out; a file is written whole or not at all."""

import errno
import os

import pytest

from shared.errors import UserError
from shared.files import check_new, refused_as, whole_file

pytestmark = pytest.mark.unit


def test_a_refusal_of_the_system_is_one_line_with_the_way_out():
    with (
        pytest.raises(UserError) as caught,
        refused_as("cannot write to the store S", "make room"),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "S/file")
    assert str(caught.value) == "cannot write to the store S: No space left on device; make room"
    assert isinstance(caught.value.__cause__, OSError)


def test_an_error_without_a_number_tells_its_text_and_no_way_out_adds_nothing():
    with pytest.raises(UserError) as caught, refused_as("cannot read the store s3://b"):
        raise OSError("s3://b: no route to host")
    assert str(caught.value) == "cannot read the store s3://b: s3://b: no route to host"


@pytest.mark.parametrize("error", [ValueError("x"), UserError("told already"), KeyError("k")])
def test_other_errors_pass_as_they_are(error):
    with pytest.raises(type(error)) as caught, refused_as("cannot"):
        raise error
    assert caught.value is error


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "file.json"
    whole_file(path, lambda draft: draft.write_text("first"))
    assert path.read_text() == "first"

    def fails(draft):
        draft.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        whole_file(path, fails)
    assert path.read_text() == "first"


def test_a_new_folder_holds_nothing_and_can_be_made(tmp_path):
    check_new(tmp_path / "to" / "come")
    assert not list(tmp_path.iterdir())  # no trace
    check_new(tmp_path)
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(UserError, match=r"^\S+ is not empty; choose another --out or remove it"):
        check_new(tmp_path)
    with pytest.raises(UserError, match=r"^cannot write to \S+file: Not a directory; choose ano"):
        check_new(file)
