"""Sweeps: what a study file says, which runs are missing, and what their table tests."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from typer.testing import CliRunner

from pipelines.cli import app
from pipelines.statistics import holm, paired_test
from pipelines.sweep.ledger import Item, read_run, result_file, write_run
from pipelines.sweep.planning import plan_of
from pipelines.sweep.running import Sweep, written
from pipelines.sweep.study import STUDIES, fill, read_study, recipe_file, runs_of
from pipelines.sweep.tables import lines_of, table_of
from shared.errors import UserError
from tests.fixtures.studies import STUDY, made_up, sweep_command, tiny_study, write_study


@pytest.mark.unit
@pytest.mark.parametrize("file", sorted(STUDIES.glob("*.yaml")), ids=lambda file: file.stem)
def test_every_shipped_study_makes_valid_recipes(file: Path) -> None:
    from shared.recipe import load_recipe

    study = read_study(file)
    for run in runs_of(study, file):
        places = dict.fromkeys((*study.places, "work", "arm", "run"), "x") | {"part": run.part}
        values = [f"{key}={written(fill(value, places, key))}" for key, value in run.values.items()]
        load_recipe(recipe_file(study, file, run.part), values)


@pytest.mark.unit
def test_the_tables_take_each_sets_own_recipe() -> None:
    file = STUDIES / "table-3-llava-med.yaml"
    study = read_study(file)
    names = [recipe_file(study, file, part).name for part in study.parts]
    assert names == [f"llava-med-{part}.yaml" for part in study.parts]
    runs = {run.name: run for run in runs_of(study, file)}
    assert len(runs) == 10
    assert len({run.identity for run in runs.values()}) == 10


@pytest.mark.unit
def test_studies_share_the_runs_that_they_both_have(tmp_path: Path) -> None:
    data = {"makes": "{work}/data", "command": "a --out {work}/data"}
    store = {"makes": "{work}/store", "command": "b --data {work}/data --store {work}/store"}
    other = {"makes": "{work}/other", "command": "c --store {work}/store --to {work}/other"}
    stored = {"targets.store": "{work}/store"}

    def identities(steps: list[dict[str, str]], arms: dict[str, Any]) -> dict[str, str]:
        file = write_study(tmp_path, steps=steps, arms=arms)
        return {run.name: run.identity for run in runs_of(read_study(file), file)}

    few = identities([data, store], {"plain": {}, "full": stored})
    many = identities(
        [data, store, other], {"full": stored, "wrong": {"targets.store": other["makes"]}}
    )
    changed = identities([data | {"command": "a2"}, store], {"plain": {}, "full": stored})
    assert few["full-one"] == many["full-one"]
    # what `full` uses through the store has changed; `plain` uses no step
    assert changed["full-one"] != few["full-one"]
    assert changed["plain-one"] == few["plain-one"]
    mended = identities(
        [data, store, other | {"command": "c2"}], {"wrong": {"targets.store": other["makes"]}}
    )
    assert mended["wrong-one"] != many["wrong-one"]


@pytest.mark.unit
def test_the_later_tiers_share_their_runs_with_tier_1() -> None:
    found = {}
    for name in ("chest-help", "chest-maps", "chest-parts", "chest-layers"):
        file = STUDIES / f"{name}.yaml"
        found[name] = {run.name: run.identity for run in runs_of(read_study(file), file)}
    for name in ("chest-maps", "chest-parts", "chest-layers"):
        shared = found[name].keys() & found["chest-help"].keys()
        assert shared
        assert all(found[name][run] == found["chest-help"][run] for run in shared)


@pytest.mark.unit
def test_committed_results_are_those_of_their_studies() -> None:
    results = Path(__file__).resolve().parents[3] / "benchmarks" / "study"
    read = 0
    for folder in sorted(results.iterdir()):
        file = STUDIES / f"{folder.name}.yaml"
        runs = {run.name: run for run in runs_of(read_study(file), file)}
        for result in folder.glob("*.json"):
            assert read_run(folder, runs[result.stem]) is not None  # refuses another identity
            read += 1
    assert read >= 22


@pytest.mark.unit
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arm": {}}, "arm.*did you mean arms"),
        ({"arms": {}}, "arms"),
        ({"parts": ["one", "one"]}, "parts.*twice"),
        ({"parts": ["../up"]}, "no name"),
        ({"compare": [["ful", "LoRA"]]}, "ful.*did you mean full"),
        ({"scores": ["closed_acuracy"]}, "did you mean closed_accuracy"),
        ({"recipe": "nowhere.yaml"}, "neither beside it nor a shipped one"),
    ],
)
def test_a_faulty_study_is_one_line(tmp_path: Path, changes: Any, message: str) -> None:
    file = write_study(tmp_path, **changes)
    with pytest.raises(UserError, match=message):
        runs_of(read_study(file), file)


@pytest.mark.unit
def test_places_must_be_given_and_known(tmp_path: Path) -> None:
    file = write_study(tmp_path)
    study, recipe = read_study(file), tmp_path / "recipe.yaml"
    with pytest.raises(UserError, match="needs --set base=VALUE: the model"):
        Sweep(study, {"one": recipe}, tmp_path, tmp_path, {})
    with pytest.raises(UserError, match="no such place; it has base"):
        Sweep(study, {"one": recipe}, tmp_path, tmp_path, {"base": "x", "bass": "y"})
    with pytest.raises(UserError, match="--set bsae=VALUE"):
        fill("{bsae}", {"base": "x"}, "arm")


@pytest.mark.unit
def test_a_run_is_known_by_what_decides_it_and_not_by_the_machine(tmp_path: Path) -> None:
    def identities(folder: str, **changes: Any) -> dict[str, str]:
        file = write_study(tmp_path / folder, **changes)
        return {run.name: run.identity for run in runs_of(read_study(file), file)}

    first = identities("a")
    assert len(set(first.values())) == 4
    assert identities("b", title="Another title", compare=[["LoRA", "full"]]) == first
    assert identities("c", unit="patient").keys() == first.keys()
    assert not set(identities("d", unit="patient").values()) & set(first.values())
    more = identities("e", arms={**STUDY["arms"], "half": {"losses.alpha": 0.5}})
    assert {name: more[name] for name in first} == first
    (tmp_path / "a" / "recipe.yaml").write_text("train: {max_steps: 3}\n")
    file = tmp_path / "a" / "study.yaml"
    assert not {run.identity for run in runs_of(read_study(file), file)} & set(first.values())


def items(values: list[int], unit: str, kind: str = "") -> list[Item]:
    return [
        {
            "id": f"{unit}-{number}",
            "unit": f"{unit}-{number // 2}",
            "kind": kind,
            "scores": {"closed_accuracy": float(value)},
        }
        for number, value in enumerate(values)
    ]


@pytest.mark.unit
def test_the_table_pools_the_parts_and_tests_pairs_by_item(tmp_path: Path) -> None:
    file = write_study(tmp_path)
    study, runs = read_study(file), runs_of(read_study(file), file)
    values = {
        "LoRA-one": [1, 0, 0, 0, 1, 0],
        "full-one": [1, 1, 0, 1, 1, 0],
        "LoRA-two": [0, 0, 1, 0],
        "full-two": [1, 0, 1, 1],
    }
    for run in runs:
        write_run(tmp_path, run, made_up(run, study, items(values[run.name], run.part)))
    table = table_of(study, runs, tmp_path)
    assert (table.finished, table.planned) == (4, 4)
    assert {one.arm: one.interval.n for one in table.scores} == {"LoRA": 10, "full": 10}
    means = {one.arm: one.interval.value for one in table.scores}
    assert means == pytest.approx({"LoRA": 0.3, "full": 0.7})
    [test] = table.tests
    a, b = (values[f"{arm}-one"] + values[f"{arm}-two"] for arm in ("full", "LoRA"))
    expected = paired_test(a, b, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4])
    assert (test.first, test.second) == ("full", "LoRA")
    assert test.test == expected
    assert max(map(len, lines_of(study, table))) <= 80


@pytest.mark.unit
def test_sets_have_tables_of_their_own(tmp_path: Path) -> None:
    """Items of two sets share their names: pooled they would be one item of the mean."""
    file = write_study(tmp_path, sets=True, scores=["closed_accuracy"])
    study, runs = read_study(file), runs_of(read_study(file), file)
    values = {"LoRA-one": [1, 1], "full-one": [1, 1], "LoRA-two": [0] * 4, "full-two": [1, 0, 0, 0]}
    for run in runs:
        asked = items(values[run.name], "same")
        write_run(tmp_path, run, made_up(run, study, asked))
    table = table_of(study, runs, tmp_path)
    found = {(one.set, one.arm): (one.interval.n, one.interval.value) for one in table.scores}
    assert found == {
        ("one", "LoRA"): (2, 1.0), ("one", "full"): (2, 1.0),
        ("two", "LoRA"): (4, 0.0), ("two", "full"): (4, 0.25),
    }  # fmt: skip
    assert [(one.set, one.test.n) for one in table.tests] == [("one", 2), ("two", 4)]
    assert [one.p_holm for one in table.tests] == holm([one.test.p for one in table.tests])
    assert "closed_accuracy, two (4 items" in "\n".join(lines_of(study, table))


@pytest.mark.unit
def test_items_of_two_units_are_no_seeds(tmp_path: Path) -> None:
    file = write_study(tmp_path)
    study, runs = read_study(file), runs_of(read_study(file), file)
    for run in runs:
        asked: list[Any] = [{**one, "id": f"i{place}", "unit": f"{run.part}-{place}"}
                 for place, one in enumerate(items([1, 0], "x"))]  # fmt: skip
        write_run(tmp_path, run, made_up(run, study, asked))
    with pytest.raises(UserError, match="sets: true"):
        table_of(study, runs, tmp_path)


@pytest.mark.unit
def test_bars_over_different_folds_are_refused_and_marked(tmp_path: Path) -> None:
    from pipelines.figures.results import bars_of_study

    file = write_study(tmp_path)
    study, runs = read_study(file), runs_of(read_study(file), file)
    for run in runs[:3]:
        write_run(tmp_path, run, made_up(run, study, items([1, 0, 1], run.part)))
    with pytest.raises(UserError, match="over different items"):
        bars_of_study(file, tmp_path)
    lines = "\n".join(lines_of(study, table_of(study, runs, tmp_path)))
    assert lines.count("1 of 2 parts") == 1


@pytest.mark.unit
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("medalign 'open", "No closing quotation"),
        ("a {work.x}", "names no place"),
        ("a {work[x]}", "names no place"),
        ("a {}", "names no place"),
        ("a {0}", "names no place"),
        ("a {lost}", "--set lost=VALUE"),
        ("a {work", "braces"),
    ],
)
def test_a_faulty_command_is_one_line(text: str, said: str) -> None:
    from pipelines.sweep.study import command_of

    with pytest.raises(UserError) as error:
        command_of(text, {"work": "w"}, "study.yaml")
    assert said in str(error.value)
    assert command_of("a '{work} b' {{x}}", {"work": "w"}, "s") == ["a", "w b", "{x}"]


@pytest.mark.unit
def test_an_arm_given_twice_is_refused(tmp_path: Path) -> None:
    file = write_study(tmp_path)
    text = file.read_text().replace("arms:\n", "arms:\n  full: {losses.alpha: 9}\n", 1)
    file.write_text(text)
    with pytest.raises(UserError, match="full"):
        read_study(file)


@pytest.mark.unit
def test_arms_are_compared_over_the_items_that_both_have(tmp_path: Path) -> None:
    file = write_study(tmp_path)
    study, runs = read_study(file), runs_of(read_study(file), file)
    for run in runs[:3]:  # both arms in part one, LoRA alone in part two
        write_run(tmp_path, run, made_up(run, study, items([1, 0, 1], run.part)))
    table = table_of(study, runs, tmp_path)
    assert table.tests[0].test.n == 3
    assert {one.arm: one.interval.n for one in table.scores} == {"LoRA": 6, "full": 3}


@pytest.mark.unit
def test_kinds_have_rows_of_their_own_in_one_family(tmp_path: Path) -> None:
    file = write_study(tmp_path, parts=["one"])
    study, runs = read_study(file), runs_of(read_study(file), file)
    for number, run in enumerate(runs):
        asked = items([1] * 8, "a", "box") + items([number] * 8, "b", "side")
        write_run(tmp_path, run, made_up(run, study, asked))
    tests = table_of(study, runs, tmp_path).tests
    assert [one.kind for one in tests] == ["all", "box", "side"]
    assert [one.p_holm for one in tests] == holm([one.test.p for one in tests])


@pytest.mark.unit
def test_alignment_is_tabled_with_the_start(tmp_path: Path) -> None:
    file = write_study(tmp_path, parts=["one"])
    study, runs = read_study(file), runs_of(read_study(file), file)
    for number, run in enumerate(runs):
        rows = [
            {
                "id": f"i{place}",
                "unit": f"p{place}",
                "scores": {
                    "before": {"loss_vis": 0.5 + place / 100},
                    "LoRA": {"loss_vis": 0.5 + place / 100 - 0.1 * number},
                },
            }
            for place in range(8)
        ]
        document = {"arms": ["LoRA"], "items": rows}
        result = made_up(run, study, items([1, 0], "a"), alignment=document)
        write_run(tmp_path, run, result)
    table = table_of(study, runs, tmp_path)
    means = {one.arm: one.interval.value for one in table.scores if one.score == "loss_vis"}
    assert means == pytest.approx({"LoRA": 0.535, "full": 0.435, "before": 0.535})
    tests = {(one.first, one.second): one.test for one in table.tests if one.score == "loss_vis"}
    assert tests["full", "LoRA"].difference == pytest.approx(-0.1)
    assert tests["full", "before"].p == pytest.approx(2 / 2**8)


@pytest.mark.unit
def test_a_result_of_other_settings_is_refused(tmp_path: Path) -> None:
    file = write_study(tmp_path)
    study, [run, *_] = read_study(file), runs_of(read_study(file), file)
    write_run(tmp_path, run, made_up(run, study, []))
    assert read_run(tmp_path, run) is not None
    with pytest.raises(UserError, match=r"other settings.*move it away"):
        read_run(tmp_path, run._replace(identity="0" * 64))
    result_file(tmp_path, run).write_text("{")
    with pytest.raises(UserError, match=r"not JSON.*move it away"):
        read_run(tmp_path, run)


@pytest.mark.unit
@pytest.mark.parametrize(("jobs", "threads"), [(1, "8"), (3, "2"), (16, "1")])
def test_jobs_share_the_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jobs: int, threads: str
) -> None:
    study = read_study(write_study(tmp_path))
    recipes = {"one": tmp_path / "recipe.yaml"}
    sweep = Sweep(study, recipes, tmp_path, tmp_path, {"base": "x"}, jobs)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # so that the test's end puts back what was there
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert sweep.run_all([]) == 0
    assert os.environ["OMP_NUM_THREADS"] == threads
    monkeypatch.setenv("OMP_NUM_THREADS", "5")  # the user's own word stands
    sweep.run_all([])
    assert os.environ["OMP_NUM_THREADS"] == "5"


@pytest.mark.unit
def test_the_plan_times_the_rest_by_what_is_finished(tmp_path: Path) -> None:
    file = write_study(tmp_path)
    study, runs = read_study(file), runs_of(read_study(file), file)
    assert plan_of(runs, tmp_path, 2)["hours"] is None
    write_run(tmp_path, runs[0], made_up(runs[0], study, [], seconds=1200))
    plan = plan_of(runs, tmp_path, 2)
    assert plan["missing"] == ["full-one", "LoRA-two", "full-two"]
    assert plan["hours"] == pytest.approx(3 * 20 / 60 / 2)


# --- with a tiny student


@pytest.mark.integration
def test_a_sweep_runs_what_is_missing_and_tests_it(tmp_path: Path, inputs: dict[str, str]) -> None:
    """Both arms side by side; a second call runs nothing; every number is of the run's files."""
    file = tiny_study(tmp_path)
    first = CliRunner().invoke(app, sweep_command(file, inputs, "--jobs", "2", "--json"))
    assert first.exit_code == 0, first.output
    table = json.loads(first.stdout)
    assert (table["finished"], table["planned"]) == (2, 2)
    assert {one["score"] for one in table["scores"]} >= {"closed_accuracy", "loss_vis", "loss_att"}
    folder = tmp_path / "work" / "runs" / "full" / "one"
    written = (tmp_path / "work" / "results" / "full-one.json").read_text()
    # What is committed names no place of a machine.
    assert not [place for place in (str(tmp_path), *inputs.values()) if place in written]
    result = json.loads(written)
    evaluated = json.loads((folder / "run" / "evaluation" / "result.json").read_text())
    assert len(result["items"]) == evaluated["data"]["items"] == 9
    measured = json.loads((folder / "run" / "alignment.json").read_text())
    kept = result["after"]["alignment"]
    assert kept["arms"] == measured["arms"]
    for one, other in zip(kept["items"], measured["items"], strict=True):  # of six digits
        assert one["scores"]["before"] == pytest.approx(other["scores"]["before"], rel=1e-5)
    assert result["steps"] == 4
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    again = CliRunner().invoke(app, sweep_command(file, inputs))
    assert again.exit_code == 0, again.output
    assert "begins" not in again.output
    assert {path: path.stat().st_mtime_ns for path in before} == before


