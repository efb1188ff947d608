"""Where a recipe's model is: folders, hub ids, and slips of either, before anything is fetched."""

import json
from pathlib import Path

import pytest

from shared.errors import UserError
from shared.recipe import ModelSection, make_recipe
from student_train.models import check_place
from student_train.models.folder import local_folder
from student_train.run.beginning import begin

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder with a model folder in it, and a hub that must not be asked."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", _asked)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    model = tmp_path / "models" / "llava-med"
    model.mkdir(parents=True)
    (model / "config.json").write_text(json.dumps({"model_type": "llava_mistral"}))
    return tmp_path


def _asked(*_: object, **__: object) -> None:
    raise AssertionError("the hub was asked")


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("models/llava-mde", "no model folder at models/llava-mde.*did you mean models/llava-med"),
        ("./models/llava-mde", "no model folder at ./models/llava-mde, and it is no hub id"),
        ("models", "holds no config.json"),
        ("llava-med", "is no named model, folder or hub id; did you mean llava-med-1.5"),
    ],
)
def test_a_mistyped_folder_is_refused_at_once(name: str, line: str) -> None:
    with pytest.raises(UserError, match=line):
        check_place(ModelSection(name=name))


def test_what_may_be_a_hub_id_is_left_to_the_hub(here: Path) -> None:
    check_place(ModelSection(name="models/llava-med"))
    assert local_folder("models/llava-med") == Path("models/llava-med")
    assert local_folder("owner/name") is None
    # In the hub library's cache: an id, whatever folders are here.
    (here / "hub" / "models--models--name").mkdir(parents=True)
    assert local_folder("models/name") is None


def test_a_layout_without_a_loader_is_refused_before_the_data_are_read(here: Path) -> None:
    (here / "models" / "llava-med" / "config.json").write_text('{"model_type": "bert"}')
    (here / "train.json").write_text("no records")
    values = {
        "output": "run",
        "model": {"name": "models/llava-med"},
        "data": {"train": "train.json"},
        "train": {"device": "cpu", "report_to": []},
    }
    with pytest.raises(UserError, match="no loader for model_type 'bert'"):
        begin(make_recipe(values))
    values["model"] = {"name": "models/llava-mde"}
    with pytest.raises(UserError, match="no model folder at models/llava-mde"):
        begin(make_recipe(values))
