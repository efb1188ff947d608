"""Each family by command: targets built, a student trained with them, its answers scored."""

import contextlib
import json
import sys
from pathlib import Path

import pytest
import yaml

from pipelines.cli import main
from shared.recipe import load_recipe
from tests.fixtures.families import FAMILIES, LLAVA, picture
from tests.fixtures.student_runs import write_train_file
from tests.fixtures.tiny_teacher import TEACHER, tiny_weights

pytestmark = pytest.mark.integration
METHODS = "greedy,beam,nucleus,vcd,dola,opera,avisc,m3id,pai,sid,icd,deco,vista,vaf"


@pytest.mark.parametrize("name", FAMILIES)
def test_from_images_to_scores(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def medalign(*words: object) -> None:
        monkeypatch.setattr(sys, "argv", ["medalign", *map(str, words)])
        capfd.readouterr()
        with contextlib.suppress(SystemExit):
            main()

    family = FAMILIES[name]
    family.write(tmp_path / "base")
    (tmp_path / "images").mkdir()
    names = [f"{number}.png" for number in range(4)]
    for number, file in enumerate(names):
        picture(number, 60 + 20 * (number % 2), 70).save(tmp_path / "images" / file)
    train = write_train_file(tmp_path / "train.json", names, 6)

    medalign("student", "inspect", tmp_path / "base", "--json")
    words = str(json.loads(capfd.readouterr().out)["targets"]).split()
    grid = words[words.index("--grid") + 1]
    assert grid == f"{family.grid}x{family.grid}"
    teacher = ("--teacher", TEACHER, "--weights", tiny_weights(tmp_path / "teacher.safetensors"))
    named = ("--images", train, "--image-root", tmp_path / "images", "--store", tmp_path / "store")
    medalign("cache", "build", *teacher, *named, "--grid", grid)
    values = {
        "output": str(tmp_path / "run"),
        "deepspeed": "none",
        "model": {"name": str(tmp_path / "base")},
        "data": {"train": str(train), "image_root": str(tmp_path / "images"), "workers": 0},
        "targets": {"store": str(tmp_path / "store")},
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
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
    medalign("student", "train", tmp_path / "recipe.yaml")
    # of the teacher `test_vit`, whose mean is 0.5
    assert load_recipe(tmp_path / "run" / "recipe.yaml").data.padding == (127, 127, 127)

    tests = ("--data", train, "--image-root", tmp_path / "images", "--device", "cpu")
    asked = ("evaluate", "--run", tmp_path / "run", *tests, "--out")
    medalign(*asked, tmp_path / "scores", "--decode", METHODS, "--json")
    assert len(json.loads(capfd.readouterr().out)["rows"]) == 14
    medalign(*asked, tmp_path / "all", "--decode", "all", "--json")
    printed = capfd.readouterr()
    if family.class_name == LLAVA:
        assert len(json.loads(printed.out)["rows"]) == 10
        return
    assert printed.out == ""
    assert "error: DAMRO needs" in printed.err
    assert "leave damro out for" in " ".join(printed.err.split())
    assert "Traceback" not in printed.err
