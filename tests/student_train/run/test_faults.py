"""Faults injected for real.

Each ends in one clear line, and nothing half-written counts as whole.
"""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import student_train
from shared.errors import UserError
from student_train.run.train import train
from tests.fixtures.student_runs import recipe, write_images, write_run, write_store
from tests.fixtures.students import write_tiny_student

pytestmark = pytest.mark.integration
SHORT = {"train__max_steps": 1}


@pytest.fixture(scope="module")
def values(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("faults"))


@pytest.fixture(scope="module")
def adapter(values, tmp_path_factory):
    return train(recipe(values, output=str(tmp_path_factory.mktemp("adapter") / "run"), **SHORT))


def fails(values, match, tmp_path, **changes):
    output = tmp_path / "run"
    with pytest.raises(UserError, match=match) as caught:
        train(recipe(values, output=str(output), **changes))
    assert "\n" not in str(caught.value)
    assert not (output / "adapter_model.safetensors").exists()
    return str(caught.value)


def rewritten(values, tmp_path, change):
    """Copy the training file with a changed first record; returns the override."""
    rows = json.loads(Path(values["data"]["train"]).read_text())
    change(rows)
    path = tmp_path / "changed.json"
    path.write_text(json.dumps(rows))
    return {"data__train": str(path)}


