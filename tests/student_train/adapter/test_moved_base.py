"""An adapter finds its base: from any working directory, and after both were moved together."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import student_train
from shared.errors import UserError
from student_train.adapter.export import export
from student_train.run.train import train
from tests.fixtures.student_runs import recipe, write_run

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project folder in which a run was made with relative paths: base in models/, run in runs/.

    As in `student train recipe.yaml model.name=models/base output=runs/one`.
    """
    project = tmp_path_factory.mktemp("project")
    values = write_run(project)
    (project / "models").mkdir()
    (project / "base").rename(project / "models" / "base")
    values["model"]["name"] = "models/base"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        train(recipe(values, output="runs/one", train__max_steps=1, train__save_steps=1))
    return project


def state(folder: Path) -> dict[str, Any]:
    return student_train.load(folder)[0].state_dict()


def test_from_any_working_directory(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained)
    at_home = state(Path("runs/one"))
    monkeypatch.chdir(tmp_path)
    for folder in (trained / "runs" / "one", trained / "runs" / "one" / "checkpoint-1"):
        found = state(folder)
        assert all(torch.equal(found[name], tensor) for name, tensor in at_home.items())
    monkeypatch.chdir(trained / "runs" / "one")
    assert state(Path()).keys() == at_home.keys()


def test_after_both_were_moved_and_by_export(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(trained / "models", tmp_path / "elsewhere" / "models")
    shutil.copytree(trained / "runs", tmp_path / "elsewhere" / "runs")
    monkeypatch.chdir(tmp_path)
    moved = tmp_path / "elsewhere" / "runs" / "one"
    assert state(moved).keys() == state(trained / "runs" / "one").keys()
    export(moved, tmp_path / "merged")
    assert (tmp_path / "merged" / "config.json").is_file()


def test_a_base_that_is_nowhere_is_named(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "runs" / "one", tmp_path / "alone")
    with pytest.raises(UserError, match="models/base"):
        student_train.load(tmp_path / "alone")
    found, _ = student_train.load(tmp_path / "alone", base=str(trained / "models" / "base"))
    assert found is not None


def test_every_file_follows_the_umask(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A colleague of the group can read what a run and an export write, weights too."""
    import os

    monkeypatch.chdir(tmp_path)
    before = os.umask(0o027)
    try:
        values = write_run(tmp_path / "own")
        run = train(recipe(values, output="own/run", train__max_steps=1, train__save_steps=1))
        export(run, tmp_path / "merged")
    finally:
        os.umask(before)
    written = [path for top in (run, tmp_path / "merged") for path in top.rglob("*")]
    assert any(path.suffix == ".safetensors" for path in written)
    for path in written:
        assert path.stat().st_mode & 0o777 == (0o750 if path.is_dir() else 0o640), path
