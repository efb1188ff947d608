"""Report metrics together.

What is missing is listed, values are cached by version, intervals, files, the command.
"""

import csv
import json

import numpy as np
import pytest
from typer.testing import CliRunner

from pipelines.evaluation.predictions import load_reports
from pipelines.metrics import bleu, reports
from pipelines.metrics.metric import Metric, Pair, Total
from pipelines.metrics.reports import cached, score_reports, summed
from pipelines.metrics.totals import macro_f1, micro_f1
from pipelines.report.commands import app
from shared.errors import UserError
from tests.fixtures.dataset_replicas import write_json
from tests.fixtures.report_models import chexbert_checkpoint, write_tokenizer

pytestmark = pytest.mark.unit

PAIRS = [
    Pair("The lungs are clear. No pneumothorax.", "The lungs are clear. No effusion."),
    Pair("The heart size is normal.", "The heart size is normal."),
    Pair("There is a small left pleural effusion.", "cardiomegaly"),
]
NOT_HERE = {"bertscore", "chexbert", "radgraph", "ratescore", "green"}


def test_metrics_without_a_model_are_listed_and_the_others_run():
    result = score_reports(PAIRS)
    assert set(result["not_computed"]) >= NOT_HERE
    assert all("--model" in result["not_computed"][name] for name in NOT_HERE)
    assert {"bleu", "rouge_l"} <= set(result["scores"])
    found = result["scores"]["rouge_l"]
    low, high = found["interval"]
    assert low <= found["value"] <= high
    assert found["n"] == 3
    assert result["versions"]["bleu"].startswith("bleu-4 method4, nltk")


def test_intervals_are_over_clusters():
    several, one = (
        score_reports(PAIRS, images, ["rouge"])["scores"]["rouge_l"] for images in ("abc", "aaa")
    )
    assert several["value"] == one["value"]
    assert one["clusters"] == 1
    assert one["interval"] == [0.0, 1.0]  # one image says nothing of others
    assert 0 < several["interval"][0] < several["interval"][1] <= 1
    assert not several["trusted"]


def test_values_are_cached_by_reference_prediction_and_version():
    asked = []

    def compute(pairs):
        asked.append(list(pairs))
        return [{"length": float(len(pair.prediction))} for pair in pairs]

    def metric(version):
        return Metric("length", version, compute, {"length": "characters"})

    first = cached(metric("1"), PAIRS[:2])
    assert cached(metric("1"), [PAIRS[2], PAIRS[0], PAIRS[0]])[1:] == [first[0], first[0]]
    assert asked == [PAIRS[:2], [PAIRS[2]]]
    cached(metric("2"), PAIRS[:1])
    swapped = Pair(PAIRS[0].prediction, PAIRS[0].reference)
    cached(metric("2"), [swapped])
    assert asked[2:] == [PAIRS[:1], [swapped]]


