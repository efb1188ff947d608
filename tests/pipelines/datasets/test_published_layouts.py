"""Every named student by its name, from a small checkpoint of its published layout.

Train, save, load, answer by command.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from student_train.models import FAMILIES
from tests.fixtures.gemma3_checkpoint import write_gemma3
from tests.fixtures.qwen2_5_vl_checkpoint import write_qwen2_5_vl
from tests.fixtures.student_checkpoints import huatuo_original, llava_med_original
from tests.fixtures.student_runs import write_images, write_store, write_train_file
from tests.fixtures.yi_checkpoint import write_yi

pytestmark = pytest.mark.integration
ROOT = Path(__file__).resolve().parents[3]
WRITERS: dict[str, Callable[[Path], object]] = {
    "llava-med-1.5": llava_med_original,
    "huatuogpt-vision-7b": partial(huatuo_original, form="bin"),
    "huatuogpt-vision-34b": partial(write_yi, form="bin"),
    "medgemma-1.5-4b": write_gemma3,
    "lingshu-7b": write_qwen2_5_vl,
}


def command(*arguments: str) -> str:
    """Run `medalign ...` as its own process and return what it printed."""
    code = "from pipelines.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT, env=os.environ | {"DS_ACCELERATOR": "cpu"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("name", FAMILIES)
def test_two_steps_then_an_answer(name: str, tmp_path: Path) -> None:
    import student_train

    checkpoint, run = tmp_path / "checkpoint", tmp_path / "run"
    WRITERS[name](checkpoint)
    images = write_images(tmp_path / "images", 3)
    recipe = {
        "output": str(run),
        "deepspeed": "none",
        "model": {"name": name, "path": str(checkpoint)},
        "data": {
            "train": str(write_train_file(tmp_path / "train.json", images, 4)),
            "image_root": str(tmp_path / "images"),
            "workers": 0,
        },
        "targets": {"store": str(write_store(tmp_path / "store", tmp_path / "images", images, 4))},
        "losses": {"layer": 2},
        "lora": {"r": 4},
        "train": {
            "max_steps": 2, "batch_size": 2, "accumulation": 1, "device": "cpu",
            "precision": "fp32", "learning_rate": 0.01, "logging_steps": 1, "save_steps": 0,
            "report_to": [],
        },
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    command("student", "train", str(tmp_path / "recipe.yaml"))

    history = [
        row
        for row in json.loads((run / "trainer_state.json").read_text())["log_history"]
        if "loss_lm" in row
    ]
    assert [row["step"] for row in history] == [1, 2]
    assert all(row["loss_vis"] > 0 and row["loss_att"] > 0 for row in history)
    lora = load_file(run / "adapter_model.safetensors")
    blocks = 6 if name == "medgemma-1.5-4b" else 4
    # A and B of seven linear layers in each block: none is lost
    assert len(lora) == 2 * 7 * blocks
    assert all(tensor.abs().sum() > 0 for tensor in lora.values())
    (rotation,) = load_file(run / "rotation.safetensors").values()
    assert rotation.shape == (32, 32)
    assert rotation.abs().sum() > 0

    question = ("--image", str(tmp_path / "images" / images[0]), "--question", "What is shown?")
    printed = command(
        "generate", "--run", str(run), *question, "--decode", "greedy", "--max-new-tokens", "6"
    )
    model, processor = student_train.load(run)
    inputs = processor.encode("What is shown?", [tmp_path / "images" / images[0]])
    with torch.no_grad():
        tokens = model.generate(**inputs, max_new_tokens=6, do_sample=False)[
            0, inputs["input_ids"].shape[1] :
        ]
    assert printed.strip() == processor.tokenizer.decode(tokens, skip_special_tokens=True).strip()
