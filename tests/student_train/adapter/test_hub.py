"""Uploads against a hub on the loopback.

Real requests of huggingface_hub, the files as they arrived.
"""

import os
import subprocess
import sys
from importlib.metadata import version

import pytest
import torch
import yaml
from typer.testing import CliRunner

from shared.errors import UserError
from student_train import load
from student_train.adapter.card import Taught, write_card
from student_train.adapter.export import push
from student_train.cli import app
from student_train.models import load_base
from student_train.run.train import train
from teacher_cache.teachers.registry import TEACHERS
from tests.fixtures.hub import TOKEN, faults_of_card, running_hub
from tests.fixtures.student_runs import changed, recipe, write_run

pytestmark = pytest.mark.integration
ADAPTER = {
    "adapter_config.json",
    "adapter_model.safetensors",
    "rotation.safetensors",
    "recipe.yaml",
    "README.md",
}


@pytest.fixture(scope="module")
def values(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("hub"))


@pytest.fixture(scope="module")
def adapter(values, tmp_path_factory):
    output = tmp_path_factory.mktemp("adapter") / "run"
    return train(recipe(values, output=str(output), train__max_steps=1, train__save_steps=1))


@pytest.fixture
def hub(monkeypatch):
    """A hub that this process knows of.

    Large files go by plain uploads, which need no second protocol.
    """
    with running_hub() as served:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", served.url)
        template = served.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield served


def test_a_run_uploads_its_adapter_at_the_end(values, tmp_path):
    path = tmp_path / "recipe.yaml"
    output = tmp_path / "run"
    path.write_text(
        yaml.safe_dump(changed(values, output=str(output), train__max_steps=2, train__save_steps=1))
    )
    command = [
        sys.executable,
        "-m",
        "student_train",
        "train",
        str(path),
        "train.push_to_hub=clinic/adapter",
    ]
    with running_hub() as hub:
        environment = os.environ | {
            "HF_ENDPOINT": hub.url,
            "HF_TOKEN": TOKEN,
            "HF_HUB_DISABLE_XET": "1",
        }
        environment.pop("HF_HUB_OFFLINE", None)
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert hub.visibility == {"clinic/adapter": "private"}
    arrived = hub.files["clinic/adapter"]
    assert arrived.keys() == {
        *ADAPTER,
        "provenance.json",
        "trainer_state.json",
    }  # no checkpoint, no log, no sample answers
    assert all((output / name).read_bytes() == data for name, data in arrived.items())
    assert (output / "checkpoint-2").is_dir()
    assert "uploaded: clinic/adapter (private)" in done.stdout


@pytest.mark.filterwarnings(
    "ignore:Use 'content=:DeprecationWarning"
)  # huggingface_hub's own call of its HTTP client
def test_an_export_is_uploaded_whole_and_fetched_by_its_id(adapter, tmp_path, hub, monkeypatch):
    merged = tmp_path / "merged"
    done = CliRunner().invoke(
        app, ["export", str(adapter), "--to", str(merged), "--push-to-hub", "merged"]
    )
    assert done.exit_code == 0, done.output
    arrived = hub.files["me/merged"]  # a bare name goes to the token's own account
    assert {
        "model.safetensors",
        "config.json",
        "rotation.safetensors",
        "recipe.yaml",
        "README.md",
    } <= arrived.keys()
    assert all((merged / name).read_bytes() == data for name, data in arrived.items())
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    # As a base it would lose W; the folder that the message names is loaded with it.
    with pytest.raises(UserError, match="would lose W") as no:
        load_base("me/merged")
    fetched, asked = load(str(no.value).partition(" is an exported")[0])
    model, processor = load(merged)
    assert (asked.template, asked.grid) == (processor.template, processor.grid)
    state = model.state_dict()
    assert any("rotation" in name for name in state)
    assert all(torch.equal(tensor, state[name]) for name, tensor in fetched.state_dict().items())


def test_a_refused_upload_is_one_line(adapter, hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(
        UserError, match=r"upload of .* to clinic/adapter failed .*the folder itself is complete"
    ) as no:
        push(adapter, "clinic/adapter")
    assert "\n" not in str(no.value)
    assert not hub.files


def test_a_hub_that_does_not_answer_is_one_line(adapter, hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="the folder itself is complete"):
        push(adapter, "clinic/adapter")


def test_a_run_that_could_not_upload_does_not_begin(values, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    wanted = {"output": str(tmp_path / "run"), "train__push_to_hub": "clinic/adapter"}
    with pytest.raises(UserError, match="HF_TOKEN"):
        train(recipe(values, **wanted))
    with pytest.raises(UserError, match="no hub id"):
        train(recipe(values, **{**wanted, "train__push_to_hub": "a/b/c"}))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("model", "base"),
    [
        ({"name": "llava-med-1.5"}, "microsoft/llava-med-v1.5-mistral-7b"),
        ({"name": "llava-med-1.5", "path": "weights"}, "microsoft/llava-med-v1.5-mistral-7b"),
        ({"name": "HuggingFaceTB/SmolVLM-256M-Instruct"}, "HuggingFaceTB/SmolVLM-256M-Instruct"),
    ],
)
def test_the_card_names_the_base_by_its_hub_id(values, tmp_path, model, base):
    write_card(recipe(values, model=model), tmp_path, [], [])
    text = (tmp_path / "README.md").read_text()
    assert faults_of_card(text) == []
    assert yaml.safe_load(text.split("---\n")[1])["base_model"] == base


def test_the_card_says_what_the_store_says_of_each_teachers_licence(values, tmp_path):
    licences = {info.name: info.licence for info in TEACHERS.values()}
    taught = [Taught(name, licence) for name, licence in licences.items()]
    write_card(recipe(values), tmp_path, [], [*taught, Taught("of-an-older-store", None)])
    text = (tmp_path / "README.md").read_text()
    assert faults_of_card(text) == []
    assert "`unimed-l`, licence of its weights: CC BY-NC 4.0: no commercial use\n" in text
    assert "`biomedclip`, licence of its weights: MIT; its authors intend it for research" in text
    assert "`of-an-older-store`, licence of its weights: see where its weights come from\n" in text


def test_the_card_names_settings_seed_store_and_versions(values, tmp_path):
    made = recipe(values, train__seed=7, train__learning_rate=0.002, train__max_steps=30)
    write_card(made, tmp_path, [], [Taught("unimed-l", "MIT", "0123abcd")])
    text = (tmp_path / "README.md").read_text()
    assert faults_of_card(text) == []
    assert "- Teacher: `unimed-l`, store `0123abcd`, licence of its weights: MIT\n" in text
    assert "30 steps" in text
    assert "learning rate 0.002" in text
    assert "seed 7," in text
    assert f"rank {made.lora.r}, alpha {made.lora.alpha:g}\n" in text
    assert f"torch {version('torch')}" in text
    assert "Licence of the data" in text