def test_the_cache_holds_no_text(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDALIGN_CACHE", str(tmp_path / "cache"))
    cached(bleu.load({}), [Pair("Zebra one two three", "Zebra one two four")])
    content = (tmp_path / "cache" / "report-metrics.sqlite").read_bytes()
    assert content
    assert b"ebra" not in content


def test_summed_f1_is_that_of_the_whole_set():
    generator = np.random.default_rng(0)
    true, said = generator.integers(0, 2, (2, 30, 5))
    values = [
        {"reference": t.tolist(), "prediction": s.tolist()} for t, s in zip(true, said, strict=True)
    ]

    def tally(value):
        pairs = zip(value["reference"], value["prediction"], strict=True)
        return [[float(t and s), float(s and not t), float(t and not s)] for t, s in pairs]

    def f1(t, s):
        hits = np.sum(t & s)
        return 2 * hits / (np.sum(t) + np.sum(s))

    micro = summed(values, Total("x", tally, micro_f1), None)
    macro = summed(values, Total("x", tally, macro_f1), None)
    assert micro["value"] == pytest.approx(f1(true, said))
    assert macro["value"] == pytest.approx(np.mean([f1(true[:, k], said[:, k]) for k in range(5)]))
    assert micro["interval"][0] < micro["value"] < micro["interval"][1]
    assert macro_f1(np.zeros((2, 3))) == 0
    # The jackknife's standard error, in numbers of its own: 30 reports left out one at a time.
    left = [
        f1(np.delete(true, place, axis=0), np.delete(said, place, axis=0)) for place in range(30)
    ]
    error = (29 / 30 * np.sum((np.array(left) - np.mean(left)) ** 2)) ** 0.5
    low, high = micro["interval"]
    assert (high - low) / (2 * 1.96 * error) == pytest.approx(1.15, abs=0.15)


def _rows():
    return [
        {
            "id": f"s{number}",
            "images": [f"{number // 2}.png"],
            "prediction": pair.prediction,
            "reference": pair.reference,
        }
        for number, pair in enumerate(PAIRS)
    ]


def _lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_predictions_are_read_in_every_form(tmp_path):
    own = load_reports(_lines(tmp_path / "own.jsonl", _rows()))
    assert own.pairs == PAIRS
    assert own.clusters == ["0.png", "0.png", "1.png"]
    authors = [
        {"question_id": r["id"], "prompt": "", "text": r["prediction"], "gt_ans": r["reference"]}
        for r in _rows()
    ]
    assert load_reports(_lines(tmp_path / "authors.jsonl", authors)).pairs == PAIRS
    table = tmp_path / "pred.csv"
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([["study_id", "report"], *([r["id"], r["prediction"]] for r in _rows())])
    truth = [
        {
            "id": r["id"],
            "conversations": [
                {"from": "human", "value": "?"},
                {"from": "gpt", "value": r["reference"]},
            ],
        }
        for r in _rows()[::-1]
    ]
    assert load_reports(table, write_json(tmp_path / "truth.json", truth)).pairs == PAIRS


def test_unequal_ids_are_an_error(tmp_path):
    file = _lines(tmp_path / "p.jsonl", _rows())
    truth = _lines(tmp_path / "t.jsonl", _rows()[1:])
    with pytest.raises(
        UserError, match=r"1 predictions have no reference, 0 references no prediction, e\.g\. s0"
    ):
        load_reports(file, truth)
    with pytest.raises(UserError, match="1 ids occur more than once"):
        load_reports(_lines(tmp_path / "d.jsonl", [*_rows(), _rows()[0]]))
    with pytest.raises(UserError, match=r"record 0: no `reference` or `gt_ans`"):
        load_reports(_lines(tmp_path / "n.jsonl", [{"id": "a", "prediction": "b"}]))


def test_command_scores_a_file_with_models_and_an_evaluation_folder(tmp_path):
    file = _lines(tmp_path / "evaluation/answers/lora-beam.jsonl", _rows())
    chexbert_checkpoint(tmp_path / "chexbert.pth")
    models = [
        f"--model=chexbert={tmp_path / 'chexbert.pth'}",
        f"--model=chexbert-tokenizer={write_tokenizer(tmp_path / 'tokenizer')}",
    ]
    result = CliRunner().invoke(
        app, ["metrics", str(file), "--metrics", "bleu,chexbert,radgraph", "--json", *models]
    )
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert set(found["not_computed"]) == {"radgraph"}
    assert {"bleu", "chexbert", "chexbert_f1_14_micro", "chexbert_f1_5_macro"} <= set(
        found["scores"]
    )
    shown = CliRunner().invoke(
        app, ["metrics", str(tmp_path / "evaluation"), "--metrics", "rouge,bertscore"]
    )
    assert "not computed: no model; --model bertscore=" in shown.output
    written = json.loads((tmp_path / "evaluation/metrics/lora-beam.json").read_text())
    assert written["scores"]["rouge_l"]["n"] == 3
    for arguments, message in (
        (["--metrics", "blue"], "no metric is called blue"),
        (["--model", "gpt=x"], "write NAME=PLACE"),
    ):
        failed = CliRunner().invoke(app, ["metrics", str(file), *arguments])
        assert message in str(failed.exception)


def test_no_reports_is_an_error():
    with pytest.raises(UserError, match="no reports"):
        reports.score_reports([])
