"""Predictions of any tool: read in every form, joined, scored, compared, by group."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from pipelines.cli import app
from pipelines.evaluation.compare import compare
from pipelines.evaluation.file_lines import group_lines, score_lines
from pipelines.evaluation.files import FileOptions, compare_files, score_files
from pipelines.evaluation.groups import by_groups
from pipelines.evaluation.joining import join, read_references
from pipelines.evaluation.lines import comparison_lines
from pipelines.evaluation.result import SCHEMA_NUMBER, write_answers, write_result
from pipelines.evaluation.scores import Scored
from pipelines.metrics.items import item_scores
from pipelines.statistics import holm, paired_test, score_interval
from shared.errors import UserError
from shared.records import Record, Turn, load_records, write_records
from tests.fixtures import results
from tests.fixtures.report_models import chexbert_checkpoint, write_tokenizer

pytestmark = pytest.mark.integration

COUNT = 24


def records() -> list[Record]:
    """Twelve closed and twelve open questions, two an image, of two modalities."""
    made = []
    for number in range(COUNT):
        closed = number % 2 == 0
        question = f"Is finding {number} there?" if closed else f"Which organ is organ {number}?"
        turns = (
            Turn("human", f"<image>\n{question}"),
            Turn("gpt", "no" if closed else "left lung"),
        )
        made.append(
            Record(
                f"q{number}",
                (f"{number // 2}.png",),
                turns,
                "CLOSED" if closed else "OPEN",
                (),
                {"modality": "CT" if number < 16 else "MRI", "organs": ["lung", "heart"]},
            )
        )
    return made


def texts(right: int) -> list[str]:
    """Answers of which the first `right` are the references."""
    return [
        one.answer if place < right else ("yes" if place % 2 == 0 else "spleen")
        for place, one in enumerate(records())
    ]


def test_set(folder: Path) -> Path:
    write_records(folder / "test.json", records())
    return folder / "test.json"


test_set.__test__ = False  # type: ignore[attr-defined]


def lines(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def table(path: Path, rows: Sequence[Sequence[str]], mark: str = ",") -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter=mark).writerows(rows)
    return path


def in_form(form: str, folder: Path, said: Sequence[str]) -> Path:
    """The same predictions as each tool writes them."""
    ids = [one.id for one in records()]
    pairs = list(zip(ids, said, strict=True))
    if form == "llava":
        rows: list[Any] = [
            {"question_id": i, "prompt": "?", "text": t, "answer_id": "x", "model_id": "m"}
            for i, t in pairs
        ]
        return lines(folder / "llava.jsonl", rows[::-1])
    if form == "medheval":
        rows = [
            {"question_id": i, "prompt": "?", "text": t, "gt_ans": r.answer, "metadata": {}}
            for (i, t), r in zip(pairs, records(), strict=True)
        ]
        return lines(folder / "medheval.jsonl", rows)
    if form == "lmms-eval":
        rows = [
            {
                "doc_id": place,
                "target": r.answer,
                "filtered_resps": t if place % 3 else [t],
                "input": r.question + "\nAnswer the question using a single word or phrase.",
                "doc_hash": "x",
                "exact_match": 1.0,
            }
            for place, (t, r) in enumerate(zip(said, records(), strict=True))
        ]
        return lines(folder / "samples.jsonl", rows[::-1])
    if form == "mapping":
        (folder / "mapping.json").write_text(json.dumps(dict(pairs)))
        return folder / "mapping.json"
    if form == "csv":
        return table(folder / "table.csv", [["id", "prediction"], *map(list, pairs)])
    if form == "bars":
        return table(folder / "bars.csv", [["study_id", "report"], *map(list, pairs)], "|")
    return lines(folder / "own.jsonl", [{"id": i, "prediction": t} for i, t in pairs])


FORMS = ("own", "llava", "medheval", "lmms-eval", "mapping", "csv", "bars")


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_scores(tmp_path: Path, form: str) -> None:
    said = texts(15)
    references = test_set(tmp_path)
    result, items = score_files([in_form(form, tmp_path, said)], references, FileOptions())
    [row] = result["rows"]
    assert row["joined"] == ("place" if form == "lmms-eval" else "id")
    for name, score in row["scores"].items():
        pairs = [
            (scores[name], one.images[0])
            for one, text in zip(records(), said, strict=True)
            if name in (scores := item_scores(one, text))
        ]
        expected = score_interval([value for value, _ in pairs], [image for _, image in pairs])
        assert (score["value"], score["interval"]) == (
            expected.value,
            [expected.low, expected.high],
        )
    assert [one["id"] for one in items[row["name"]]] == [one.id for one in records()]
    assert items[row["name"]][1]["scores"] == item_scores(records()[1], said[1])
    assert result["data"]["cluster"] == "image, by name"
    assert result["data"]["clusters"] == COUNT // 2
    assert f"closed_accuracy          {100 * 8 / 12:.1f}" in "\n".join(score_lines(result))


def test_ids_of_another_tool_join_by_place_where_every_question_agrees(tmp_path: Path) -> None:
    references, said = test_set(tmp_path), texts(10)
    rows = [
        {"question_id": 7, "prompt": one.question + " Please choose: [yes, no]", "text": text}
        for one, text in zip(records(), said, strict=True)
    ]
    found = join(lines(tmp_path / "a.jsonl", rows), references, load_records(references))
    assert found == (said, "place")
    rows[3]["prompt"] = "Something else?"
    with pytest.raises(UserError, match=r"1 ids occur more than once, first 7; nor by place"):
        join(lines(tmp_path / "b.jsonl", rows), references, load_records(references))
    fewer = [{"id": one.id, "prediction": "no"} for one in records()[1:]]
    with pytest.raises(UserError, match=r"0 predictions have no reference, 1 references no pred"):
        join(lines(tmp_path / "c.jsonl", fewer), references, load_records(references))


def test_another_set_with_the_same_ids_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ids are often numbers from 0 on; what a row says of its question tells sets apart."""
    references = test_set(tmp_path)
    rows = [{"question_id": one.id, "prompt": "Which plane?", "text": "axial"} for one in records()]
    with pytest.raises(UserError, match=r"24 of 24 rows .* first id q0; are these the references"):
        join(lines(tmp_path / "p.jsonl", rows), references, load_records(references))
    other = [{"id": one.id, "text": "no", "gt_ans": "something else"} for one in records()]
    with pytest.raises(UserError, match="24 of 24 rows"):
        join(lines(tmp_path / "r.jsonl", other), references, load_records(references))
    rows = [
        {"question_id": one.id, "prompt": f"<image> {one.question}", "text": "no"}
        for one in records()
    ]
    rows[5]["prompt"] = "Which plane?"
    assert join(lines(tmp_path / "o.jsonl", rows), references, load_records(references)).by == "id"
    assert "1 of 24 rows" in capsys.readouterr().err


