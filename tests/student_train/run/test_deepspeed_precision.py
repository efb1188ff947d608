"""The precision of a DeepSpeed file is the recipe's, or a contradiction is refused."""

import json
from typing import Any

import pytest

from shared.errors import UserError
from shared.recipe import make_recipe
from student_train.run.environment import deepspeed_config

pytestmark = pytest.mark.unit


def configured(folder, precision, stage, **switches):
    path = folder / "own.json"
    named = {name: {"enabled": value} for name, value in switches.items()}
    path.write_text(json.dumps({"zero_optimization": {"stage": stage}, **named}))
    values: dict[str, Any] = {"output": str(folder / "run"), "deepspeed": str(path)}
    values["train"] = {"precision": precision, "device": "cpu"}
    return deepspeed_config(make_recipe(values))


@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_auto_is_what_the_recipe_says(tmp_path, precision, stage):
    wanted = precision == "bf16" and stage == 3
    found = configured(tmp_path, precision, stage, bf16="auto", fp16="auto")
    assert found["bf16"] == {"enabled": wanted}
    assert "fp16" not in found
    assert configured(tmp_path, precision, stage)["bf16"] == {"enabled": wanted}


@pytest.mark.parametrize(
    ("precision", "switches", "line"),
    [
        ("fp32", {"bf16": True}, "says bf16, the recipe train.precision=fp32"),
        ("bf16", {"bf16": False}, "switches bf16 off"),
        ("fp32", {"fp16": True}, "computes in fp16"),
    ],
)
def test_a_contradiction_is_refused(tmp_path, precision, switches, line):
    with pytest.raises(UserError, match=line):
        configured(tmp_path, precision, 3, **switches)
