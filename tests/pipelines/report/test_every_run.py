"""A page comes of every run that `medalign evaluate` can write, and puts first what turned."""

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from pipelines.cli import app
from pipelines.report.answers import Answered, flips, main_score
from pipelines.report.page import write_report
from shared.errors import UserError
from shared.records import Record, Turn, write_records
from tests.fixtures.runs import write_run
from tests.fixtures.student_runs import write_store

GREEDY: Any = {"methods": ["greedy"], "max_new_tokens": 3, "device": "cpu"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two arms whose recipes alone name the template, evaluated with a data file far from images.

    The store holds targets of two of the images.
    """
    from pipelines.evaluation.run import evaluate

    folder = write_run(tmp_path_factory.mktemp("ways") / "run", images=2)
    write_store(folder / "store", folder / "data", ["0.png", "1.png"], 4)
    for arm in ("lora", "medalign"):
        change_recipe(folder / arm, targets={"store": str(folder / "store")})
    data = folder.parent / "elsewhere.json"
    shutil.move(folder / "data" / "test.json", data)
    evaluate(folder, data, folder / "data", **GREEDY)
    return folder


def change_recipe(arm: Path, **sections: dict[str, object]) -> None:
    file = arm / "recipe.yaml"
    values = yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump(values | sections))


def copied(run: Path, to: Path) -> Path:
    """Copy a run with its evaluation; its base, images and store stay where they are."""
    return Path(shutil.copytree(run, to, ignore=shutil.ignore_patterns("store", "*.html")))


def whole(page: str) -> bool:
    """Whether a page has its pictures and thumbnails."""
    return (
        'id="attention-' in page
        and 'id="similarity-' in page
        and "data:image/png;base64," in page
        and "This run has no pictures" not in page
    )


@pytest.mark.integration
def test_images_away_from_the_data_file_and_a_template_of_the_recipe(run: Path) -> None:
    assert "prompt_template" not in (run / "base" / "config.json").read_text()
    page = write_report(run).read_text()
    assert whole(page)
    assert "start" in page
    order = ["Attention over the same images", "Answers", "Scores on held-out", "Commands"]
    places = [page.index(f"<h2>{one}") for one in order]
    assert places == sorted(places)
    assert "prefers-color-scheme: dark" in page
    assert "@media print" in page


@pytest.mark.integration
def test_the_map_of_a_question_stands_beside_the_teachers(run: Path, tmp_path: Path) -> None:
    """Of the store of maps that the run was taught by; an image without one has an empty place."""
    from pipelines.report.words import word_maps
    from shared.imaging.keys import content_key
    from shared.recipe import load_recipe
    from shared.records import load_records, strip_marks
    from shared.targets import TargetStore, TargetWriter
    from shared.targets.maps import map_key
    from tests.fixtures.targets import identity

    asked = copied(run, tmp_path / "asked")
    (first, *_) = load_records(run.parent / "elsewhere.json")
    key, text = content_key(run / "data" / first.images[0]), strip_marks(first.question)
    values = np.linspace(0, 1, 16, dtype=np.float32)
    kind = identity(encoding="maps", grid=(4, 4), teacher="regions")
    with TargetWriter(tmp_path / "maps", kind) as writer:
        writer.add(
            map_key(key, text), {"attention": values, "coverage": np.full(16, 255, np.uint8)}
        )
    sections: dict[str, object] = {"store": str(run / "store"), "maps": str(tmp_path / "maps")}
    for arm in ("lora", "medalign"):
        losses = yaml.safe_load((asked / arm / "recipe.yaml").read_text()).get("losses", {})
        losses |= {"attention_target": "question"}
        change_recipe(asked / arm, targets=sections, losses=losses)
    recipe, store = load_recipe(asked / "lora" / "recipe.yaml"), TargetStore.open(run / "store")
    found = word_maps(recipe, store, [(key, text), (key, "another question?")])
    assert found[0] is not None
    np.testing.assert_allclose(found[0], values, atol=1e-6)
    assert found[1] is None
    page = write_report(asked).read_text()
    assert whole(page)
    assert ">question's words<" in page.replace("&#x27;", "'").replace("&#39;", "'")


@pytest.mark.integration
def test_a_named_model(run: Path, tmp_path: Path) -> None:
    named = copied(run, tmp_path / "named")
    for arm in ("lora", "medalign"):
        change_recipe(named / arm, model={"name": "llava-med-1.5", "path": str(run / "base")})
    assert whole(write_report(named).read_text())


@pytest.mark.integration
def test_one_adapter_whose_evaluation_went_elsewhere(run: Path, tmp_path: Path) -> None:
    arm = copied(run, tmp_path / "run") / "medalign"
    result = tmp_path / "run" / "evaluation" / "result.json"
    values = json.loads(result.read_text())
    values["rows"] = [row for row in values["rows"] if row["adapter"] == "MEDALIGN"]
    result.write_text(json.dumps(values | {"comparisons": [], "identical_outputs": []}))
    shutil.move(result.parent, tmp_path / "out")
    with pytest.raises(UserError, match="--evaluation"):
        write_report(arm)
    page = write_report(arm, evaluation=tmp_path / "out").read_text()
    assert whole(page)
    assert f"--evaluation {tmp_path / 'out'}" in page


@pytest.mark.integration
def test_answers_of_another_run_are_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its losses would stand above answers that it did not give."""
    whole_run = copied(run, tmp_path / "run")
    result = whole_run / "evaluation" / "result.json"
    values = json.loads(result.read_text())
    values["settings"]["adapters"] = {"LoRA": "runs/b"}
    result.write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"holds the answers of LoRA \(runs/b\), not of MEDALIGN"):
        write_report(whole_run / "medalign", evaluation=whole_run / "evaluation")
    write_report(whole_run)
    assert "holds the answers of LoRA in runs/b" in capsys.readouterr().err


