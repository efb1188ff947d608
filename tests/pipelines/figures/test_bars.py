"""Bars and curves: the numbers of evaluations and studies, unchanged."""

import csv
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from pipelines.cli import app
from pipelines.evaluation.result import FOLDER, Result, write_result
from pipelines.figures.bars import draw_bars, draw_layers
from pipelines.figures.results import Bar, bars_of_runs, bars_of_study, chosen
from pipelines.statistics import score_interval
from pipelines.sweep.ledger import write_run
from pipelines.sweep.study import read_study, runs_of
from shared.errors import UserError
from tests.fixtures.results import answered, settings

pytestmark = pytest.mark.unit


def write_evaluated(run: Path, value: float, adapter: str = "LoRA", **scores: float) -> Path:
    row: Any = {
        "method": f"{adapter} + greedy",
        "adapter": adapter,
        "decoding": {"method": "greedy"},
        "scores": {
            name: {"value": one, "interval": [one - 0.1, one + 0.1], "n": 9, "clusters": 4,
                   "trusted": False}
            for name, one in {"closed_accuracy": value, **scores}.items()
        },
    }  # fmt: skip
    result: Result = {"schema": 2, "rows": [row], "data": answered(), "settings": settings()}
    (run / FOLDER).mkdir(parents=True)
    write_result(run / FOLDER, result)
    return run


def test_runs_become_bars_under_their_given_names(tmp_path: Path) -> None:
    for name, value in (("a", 0.5), ("b", 0.75)):
        write_evaluated(tmp_path / name, value, open_recall=0.25)
    out = tmp_path / "out"
    command = ["figures", "ablation", "--out", out, "--scores", "closed_accuracy"]
    command += ["--run", f"first={tmp_path / 'a'}", "--run", f"second={tmp_path / 'b'}"]
    result = CliRunner().invoke(app, [str(one) for one in command])
    assert result.exit_code == 0, result.output
    with (out / "ablation.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    assert [(row["arm"], row["score"], row["value"], row["low"], row["n"]) for row in rows] == [
        ("first", "closed_accuracy", "0.5", "0.4", "9"),
        ("second", "closed_accuracy", "0.75", "0.65", "9"),
    ]
    assert (out / "ablation.png").is_file()
    assert "closed accuracy, %" in (out / "ablation.svg").read_text()
    with pytest.raises(UserError, match=r"two rows are called LoRA \+ greedy"):
        bars_of_runs([str(tmp_path / "a"), str(tmp_path / "b")])
    with pytest.raises(UserError, match="medalign evaluate --run"):
        bars_of_runs([str(tmp_path / "c")])


def test_a_study_s_bars_are_its_table_and_know_their_layers(tmp_path: Path) -> None:
    arms = {
        "LoRA": {"losses.alpha": 0, "losses.beta": 0, "rotation.kind": "none"},
        "l4": {"losses.layer": 4},
        "l9": {"losses.layer": 9},
        "default": {},
    }
    (tmp_path / "recipe.yaml").write_text("losses: {layer: 6}\n")
    study: dict[str, Any] = {"name": "small", "title": "A small study", "recipe": "recipe.yaml"}
    study |= {"parts": ["one"], "arms": arms}
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(study))
    values = {"LoRA": [0, 0, 1], "l4": [1, 0, 1], "l9": [1, 1, 1], "default": [0, 1, 1]}
    for run in runs_of(read_study(file), file):
        items: Any = [
            {"id": str(n), "unit": str(n), "kind": "", "scores": {"closed_accuracy": float(value)}}
            for n, value in enumerate(values[run.arm])
        ]
        result: Any = {"schema": 1, "study": "small", "arm": run.arm, "part": run.part}
        result |= {"identity": run.identity, "items": items, "after": {}}
        write_run(tmp_path / "results", run, result)
    bars = bars_of_study(file, tmp_path / "results")
    assert {bar.arm: bar.layer for bar in bars} == {"LoRA": None, "l4": 4, "l9": 9, "default": 6}
    for bar in bars:
        expected = score_interval([float(value) for value in values[bar.arm]])
        assert (bar.value, bar.low, bar.high) == pytest.approx(expected[:3])
    paths = draw_layers(bars, tmp_path)
    assert [path.name for path in paths] == ["layers.png", "layers.svg", "layers.csv"]
    with pytest.raises(UserError, match="fewer than two distillation layers"):
        draw_layers(chosen(bars, [], ["LoRA", "l4"], None), tmp_path)
    with pytest.raises(UserError, match=r"2 arms have layer \d; choose one of them with --arms"):
        draw_layers([*bars, bars[1]._replace(arm="more")], tmp_path)
    with pytest.raises(UserError, match="has no finished run"):
        bars_of_study(file, tmp_path / "nothing")


def test_the_layer_of_a_run_is_its_recipe_s(tmp_path: Path) -> None:
    run = write_evaluated(tmp_path / "run", 0.5, "MEDALIGN")
    (run / "recipe.yaml").write_text("losses: {layer: 7}\n")
    (run / "adapter_config.json").write_text("{}")
    assert [bar.layer for bar in bars_of_runs([str(run)])] == [7]


def test_arms_are_chosen_in_their_order_and_unknown_ones_are_named() -> None:
    bars = [Bar(arm, "closed_accuracy", "all", 0.5, 0.4, 0.6, 9, 4) for arm in "abc"]
    assert [bar.arm for bar in chosen(bars, [], ["c", "a"], None)] == ["c", "a"]
    for asked in (([], ["x"], None), (["f1"], [], None), ([], [], "zone")):
        with pytest.raises(UserError, match=r"^no (arm|score|kind) "):
            chosen(bars, *asked)


def test_equal_bars_are_equal_files(tmp_path: Path) -> None:
    bars = [Bar("a", "pointing", "all", 0.5, 0.4, 0.6, 9, 4)]
    first, second = (draw_bars(bars, tmp_path / name, "ablation") for name in "xy")
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes()
