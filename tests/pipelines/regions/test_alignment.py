"""`medalign alignment`: its losses are training's, its numbers follow from the stored targets."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.evaluation.loading import load_base_student, load_student, pad_id
from pipelines.regions.alignment import observe_all, scores_of
from pipelines.regions.held import held_out
from pipelines.regions.measuring import ALIGNMENT, BEFORE, measure
from pipelines.regions.reading import read_regions
from pipelines.regions.table import lines_of
from shared.errors import UserError
from shared.recipe import load_recipe
from shared.records import load_records
from shared.targets import TargetStore
from tests.fixtures.present import present
from tests.fixtures.runs import write_run
from tests.fixtures.student_runs import write_store

pytestmark = pytest.mark.integration
IMAGES = 12


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with two arms, targets of its images, and a box on each second image."""
    folder = write_run(tmp_path_factory.mktemp("run"), images=IMAGES)
    names = [f"{number}.png" for number in range(IMAGES)]
    write_store(folder / "store", folder / "data", names)
    rows = [
        {
            "image": name,
            "patient": f"p{number // 2}",
            "label": "opacity",
            "boxes": [[2 + number, 3, 12, 11]] if number % 2 == 0 else [],
        }
        for number, name in enumerate(names)
    ]
    (folder / "regions.json").write_text(json.dumps({"records": rows}))
    return folder


@pytest.fixture(scope="module")
def found(run: Path) -> Any:
    return measure(run, store=str(run / "store"), regions=run / "regions.json")


def test_the_losses_are_those_that_training_evaluates(run: Path) -> None:
    """The same terms through the trainer's own path: data set, collator, hooks, `term_sums`."""
    from student_train.adapter.loading import load_adapter
    from student_train.data.batches import Collator
    from student_train.data.samples import AlignmentData
    from student_train.models import load_base
    from student_train.run.terms import term_sums

    folder = run / "medalign"
    recipe = load_recipe(folder / "recipe.yaml")
    store = TargetStore.open(run / "store")
    held = held_out(run / "data" / "test.json", None, store, {})
    student = load_student(folder)
    scores = scores_of(observe_all(student, held, 2, "x"), held, recipe, student.processor.grid)

    base = load_base(recipe.model)
    processor = base.processor(recipe.data.geometry)
    trained = load_adapter(base.model, base.image_token_id, folder, recipe)
    references = [one.reference for one in held]
    join = _join(references, store)
    records = [one.record for one in held]
    data = AlignmentData(records, run / "data", processor, join, 1024, "error")
    collate = Collator(pad_id(processor), processor.grid.size)
    for row, record in enumerate(records):
        sample = data[row]
        assert "error" not in sample
        batch = collate([sample])
        assert "error" not in batch
        with torch.no_grad():
            terms = term_sums(trained.model, trained.channel, batch, recipe)
        expected = (terms.sums / terms.counts).tolist()[1:]
        measured = [scores[record.id][name] for name in ("loss_vis", "loss_att")]
        assert measured == pytest.approx(expected, rel=1e-4, abs=1e-6)


def _join(references: Any, store: TargetStore) -> Any:
    from shared.imaging.keys import content_key
    from student_train.data.join import Join

    keys = {one: content_key(one.path, one.part) for one in references}
    return Join(keys, [store], {})


def test_every_row_is_there_with_interval_and_test(found: Any) -> None:
    rows = found["rows"]
    assert {BEFORE, "LoRA", "MEDALIGN", "teacher", "prior", "chance"} <= set(rows)
    assert found["images"] == IMAGES
    assert rows["MEDALIGN"]["loss_vis"]["n"] == IMAGES
    assert rows["MEDALIGN"]["pointing"]["n"] == IMAGES // 2
    assert rows["chance"]["auc"]["value"] == pytest.approx(0.5)
    pairs = {(one["a"], one["b"]) for one in found["tests"]}
    assert {("MEDALIGN", BEFORE), ("MEDALIGN", "LoRA"), ("MEDALIGN", "prior")} <= pairs
    for one in found["tests"]:
        assert one["p"] <= one["p_holm"] <= 1
    written = json.dumps(found)
    assert "Infinity" not in written
    assert "NaN" not in written


def test_the_correlation_is_that_of_the_two_matrices(run: Path) -> None:
    student = load_student(run / "lora")
    held = held_out(run / "data" / "test.json", None, TargetStore.open(run / "store"), {})
    seen = observe_all(student, held, 2, "x")
    recipe = load_recipe(run / "lora" / "recipe.yaml")
    scores = scores_of(seen, held, recipe, student.processor.grid)
    for tokens, one in zip(seen.tokens, held, strict=True):
        own = torch.nn.functional.cosine_similarity(
            torch.from_numpy(tokens)[:, None], torch.from_numpy(tokens)[None], dim=-1
        ).numpy()
        full = np.eye(len(tokens))
        full[np.triu_indices(len(tokens), 1)] = one.similarity
        pairs = [
            (own[i, j], full[i, j])
            for i in range(len(tokens))
            for j in range(i + 1, len(tokens))
            if one.coverage[i] and one.coverage[j]
        ]
        expected = np.corrcoef(np.array(pairs).T)[0, 1]
        assert scores[one.record.id]["similarity"] == pytest.approx(expected, abs=1e-5)
    # Patches that are all alike have no correlation with anything: 0, which claims nothing.
    flat = seen._replace(tokens=[np.ones_like(tokens) for tokens in seen.tokens])
    alike = scores_of(flat, held, recipe, student.processor.grid).values()
    assert [one["similarity"] for one in alike] == [0.0] * len(held)