def test_samples_of_another_set_do_not_join(tmp_path: Path) -> None:
    references = test_set(tmp_path)
    rows = [
        {"doc_id": place, "target": "axial", "filtered_resps": "axial", "input": "Which plane?"}
        for place in range(COUNT)
    ]
    with pytest.raises(UserError, match="nor by place"):
        join(lines(tmp_path / "s.jsonl", rows), references, load_records(references))


def test_references_are_rows_too(tmp_path: Path) -> None:
    reports = table(tmp_path / "gt.csv", [["study_id", "report"], ["a", "No effusion."]], "|")
    [one] = read_references(reports)
    assert (one.id, one.answer, one.extra["task"]) == ("a", "No effusion.", "report")
    asked = lines(tmp_path / "q.jsonl", [{"id": 1, "question": "Which?", "answer": "left"}])
    [other] = read_references(asked)
    assert (other.question, other.answer) == ("Which?", "left")
    silent = lines(tmp_path / "s.jsonl", [{"id": 1, "prediction": "x"}])
    with pytest.raises(UserError, match=r"record 0: no `reference` or `gt_ans`"):
        read_references(silent)


def test_two_files_are_compared_by_the_paired_test_and_by_group(tmp_path: Path) -> None:
    references = test_set(tmp_path)
    a, b = in_form("llava", tmp_path, texts(20)), in_form("csv", tmp_path, texts(6))
    found = compare_files(a, b, references, FileOptions(by=["modality", "answer_type", "organs"]))
    clusters = [one.images[0] for one in records()]
    closed = [place for place in range(COUNT) if place % 2 == 0]
    expected = paired_test(
        [float(place < 20) for place in closed],
        [float(place < 6) for place in closed],
        [clusters[place] for place in closed],
    )
    one = next(one for one in found["comparisons"] if one["score"] == "closed_accuracy")
    assert (one["difference"], one["p_permutation"]) == (expected.difference, expected.p)
    assert one["interval"] == [expected.low, expected.high]
    modality, kind, organs = found["by"]
    assert [(group["value"], group["items"]) for group in modality["groups"]] == [
        ("CT", 16),
        ("MRI", 8),
    ]
    assert [group["value"] for group in organs["groups"]] == ["lung, heart"]
    assert {group["value"] for group in kind["groups"]} == {"OPEN", "CLOSED"}
    scores = modality["groups"][1]["scores"]
    assert scores["A: llava"]["closed_accuracy"]["value"] == 0.5
    assert scores["B: table"]["closed_accuracy"]["value"] == 0.0
    tests = [test for group in modality["groups"] for test in group["comparisons"]]
    assert [test["p_holm"] for test in tests] == holm([test["p_permutation"] for test in tests])
    shown = "\n".join([*score_lines(found), *comparison_lines(found)])
    assert "A: llava - B: table, closed_accuracy: +" in shown
    assert "MRI (8 items)" in shown
    with pytest.raises(UserError, match=r"--by plane: no record has this field; there are .*modal"):
        compare_files(a, b, references, FileOptions(by=["plane"]))


