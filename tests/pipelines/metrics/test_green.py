"""GREEN's adapter, on a stand-in for the package: its weights are a 7B model.

The stand-in returns what `green_score` does: (mean, deviation, scores, summary, table), and fails
as it does where a judgement cannot be read (the mean of a None).
"""

import sys
from pathlib import Path

import pytest

from pipelines.metrics import green
from pipelines.metrics.metric import Pair, Unavailable
from shared.errors import UserError

pytestmark = pytest.mark.integration

PACKAGE = """
class GREEN:
    def __init__(self, model_name, output_dir="."):
        assert (__import__("pathlib").Path(model_name) / "config.json").is_file()
    def __call__(self, refs, hyps):
        print("processing")
        scores = []
        for ref, hyp in zip(refs, hyps):
            true, said = set(ref.split()), set(hyp.split())
            matched, wrong = len(true & said), len(said - true)
            scores.append(None if "unreadable" in said else matched / (matched + wrong))
        return sum(scores) / len(scores), 0.0, scores, "", None
"""


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    packages = tmp_path / "packages"
    (packages / "green_score").mkdir(parents=True)
    (packages / "green_score" / "__init__.py").write_text(PACKAGE)
    (packages / "green_score-0.0.11.dist-info").mkdir()
    (packages / "green_score-0.0.11.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: green-score\nVersion: 0.0.11\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(packages))
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "config.json").write_text("{}")
    return {"green-python": sys.executable, "green": str(tmp_path / "weights")}


def test_scores_come_back_in_order(models: dict[str, str]) -> None:
    metric = green.load(models)
    pairs = [Pair("clear lungs", "clear lungs"), Pair("clear lungs", "clear heart")]
    assert [value["green"] for value in metric.compute(pairs)] == [1.0, 0.5]
    assert metric.version.startswith("green-score 0.0.11, ")


def test_a_judgement_that_cannot_be_read_is_an_error(models: dict[str, str]) -> None:
    metric = green.load(models)
    with pytest.raises(UserError, match="for 1 of 2 reports, first number 1; leave out green"):
        metric.compute([Pair("a", "a"), Pair("a", "unreadable")])


def test_only_local_weights_without_code_are_taken(models: dict[str, str]) -> None:
    with pytest.raises(Unavailable, match="no local weights"):
        green.load(models | {"green": "StanfordAIMI/GREEN-radllama2-7b"})
    (Path(models["green"]) / "modeling.py").write_text("")
    with pytest.raises(Unavailable, match=r"holds code \(modeling\.py\)"):
        green.load(models)
