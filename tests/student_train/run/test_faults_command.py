"""Every fault from the command line.

One line that says what is wrong, exit code 1, nothing taken for a result.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from tests.fixtures.student_runs import changed, write_run, write_store
from tests.fixtures.students import write_tiny_student

pytestmark = [pytest.mark.integration, pytest.mark.slow]


@pytest.fixture(scope="module")
def values(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("command"))


def student(*arguments):
    command = [sys.executable, "-m", "student_train", *map(str, arguments)]
    environment = os.environ | {"DS_ACCELERATOR": "cpu"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def records(values, tmp_path, change):
    rows = json.loads(Path(values["data"]["train"]).read_text())
    change(rows)
    path = tmp_path / "changed.json"
    path.write_text(json.dumps(rows))
    return {"data__train": str(path)}


def base(values, tmp_path, change):
    folder = tmp_path / "base"
    shutil.copytree(values["model"]["name"], folder)
    change(folder)
    return {"model__name": str(folder)}


def weight(number):
    def change(folder):
        state = load_file(folder / "model.safetensors")
        next(state[name] for name in state if name.endswith("lm_head.weight"))[0, 0] = number
        save_file(state, folder / "model.safetensors", {"format": "pt"})

    return change


def shards(folder):
    """Cut the weights into two shards, of which the second is lost."""
    state = load_file(folder / "model.safetensors")
    names = sorted(state)
    parts = {
        "model-00001-of-00002.safetensors": names[::2],
        "model-00002-of-00002.safetensors": names[1::2],
    }
    for file, part in parts.items():
        save_file({name: state[name] for name in part}, folder / file, {"format": "pt"})
    index = {
        "metadata": {},
        "weight_map": {name: file for file, part in parts.items() for name in part},
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()
    (folder / "model-00002-of-00002.safetensors").unlink()


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def without_image_token(folder):
    config = json.loads((folder / "config.json").read_text())
    config["image_token_index" if "image_token_index" in config else "image_token_id"] = (
        5  # an ordinary letter
    )
    (folder / "config.json").write_text(json.dumps(config))


def broken_image(values, tmp_path):
    folder = tmp_path / "images"
    shutil.copytree(values["data"]["image_root"], folder)
    truncate(folder / "image2.png")
    store = write_store(tmp_path / "store", folder, [f"image{number}.png" for number in range(6)])
    return {"data__image_root": str(folder), "targets__store": str(store)}


def other_grid(values, tmp_path):
    names = [f"image{number}.png" for number in range(6)]
    return {
        "targets__store": str(
            write_store(tmp_path / "store", Path(values["data"]["image_root"]), names, grid=3)
        )
    }


def answer(text):
    return lambda rows: rows[5]["conversations"][1].update(value=text)


FAULTS = {
    "nan loss": (lambda v, t: base(v, t, weight(torch.nan)), "not finite at step 0"),
    "infinite weight": (
        lambda v, t: base(v, t, weight(torch.inf)),
        "gradient is not finite at step 0",
    ),
    "image missing": (
        lambda v, t: records(v, t, lambda rows: rows[3].update(image="gone.png")),
        "record r3",
    ),
    "image broken": (broken_image, "image2.png"),
    "no answer": (
        lambda v, t: records(v, t, lambda rows: rows[5]["conversations"].pop()),
        "record r5: ",
    ),
    "empty answer": (lambda v, t: records(v, t, answer(" ")), "record r5: an answer is empty"),
    "answer too long": (
        lambda v, t: records(v, t, answer("word " * 300)),
        "do not fit data.max_length",
    ),
    "shard missing": (lambda v, t: base(v, t, shards), "model-00002-of-00002.safetensors"),
    "shard truncated": (
        lambda v, t: base(v, t, lambda f: truncate(f / "model.safetensors")),
        "model.safetensors",
    ),
    "no image token": (lambda v, t: base(v, t, without_image_token), "lacks the image token"),
    "layer 0": (lambda v, t: {"losses__layer": 0}, "losses.layer"),
    "layer L": (lambda v, t: {"losses__layer": 4}, "l must be in 1..3"),
    "another grid": (other_grid, "grid"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_run_with_a_fault_ends_in_one_line(values, tmp_path, fault):
    change, line = FAULTS[fault]
    output, path = tmp_path / "run", tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(changed(values, output=str(output), **change(values, tmp_path))))
    done = student("train", path)
    refused(done, line)
    assert not any(
        (output / name).exists() for name in ("adapter_model.safetensors", "adapter_config.json")
    )


def refused(done, line):
    said = done.stderr.strip().splitlines()
    assert done.returncode == 1, done.stdout + done.stderr
    assert len(said) == 1, done.stderr
    assert said[0].startswith("error: "), done.stderr
    assert line in said[0]


def test_an_adapter_on_a_base_of_another_width(values, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        yaml.safe_dump(changed(values, output=str(tmp_path / "run"), train__max_steps=1))
    )
    assert student("train", path).returncode == 0
    other = write_tiny_student(tmp_path / "wide", hidden=64)
    refused(
        student("export", tmp_path / "run", "--to", tmp_path / "merged", "--base", other),
        "is not the base model",
    )
    assert not (tmp_path / "merged").exists()
