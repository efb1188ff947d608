"""Each family by command: targets built, a student trained with them, its answers scored."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from shared.recipe import load_recipe
from tests.fixtures.families import FAMILIES, Family, picture
from tests.fixtures.student_runs import write_train_file
from tests.fixtures.tiny_teacher import TEACHER, tiny_weights

pytestmark = pytest.mark.integration
ROOT = Path(__file__).resolve().parents[3]


class Ended(NamedTuple):
    code: int
    out: str
    error: str


def medalign(*words: object) -> Ended:
    starter = [sys.executable, "-c", "from pipelines.cli import main; main()"]
    path = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*starter, *map(str, words)], env=path, capture_output=True, text=True, check=False
    )
    return Ended(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="module", params=list(FAMILIES))
def trained(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Family, Path]:
    """A student trained by command with targets that were built by command."""
    family, folder = FAMILIES[request.param], tmp_path_factory.mktemp(request.param)
    family.write(folder / "base")
    names = [f"{number}.png" for number in range(4)]
    (folder / "images").mkdir()
    for number, name in enumerate(names):
        picture(number, 60 + 20 * (number % 2), 70).save(folder / "images" / name)
    train = write_train_file(folder / "train.json", names, 6)
    shown = medalign("student", "inspect", folder / "base", "--json")
    assert shown.code == 0, shown.error
    words = str(json.loads(shown.out)["targets"]).split()
    grid = words[words.index("--grid") + 1]
    assert grid == f"{family.grid}x{family.grid}"
    named = ("--images", train, "--image-root", folder / "images", "--store", folder / "store")
    weights = tiny_weights(folder / "teacher.safetensors")
    teacher = ("--teacher", TEACHER, "--weights", weights)
    built = medalign("cache", "build", *teacher, *named, "--grid", grid)
    assert built.code == 0, built.error
    values = {
        "output": str(folder / "run"),
        "deepspeed": "none",
        "model": {"name": str(folder / "base")},
        "data": {"train": str(train), "image_root": str(folder / "images"), "workers": 0},
        "targets": {"store": str(folder / "store")},
        "losses": {"layer": 2},
        "lora": {"r": 4},
        "train": {
            "max_steps": 2,
            "batch_size": 2,
            "accumulation": 1,
            "precision": "fp32",
            "device": "cpu",
            "save_steps": 0,
            "report_to": [],
        },
        "evaluation": {"max_new_tokens": 4},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values))
    run = medalign("student", "train", folder / "recipe.yaml")
    assert run.code == 0, run.error
    return family, folder


def test_answers_of_its_own_methods_are_scored(trained: tuple[Family, Path]) -> None:
    _, folder = trained
    teacher = (127, 127, 127)  # of `test_vit`, whose mean is 0.5
    assert load_recipe(folder / "run" / "recipe.yaml").data.padding == teacher
    tests = ("--data", folder / "train.json", "--image-root", folder / "images")
    place = ("--run", folder / "run", "--device", "cpu", *tests, "--out")
    methods = "greedy,beam,nucleus,vcd,dola,opera,avisc,m3id,pai"
    done = medalign("evaluate", *place, folder / "scores", "--decode", methods, "--json")
    assert done.code == 0, done.error
    rows = json.loads(done.out)["rows"]
    assert len(rows) == 9
    everything = medalign("evaluate", *place, folder / "all", "--decode", "all")
    assert everything.code == 1
    assert everything.out == ""
    assert "leave damro out for" in " ".join(everything.error.split())
    assert "Traceback" not in everything.error