REPORTS = [
    ("The lungs are clear. No pneumothorax.", "The lungs are clear. No effusion.", "the heart"),
    ("The heart size is normal.", "The heart size is normal.", "no effusion."),
    ("There is a small left pleural effusion.", "cardiomegaly", "small left pleural effusion"),
]


def reports(folder: Path) -> tuple[Path, Path, Path, list[str]]:
    truth = [["id", "reference"], *([str(i), one[0]] for i, one in enumerate(REPORTS * 5))]
    references = table(folder / "truth.csv", truth)
    said = [
        lines(
            folder / f"{name}.jsonl",
            [{"id": str(i), "text": one[place]} for i, one in enumerate(REPORTS * 5)],
        )
        for place, name in ((1, "a"), (2, "b"))
    ]
    chexbert_checkpoint(folder / "chexbert.pth")
    models = [
        f"chexbert={folder / 'chexbert.pth'}",
        f"chexbert-tokenizer={write_tokenizer(folder / 'tokenizer')}",
    ]
    return references, said[0], said[1], models


def test_metrics_of_models_are_tested_in_pairs(tmp_path: Path) -> None:
    """CheXbert's cosine, which may be below 0, as BLEU is; F1 is of the whole set."""
    references, a, b, models = reports(tmp_path)
    arguments = [f"--model={one}" for one in models]
    out = tmp_path / "scores.json"
    asked = ["score", "--predictions", str(a), "--references", str(references), "--out", str(out)]
    done = CliRunner().invoke(app, [*asked, *arguments])
    assert done.exit_code == 0, done.output
    written = json.loads(out.read_text())
    items = written["items"]["a"]
    assert {"bleu", "rouge_l", "chexbert"} <= set(items[0]["scores"])
    assert "chexbert_f1_14_micro" in written["rows"][0]["totals"]
    assert "bertscore" in written["not_computed"]
    done = CliRunner().invoke(
        app,
        ["compare", str(a), str(b), "--references", str(references), "--json", *arguments],
    )
    assert done.exit_code == 0, done.output
    tests = {one["score"]: one for one in json.loads(done.stdout)["comparisons"]}
    assert {"bleu", "rouge_l", "chexbert"} <= set(tests)
    means = [row["scores"]["chexbert"]["value"] for row in json.loads(done.stdout)["rows"]]
    assert tests["chexbert"]["difference"] == pytest.approx(means[0] - means[1])
    mine = np.mean([one["scores"]["chexbert"] for one in items])
    assert means[0] == pytest.approx(mine)


