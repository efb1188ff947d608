"""Evaluations of a small run.

The table's shape, what survives a kill, what no batch or rank may change.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipelines.decoding.methods import TABLE
from pipelines.evaluation import answers as answers_module
from pipelines.evaluation.arms import find_arms
from pipelines.evaluation.compare import compare
from pipelines.evaluation.generate import generate_answer
from pipelines.evaluation.items import sampled
from pipelines.evaluation.lines import table_lines
from pipelines.evaluation.run import evaluate
from pipelines.evaluation.scores import Row, Scored, comparison_pairs, identical_outputs
from pipelines.metrics.items import item_scores
from shared.errors import UserError
from shared.records import Record, Turn, load_records, write_records
from tests.fixtures.runs import write_run

pytestmark = pytest.mark.integration

PROGRAM = """
import sys
import typer
from pipelines.evaluation.commands import evaluate_command
from shared.console import run
app = typer.Typer()
app.command()(evaluate_command)
run(app, "evaluate")
"""

DYING = """
from pipelines.evaluation.journal import Journal
from tests.fixtures.progress import Countdown
append, count = Journal.append, Countdown(7)
def counted(self, answers):
    count()
    append(self, answers)
Journal.append = counted
"""


@pytest.fixture(scope="module")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("run"))


def data_of(run: Path) -> Path:
    return run / "data" / "test.json"


def scores_of(result: Any) -> Any:
    """The part of a result that no kill, batch or rank may change."""
    rows = [
        {key: row[key] for key in ("method", "adapter", "decoding", "scores")}
        for row in result["rows"]
    ]
    return [
        rows,
        result["comparisons"],
        result["identical_outputs"],
        result["power"],
        result["data"],
    ]


def answer_files(out: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted((out / "answers").iterdir())}


def test_the_full_table(small_run: Path, tmp_path: Path) -> None:
    result = evaluate(
        small_run, data_of(small_run), methods=["all"], out=tmp_path, max_new_tokens=6
    )
    names = [row["method"] for row in result["rows"]]
    assert names == [*(f"LoRA + {name}" for name in TABLE), "MEDALIGN + beam"]
    for row in result["rows"]:
        assert row["decoding"]["method"] == row["method"].rpartition(" ")[2]
        for score in row["scores"].values():
            low, high = score["interval"]
            assert 0 <= low <= score["value"] <= high <= 1
            assert score["n"] > 0
        assert row["scores"]["open_recall"]["n"] == 4
        assert row["scores"]["closed_accuracy"]["n"] == 8
    first = result["comparisons"][0]
    assert (first["a"], first["b"]) == ("MEDALIGN + beam", "LoRA + beam")
    assert all(one["p_holm"] >= one["p_permutation"] for one in result["comparisons"])
    assert {"sha256", "items", "images", "clusters", "cluster"} <= set(result["data"])
    assert {"torch", "transformers", "python"} <= set(result["software"])
    passes = {row["method"]: row["forward_passes_per_token"] for row in result["rows"]}
    assert passes["LoRA + greedy"] == 1.0
    assert passes["LoRA + vcd"] == pytest.approx(7 / 6)  # two for the first of six tokens
    rows_run = {row["method"]: row["sequence_passes_per_token"] for row in result["rows"]}
    assert rows_run["LoRA + greedy"] == 1.0  # each of an item's steps runs one row of it
    assert rows_run["LoRA + vcd"] == 2.0
    assert rows_run["LoRA + beam"] == 5.0
    assert json.loads((tmp_path / "result.json").read_text()) == json.loads(json.dumps(result))
    text = "\n".join(table_lines(result))
    assert "open_recall (n=4)" in text
    assert "MEDALIGN + beam - LoRA + beam" in text
    assert result["data"]["without_image"] == 0
    assert "no image" not in text
    result["data"]["without_image"] = 3
    assert "WARNING: 3 items show no image: asked by text alone" in "\n".join(table_lines(result))


def test_nothing_is_answered_twice(
    small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = evaluate(
        small_run, data_of(small_run), methods=["greedy", "vcd"], out=tmp_path, max_new_tokens=4
    )

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("the journal holds every answer")

    monkeypatch.setattr(answers_module, "_decode", refuse)
    again = evaluate(
        small_run, data_of(small_run), methods=["greedy", "vcd"], out=tmp_path, max_new_tokens=4
    )
    assert scores_of(again) == scores_of(first)
    with pytest.raises(AssertionError, match="every answer"):  # another setting is another answer
        evaluate(small_run, data_of(small_run), methods=["greedy"], out=tmp_path, max_new_tokens=5)


@pytest.mark.parametrize("name", ["nucleus", "damro"])
def test_batch_size_changes_no_answer(small_run: Path, tmp_path: Path, name: str) -> None:
    found = []
    for size in (1, 5):
        out = tmp_path / str(size)
        result = evaluate(
            small_run,
            data_of(small_run),
            methods=[name],
            out=out,
            batch_size=size,
            max_new_tokens=4,
            seed=9,
        )
        found.append((scores_of(result), answer_files(out)))
    assert found[0] == found[1]


def command(run: Path, out: Path, *more: str) -> list[str]:
    return [
        sys.executable,
        "-c",
        PROGRAM,
        "--run",
        str(run),
        "--out",
        str(out),
        "--max-new-tokens",
        "6",
        *more,
    ]


def test_a_killed_run_continues_to_the_same_table(small_run: Path, tmp_path: Path) -> None:
    """kill -9 in the middle, a torn line on top, then the same command again."""
    calm = evaluate(
        small_run,
        data_of(small_run),
        methods=["nucleus", "opera", "m3id"],
        out=tmp_path / "calm",
        max_new_tokens=6,
    )
    broken = tmp_path / "broken"
    more = ("--decode", "nucleus,opera,m3id", "--batch-size", "2")
    dying = [sys.executable, "-c", DYING + PROGRAM, *command(small_run, broken, *more)[3:]]
    died = subprocess.run(dying, capture_output=True, check=False)
    assert died.returncode == -signal.SIGKILL, died.stderr
    journal = broken / "journal" / "answers-0.jsonl"
    kept = journal.read_bytes()
    assert not (broken / "result.json").exists()
    journal.write_bytes(kept[:-7])  # as if the kill had come inside the last write
    done = subprocess.run(
        command(small_run, broken, *more, "--json"), capture_output=True, text=True, check=True
    )
    assert journal.read_bytes().startswith(kept[: kept[:-7].rfind(b"\n") + 1])
    assert scores_of(json.loads(done.stdout)) == scores_of(json.loads(json.dumps(calm)))
    assert answer_files(broken) == answer_files(tmp_path / "calm")


def test_ranks_share_the_items(small_run: Path, tmp_path: Path) -> None:
    alone = evaluate(
        small_run,
        data_of(small_run),
        methods=["nucleus", "beam"],
        out=tmp_path / "alone",
        max_new_tokens=6,
    )
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    # torchrun reads an unmarked --run as an abbreviation of its own --run-path, hence the --.
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "--",
        str(script),
    ]
    arguments = command(small_run, tmp_path / "shared", "--decode", "nucleus,beam")[3:]
    environment = os.environ | {
        "PYTHONPATH": str(Path(__file__).resolve().parents[3]),
        "OMP_NUM_THREADS": "1",
    }
    subprocess.run([*launcher, *arguments], check=True, capture_output=True, env=environment)
    result = json.loads((tmp_path / "shared" / "result.json").read_text())
    assert scores_of(result) == scores_of(json.loads(json.dumps(alone)))
    assert answer_files(tmp_path / "shared") == answer_files(tmp_path / "alone")
    written = [
        len(path.read_text().splitlines()) for path in (tmp_path / "shared" / "journal").iterdir()
    ]
    assert written == [24, 24]


def test_identical_answers_raise_the_alarm(small_run: Path, tmp_path: Path) -> None:
    twin = tmp_path / "twin"
    shutil.copytree(small_run / "lora", twin)
    arms = {"one": small_run / "lora", "two": twin}
    result = evaluate(
        arms, data_of(small_run), methods=["greedy"], out=tmp_path / "out", max_new_tokens=4
    )
    assert result["identical_outputs"] == [["one + greedy", "two + greedy"]]
    assert "ALARM: one + greedy and two + greedy gave byte-identical answers" in list(
        table_lines(result)
    )


def test_compare_pairs_two_evaluations(small_run: Path, tmp_path: Path) -> None:
    for arm in ("lora", "medalign"):
        evaluate(
            small_run / arm,
            data_of(small_run),
            methods=["greedy", "nucleus"],
            out=tmp_path / arm,
            max_new_tokens=4,
        )
    result = compare(tmp_path / "medalign", tmp_path / "lora")
    assert [
        (one["a"], one["b"]) for one in result["comparisons"] if one["score"] == "open_recall"
    ] == [
        ("A: MEDALIGN + greedy", "B: LoRA + greedy"),
        ("A: MEDALIGN + nucleus", "B: LoRA + nucleus"),
    ]
    crossed = compare(
        tmp_path / "medalign", tmp_path / "lora", "MEDALIGN + greedy", "LoRA + nucleus"
    )
    assert {(one["a"], one["b"]) for one in crossed["comparisons"]} == {
        ("A: MEDALIGN + greedy", "B: LoRA + nucleus")
    }
    with pytest.raises(UserError, match="there is no row 'greedy'"):
        compare(tmp_path / "medalign", tmp_path / "lora", "greedy")
    records = load_records(data_of(small_run))
    other = small_run / "data" / "other.json"
    write_records(other, records[:6])
    evaluate(
        small_run / "lora", other, methods=["greedy"], out=tmp_path / "other", max_new_tokens=4
    )
    with pytest.raises(UserError, match="different items: 6 ids are in one alone"):
        compare(tmp_path / "lora", tmp_path / "other")
    with pytest.raises(UserError, match="run `medalign evaluate` first"):
        compare(tmp_path, tmp_path / "lora")


def test_generate_is_one_answer_of_the_evaluation(small_run: Path, tmp_path: Path) -> None:
    evaluate(small_run, data_of(small_run), methods=["beam"], out=tmp_path, max_new_tokens=6)
    lines = [
        json.loads(line)
        for line in (tmp_path / "answers" / "medalign-beam.jsonl").read_text().splitlines()
    ]
    image = str(small_run / "data" / "1.png")
    answer = generate_answer(small_run, image, lines[3]["question"], max_new_tokens=6)
    assert answer == lines[3]["prediction"]
    question = lines[3]["question"]
    blind = generate_answer(small_run, [], question, max_new_tokens=6)
    twice = generate_answer(
        small_run, [image, image], question, method="vcd", preset="equal", max_new_tokens=6
    )
    assert len({answer, blind, twice}) > 1
    with pytest.raises(UserError, match="no preset is called"):
        generate_answer(small_run, image, question, preset="equals")
    with pytest.raises(UserError, match="no image at"):
        generate_answer(small_run, str(tmp_path / "none.png"), "What?")


def test_states_are_saved_for_figures(small_run: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    evaluate(
        small_run,
        data_of(small_run),
        out=tmp_path,
        max_new_tokens=2,
        limit=12,
        save_layers=(0, 2, 3),
        save_items=["0-0"],
    )
    states = {
        arm: load_file(tmp_path / "states" / arm / "0-0.safetensors")
        for arm in ("lora", "medalign")
    }
    for one in states.values():
        assert set(one) == {
            "ids",
            *(f"{kind}.{layer}" for kind in ("hidden", "attention") for layer in (0, 2, 3)),
        }
        assert one["attention.2"].shape == (16,)
        assert 0 < float(one["attention.2"].sum()) < 1
    # Layer 0 sees embeddings, which no adapter touches; what enters layer 2 is rotated in one arm
    # alone.
    assert (states["lora"]["hidden.0"] == states["medalign"]["hidden.0"]).all()
    assert (states["lora"]["hidden.2"] != states["medalign"]["hidden.2"]).any()
    with pytest.raises(UserError, match=r"decoder layers 0\.\.3"):
        evaluate(small_run, data_of(small_run), out=tmp_path, save_layers=(4,), save_items=["0-0"])


def test_errors_name_the_way_out(small_run: Path, tmp_path: Path) -> None:
    data = data_of(small_run)
    with pytest.raises(UserError, match="holds no adapter"):
        find_arms(tmp_path)
    with pytest.raises(UserError, match="did you mean greedy"):
        evaluate(small_run, data, methods=["gredy"], out=tmp_path)
    with pytest.raises(UserError, match="did you mean alpha"):
        evaluate(small_run, data, methods=["vcd"], overrides=["vcd.alpa=1"], out=tmp_path)
    with pytest.raises(UserError, match="not among the methods"):
        evaluate(small_run, data, methods=["greedy"], overrides=["vcd.alpha=1"], out=tmp_path)
    question = Record("q", ("0.png",), (Turn("human", "<image>\nWhat?"),))
    write_records(small_run / "data" / "open.json", [question])
    with pytest.raises(UserError, match="no reference answer, first id q"):
        evaluate(small_run, small_run / "data" / "open.json", out=tmp_path)
    talk = Record(
        "t",
        ("0.png",),
        (
            Turn("human", "<image>\nWhat?"),
            Turn("gpt", "a"),
            Turn("human", "And?"),
            Turn("gpt", "b"),
        ),
    )
    write_records(small_run / "data" / "talk.json", [talk])
    with pytest.raises(UserError, match="several questions, first id t"):
        evaluate(small_run, small_run / "data" / "talk.json", out=tmp_path)


def test_which_scores_an_item_has() -> None:
    def record(answer: str, kind: Any, options: tuple[str, ...] = ()) -> Record:
        return Record("1", (), (Turn("human", "?"), Turn("gpt", answer)), kind, options)

    assert set(item_scores(record("left lung", "OPEN"), "x")) == {
        "open_recall",
        "open_recall_strict",
        "open_f1_strict",
        "open_exact_strict",
    }
    closed = {"closed_accuracy", "closed_accuracy_strict"}
    assert set(item_scores(record("left", "CLOSED"), "x")) == closed
    report = Record("1", (), record("clear lungs", None).turns, extra={"task": "report"})
    assert set(item_scores(report, "x")) == {"bleu", "rouge_l"}
    omni = Record(
        "1", (), record("Yes", "CLOSED").turns, "CLOSED", ("Yes", "No"), {"option_A": "Yes"}
    )
    assert set(item_scores(omni, "Yes")) == {"choice_accuracy", "choice_accuracy_strict"}
    assert set(item_scores(record("Yes", "CLOSED", ("yes", "no")), "x")) == closed | {
        "closed_yes_no"
    }
    assert set(item_scores(record("yes", None), "x")) == closed | {"closed_yes_no"}
    assert set(item_scores(record("ct", None, ("ct", "mri")), "x")) == {
        "choice_accuracy",
        "choice_accuracy_strict",
    }


def test_a_limit_is_a_sample_in_the_files_order() -> None:
    records = [
        Record(str(number), (), (Turn("human", "?"), Turn("gpt", "a"))) for number in range(100)
    ]
    few = [int(record.id) for record in sampled(records, 20)]
    assert few == sorted(set(few))
    assert len(few) == 20
    assert max(few) > 80
    assert sampled(records, None) == sampled(records, 100) == records


def test_which_rows_are_compared() -> None:
    rows = [Row(f"L {name}", "L", {"method": name}) for name in ("greedy", "beam")]
    full = [*rows, Row("M beam", "M", {"method": "beam"})]
    assert comparison_pairs(full) == [("M beam", "L beam"), ("M beam", "L greedy")]
    both = [*full[:2], Row("M greedy", "M", {"method": "greedy"}), full[2]]
    assert comparison_pairs(both) == [("M greedy", "L greedy"), ("M beam", "L beam")]
    assert comparison_pairs(rows) == [("L beam", "L greedy")]
    twins = {
        name: Scored(texts, [], []) for name, texts in (("a", ["x"]), ("b", ["y"]), ("c", ["x"]))
    }
    assert identical_outputs(twins) == [["a", "c"]]
