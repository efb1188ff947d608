"""A run of each family: trained, resumed, loaded, exported, its projector warmed up."""

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file

import student_train
from shared.imaging.squares import mean_colour
from shared.recipe import load_recipe
from student_train.adapter.export import export
from student_train.models import load_base
from student_train.run.train import train
from tests.fixtures.families import FAMILIES, Family, own_model
from tests.fixtures.student_runs import recipe, write_family_run

pytestmark = pytest.mark.integration
PROJECTORS = ("model.multi_modal_projector.", "model.visual.merger.", "model.connector.")


class Trained(NamedTuple):
    family: Family
    values: dict[str, Any]
    output: Path


@pytest.fixture(scope="module", params=list(FAMILIES))
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Four steps of the three terms, a checkpoint after two."""
    family, folder = FAMILIES[request.param], tmp_path_factory.mktemp(request.param)
    values = write_family_run(family, folder)
    return Trained(family, values, train(recipe(values)))


def tensors(output: Path) -> dict[str, torch.Tensor]:
    return load_file(output / "adapter_model.safetensors") | load_file(
        output / "rotation.safetensors"
    )


def asked(processor: Any, values: dict[str, Any]) -> dict[str, torch.Tensor]:
    root = Path(values["data"]["image_root"])
    found: dict[str, torch.Tensor] = processor.encode(
        ["What is shown?", "Where is it?"], [[root / "image0.png"], [root / "image1.png"]]
    )
    return found


def logits(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(**inputs).logits[inputs["attention_mask"].bool()]
    return found


def test_all_three_terms_train_and_every_pair_moves(trained: Trained) -> None:
    state = json.loads((trained.output / "trainer_state.json").read_text())
    rows = [row for row in state["log_history"] if "loss_lm" in row]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert all(row["loss_lm"] > 0 and row["loss_vis"] > 0 and row["loss_att"] > 0 for row in rows)
    found = tensors(trained.output)
    linear = 7 * trained.family.layers  # q, k, v, o, gate, up and down of every decoder layer
    assert len([name for name in found if name.endswith("lora_B.weight")]) == linear
    assert all(tensor.any() for tensor in found.values())


def first_losses(output: Path) -> list[float]:
    rows = json.loads((output / "trainer_state.json").read_text())["log_history"]
    return [rows[0][name] for name in ("loss_lm", "loss_vis", "loss_att", "grad_norm")]


@pytest.mark.parametrize(
    "way",
    [{"gradient_checkpointing": True}, {"batch_size": 1, "accumulation": 4}],
    ids=["checkpointing", "accumulation"],
)
def test_however_a_step_is_computed_it_is_the_same(
    trained: Trained, way: dict[str, Any], tmp_path: Path
) -> None:
    found = []
    for name, chosen in (("plain", {"batch_size": 4}), ("other", {"batch_size": 4} | way)):
        changes = {f"train__{key}": value for key, value in chosen.items()}
        settings = {"lora__dropout": 0.0, "train__max_steps": 1, "train__save_steps": 0, **changes}
        output = train(recipe(trained.values, output=str(tmp_path / name), **settings))
        found.append(first_losses(output))
    assert found[1] == pytest.approx(found[0], rel=1e-4)


def test_a_resumed_run_is_an_uninterrupted_one(trained: Trained, tmp_path: Path) -> None:
    part = tmp_path / "part"
    part.mkdir()
    shutil.copy2(trained.output / "recipe.yaml", part)
    shutil.copytree(trained.output / "checkpoint-2", part / "checkpoint-2")
    train(recipe(trained.values, output=str(part)), resume=True)
    found, expected = tensors(part), tensors(trained.output)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_the_student_pads_with_the_stores_colour(trained: Trained) -> None:
    wanted = mean_colour((0.485, 0.456, 0.406))  # of the store's teacher, see `identity`
    assert load_recipe(trained.output / "recipe.yaml").data.padding == wanted
    _, processor = student_train.load(trained.output)
    from PIL import Image

    seen = processor.reader.square(Image.new("RGB", (40, 20), "white"), 40)
    assert seen.getpixel((0, 0)) == wanted
    assert seen.getpixel((20, 20)) == (255, 255, 255)


def test_loaded_and_exported_students_answer_alike(trained: Trained, tmp_path: Path) -> None:
    model, processor = student_train.load(trained.output)
    inputs = asked(processor, trained.values)
    tuned = logits(model, inputs)
    plain = logits(load_base(trained.values["model"]["name"]).model, inputs)
    assert not torch.allclose(tuned, plain, atol=1e-3)
    merged, again = student_train.load(export(trained.output, tmp_path / "merged"))
    torch.testing.assert_close(logits(merged, inputs), tuned, atol=1e-5, rtol=0)
    for name, tensor in asked(again, trained.values).items():
        assert torch.equal(tensor, inputs[name])
    options: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False}
    assert torch.equal(model.generate(**inputs, **options), merged.generate(**inputs, **options))


def test_without_w_an_export_is_transformers_own_model(trained: Trained, tmp_path: Path) -> None:
    output = train(
        recipe(
            trained.values,
            output=str(tmp_path / "run"),
            rotation__kind="none",
            train__max_steps=1,
            train__save_steps=0,
        )
    )
    model, processor = student_train.load(output)
    inputs = asked(processor, trained.values)
    own = own_model(trained.family, export(output, tmp_path / "merged"))
    whole = inputs | trained.family.extra(own.config, inputs)
    torch.testing.assert_close(logits(own, whole), logits(model, inputs), atol=1e-5, rtol=0)


def test_the_projector_warms_up_alone(trained: Trained, tmp_path: Path) -> None:
    output = train(
        recipe(
            trained.values,
            output=str(tmp_path / "warm"),
            train__tune="projector",
            train__max_steps=2,
            train__save_steps=0,
        )
    )
    before = load_base(trained.values["model"]["name"]).model.state_dict()
    after = load_base(str(output)).model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.startswith(PROJECTORS) for name in changed)