@pytest.mark.integration
def test_reports(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("rouge_score")
    from pipelines.evaluation.run import evaluate

    turns = (Turn("human", "<image>\nDescribe."), Turn("gpt", "The lungs are clear. No effusion."))
    records = [
        Record(str(i), ("0.png",), turns, None, (), {"task": "report", "kind": "x"})
        for i in range(2)
    ]
    write_records(tmp_path / "reports.json", records)
    evaluate(run, tmp_path / "reports.json", run / "data", out=tmp_path / "out", **GREEDY)
    metrics = tmp_path / "out" / "metrics" / "lora-greedy.json"
    done = CliRunner().invoke(app, ["report", "metrics", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    page = write_report(run, tmp_path / "r.html", tmp_path / "out").read_text()
    assert whole(page)
    assert "The lungs are clear." in page
    assert "turn from wrong to right" not in page
    assert "Metrics of reports" in page
    for name in json.loads(metrics.read_text())["scores"]:
        assert f">{name}</td>" in page


@pytest.mark.integration
def test_a_model_without_adapter_and_recipe(run: Path, tmp_path: Path) -> None:
    from pipelines.evaluation.run import evaluate

    base = Path(shutil.copytree(run / "base", tmp_path / "base"))
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"prompt_template": "vicuna_v1"}))
    evaluate(base, run.parent / "elsewhere.json", run / "data", **GREEDY)
    page = write_report(base).read_text()
    assert "base + greedy" in page
    assert "Attention over" not in page
    assert "turn from wrong to right" not in page


@pytest.mark.integration
def test_a_store_that_is_gone_is_named_on_the_page(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = copied(run, tmp_path / "moved")
    for arm in ("lora", "medalign"):
        change_recipe(moved / arm, targets={"store": str(tmp_path / "nowhere")})
    page = write_report(moved).read_text()
    assert "This run has no pictures" in page
    assert str(tmp_path / "nowhere") in page
    assert "Scores on held-out images" in page
    assert "nowhere" in capsys.readouterr().err


@pytest.mark.integration
def test_the_printed_command_finds_every_answer_in_the_journal(run: Path) -> None:
    page = write_report(run).read_text()
    [line] = re.findall(r"<code>(medalign evaluate .*?)</code>", page)
    files = sorted((run / "evaluation" / "journal").glob("*.jsonl"))
    before = [file.read_text() for file in files]
    answers = (run / "evaluation" / "answers" / "lora-greedy.jsonl").read_text()
    done = CliRunner().invoke(app, shlex.split(line)[1:])
    assert done.exit_code == 0, done.output
    assert [file.read_text() for file in files] == before
    assert (run / "evaluation" / "answers" / "lora-greedy.jsonl").read_text() == answers


@pytest.mark.unit
def test_answers_that_turn_are_counted_both_ways() -> None:
    turns = (Turn("human", "What?"), Turn("gpt", "yes"))
    records = [Record(str(i), (), turns, "CLOSED") for i in range(7)]
    rows: Any = [
        {"method": f"{arm} + {method}", "adapter": arm, "decoding": {"method": method}}
        for arm, method in (("LoRA", "greedy"), ("LoRA", "beam"), ("MEDALIGN", "beam"))
    ]
    other = [0.0] * 7  # of another decoding method: not what is compared
    before, after = [0, 0.5, 1, 1, 0, 0, 0], [1, 1, 0, 0.5, 0, 1, 1]
    scores = [[{"closed_accuracy_strict": one} for one in row] for row in (other, before, after)]
    scores[2][6] = scores[1][6] = scores[0][6] = {"rouge_l": 0.4}  # a report turns nowhere
    answered = [
        Answered(row["method"], row["adapter"], [f"{row['method']} {i}" for i in range(7)], score)
        for row, score in zip(rows, scores, strict=True)
    ]
    found = flips(records, rows, answered, Path())
    assert found is not None
    assert (found["a"], found["b"], found["n"]) == ("LoRA + beam", "MEDALIGN + beam", 6)
    assert (found["gained"], found["lost"]) == (3, 2)
    assert [one["answers"][2]["text"][-1] for one in found["gains"]] == ["0", "1", "5"]
    assert [one["answers"][2]["text"][-1] for one in found["losses"]] == ["2", "3"]
    assert flips(records, rows[:2], answered[:2], Path()) is None
    assert main_score({"bleu": 0.1, "rouge_l": 0.4}) == 0.4
