"""`medalign plan-test`, by command."""

import json

import pytest
from typer.testing import CliRunner

from pipelines.cli import app
from shared.errors import UserError

pytestmark = pytest.mark.unit


def test_items_and_images_of_a_claim() -> None:
    line = ["plan-test", "--difference", "3", "--disagreement", "0.2", "--per-image", "5", "--json"]
    found = json.loads(CliRunner().invoke(app, line).stdout)
    assert (found["items"], found["images"]) == (5 * 1742, 1742)


def test_a_difference_above_the_disagreement_is_one_line() -> None:
    line = ["plan-test", "--difference", "30", "--disagreement", "0.2"]
    error = CliRunner().invoke(app, line).exception
    assert isinstance(error, UserError)
    assert "--difference 30 points, --disagreement 0.2" in str(error)
