"""A run knows what it was made from: base weights, targets, data, method."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

import student_train
from shared.errors import UserError
from shared.recipe import load_recipe, make_recipe
from student_train.adapter.export import export
from student_train.adapter.method import method_of
from student_train.adapter.provenance import file_digest, read_provenance
from student_train.models.digest import folder_digest
from student_train.run.train import train
from tests.fixtures.student_runs import recipe, write_run, write_store
from tests.fixtures.students import write_tiny_student

SETTINGS = {"train__max_steps": 2, "train__save_steps": 1, "train__keep_checkpoints": 5}


@pytest.mark.unit
@pytest.mark.parametrize(
    ("alpha", "beta", "rotation", "name"),
    [
        (0, 0, "none", "LoRA"),
        (1, 0.1, "full", "MEDALIGN"),
        (1, 0, "full", "MEDALIGN-vis"),
        (0, 0.1, "low_rank", "MEDALIGN-att"),
        (0, 0, "full", "W alone"),
        (1, 0.1, "none", "MEDALIGN without W"),
        (1, 0, "none", "MEDALIGN-vis without W"),
    ],
)
def test_a_method_is_named_by_what_was_trained(alpha, beta, rotation, name):
    losses = {"alpha": alpha, "beta": beta}
    assert method_of(make_recipe({"losses": losses, "rotation": {"kind": rotation}})) == name


@pytest.fixture(scope="module")
def values(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("provenance"))


@pytest.fixture(scope="module")
def run(values, tmp_path_factory):
    output = tmp_path_factory.mktemp("adapter") / "run"
    return train(recipe(values, output=str(output), **SETTINGS))


def cut(run, copy):
    """What the folder looked like just after the first checkpoint."""
    copy.mkdir()
    shutil.copy2(run / "recipe.yaml", copy)
    shutil.copytree(run / "checkpoint-1", copy / "checkpoint-1")
    return copy


@pytest.mark.integration
def test_the_run_names_all_that_it_was_made_from(values, run):
    for folder in (run, run / "checkpoint-1"):
        found = read_provenance(folder)
        assert found is not None
        namespace = next(path.name for path in Path(values["targets"]["store"]).iterdir())
        [teacher] = found["teachers"]
        assert namespace == f"{teacher['teacher']}-{teacher['fingerprint'][:12]}"
        assert found["data"] == {
            "train": {
                "file": values["data"]["train"],
                "sha256": file_digest(values["data"]["train"]),
            }
        }
        assert found["base"]["weights"] == folder_digest(Path(values["model"]["name"]))
        assert found["method"] == "MEDALIGN"
        assert {"medalign", "torch", "transformers", "peft"} <= found["software"].keys()
        assert found["command"]


@pytest.mark.integration
def test_the_digest_is_of_the_weights_and_not_of_their_files(values, tmp_path, monkeypatch):
    monkeypatch.setenv("MEDALIGN_CACHE", str(tmp_path / "cache"))
    base = Path(values["model"]["name"])
    digest = folder_digest(base)
    state = load_file(base / "model.safetensors")
    names = sorted(state)
    index = {}
    for number, part in enumerate((names[::2], names[1::2])):
        file = f"model-0000{number + 1}-of-00002.safetensors"
        save_file({name: state[name] for name in part}, tmp_path / file, {"format": "pt"})
        index |= dict.fromkeys(part, file)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    assert folder_digest(tmp_path) == digest
    state[names[0]].view(-1)[0] += 1
    other = tmp_path / "other"
    other.mkdir()
    save_file(state, other / "model.safetensors", {"format": "pt"})
    assert folder_digest(other) != digest


@pytest.mark.integration
def test_an_adapter_refuses_another_base_of_its_shape_and_its_own_merge(values, run, tmp_path):
    other = write_tiny_student(tmp_path / "other", seed=7)
    merged = export(run, tmp_path / "merged")
    copied = shutil.copytree(values["model"]["name"], tmp_path / "moved")
    student_train.load(run, base=str(copied))  # the same weights elsewhere
    for base in (other, merged):
        for load in (
            lambda base=base: student_train.load(run, base=str(base)),
            lambda base=base: export(run, tmp_path / "again", str(base)),
        ):
            with pytest.raises(UserError, match=r"is not the base model that .* trained on") as one:
                load()
            assert "\n" not in str(one.value)
    assert not (tmp_path / "again").exists()


@pytest.mark.integration
def test_a_resumed_run_keeps_its_targets_in_a_store_that_grows(values, run, tmp_path):
    images = Path(values["data"]["image_root"])
    names = [f"image{number}.png" for number in range(6)]
    grown = shutil.copytree(values["targets"]["store"], tmp_path / "grown")
    write_store(grown, images, names, weights="b" * 64)
    whole = train(recipe(values, output=str(cut(run, tmp_path / "a")), **SETTINGS), resume=True)
    other = {**SETTINGS, "targets__store": str(grown)}
    part = train(recipe(values, output=str(cut(run, tmp_path / "b")), **other), resume=True)
    first, second = (load_file(one / "adapter_model.safetensors") for one in (whole, part))
    assert all((first[name] == second[name]).all() for name in first)
    with pytest.raises(UserError, match="holds 2 that fit"):  # a new run must choose
        train(recipe(values, output=str(tmp_path / "new"), **other))


@pytest.mark.integration
def test_a_resumed_run_refuses_other_targets_other_weights_and_other_data(values, run, tmp_path):
    names = [f"image{number}.png" for number in range(6)]
    store = tmp_path / "store"
    write_store(store, Path(values["data"]["image_root"]), names, weights="b" * 64)
    base = write_tiny_student(tmp_path / "base", seed=7)
    data = tmp_path / "train.json"
    data.write_text(Path(values["data"]["train"]).read_text() + "\n")

    def refused(match, **changes):
        settings = {**SETTINGS, **changes}
        part = cut(run, tmp_path / "part")
        saved = load_recipe(part / "recipe.yaml")
        for key in ("model", "data"):  # the same words, other content
            saved = saved.model_copy(update={key: getattr(recipe(values, **changes), key)})
        from shared.recipe import save_recipe

        save_recipe(saved, part / "recipe.yaml")
        with pytest.raises(UserError, match=match) as caught:
            train(recipe(values, output=str(part), **settings), resume=True)
        assert "\n" not in str(caught.value)
        shutil.rmtree(part)

    refused(r"no targets in .* fit: .*fingerprint", targets__store=str(store))
    refused(r"base model of weights \w{12}, .* has \w{12} now", model__name=str(base))
    refused(r"data.train of sha256 \w{12}", data__train=str(data))


@pytest.mark.integration
def test_a_finished_run_repeats_from_its_saved_recipe(values, run, tmp_path):
    path = run / "recipe.yaml"
    again = load_recipe(path, [f"output={tmp_path / 'again'}"])
    repeated = train(again, repeats=path)
    first, second = (load_file(one / "adapter_model.safetensors") for one in (run, repeated))
    assert all((first[name] == second[name]).all() for name in first)
    grown = shutil.copytree(values["targets"]["store"], tmp_path / "grown")
    names = [f"image{number}.png" for number in range(6)]
    write_store(grown, Path(values["data"]["image_root"]), names, weights="b" * 64)
    moved = load_recipe(path, [f"output={tmp_path / 'moved'}", f"targets.store={grown}"])
    kept, read = read_provenance(run), read_provenance(train(moved, repeats=path))
    assert kept is not None
    assert read is not None
    assert read["teachers"] == kept["teachers"]
    changed = shutil.copytree(run, tmp_path / "changed", ignore=shutil.ignore_patterns("check*"))
    document = json.loads((changed / "provenance.json").read_text())
    document["data"]["train"]["sha256"] = "0" * 64
    (changed / "provenance.json").write_text(json.dumps(document))
    with pytest.raises(UserError, match=r"data.train of sha256 000000000000"):
        train(load_recipe(path, [f"output={tmp_path / 'no'}"]), repeats=changed / "recipe.yaml")
