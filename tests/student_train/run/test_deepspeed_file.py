"""What a DeepSpeed file says is what the recipe says, or the contradiction is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from shared.errors import UserError
from shared.recipe import make_recipe
from student_train.adapter.files import ADAPTER_WEIGHTS
from student_train.run.deepspeed_file import deepspeed_config
from student_train.run.train import train
from tests.fixtures.student_runs import recipe, write_run


def configured(folder, precision, stage, **switches):
    path = folder / "own.json"
    named = {name: {"enabled": value} for name, value in switches.items()}
    path.write_text(json.dumps({"zero_optimization": {"stage": stage}, **named}))
    values: dict[str, Any] = {"output": str(folder / "run"), "deepspeed": str(path)}
    values["train"] = {"precision": precision, "device": "cpu"}
    return deepspeed_config(make_recipe(values))


@pytest.mark.unit
@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_auto_is_what_the_recipe_says(tmp_path, precision, stage):
    wanted = precision == "bf16" and stage == 3
    found = configured(tmp_path, precision, stage, bf16="auto", fp16="auto")
    assert found["bf16"] == {"enabled": wanted}
    assert "fp16" not in found
    assert configured(tmp_path, precision, stage)["bf16"] == {"enabled": wanted}


@pytest.mark.unit
@pytest.mark.parametrize(
    ("precision", "switches", "line"),
    [
        ("fp32", {"bf16": True}, "says bf16, the recipe train.precision=fp32"),
        ("bf16", {"bf16": False}, "switches bf16 off"),
        ("fp32", {"fp16": True}, "computes in fp16"),
        ("fp32", {"torch_autocast": True}, "switches torch_autocast on"),
        ("fp32", {"amp": True}, "switches amp on"),
    ],
)
def test_a_contradiction_is_refused(tmp_path, precision, switches, line):
    with pytest.raises(UserError, match=line):
        configured(tmp_path, precision, 3, **switches)


def with_keys(folder, **keys):
    path = folder / "own.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 2}, **keys}))
    values: dict[str, Any] = {"output": str(folder / "run"), "deepspeed": str(path)}
    values["train"] = {
        "precision": "fp32", "device": "cpu", "batch_size": 2, "accumulation": 3,
        "learning_rate": 1e-4, "weight_decay": 0.1, "max_grad_norm": 0.5, "schedule": "cosine",
    }  # fmt: skip
    return deepspeed_config(make_recipe(values))


# What LLaVA's scripts/zero3_offload.json says of the optimizer.
AUTO = {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"}


@pytest.mark.unit
def test_what_the_file_leaves_to_the_recipe_or_says_too(tmp_path):
    plain = with_keys(tmp_path)
    numbers = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "train_batch_size")
    assert [plain[name] for name in (*numbers, "gradient_clipping")] == ["auto"] * 4
    same = {"lr": 1e-4, "weight_decay": 0.1, "betas": [0.9, 0.999], "eps": 1e-8}
    for optimizer in (AUTO, same):
        given = dict(zip(numbers, (2, 3, 6), strict=True)) | {"gradient_clipping": 0.5}
        adamw = {"type": "AdamW", "params": optimizer}
        assert with_keys(tmp_path, **given, optimizer=adamw) == plain


@pytest.mark.unit
@pytest.mark.parametrize(
    ("keys", "line"),
    [
        (
            {"train_micro_batch_size_per_gpu": 4},
            r"says train_micro_batch_size_per_gpu=4, but train.batch_size is 2; write \"auto\"",
        ),
        ({"gradient_accumulation_steps": 1}, "but train.accumulation is 3"),
        ({"train_batch_size": 12}, "but train.batch_size x train.accumulation x 1 is 6"),
        ({"gradient_clipping": 1.0}, "but train.max_grad_norm is 0.5"),
        (
            {"optimizer": {"type": "AdamW", "params": {"lr": 2e-5}}},
            "but train.learning_rate is 0.0001",
        ),
        ({"optimizer": {"params": {"weight_decay": 0.0}}}, "but train.weight_decay is 0.1"),
        ({"optimizer": {"params": {"betas": [0.9, 0.95]}}}, "but AdamW's own is"),
        ({"optimizer": {"type": "Lion"}}, "says optimizer Lion"),
        ({"scheduler": {"type": "WarmupLR"}}, "WarmupLR, the recipe says train.schedule=cosine"),
    ],
)
def test_a_number_that_the_recipe_says_otherwise(tmp_path, keys, line):
    with pytest.raises(UserError, match=line):
        with_keys(tmp_path, **keys)


@pytest.mark.integration
def test_a_file_without_numbers_trains_as_the_shipped_one(tmp_path):
    """LLaVA's zero2.json without `gradient_clipping`: DeepSpeed alone would not clip."""
    values = write_run(tmp_path, records=8)
    (tmp_path / "own.json").write_text('{"zero_optimization": {"stage": 2}}')
    rows = []
    for name in ("zero2", str(tmp_path / "own.json")):
        settings = {"deepspeed": name, "train__max_grad_norm": 0.01}
        output = train(recipe(values, output=str(tmp_path / Path(name).stem), **settings))
        history = json.loads((output / "trainer_state.json").read_text())["log_history"]
        rows.append([(row["loss"], row["grad_norm"]) for row in history if "loss_lm" in row])
    assert rows[0] == rows[1]
    assert len(rows[0]) == 2
    first, second = (load_file(tmp_path / name / ADAPTER_WEIGHTS) for name in ("zero2", "own"))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