def at_a_checkpoint(command: list[str], run: Path) -> psutil.Popen:
    """Start a sweep in a process and session of its own; return it once its run has saved."""
    from tests.fixtures.progress import wait_until

    process = psutil.Popen(
        [sys.executable, "-c", "from pipelines.cli import main; main()", *command],
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_until(lambda: any(run.glob("checkpoint-*/trainer_state.json")), process)
    return process


@pytest.mark.slow
@pytest.mark.integration
def test_a_killed_sweep_goes_on_at_its_checkpoint(tmp_path: Path, inputs: dict[str, str]) -> None:
    """Killed with the training inside it once a checkpoint is there; the losses are the same."""
    arms = {"full": {"losses.alpha": 3, "train.max_steps": 40}}
    file = tiny_study(tmp_path, arms=arms)
    folder = tmp_path / "work" / "runs" / "full" / "one"
    process = at_a_checkpoint(sweep_command(file, inputs), folder / "run")
    both = [process, *process.children()]
    os.killpg(process.pid, signal.SIGKILL)
    psutil.wait_procs(both)  # the training holds its run until it is gone
    assert not (tmp_path / "work" / "results" / "full-one.json").exists()
    done = CliRunner().invoke(app, sweep_command(file, inputs))
    assert done.exit_code == 0, done.output
    assert "--resume" in folder.with_suffix(".log").read_text()
    whole = tiny_study(tmp_path / "whole", arms=arms)
    assert CliRunner().invoke(app, sweep_command(whole, inputs)).exit_code == 0
    results = [
        json.loads((place / "work" / "results" / "full-one.json").read_text())
        for place in (tmp_path, tmp_path / "whole")
    ]
    assert results[0]["items"] == results[1]["items"]
    assert results[0]["losses"] == results[1]["losses"]


@pytest.mark.integration
def test_a_stage_ends_with_a_killed_sweep_and_holds_its_run_until_then(
    tmp_path: Path, inputs: dict[str, str]
) -> None:
    """The sweep alone is killed: its training stops too, and nobody else begins before that."""
    import fcntl

    arms = {"full": {"losses.alpha": 3, "train.max_steps": 4000}}
    file = tiny_study(tmp_path, arms=arms)
    folder = tmp_path / "work" / "runs" / "full" / "one"
    process = at_a_checkpoint(sweep_command(file, inputs), folder / "run")
    [training] = process.children()
    training.suspend()
    process.kill()
    process.wait()
    with folder.with_suffix(".lock").open("a") as lock:
        with pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        training.resume()
        fcntl.flock(lock, fcntl.LOCK_EX)  # waits for the training's end
    assert "stopped by SIGTERM" in folder.with_suffix(".log").read_text()


@pytest.mark.integration
def test_a_failed_run_is_named_and_the_others_are_run(
    tmp_path: Path, inputs: dict[str, str]
) -> None:
    arms = {"bad": {"losses.layer": 99}, "LoRA": STUDY["arms"]["LoRA"]}
    file = tiny_study(tmp_path, arms=arms, after={})
    found = CliRunner().invoke(app, sweep_command(file, inputs))
    assert isinstance(found.exception, UserError)
    assert "1 of 2 runs failed, first bad-one" in str(found.exception)
    assert "losses.layer=99" in (tmp_path / "work" / "runs" / "bad" / "one.log").read_text()
    assert (tmp_path / "work" / "results" / "LoRA-one.json").is_file()


@pytest.mark.integration
def test_unknown_choices_are_one_line(tmp_path: Path, inputs: dict[str, str]) -> None:
    file = tiny_study(tmp_path)
    for more, message in (
        (("--only", "ful"), "--only ful"),
        (("--shard", "2/2"), "--shard 2/2"),
        (("--set", "novalue"), "NAME=VALUE"),
    ):
        found = CliRunner().invoke(app, sweep_command(file, inputs, *more))
        assert isinstance(found.exception, UserError)
        assert message in str(found.exception)


@pytest.mark.integration
def test_steps_of_one_last_name_are_kept_apart(tmp_path: Path) -> None:
    """`{work}/wide/one` and `{work}/deep/one` are two steps, each made once."""
    steps = [
        {
            "makes": f"{{work}}/{name}/{{part}}",
            "command": f"student tiny --out {{work}}/{name}/{{part}} {option}",
        }
        for name, option in (("wide", "--width 96"), ("deep", "--layers 3"))
    ]
    file = write_study(tmp_path, steps=steps, parts=["one"])
    work = tmp_path / "work"
    recipes = {"one": tmp_path / "recipe.yaml"}
    sweep = Sweep(read_study(file), recipes, work, work, {"base": "x"})
    sweep.make_steps(["one"])
    made = {name: work / name / "one" / "config.json" for name in ("wide", "deep")}
    times = {name: path.stat().st_mtime_ns for name, path in made.items()}
    assert made["wide"].read_bytes() != made["deep"].read_bytes()
    sweep.make_steps(["one"])
    assert {name: path.stat().st_mtime_ns for name, path in made.items()} == times
