"""How many steps a run has, and how many of them warm up."""

from typing import Any, cast

import pytest

from shared.recipe import make_recipe
from student_train.run.arguments import training_arguments
from student_train.run.dry_run import optimiser_steps

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("epochs", "limit", "steps"), [(1.0, 0, 3), (1.5, 0, 5), (0.1, 0, 1), (2.0, 4, 4)]
)
def test_a_part_of_a_step_is_a_step(tmp_path, epochs, limit, steps):
    recipe = make_recipe({"output": str(tmp_path), "train": {"epochs": epochs, "max_steps": limit}})
    assert optimiser_steps(recipe, samples=11, batch=4) == steps


@pytest.mark.parametrize(("ratio", "steps"), [(0.0, 0), (0.25, 250), (1.0, 1000)])
def test_the_warm_up_is_a_share_of_the_steps(tmp_path, ratio, steps):
    recipe = make_recipe(
        {
            "output": str(tmp_path),
            "train": {"warmup_ratio": ratio, "report_to": [], "device": "cpu"},
        }
    )
    arguments = training_arguments(recipe, tmp_path, True, None)
    assert cast("Any", arguments).get_warmup_steps(1000) == steps
