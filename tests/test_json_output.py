"""`--json` of every command prints one JSON document on standard output and nothing besides.

A new command with the flag needs a case here.
"""

import contextlib
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
import yaml

from pipelines.cli import app, main
from pipelines.regions.query.file import write_query
from pipelines.regions.query.fitting import fit_query
from shared.imaging.keys import content_key
from shared.targets import TargetStore, TargetWriter
from tests.fixtures.runs import write_run
from tests.fixtures.student_runs import recipe, write_store, write_train_file
from tests.fixtures.student_runs import write_run as write_training
from tests.fixtures.targets import patches_record
from tests.fixtures.text_towers import write_transformers

ROOT = Path(__file__).resolve().parents[1]
TEACHER = "--teacher dinov2-small"

# Of each command: its arguments, as a shell writes them; names in braces are the fixture's.
CASES = {
    "evaluate": "--run {run}/lora --limit 2",
    "alignment": "--run {run}/lora --store {run}/store",
    "oracle": "--store {run}/store --to {new} --regions {regions} --image-root {run}/data",
    "score": "--predictions {predictions} --references {run}/data/test.json",
    "compare": "{predictions} {predictions} --references {run}/data/test.json",
    "plan-test": "--difference 3 --disagreement 0.2",
    "sweep": "{study} --work {new} --set base={run}/base --plan",
    "data list": "",
    "data prepare": "brain-atlas --out {new}",
    "data convert": "{run}/data/test.json --out {new}.json",
    "data check": "{run}/data/test.json",
    "report metrics": "{reports} --metrics bleu",
    "cache teachers": "",
    "cache plan": TEACHER + " --images {run}/data --grid 4x4",
    "cache build": TEACHER + " --images {run}/data --store {new} --grid 4x4",
    "cache text": "--teacher hf:{towers} --prompt x --store {new}",
    "cache audit": "--store {run}/store --regions {regions} --image-root {run}/data",
    "cache info": "--store {run}/store",
    "cache list": "--store {run}/store",
    "cache verify": "--store {run}/store",
    "cache merge": "{run}/store --store {new}",
    "cache upgrade": "--store {run}/store",
    "cache query fit": "--store {asked} --regions {regions} --image-root {run}/data --out {new}",
    "cache query map": "--store {asked} --query {query} --image {run}/data/0.png --text x"
    " --out {new}",
    "cache query maps": "--store {run}/store --regions {regions} --data {run}/data/test.json"
    " --image-root {run}/data --to {new}",
    "cache import": "--authors {pickles}/s.pkl {pickles}/a.pkl --images {run}/data --store {new} "
    "--teacher unimed-l",
    "cache push": "{new} --store {run}/store",
    "cache pull": "{run}/store --store {new}",
    "cache gc": "--store {run}/store",
    "cache export": "--store {run}/store --out {new}",
    "cache view": "--store {run}/store --image {run}/data/0.png --out {new}.png",
    "cache control": "--store {run}/store --to {new} --kind mean",
    "student train --dry-run": "{recipe}",
    "student train": "{recipe}",
    "student inspect": "{run}/medalign",
}


def commands_with_json() -> set[str]:
    found = set()

    def walk(command: object, path: tuple[str, ...]) -> None:
        inside = getattr(command, "commands", None)
        for name, one in (inside or {}).items():
            walk(one, (*path, name))
        options = [option for one in getattr(command, "params", ()) for option in one.opts]
        if inside is None and "--json" in options:
            found.add(" ".join(path))

    walk(typer.main.get_command(app), ())
    return found


@pytest.mark.unit
def test_every_command_with_the_flag_has_a_case() -> None:
    assert {name.removesuffix(" --dry-run") for name in CASES} == commands_with_json()


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("json")
    run = write_run(folder / "run", images=3)
    names = [f"{number}.png" for number in range(3)]
    write_store(run / "store", run / "data", names)
    write_train_file(run / "data" / "train.json", names, 4)
    boxes = [{"image": name, "boxes": [[2, 2, 20, 12]]} for name in names]
    (folder / "regions.json").write_text(json.dumps({"records": boxes}))
    asked = json.loads((run / "data" / "test.json").read_text())
    (folder / "answers.json").write_text(json.dumps({row["id"]: "yes" for row in asked}))
    rows = [{"id": str(i), "reference": "no focal opacity", "prediction": "clear"} for i in "ab"]
    (folder / "reports.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, array in (("s", np.eye(4)), ("a", np.ones(4))):
        (folder / f"{name}.pkl").write_bytes(pickle.dumps(dict.fromkeys(names, array)))
    study = {"name": "s", "title": "S", "recipe": "demo.yaml", "places": {"base": "b"}}
    study |= {"parts": ["one"], "arms": {"LoRA": {}}}
    (folder / "study.yaml").write_text(yaml.safe_dump(study))
    values = write_training(folder / "training", images=2, records=2)
    from shared.recipe import save_recipe

    small = recipe(values, output=str(folder / "trained"), train__max_steps=1)
    save_recipe(small, folder / "recipe.yaml")
    asked = {"encoding": "patches", "width": 6, "rotation": "hadamard"}
    kept = TargetStore.open(run / "store").identity.model_copy(update={**asked, "precision": "u8"})
    with TargetWriter(folder / "asked", kept) as writer:
        for number, name in enumerate(names):
            writer.add(content_key(run / "data" / name), patches_record(number, kept.patches))
    query = fit_query(
        TargetStore.open(folder / "asked"), folder / "regions.json", image_root=run / "data"
    )
    write_query(query, folder / "query.safetensors")
    write_transformers(folder / "towers", "clip")
    return {
        "run": str(run),
        "asked": str(folder / "asked"),
        "towers": str(folder / "towers"),
        "query": str(folder / "query.safetensors"),
        "regions": str(folder / "regions.json"),
        "predictions": str(folder / "answers.json"),
        "reports": str(folder / "reports.jsonl"),
        "pickles": str(folder),
        "study": str(folder / "study.yaml"),
        "recipe": str(folder / "recipe.yaml"),
    }


# These load a model, and with it libraries that print when they are first imported.
OWN_PROCESS = ("evaluate", "student train")


@pytest.mark.integration
@pytest.mark.parametrize("name", CASES)
def test_standard_output_is_one_document(
    name: str,
    places: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    new = str(tmp_path / "new")
    words = [word.format(**places, new=new) for word in CASES[name].split()]
    arguments = [*name.split(), *words, "--json"]
    monkeypatch.chdir(tmp_path)
    if name in OWN_PROCESS:
        starter = [sys.executable, "-c", "from pipelines.cli import main; main()"]
        path = os.environ | {"PYTHONPATH": str(ROOT)}
        subprocess.run([*starter, *arguments], env=path, check=True)
    else:
        monkeypatch.setattr(sys, "argv", ["medalign", *arguments])
        with contextlib.suppress(SystemExit):
            main()
    assert isinstance(json.loads(capfd.readouterr().out), dict)