def test_a_loss_that_is_not_finite_names_its_samples(values, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(values["model"]["name"], base)
    state = load_file(base / "model.safetensors")
    next(state[name] for name in state if name.endswith("lm_head.weight"))[0, 0] = torch.nan
    save_file(state, base / "model.safetensors", {"format": "pt"})
    line = fails(
        values,
        r"not finite at step 0 \(loss_lm nan.* samples r\d+, r\d+",
        tmp_path,
        model__name=str(base),
    )
    assert "train.learning_rate" in line


@pytest.mark.parametrize("deepspeed", ["none", "zero0", "zero2"])
def test_a_gradient_that_is_not_finite_names_its_samples(values, tmp_path, deepspeed):
    base = tmp_path / "base"
    shutil.copytree(values["model"]["name"], base)
    state = load_file(base / "model.safetensors")
    # Logits of -inf where no label is: the loss stays finite, its gradient does not.
    next(state[name] for name in state if name.endswith("lm_head.weight"))[0, 0] = torch.inf
    save_file(state, base / "model.safetensors", {"format": "pt"})
    settings = {
        "model__name": str(base),
        "deepspeed": deepspeed,
        "train__max_steps": 1,
        "train__save_steps": 1,
    }
    line = r"the gradient is not finite at step 0, samples r\d+, r\d+, r\d+, r\d+;"
    if deepspeed == "zero0":  # tells no norm
        line = "trained weights are not finite at step 1, first "
    fails(values, line, tmp_path, **settings)
    assert not list((tmp_path / "run").glob("checkpoint-*"))


def test_images_that_the_store_lacks(values, tmp_path):
    folder = tmp_path / "images"
    names = write_images(folder, 6)
    write_images(folder, 4, seed=7)  # four of the six are other pictures now
    store = write_store(tmp_path / "store", Path(values["data"]["image_root"]), names)
    line = fails(
        values,
        "the store lacks 4 of 6 images",
        tmp_path,
        data__image_root=str(folder),
        targets__store=str(store),
    )
    for name in names[:3]:
        assert str(folder / name) in line
    assert names[3] not in line
    assert (
        f"cache build --teacher dinov2-small --images {values['data']['train']} --image-root "
        f"{folder}" in line
    )
    assert f"--store {store}" in line
    assert "--grid 4x4" in line


def test_a_stated_number_of_images_may_be_skipped(values, tmp_path):
    folder = tmp_path / "images"
    names = write_images(folder, 6)
    (folder / names[0]).write_bytes((folder / names[0]).read_bytes() + b"other")
    store = write_store(tmp_path / "store", Path(values["data"]["image_root"]), names)
    skip = {
        "data__image_root": str(folder),
        "targets__store": str(store),
        "targets__on_missing": "skip",
    }
    fails(values, r"lacks 1 of 6 images \(targets.allow_missing=0\)", tmp_path, **skip)
    train(recipe(values, output=str(tmp_path / "run"), **skip, targets__allow_missing=1, **SHORT))


def test_missing_targets_are_computed_by_a_callable(values, tmp_path):
    from shared.targets import TargetStore

    names = [f"image{number}.png" for number in range(6)]
    folder = Path(values["data"]["image_root"])
    half = write_store(tmp_path / "store", folder, names[:3])
    whole = TargetStore.open(values["targets"]["store"])
    asked = []

    def compute(references):
        from shared.imaging.keys import content_key

        for reference in references:
            asked.append(reference.path.name)
            yield whole[content_key(reference.path)]

    def losses(output):
        rows = json.loads((output / "trainer_state.json").read_text())["log_history"]
        return [row["loss"] for row in rows if "loss_lm" in row]

    full = train(recipe(values, output=str(tmp_path / "full")))
    settings = {"targets__store": str(half), "targets__on_missing": "compute"}
    computed = train(
        recipe(values, output=str(tmp_path / "computed"), **settings), compute_targets=compute
    )
    assert sorted(asked) == names[3:]
    assert losses(full) == losses(computed)
    fails(values, "medalign student train", tmp_path, **settings)


def test_another_grid_or_teacher(values, tmp_path):
    folder = Path(values["data"]["image_root"])
    names = [f"image{number}.png" for number in range(6)]
    store = write_store(tmp_path / "store", folder, names, grid=3)
    line = fails(values, "grid", tmp_path, targets__store=str(store))
    assert "3" in line
    assert "4" in line
    fails(values, "unimed-l", tmp_path, targets__teacher="unimed-l")
    fails(values, "targets.store is not set", tmp_path, targets__store=None)


def test_an_image_that_is_not_there(values, tmp_path):
    change = rewritten(values, tmp_path, lambda rows: rows[3].update(image="gone.png"))
    fails(values, r"1 of 7 images are not there: .*gone.png \(record r3\)", tmp_path, **change)


@pytest.mark.filterwarnings(
    "ignore:This DataLoader will create:UserWarning"
)  # on a machine of one core
@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_is_broken(values, tmp_path, workers):
    folder = tmp_path / "images"
    shutil.copytree(values["data"]["image_root"], folder)
    (folder / "image2.png").write_bytes((folder / "image2.png").read_bytes()[:100])
    store = write_store(tmp_path / "store", folder, [f"image{number}.png" for number in range(6)])
    fails(
        values,
        r"record r(2|8): .*image2\.png: a broken image",
        tmp_path,
        data__image_root=str(folder),
        targets__store=str(store),
        data__workers=workers,
    )


def test_records_that_cannot_be_learned_from(values, tmp_path):
    change = rewritten(values, tmp_path, lambda rows: rows[5]["conversations"].pop())
    fails(values, "record r5: .*without an answer", tmp_path, **change)
    change = rewritten(
        values, tmp_path, lambda rows: rows[5]["conversations"][1].update(value="word " * 300)
    )
    fails(values, "record r5: .*do not fit data.max_length", tmp_path, **change)
    train(
        recipe(values, output=str(tmp_path / "cut"), **change, data__truncation="answer", **SHORT)
    )


def test_nothing_left_to_learn(values, tmp_path, monkeypatch):
    from student_train.data import samples as data
    from student_train.models import processor

    encode = processor.encode_conversation

    def unlabelled(*args, **kwargs):
        encoded = encode(*args, **kwargs)
        return encoded._replace(labels=[data.IGNORED] * len(encoded.labels))

    monkeypatch.setattr(processor, "encode_conversation", unlabelled)
    fails(values, "record r0: no token is left to learn from", tmp_path)


@pytest.mark.parametrize("layer", [4, 30])
def test_a_layer_outside_the_model(values, tmp_path, layer):
    fails(
        values,
        rf"losses.layer={layer}: this model has 4 decoder layers, so l must be in 1\.\.3",
        tmp_path,
        losses__layer=layer,
    )


def test_lora_targets_that_are_not_there(values, tmp_path):
    fails(values, "no linear layer qkv; it has q_proj", tmp_path, lora__targets=["q_proj", "qkv"])


def test_a_deepspeed_configuration_that_is_not_there(values, tmp_path):
    fails(values, "zero4 is neither one of .*zero3", tmp_path, deepspeed="zero4")


def test_a_tracker_that_is_not_there(values, tmp_path, monkeypatch):
    monkeypatch.setitem(
        sys.modules, "mlflow", None
    )  # what `import mlflow` meets where it is not installed
    fails(
        values,
        "mlflow, which cannot be imported .*pip install mlflow",
        tmp_path,
        train__report_to=["mlflow"],
    )


def test_quantised_weights_without_a_gpu(values, tmp_path):
    fails(
        values,
        "zero3-quantized quantises frozen weights.*use zero3",
        tmp_path,
        deepspeed="zero3-quantized",
    )


def test_quantization_without_its_library(values, tmp_path):
    fails(values, "bitsandbytes", tmp_path, model__quantization="4bit")


def damaged(adapter, tmp_path, change):
    copy = tmp_path / "damaged"
    shutil.copytree(adapter, copy)
    change(copy)
    return copy


def without(name, key):
    def change(folder):
        state = load_file(folder / name)
        del state[next(one for one in sorted(state) if key in one)]
        save_file(state, folder / name)

    return change


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (
            without("adapter_model.safetensors", "layers.1.self_attn.q_proj.lora_B"),
            "weights 1 missing, first .*layers.1",
        ),
        (without("rotation.safetensors", "2.weight"), "weights 1 missing, first 2.weight"),
        (
            lambda folder: (folder / "rotation.safetensors").unlink(),
            "holds no rotation.safetensors",
        ),
        (
            lambda folder: (folder / "adapter_model.safetensors").unlink(),
            "holds no adapter_model.safetensors",
        ),
        (lambda folder: (folder / "recipe.yaml").unlink(), "holds no recipe.yaml"),
        (
            lambda folder: (folder / "adapter_model.safetensors").write_bytes(
                (folder / "adapter_model.safetensors").read_bytes()[:-50]
            ),
            "cannot be read",
        ),
    ],
    ids=["lora pair", "rotation", "rotation file", "adapter file", "recipe", "truncated"],
)
def test_a_damaged_adapter_is_refused(adapter, tmp_path, change, match):
    with pytest.raises(UserError, match=match):
        student_train.load(damaged(adapter, tmp_path, change))


def test_an_unexpected_weight_is_refused(adapter, tmp_path):
    def change(folder):
        state = load_file(folder / "adapter_model.safetensors")
        state["base_model.model.model.language_model.layers.9.self_attn.q_proj.lora_A.weight"] = (
            torch.zeros(4, 32)
        )
        save_file(state, folder / "adapter_model.safetensors")

    with pytest.raises(UserError, match=r"1 unexpected, first .*layers\.9"):
        student_train.load(damaged(adapter, tmp_path, change))


def test_an_adapter_of_another_width_is_refused(adapter, tmp_path):
    other = write_tiny_student(tmp_path / "wide", hidden=64)
    with pytest.raises(UserError, match="is not the base model that"):
        student_train.load(adapter, base=str(other))
    older = damaged(adapter, tmp_path, lambda folder: (folder / "provenance.json").unlink())
    with pytest.raises(UserError, match="but this base model needs"):
        student_train.load(older, base=str(other))