def test_the_base_model_has_no_adapter_and_no_rotation(run: Path, found: Any) -> None:
    """`before` is the model folder itself, loaded by transformers alone."""
    from transformers import LlavaForConditionalGeneration

    recipe = load_recipe(run / "medalign" / "recipe.yaml")
    plain = load_base_student(run / "medalign", recipe)
    alone = LlavaForConditionalGeneration.from_pretrained(run / "base").state_dict()
    own = plain.model.state_dict()
    assert all(torch.equal(own[name], tensor) for name, tensor in alone.items())
    held = held_out(run / "data" / "test.json", None, TargetStore.open(run / "store"), {})
    scores = scores_of(observe_all(plain, held, 2, "x"), held, recipe, plain.processor.grid)
    mean = np.mean([one["loss_vis"] for one in scores.values()])
    assert found["rows"][BEFORE]["loss_vis"]["value"] == pytest.approx(mean, rel=1e-6)
    assert found["rows"]["MEDALIGN"]["loss_vis"]["value"] != pytest.approx(mean, rel=1e-3)


def test_the_document_is_in_the_run_and_its_table_fits_a_terminal(run: Path, found: Any) -> None:
    assert json.loads((run / ALIGNMENT).read_text()) == found
    lines = list(lines_of(found))
    assert max(map(len, lines)) <= 80
    assert any("pointing game" in line for line in lines)


def test_a_limit_takes_images_with_regions_first(run: Path) -> None:
    regions = read_regions(run / "regions.json")
    store = TargetStore.open(run / "store")
    held = held_out(run / "data" / "test.json", None, store, regions, limit=IMAGES // 2)
    assert all(one.regions is not None and one.regions.regions for one in held)


def test_what_is_missing_is_one_line(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give --store"):
        measure(run / "lora")
    with pytest.raises(UserError, match="plain model"):
        measure(run / "base", store=str(run / "store"))
    names = [f"{number}.png" for number in range(2)]
    write_store(tmp_path / "few", run / "data", names)
    with pytest.raises(UserError, match=r"has no target in .*cache build"):
        measure(run / "lora", store=str(tmp_path / "few"))
    assert len(load_records(run / "data" / "test.json")) == 3 * IMAGES


def test_the_oracle_knows_the_regions_and_keeps_the_other_targets(
    run: Path, tmp_path: Path
) -> None:
    from pipelines.regions.oracle import write_oracle
    from shared.imaging.keys import content_key

    made = write_oracle(run / "store", tmp_path / "oracle", [run / "regions.json"], run / "data")
    assert (made.images, made.with_regions) == (IMAGES, IMAGES // 2)
    teacher, oracle = (TargetStore.open(place) for place in (run / "store", tmp_path / "oracle"))
    assert oracle.identity.teacher == "dinov2-small-oracle"
    grid = teacher.identity.grid
    rows = {
        row["image"]: row["boxes"]
        for row in json.loads((run / "regions.json").read_text())["records"]
    }
    for name, boxes in rows.items():
        key = content_key(run / "data" / name)
        if not boxes:
            taught = present(teacher[key].attention)
            assert np.array_equal(present(oracle[key].attention), taught)
            assert np.array_equal(oracle[key].similarity, teacher[key].similarity)
            continue
        [(x, y, width, height)] = boxes
        # Images of 40 x 30 on a square of 40, whose padding is 5 above and below.
        share = np.zeros(grid)
        for row in range(grid[0]):
            for column in range(grid[1]):
                side = 40 / grid[0]
                across = min(x + width, (column + 1) * side) - max(x, column * side)
                down = min(y + 5 + height, (row + 1) * side) - max(y + 5, row * side)
                share[row, column] = max(across, 0) * max(down, 0) / side**2
        shown = teacher[key].coverage > 0
        inside = share.ravel() * shown
        expected = 0.99 * inside / inside.sum() + 0.01 * shown / shown.sum()
        assert np.abs(oracle[key].attention - expected).max() < 0.01
        pairs = np.triu_indices(len(inside), 1)
        both = np.stack([share.ravel(), 1 - share.ravel()])
        cosine = (both.T @ both) / np.outer(*[np.linalg.norm(both, axis=0)] * 2)
        assert np.abs(oracle[key].similarity - cosine[pairs]).max() < 0.02
    with pytest.raises(UserError, match="no image with regions"):
        write_oracle(
            tmp_path / "oracle", tmp_path / "o2", [_elsewhere(tmp_path, run)], run / "data"
        )


def _elsewhere(folder: Path, run: Path) -> Path:
    """Regions of an image that the store does not know."""
    from PIL import Image

    Image.new("RGB", (9, 9), (200, 10, 10)).save(run / "data" / "other.png")
    file = folder / "elsewhere.json"
    row = {"image": "other.png", "boxes": [[1, 1, 4, 4]]}
    file.write_text(json.dumps({"records": [row]}))
    return file


def test_regions_of_other_images_are_refused_and_of_some_counted(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = json.loads((run / "regions.json").read_text())["records"]
    other = [{**row, "image": f"elsewhere/{number}.png"} for number, row in enumerate(rows)]
    (tmp_path / "other.json").write_text(json.dumps({"records": other}))
    with pytest.raises(UserError, match="knows none of the"):
        measure(run, store=str(run / "store"), regions=tmp_path / "other.json")
    (tmp_path / "some.json").write_text(json.dumps({"records": rows[:4]}))
    measure(run, store=str(run / "store"), regions=tmp_path / "some.json", limit=6)
    assert "the others count for no grounding" in capsys.readouterr().err
