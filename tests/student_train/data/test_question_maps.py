"""L_att with maps for questions: which question is taught which map, and the loss in float64."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shared.errors import UserError
from shared.imaging.keys import content_key
from shared.records import load_records
from shared.targets import TargetStore, TargetWriter
from shared.targets.maps import map_key
from student_train.attention import observing
from student_train.data.batches import request_of
from student_train.data.samples import asked_after
from student_train.run.inputs import load_student_base, make_collator, prepare_data
from student_train.run.terms import term_sums
from student_train.run.train import train
from student_train.student import make_student
from tests.fixtures.student_runs import recipe, write_run
from tests.fixtures.students import GRID, PATCHES
from tests.fixtures.targets import identity

FIRST, SECOND, OTHER = "Is the left lung clear?", "Where is the  Opacity?", "What is shown?"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDALIGN_CACHE", str(tmp_path / "cache"))


def conversation(number, *questions):
    turns = []
    for place, question in enumerate(questions):
        mark = "<image>\n" if place == 0 else ""
        turns += [{"from": "human", "value": mark + question}, {"from": "gpt", "value": "no"}]
    return {"id": f"c{number}", "image": f"image{number}.png", "conversations": turns}


def map_of(number, text):
    return np.random.default_rng([number, len(text)]).dirichlet(np.ones(PATCHES))


@pytest.fixture
def values(tmp_path):
    """Three images; of the first both questions have a map, of the second the second one."""
    values = write_run(tmp_path, images=3)
    rows = [
        conversation(0, FIRST, SECOND),
        conversation(1, OTHER, SECOND.upper()),
        conversation(2, OTHER),
    ]
    (tmp_path / "train.json").write_text(json.dumps(rows))
    kind = identity(encoding="maps", grid=(GRID, GRID), teacher="regions")
    with TargetWriter(tmp_path / "maps", kind) as writer:
        for number, text in ((0, FIRST), (0, SECOND), (1, SECOND)):
            key = map_key(content_key(tmp_path / "images" / f"image{number}.png"), text)
            arrays = {
                "attention": map_of(number, text).astype(np.float32),
                "coverage": np.full(PATCHES, 255, np.uint8),
            }
            writer.add(key, arrays)
    return values


def with_maps(values, target="question"):
    maps = {"losses__attention_target": target, "losses__alpha": 0.0}
    return recipe(values, targets__maps=str(Path(values["output"]).parent / "maps"), **maps)


def divergence(teacher, student, shown):
    """KL of Eq. 5 in float64, both of sum 1 over the visible patches."""
    q, p = (np.where(shown, one, 0).astype(np.float64) for one in (teacher, student))
    q, p = q / q.sum(), p / p.sum()
    return float(np.sum(q[shown] * np.log(q[shown] / p[shown])))


@pytest.mark.integration
@pytest.mark.parametrize("target", ["question", "mixed"])
def test_each_question_is_taught_its_own_map(values, target):
    torch.manual_seed(0)
    asked = with_maps(values, target)
    base = load_student_base(asked)
    data, _ = prepare_data(asked, base)
    assert (data.asked, data.mapped) == (5, 3)
    student = make_student(base.model, base.image_token_id, asked)
    batch: Any = make_collator(asked, base)([data[number] for number in range(3)])
    request = request_of(batch)
    assert request is not None
    with torch.no_grad(), observing(student.channel, request) as seen:
        student.model(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            pixel_values=batch["pixel_values"],
        )
        attention = seen.attention[2].double().numpy()
    with torch.no_grad():
        sums = term_sums(student.model, student.channel, batch, asked).sums

    store = TargetStore.open(str(asked.targets.store), grid=(GRID, GRID))
    wanted = 0.0
    texts: Any = [[FIRST, SECOND], [None, SECOND], [None]]  # None: no map, so E_a
    for row, (number, text) in enumerate(
        (number, text) for number, turns in enumerate(texts) for text in turns
    ):
        own = store[content_key(data.image_root / f"image{number}.png")]
        shown = own.coverage > 0
        teacher = own.attention.astype(np.float64) * shown
        if text is not None:
            map_ = map_of(number, text).astype(np.float32).astype(np.float64) * shown
            teacher = (
                map_
                if target == "question"
                else map_ / map_.sum() / 2 + teacher / teacher.sum() / 2
            )
        wanted += divergence(teacher, attention[row], shown) / len(texts[number])
    assert float(sums[2]) == pytest.approx(wanted, rel=1e-4)


@pytest.mark.integration
def test_a_run_says_how_many_questions_have_a_map_and_trains(values, tmp_path, capsys):
    output = train(with_maps(values).model_copy(update={"output": str(tmp_path / "one")}))
    assert (
        "3 of 5 questions have a map of their own, the others keep E_a" in capsys.readouterr().err
    )
    rows = json.loads((output / "trainer_state.json").read_text())["log_history"]
    plain = recipe(values, output=str(tmp_path / "two"), losses__alpha=0.0)
    other = json.loads((train(plain) / "trainer_state.json").read_text())["log_history"]
    assert rows[0]["loss_lm"] == pytest.approx(other[0]["loss_lm"], rel=1e-5)
    assert rows[0]["loss_att"] != pytest.approx(other[0]["loss_att"], rel=1e-3)


@pytest.mark.integration
def test_maps_that_fit_nothing_are_an_error(values, tmp_path):
    asked = with_maps(values)
    with TargetWriter(tmp_path / "empty", identity(encoding="maps", grid=(GRID, GRID))) as writer:
        arrays: Any = {
            "attention": np.ones(PATCHES, np.float32),
            "coverage": np.full(PATCHES, 255, np.uint8),
        }
        writer.add(b"0" * 32, arrays)
    none = recipe(
        values, targets__maps=str(tmp_path / "empty"), losses__attention_target="question"
    )
    with pytest.raises(UserError, match="none of 5 questions has a map"):
        prepare_data(none, load_student_base(asked))
    targets = recipe(
        values, targets__maps=values["targets"]["store"], losses__attention_target="question"
    )
    with pytest.raises(UserError, match="holds no maps: `cache query maps` makes them"):
        prepare_data(targets, load_student_base(asked))


@pytest.mark.unit
@pytest.mark.parametrize("changes", [{"targets": {"maps": "x"}},
                                     {"losses": {"attention_target": "mixed"}}])  # fmt: skip
def test_a_wish_without_its_other_half_is_refused(changes):
    from shared.recipe import make_recipe

    with pytest.raises(UserError, match="go together"):
        make_recipe(changes)


@pytest.mark.unit
def test_an_images_turns_are_the_last_ones(tmp_path):
    """A turn before the image, and one whose mark stands last, have no rows of that image."""
    rows = [conversation(0, OTHER, FIRST, SECOND)]
    (tmp_path / "data.json").write_text(json.dumps(rows))
    (record,) = load_records(tmp_path / "data.json")
    assert asked_after(record, 3) == [OTHER, FIRST, SECOND]
    assert asked_after(record, 1) == [SECOND]
    assert asked_after(record, 0) == []
