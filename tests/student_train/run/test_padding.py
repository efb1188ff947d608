"""Which colour a run pads images with, and that evaluation, resuming and exports keep it."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import student_train
from pipelines.evaluation.answers import computed_by
from pipelines.evaluation.loading import load_base_student, load_student
from shared.errors import UserError
from shared.recipe import load_recipe, make_recipe
from shared.targets.identity import Preprocessing
from student_train.adapter.export import export
from student_train.adapter.files import adapter_recipe
from student_train.run.train import train
from tests.fixtures.student_runs import changed, recipe, write_images, write_run, write_store

pytestmark = pytest.mark.integration
OWN = (122, 116, 104)  # of CLIP's mean: int(255 x 0.481...), as LLaVA's expand2square
TEACHERS = (123, 116, 103)  # of the mean of `identity`, ImageNet's


@pytest.fixture(scope="module")
def values(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    found = write_run(tmp_path_factory.mktemp("padding"), images=2, records=4)
    return changed(found, train__max_steps=2, train__save_steps=1, train__accumulation=1)


def corner(processor: Any) -> Any:
    return processor.reader.square(Image.new("RGB", (40, 20), "white"), 40).getpixel((0, 0))


def test_the_stores_colour_goes_with_the_run(values: dict[str, Any], tmp_path: Path) -> None:
    output = train(recipe(values, output=str(tmp_path / "run")))
    assert load_recipe(output / "recipe.yaml").data.padding == TEACHERS
    assert corner(student_train.load(output)[1]) == TEACHERS
    assert corner(student_train.load(export(output, tmp_path / "merged"))[1]) == TEACHERS
    tuned = load_student(output, device="cpu")
    before = load_base_student(output, adapter_recipe(output), device="cpu")
    assert corner(tuned.processor) == corner(before.processor) == TEACHERS
    # the journal takes no answer over another colour for one of these
    assert computed_by(tuned)["padding"] == list(TEACHERS)
    # a resumed run finds the colour again, whose recipe does not name it
    for name in ("adapter_model.safetensors", "adapter_config.json", "rotation.safetensors"):
        (output / name).unlink()
    train(recipe(values, output=str(output), train__max_steps=2), resume=True)
    assert load_recipe(output / "recipe.yaml").data.padding == TEACHERS
    with pytest.raises(UserError, match=r"begun with data.padding=\(123, 116, 103\)"):
        train(recipe(values, output=str(output), data__padding=[0, 0, 0]), resume=True)


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"losses__alpha": 0.0, "losses__beta": 0.0}, OWN),  # no store
        ({"data__padding": [0, 10, 20]}, (0, 10, 20)),
    ],
)
def test_what_else_decides(
    values: dict[str, Any],
    changes: dict[str, Any],
    wanted: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = {"train__max_steps": 1, "train__save_steps": 0, **changes}
    output = train(recipe(values, output=str(tmp_path / "run"), **settings))
    processor = student_train.load(output)[1]
    assert corner(processor) == wanted
    said = " ".join(capsys.readouterr().err.split())
    assert ("padded with (0, 10, 20), and the teachers saw them" in said) == (wanted != OWN)
    if wanted == OWN:
        assert load_recipe(output / "recipe.yaml").data.padding is None
        assert "padding" not in computed_by(load_student(output, device="cpu"))


def test_a_crop_has_no_colour(values: dict[str, Any], tmp_path: Path) -> None:
    settings = {"train__max_steps": 1, "train__save_steps": 0, "data__geometry": "crop"}
    output = train(recipe(values, output=str(tmp_path / "run"), **settings))
    assert load_recipe(output / "recipe.yaml").data.padding is None


def test_of_several_teachers_the_first_counts(
    values: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = write_images(tmp_path / "images", 2)
    grey = Preprocessing(size=224, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    store = write_store(tmp_path / "store", tmp_path / "images", names)
    write_store(store, tmp_path / "images", names, teacher="other", preprocessing=grey)
    settings = {
        "targets__store": str(store),
        "targets__teacher": ["other", "dinov2-small"],
        "data__image_root": str(tmp_path / "images"),
        "train__max_steps": 1,
        "train__save_steps": 0,
    }
    output = train(recipe(values, output=str(tmp_path / "run"), **settings))
    assert load_recipe(output / "recipe.yaml").data.padding == (127, 127, 127)
    said = " ".join(capsys.readouterr().err.split())
    assert "padded with (127, 127, 127), and the teachers saw them on squares of " in said
    assert "(127, 127, 127), (123, 116, 103)" in said


@pytest.mark.parametrize("colour", [[1, 2], [0, 0, 256], [-1, 0, 0], ["red", 0, 0]])
def test_what_is_no_colour_is_refused(colour: Any) -> None:
    with pytest.raises(UserError, match=r"data\.padding"):
        make_recipe({"data": {"padding": colour}})
