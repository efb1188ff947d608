"""Every release layout, from the files that a user downloads to scores.

Through the command line.
"""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipelines.cli import app
from tests.fixtures.dataset_replicas import REPLICAS
from tests.fixtures.runs import write_run

pytestmark = pytest.mark.integration

SCORES = {
    "slake": {
        "open_recall",
        "open_recall_strict",
        "open_f1_strict",
        "open_exact_strict",
        "closed_accuracy",
        "closed_accuracy_strict",
        "closed_yes_no",
    },
    "vqa-rad": {
        "open_recall",
        "open_recall_strict",
        "open_f1_strict",
        "open_exact_strict",
        "closed_accuracy",
        "closed_accuracy_strict",
        "closed_yes_no",
    },
    "path-vqa": {
        "open_recall",
        "open_recall_strict",
        "open_f1_strict",
        "open_exact_strict",
        "closed_accuracy",
        "closed_accuracy_strict",
        "closed_yes_no",
    },
    "iu-xray-vqa": {"closed_accuracy", "closed_accuracy_strict", "closed_yes_no"},
    "omnimedvqa": {"choice_accuracy", "choice_accuracy_strict"},
    "iu-xray-report": {"bleu", "rouge_l"},
    "mimic-cxr-report": {"bleu", "rouge_l"},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run"), images=1)


def command(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


@pytest.mark.parametrize("layout", REPLICAS)
def test_from_release_to_scores(layout, run, tmp_path):
    name, build = REPLICAS[layout]
    source, out, results = build(tmp_path / "source"), tmp_path / "out", tmp_path / "evaluation"
    about = json.loads(
        command(
            "data",
            "prepare",
            name,
            "--source",
            source,
            "--out",
            out,
            "--allow-other-counts",
            "--json",
        )
    )
    test, root = out / "test.json", about["image_root"]
    assert "no problems" in command(
        "data", "check", test, "--image-root", root, "--against", out / "train.json"
    )
    result = json.loads(
        command(
            *(
                "evaluate",
                "--run",
                run / "lora",
                "--data",
                test,
                "--image-root",
                root,
                "--out",
                results,
            ),
            *("--decode", "greedy", "--max-new-tokens", "4", "--json"),
        )
    )
    (row,) = result["rows"]
    assert set(row["scores"]) == SCORES[name]
    counted = {score: found["n"] for score, found in row["scores"].items()}
    split = about["splits"]["test"]
    if name == "omnimedvqa" or about["task"] == "report":
        assert set(counted.values()) == {split["records"]}
    else:
        assert counted["closed_accuracy"] == split["closed"]
        assert counted["closed_yes_no"] == split["yes/no"]
        assert counted.get("open_recall", 0) == split["open"]
    assert result["data"]["sha256"] == split["sha256"]
    assert result["data"]["set"] == name
    if about["task"] == "report":
        shown = json.loads(
            command("report", "metrics", results, "--metrics", "bleu,rouge,radgraph", "--json")
        )
        (found,) = shown["rows"].values()
        assert found["scores"]["bleu"]["value"] == pytest.approx(row["scores"]["bleu"]["value"])
        assert set(found["not_computed"]) == {"radgraph"}
    command(
        "report", "tables", "--out", tmp_path / "tables", "--results", f"llava-med/{name}={results}"
    )
    assert (
        f"n={split['records']}" in Path(tmp_path / "tables/tables.md").read_text()
        or about["task"] == "vqa"
    )