def test_folders_with_report_metrics_are_compared_on_every_metric(tmp_path: Path) -> None:
    _, _, _, models = reports(tmp_path)
    data = tmp_path / "test.json"
    write_records(
        data,
        [
            Record(str(i), (), (Turn("human", "Report."), Turn("gpt", one[0])), extra={"of": "x"})
            for i, one in enumerate(REPORTS * 5)
        ],
    )
    folders = []
    for place, name in ((1, "a"), (2, "b")):
        folder = tmp_path / name
        folders.append(folder)
        row = results.row("LoRA", "beam", {})
        answered = results.answered(file=str(data))
        result: Any = {"schema": SCHEMA_NUMBER, "rows": [row], "data": answered}
        result["settings"] = results.settings()
        write_result(folder, result)
        answers: list[Any] = [
            {
                "id": str(i),
                "images": [],
                "cluster": str(i),
                "question": "Report.",
                "reference": one[0],
                "prediction": one[place],
                "scores": {"bleu": 0.5, "rouge_l": 0.5},
            }
            for i, one in enumerate(REPORTS * 5)
        ]
        write_answers(folder, "LoRA + beam", answers)
        asked = ["report", "metrics", str(folder), *(f"--model={one}" for one in models)]
        done = CliRunner().invoke(app, asked)
        assert done.exit_code == 0, done.output
    first, second = folders
    found = compare(first, second, by=["of"])
    assert {"bleu", "rouge_l", "chexbert"} <= {one["score"] for one in found["comparisons"]}
    shown = "\n".join([*comparison_lines(found), *group_lines(found["by"])])
    assert "A: LoRA + beam - B: LoRA + beam, chexbert: " in shown
    assert "x (15 items)" in shown
    # Other weights are another metric.
    file = tmp_path / "b" / "metrics" / "lora-beam.json"
    other = json.loads(file.read_text())
    other["versions"]["chexbert"] += " of other weights"
    file.write_text(json.dumps(other))
    names = {one["score"] for one in compare(first, second)["comparisons"]}
    assert "chexbert" not in names
    assert "bleu" in names


def test_predictions_without_references_name_the_option(tmp_path: Path) -> None:
    a = in_form("llava", tmp_path, texts(3))
    failed = CliRunner().invoke(app, ["compare", str(a), str(a)])
    assert "--references" in str(failed.exception)
    failed = CliRunner().invoke(app, ["compare", str(tmp_path), str(tmp_path), "--cluster", "x"])
    assert "need --references" in str(failed.exception)


def test_an_evaluations_rows_are_scored_as_they_were(tmp_path: Path) -> None:
    from pipelines.evaluation.run import evaluate
    from tests.fixtures.runs import write_run

    run = write_run(tmp_path / "run")
    data = run / "data" / "test.json"
    result = evaluate(run, data, methods=["greedy"], max_new_tokens=3, by=["answer_type"])
    folder = run / "evaluation"
    found, _ = score_files([folder], data, FileOptions())
    assert {row["name"]: row["scores"] for row in found["rows"]} == {
        row["method"]: row["scores"] for row in result["rows"]
    }
    [grouping] = result["by"]
    [closed, opened] = grouping["groups"]
    assert (closed["value"], closed["items"], opened["items"]) == ("CLOSED", 8, 4)
    for row in result["rows"]:
        assert (
            closed["scores"][row["method"]]["closed_accuracy"] == row["scores"]["closed_accuracy"]
        )
    with pytest.raises(UserError, match=r"has several rows; name one with --row-a"):
        compare_files(folder, folder, data, FileOptions())
    names = [row["method"] for row in result["rows"]]
    both = compare_files(folder, folder, data, FileOptions(), (names[1], names[0]))
    assert [one["difference"] for one in both["comparisons"]] == [
        one["difference"] for one in result["comparisons"]
    ]


def test_many_groups_leave_a_difference_that_can_survive_holm() -> None:
    """300 tests: the smallest p of 4,096 patterns would become 0.07."""
    made = [
        Record(str(i), (), (Turn("human", "?"), Turn("gpt", "a")), extra={"of": i % 300})
        for i in range(30 * 300)
    ]
    names = [one.id for one in made]
    a, b = (
        Scored(names, [{"closed_accuracy": value} for _ in made], names) for value in (1.0, 0.0)
    )
    [grouping] = by_groups({"a": a, "b": b}, [("a", "b")], made, ["of"])
    assert len(grouping["groups"]) == 300
    assert all(one["comparisons"][0]["p_holm"] < 0.05 for one in grouping["groups"])
