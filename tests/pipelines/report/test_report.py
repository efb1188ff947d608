"""The report: one page that needs nothing else, whose numbers are those of the evaluation."""

import html
import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.main import get_command

from pipelines.cli import app as medalign
from pipelines.metrics.items import item_scores
from pipelines.report.answers import SHOWN_EXAMPLES, Answered, examples
from pipelines.report.commandlines import command_lines
from pipelines.report.figures import (
    AttentionRow,
    Similar,
    attention_figure,
    loss_curves,
    similarity_figure,
)
from pipelines.report.kinds import best_constant, distinct_scores, kind_table
from pipelines.report.page import render, write_report
from pipelines.report.store_pictures import divergence, full_matrix, renormalized
from pipelines.report.summary import demo_summary
from pipelines.statistics.intervals import MIN_CLUSTERS
from shared.errors import UserError
from shared.records import Record, Turn, load_records, write_records
from student_train.cli import app as student
from tests.fixtures import results


def record(kind: str, answer: str, image: str = "a.png", identifier: str = "1") -> Record:
    closed = answer in ("Yes", "No")
    turns = (Turn("human", "<image>\nWhat?"), Turn("gpt", answer))
    return Record(identifier, (image,), turns, "CLOSED" if closed else "OPEN", (), {"kind": kind})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two tiny arms, evaluated.

    Its records have kinds, and one question tries to break the page.
    """
    from pipelines.evaluation.run import evaluate
    from tests.fixtures.runs import write_run

    folder = write_run(tmp_path_factory.mktemp("report") / "run")
    data = folder / "data" / "test.json"
    records = load_records(data)
    nasty = Turn("human", "<image>\nIs <script>alert(1)</script> & 'this' shown?")
    kinds = [
        Record(
            one.id,
            one.images,
            (nasty, one.turns[1]) if i == 0 else one.turns,
            one.answer_type,
            (),
            {"kind": "k"},
        )
        for i, one in enumerate(records)
    ]
    write_records(data, kinds)
    evaluate(folder, data, methods=["greedy"], max_new_tokens=4, controls=["blank"], train=data)
    for arm, terms in (("lora", ("loss_lm",)), ("medalign", ("loss_lm", "loss_vis", "loss_att"))):
        history = [{"step": step, **dict.fromkeys(terms, 1 / step)} for step in (1, 2, 3)]
        (folder / arm / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    return folder


@pytest.mark.integration
def test_the_page_stands_alone(run: Path) -> None:
    page = write_report(run).read_text()
    assert "Not for clinical use" in page
    assert "patient data" in page
    for reference in re.findall(r'(?:src|href)="([^"]*)"', page):
        assert reference.startswith(("data:", "#")), reference
    assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", page)
    assert "<script>alert" not in page
    assert html.escape("<script>alert(1)</script>") in page


@pytest.mark.integration
def test_the_page_shows_the_evaluations_numbers(run: Path) -> None:
    page = write_report(run).read_text()
    result = json.loads((run / "evaluation" / "result.json").read_text())
    for row in result["rows"]:
        assert row["method"] in page
        for score in row["scores"].values():
            low, high = score["interval"]
            assert f"{100 * score['value']:.1f}" in page
            assert score["trusted"] == (score["clusters"] >= MIN_CLUSTERS)
            assert (f"[{100 * low:.1f}, {100 * high:.1f}]" in page) == score["trusted"]


@pytest.mark.integration
def test_the_page_shows_the_controls(run: Path) -> None:
    page = write_report(run).read_text()
    result = json.loads((run / "evaluation" / "result.json").read_text())
    assert "Does the model look?" in page
    assert "question only" in page
    assert "has the text of\n12 of the 12 questions" in page
    for one in result["controls"]["losses"]:
        if one["score"] in ("open_recall", "closed_accuracy"):
            assert f"{100 * one['difference']:+.1f}" in page


@pytest.mark.integration
def test_a_run_without_an_evaluation_says_how_to_get_one(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="medalign evaluate"):
        write_report(tmp_path)


@pytest.mark.unit
def test_the_template_has_no_unknown_names() -> None:
    with pytest.raises(Exception, match="undefined"):
        render({"title": "x"})


@pytest.mark.unit
def test_kinds_may_be_numbers_and_reports_have_none() -> None:
    numbered = [
        Record(f"{i}", (), record("k", "Yes").turns, "CLOSED", (), {"kind": i}) for i in (3, 4)
    ]
    report = Record("r", (), record("k", "Clear.").turns, None, (), {"kind": "z", "task": "report"})
    scores = [item_scores(numbered[0], "yes"), item_scores(numbered[1], "no"), {"rouge_l": 0.5}]
    table = kind_table([*numbered, report], [Answered("A + b", "A", ["yes", "no", "x"], scores)])
    assert [(one["kind"], one["n"], one["values"][0]["value"]) for one in table] == [
        ("3", 1, 1.0),
        ("4", 1, 0.0),
    ]


@pytest.mark.unit
def test_examples_are_one_of_each_kind_before_a_second_of_any() -> None:
    kinds = ["box", "box", "side", "box", "zone", "side"]
    asked = [Record(str(i), (), record(kind, f"{i}").turns, "OPEN", (), {"kind": kind})
             for i, kind in enumerate(kinds)]  # fmt: skip
    answers = Answered("A + b", "A", list("abcdef"), [item_scores(one, "0") for one in asked])
    shown = examples(asked, [answers], Path())
    assert len(shown) == min(SHOWN_EXAMPLES, 6)
    assert [one["reference"] for one in shown] == ["0", "2", "4", "1", "3", "5"][: len(shown)]
    assert [one["answers"][0]["text"] for one in shown] == list("acebdf")[: len(shown)]


@pytest.mark.unit
def test_a_score_that_equals_another_is_shown_once() -> None:
    one, other = {"value": 0.5, "n": 4}, {"value": 0.25, "n": 4}
    rows: Any = [
        {"scores": {"closed_accuracy": one, "closed_accuracy_strict": one, "open_recall": other}}
    ]
    assert set(distinct_scores(rows)) == {"open_recall", "closed_accuracy"}


@pytest.mark.unit
def test_the_best_constant_answer() -> None:
    records = [
        record("presence", answer, identifier=str(i))
        for i, answer in enumerate(["Yes", "Yes", "Yes", "No"])
    ]
    assert best_constant(records) == 0.75
    words = [
        record("box", answer, identifier=str(i))
        for i, answer in enumerate(["left lobe", "right lobe", "insula"])
    ]
    constant = best_constant(words)
    assert constant == pytest.approx((1 + 0.5 + 0) / 3)
    assert all(item_scores(one, "insula")["open_recall_strict"] <= 1 for one in words)


@pytest.mark.unit
def test_numbers_behind_the_pictures() -> None:
    triangle = np.arange(6.0) / 10
    matrix = full_matrix(triangle, 4)
    assert np.array_equal(matrix, matrix.T)
    assert np.array_equal(matrix[np.triu_indices(4, 1)], triangle)
    assert np.all(np.diag(matrix) == 1)
    visible = np.array([True, True, False, True])
    p = renormalized(np.array([1.0, 2.0, 9.0, 1.0]), visible)
    assert p.tolist() == [0.25, 0.5, 0.0, 0.25]
    assert divergence(p, p) == 0
    uniform = renormalized(np.ones(4), visible)
    assert divergence(p, uniform) == pytest.approx(np.log(3) - 1.5 * np.log(2))


@pytest.mark.unit
def test_figures_are_well_formed_and_their_ids_unique() -> None:
    maps = {"teacher": np.random.default_rng(0).random((4, 4)), "start": np.full((4, 4), 1 / 16)}
    picture = np.zeros((56, 56, 3), np.uint8)
    figures = [
        loss_curves(
            {
                "LoRA": [{"step": 1, "loss_lm": 2.0}],
                "MEDALIGN": [{"step": 1, "loss_lm": 2.0, "loss_vis": 0.1}],
            }
        ),
        attention_figure([AttentionRow("axial-080", picture, maps, {"start": 0.5})]),
        similarity_figure(
            picture,
            np.eye(16),
            (4, 4),
            5,
            np.ones(16, bool),
            {"LoRA": Similar(np.eye(16), 1.0)},
        ),
    ]
    identifiers: list[str] = []
    for figure in figures:
        root = ElementTree.fromstring(figure)
        identifiers += [element.attrib["id"] for element in root.iter() if "id" in element.attrib]
        used = re.findall(r'(?:url\(#|xlink:href="#)([^)"]+)', figure)
        assert set(used) <= {element.attrib.get("id") for element in root.iter()}
    assert len(identifiers) == len(set(identifiers))


@pytest.mark.unit
def test_a_map_leaves_its_image_in_place() -> None:
    """The image alone, and the image under the map, are the same pixels of the same size."""
    picture = np.random.default_rng(0).integers(0, 255, (56, 56, 3), dtype=np.uint8)
    figure = attention_figure([AttentionRow("a", picture, {"teacher": np.ones((4, 4))}, {})])
    alone, below, above, *_bar = (
        {name.rpartition("}")[2]: value for name, value in element.attrib.items()}
        for element in ElementTree.fromstring(figure).iter()
        if element.tag.endswith("}image")
    )
    for name in ("href", "width", "height"):
        assert alone[name] == below[name]
    for name in ("width", "height", "transform"):  # which holds its place
        assert above[name] == below[name]


@pytest.mark.unit
def test_the_printed_commands_have_options_that_the_programs_have(tmp_path: Path) -> None:
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    (run / "lora").mkdir(parents=True)
    (run / "lora" / "recipe.yaml").touch()
    result: Any = {
        "schema": 2,
        "rows": [results.row("LoRA", "vcd", {})],
        "data": results.answered(image_root="images"),
        "settings": results.settings(limit=3, base="base", overrides=["vcd.alpha=0.5"]),
    }
    read = {}
    for line in command_lines(run, elsewhere, {"LoRA": run / "lora"}, result):
        program, name, *words = line.split()
        group: Any = get_command({"student": student, "medalign": medalign}[program])
        command = group.commands[name]
        context = command.make_context(name, words, resilient_parsing=True)
        for word in words:
            assert not word.startswith("--") or any(word in one.opts for one in command.params)
        read[name] = context.params
    assert list(read) == ["train", "evaluate", "report"]
    assert read["evaluate"]["out"] == read["report"]["evaluation"] == elsewhere
    assert (read["evaluate"]["limit"], read["evaluate"]["decode"]) == (3, "vcd")
    assert (read["evaluate"]["base"], read["evaluate"]["override"]) == ("base", ["vcd.alpha=0.5"])


@pytest.mark.unit
@pytest.mark.parametrize("full", [False, True])
def test_the_words_follow_from_the_numbers(full: bool) -> None:
    demo: Any = {
        "full": full,
        "arm_steps": 40,
        "batch_size": 8,
        "precision": "bf16",
    }
    learned: Any = {
        "text": "box",
        "constant": 0.2,
        "values": [{}, {"low": 0.5, "value": 0.6, "high": 0.7}],
    }
    unlearned: Any = {
        "text": "presence (x)",
        "constant": 0.5,
        "values": [{}, {"low": 0.45, "value": 0.55, "high": 0.65}],
    }
    test: Any = {
        "score": "open_recall",
        "difference": 0.1,
        "p_holm": 0.2,
        "detectable": 0.12,
        "a": "M",
        "b": "L",
    }
    text = " ".join(demo_summary(demo, [test], [learned, unlearned]))
    assert "40 steps" in text
    assert re.search(
        r"better than the best constant answer\): box \(60%\)\. Not learned so far: presence "
        r"\(55%\)",
        text,
    )
    assert "No paired test tells the two arms apart" in text
    assert "12 points" in text
    assert ("--full" in text) is not full
    sure = " ".join(demo_summary(demo, [test | {"p_holm": 0.01}], [learned]))
    assert "tell the arms apart on: open recall +10.0 points" in sure
    assert "No paired test" not in sure
