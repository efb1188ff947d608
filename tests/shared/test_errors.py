"""A slip of the pen is answered with the name that was meant."""

import pytest

from shared.errors import did_you_mean, nearest

pytestmark = pytest.mark.unit
KNOWN = {"unimed-l": 1, "unimed-b": 2, "biomedclip": 3}


def test_the_nearest_name_is_offered():
    assert nearest("biomedclp", KNOWN) == "biomedclip"
    assert did_you_mean("biomedclp", KNOWN) == "did you mean biomedclip?"
    assert did_you_mean("biomedclp", iter(KNOWN), "unused") == "did you mean biomedclip?"


def test_where_none_is_near_the_other_text_is_said():
    assert nearest("resnet", KNOWN) is None
    assert did_you_mean("resnet", KNOWN) == ""
    assert did_you_mean("resnet", KNOWN, "`cache teachers` lists them") == (
        "`cache teachers` lists them"
    )
