"""The Python door of stage one: `teacher_cache.build` is the function, loaded when used."""

import subprocess
import sys

import pytest

import teacher_cache

pytestmark = pytest.mark.unit

FIRST_USE = """
import sys
import teacher_cache
import teacher_cache.cli
assert "torch" not in sys.modules, "the command's help would wait for torch"
build = teacher_cache.build
assert "torch" in sys.modules
from teacher_cache.building import build as same
assert build is same and teacher_cache.build is same
"""


def test_build_is_the_function_and_is_loaded_when_first_asked_for():
    subprocess.run([sys.executable, "-c", FIRST_USE], check=True)


def test_public_names_are_those_of_their_homes():
    from teacher_cache.building import build
    from teacher_cache.settings import Settings

    assert teacher_cache.build is build
    assert teacher_cache.Settings is Settings
    assert sorted(teacher_cache.__all__) == ["Settings", "build"]


def test_another_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'built'"):
        teacher_cache.built  # noqa: B018
