"""What `medalign student train` hands in.

The store's own teacher for missing images, and the scores of evaluations.
"""

import gc
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from pipelines.training.callables import scorer, target_computer
from shared.errors import UserError
from shared.imaging.grid import Grid
from shared.imaging.images import ImageReference
from shared.imaging.keys import content_key
from shared.recipe import Recipe, load_recipe, make_recipe
from shared.records import Record, Turn
from shared.targets import Target, TargetStore
from teacher_cache.building import build
from teacher_cache.settings import Settings
from tests.fixtures.present import present
from tests.fixtures.student_checkpoints import llava_hf
from tests.fixtures.student_runs import write_images, write_train_file

EVALUATED = ("data.validation=v.json", "train.eval_steps=1")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Four images; one store holds targets of the first two, the other of all."""
    folder = tmp_path_factory.mktemp("compute")
    llava_hf(folder / "base")
    references = [
        ImageReference(folder / "images" / name) for name in write_images(folder / "images", 4)
    ]
    settings = Settings(grid=Grid(4, 4))
    build("dinov2-small", references[:2], folder / "half", settings=settings, device="cpu")
    build("dinov2-small", references, folder / "full", settings=settings, device="cpu")
    write_train_file(folder / "train.json", [reference.path.name for reference in references], 4)
    return {"folder": folder, "references": references}


def recipe_of(run: dict[str, Any], output: str, **targets: Any) -> Recipe:
    folder = run["folder"]
    return make_recipe(
        {
            "output": str(folder / output),
            "deepspeed": "none",
            "model": {"name": str(folder / "base")},
            "data": {
                "train": str(folder / "train.json"),
                "image_root": str(folder / "images"),
                "workers": 0,
            },
            "targets": {"store": str(folder / "half"), "on_missing": "compute"} | targets,
            "losses": {"layer": 2},
            "lora": {"r": 2},
            "train": {
                "max_steps": 1, "batch_size": 4, "accumulation": 1, "device": "cpu",
                "precision": "fp32", "logging_steps": 1, "save_steps": 0, "report_to": [],
            },
        }
    )  # fmt: skip


@pytest.mark.integration
def test_computed_targets_equal_the_built_ones(run: dict[str, Any]) -> None:
    compute = target_computer(recipe_of(run, "unused"))
    assert compute is not None
    store = TargetStore.open(run["folder"] / "full", grid=(4, 4))
    for reference, computed in zip(run["references"], compute(run["references"]), strict=True):
        built = store[content_key(*reference)]
        np.testing.assert_allclose(
            np.float32(computed.similarity), np.float32(built.similarity), atol=2e-3
        )
        found, stored = present(computed.attention), present(built.attention)
        np.testing.assert_allclose(found, stored, atol=1e-6)
        np.testing.assert_array_equal(computed.coverage, built.coverage)


@pytest.mark.integration
def test_for_a_store_of_similarities_alone_so_are_the_computed_ones(
    run: dict[str, Any], tmp_path: Path
) -> None:
    settings = Settings(grid=Grid(4, 4), attention="none")
    build("dinov2-small", run["references"][:1], tmp_path, settings=settings, device="cpu")
    compute = present(target_computer(recipe_of(run, "unused", store=str(tmp_path))))
    whole = TargetStore.open(run["folder"] / "full", grid=(4, 4))
    [computed] = compute(run["references"][1:2])
    assert computed.attention is None
    built = whole[content_key(*run["references"][1])]
    np.testing.assert_allclose(
        np.float32(computed.similarity), np.float32(built.similarity), atol=2e-3
    )


@pytest.mark.integration
def test_a_run_computes_what_its_store_lacks(run: dict[str, Any]) -> None:
    import json

    from student_train.run.train import train

    recipe = recipe_of(run, "run")
    with pytest.raises(UserError, match="run `medalign student train`"):
        train(recipe)
    train(recipe, compute_targets=target_computer(recipe))
    full = recipe_of(run, "full-run", store=str(run["folder"] / "full"), on_missing="error")
    train(full)

    def first(name: str) -> dict[str, float]:
        state = json.loads((run["folder"] / name / "trainer_state.json").read_text())
        return {
            key: value for key, value in state["log_history"][0].items() if key.startswith("loss")
        }

    assert first("run")["loss_vis"] > 0
    assert first("run") == pytest.approx(first("full-run"), rel=1e-4)


def teacher_bytes() -> int:
    """Bytes of the weights of every timm model alive in this process.

    Teachers are timm's, students never.
    """
    gc.collect()
    found = [
        one
        for one in gc.get_objects()
        if issubclass(type(one), nn.Module) and type(one).__module__[:5] == "timm."
    ]
    weights = {id(weight): weight.nbytes for one in found for weight in one.parameters()}
    return sum(weights.values())


@pytest.mark.integration
def test_no_byte_of_the_teacher_is_left_when_training_begins(
    run: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from student_train.run.train import train
    from student_train.run.trainer import AlignmentTrainer

    recipe = recipe_of(run, str(tmp_path / "run"))
    compute, before = target_computer(recipe), teacher_bytes()
    assert compute is not None
    counted = {"computing": [], "training": []}  # type: dict[str, list[int]]
    compute_loss = AlignmentTrainer.compute_loss

    def watched_compute(references: Sequence[ImageReference]) -> Iterator[Target]:
        for target in compute(references):
            counted["computing"].append(teacher_bytes() - before)
            yield target

    def watched_loss(*arguments: Any, **options: Any) -> Any:
        counted["training"].append(teacher_bytes() - before)
        return compute_loss(*arguments, **options)

    monkeypatch.setattr(AlignmentTrainer, "compute_loss", watched_loss)
    train(recipe, compute_targets=watched_compute)
    assert min(counted["computing"]) > 80e6  # ViT-S in float32
    assert counted["training"] == [0]


@pytest.mark.integration
def test_another_teacher_is_refused(run: dict[str, Any], tmp_path: Path) -> None:
    from shared.targets import TargetWriter

    identity = TargetStore.open(run["folder"] / "half").identity
    with TargetWriter(tmp_path / "other", identity.model_copy(update={"weights": "00" * 32})):
        pass
    compute = target_computer(recipe_of(run, "unused", store=str(tmp_path / "other")))
    assert compute is not None
    with pytest.raises(UserError, match="not the teacher of this store: weights is"):
        next(compute(run["references"]))


@pytest.mark.unit
def test_only_where_the_recipe_asks() -> None:
    assert target_computer(load_recipe(None)) is None
    off = ["targets.on_missing=compute", "targets.store=s", "losses.alpha=0", "losses.beta=0"]
    assert target_computer(load_recipe(None, off)) is None
    assert target_computer(load_recipe(None, off[:2])) is not None
    with pytest.raises(UserError, match="serves one teacher"):
        target_computer(load_recipe(None, [*off[:2], "targets.teacher=[a, b]"]))
    assert scorer(load_recipe(None)) is None
    assert scorer(load_recipe(None, [*EVALUATED, "train.best_metric=eval_loss"])) is None
    with pytest.raises(
        UserError, match="best_metric=accuracy is no score; there are eval_loss, open_recall"
    ):
        scorer(load_recipe(None, [*EVALUATED, "train.best_metric=accuracy"]))


@pytest.mark.unit
def test_scores_are_means_over_the_records_that_have_them() -> None:
    score = scorer(load_recipe(None, [*EVALUATED, "train.best_metric=closed_accuracy"]))
    assert score is not None
    asked = (("CLOSED", "yes"), ("CLOSED", "no"), ("OPEN", "left lung"))
    records = [
        Record(str(number), (), (Turn("human", "q"), Turn("gpt", truth)), kind)  # type: ignore[arg-type]
        for number, (kind, truth) in enumerate(asked)
    ]
    values = score(records, ["yes", "yes", "the left lung"])
    assert values["closed_accuracy"] == 0.5
    assert values["open_recall"] == 1.0
    assert "choice_accuracy" not in values
