"""Scores of fixed answers to questions of every type, to the digit: no rewrite may move them.

`golden_scores.json` holds the records, two models' answers and what came of them. After a change of
definition (never after a rewrite), print the new values with

    python -m tests.pipelines.evaluation.test_golden_scores
"""

import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from pipelines.evaluation.scores import (
    Row,
    Scored,
    compare_rows,
    comparison_pairs,
    identical_outputs,
    power_note,
    summarise,
)
from pipelines.metrics import radgraph, reports, vqa, words
from pipelines.metrics.items import SCORES, item_scores
from pipelines.metrics.metric import Pair, Total
from pipelines.metrics.totals import macro_f1, micro_f1
from pipelines.statistics import holm, paired_test, score_interval
from shared.records import load_records

GOLDEN = Path(__file__).with_name("golden_scores.json")
# Every number is a sum of at most 30 terms of at most 4000 draws, divided and rooted: float64
# loses less than 30 x 4000 x 2.2e-16 < 1e-10 of it. The least that another rule, draw or
# denominator moves is one item in one draw, 1 / (30 x 4000) > 8e-6.
TOLERANCE = 1e-9
RULES: tuple[vqa.Rule, ...] = ("authors", "strict")
REPORTS = ("bleu", "rouge")


def computed(golden: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Everything that the file expects, from its records and answers."""
    (folder / "records.json").write_text(json.dumps(golden["records"]))
    records = load_records(folder / "records.json")
    images = [record.images[0] for record in records]
    items = {
        row: [item_scores(record, text) for record, text in zip(records, texts, strict=True)]
        for row, texts in golden["answers"].items()
    }
    scored = {row: Scored(golden["answers"][row], items[row], images) for row in items}
    rows = [Row(row, row.split(" + ")[0], {"method": row.split(" + ")[1]}) for row in scored]
    comparisons = compare_rows(scored, comparison_pairs(rows))
    pairs = {
        row: [
            Pair(record.answer, text)
            for record, text in zip(records, texts, strict=True)
            if record.extra.get("task") == "report"
        ]
        for row, texts in golden["answers"].items()
    }
    return {
        "items": items,
        "summary": {row: summarise(scored[row]) for row in scored},
        "comparisons": comparisons,
        "identical_outputs": identical_outputs(scored),
        "power": power_note(scored, comparisons),
        "power of one row": power_note({"one": scored["MEDALIGN + beam"]}, []),
        "normalize": [vqa.normalize(text) for text in golden["texts"]],
        "rules": rules(golden["answers"]["MEDALIGN + beam"], [r.answer for r in records]),
        "reports": {
            row: reports.score_reports(found, names=REPORTS)["scores"]
            for row, found in pairs.items()
        },
        "totals": totals(),
        "radgraph": radgraph.score(*golden["annotations"]),
        "statistics": statistics(golden["p_values"]),
    }


def rules(texts: list[str], references: list[str]) -> dict[str, Any]:
    """Each rule of `metrics.vqa` over every answer, whatever its question's type."""
    options = ("left lung", "lung", "no", "yes", "MRI", "heart")
    pairs = list(zip(texts, references, strict=True))
    return {
        rule: {
            "open": [vqa.open_recall(text, reference, rule) for text, reference in pairs],
            "closed": [vqa.closed_correct(text, reference, rule) for text, reference in pairs],
            "choice": [
                vqa.choice_correct(text, reference, options, rule) for text, reference in pairs
            ],
        }
        for rule in RULES
    } | {"yes or no": [vqa.is_yes_no(reference) for reference in references]}


def totals() -> dict[str, Any]:
    """F1 over counts of three labels in five reports of three images."""
    counts = np.random.default_rng(3).integers(0, 3, size=(5, 3, 3)).astype(float)
    values = [{"counts": count.tolist()} for count in counts]
    found = {
        average: reports.summed(
            values,
            Total("F1", lambda value: cast("Any", value["counts"]), score),
            list("aabbc"),
        )
        for average, score in (("micro", micro_f1), ("macro", macro_f1))
    }
    kept = {"value", "interval", "clusters"}
    return {
        average: {key: value for key, value in one.items() if key in kept}
        for average, one in found.items()
    }


def statistics(p_values: list[float]) -> dict[str, Any]:
    """Intervals and tests with few clusters (all sign patterns) and with many (drawn ones)."""
    generator = np.random.default_rng(5)
    a, b = generator.random((2, 60)).round(3)
    clusters = generator.integers(0, 25, size=60).tolist()
    few = [cluster % 9 for cluster in clusters]
    return {
        "interval": score_interval(a.tolist(), clusters)._asdict(),
        "interval of single values": score_interval(a.tolist(), level=0.9)._asdict(),
        "drawn": paired_test(a.tolist(), b.tolist(), clusters)._asdict(),
        "all patterns": paired_test(a.tolist(), b.tolist(), few)._asdict(),
        "holm": holm(p_values),
    }


def differences(expected: Any, found: Any, place: str = "") -> list[str]:
    """Where two documents differ by more than the tolerance."""
    if isinstance(expected, dict) and isinstance(found, dict):
        if list(expected) != list(found):
            return [f"{place}: {list(expected)} -> {list(found)}"]
        return [
            one
            for key in expected
            for one in differences(expected[key], found[key], f"{place}/{key}")
        ]
    if isinstance(expected, list) and isinstance(found, list):
        if len(expected) != len(found):
            return [f"{place}: {len(expected)} -> {len(found)} entries"]
        return [
            one
            for number, pair in enumerate(zip(expected, found, strict=True))
            for one in differences(*pair, f"{place}/{number}")
        ]
    if isinstance(expected, float) and isinstance(found, float):
        return [] if abs(expected - found) <= TOLERANCE else [f"{place}: {expected} -> {found}"]
    return [] if expected == found else [f"{place}: {expected!r} -> {found!r}"]


def plain(document: Any) -> Any:
    """The document as JSON keeps it."""
    return json.loads(json.dumps(document))


@pytest.mark.unit
def test_scores_are_the_golden_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDALIGN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(words, "has_punkt", lambda: False)  # as where NLTK's model is not installed
    golden = json.loads(GOLDEN.read_text())
    found = plain(computed(golden, tmp_path))
    assert not differences(golden["expected"], found)
    assert golden["expected"]["identical_outputs"] == [["LoRA + greedy", "LoRA + beam"]]
    items = golden["expected"]["items"].values()
    assert {name for row in items for one in row for name in one} == set(SCORES)


@pytest.mark.unit
def test_a_moved_number_is_found() -> None:
    expected = {"a": [0.5, {"b": 1}], "c": None}
    assert not differences(expected, {"a": [0.5 + 1e-10, {"b": 1}], "c": None})
    assert differences(expected, {"a": [0.5 + 1e-8, {"b": 1}], "c": None}) == [
        "/a/0: 0.5 -> 0.50000001"
    ]
    assert differences(expected, {"a": [0.5, {"b": 2}], "c": None})
    assert differences(expected, {"c": None, "a": [0.5, {"b": 1}]})


if __name__ == "__main__":
    import os
    import tempfile

    with tempfile.TemporaryDirectory() as scratch:
        os.environ["MEDALIGN_CACHE"] = scratch
        words.has_punkt = lambda: False  # type: ignore[assignment]
        document = json.loads(GOLDEN.read_text())
        document["expected"] = plain(computed(document, Path(scratch)))
        print(json.dumps(document, indent=1, ensure_ascii=False))
