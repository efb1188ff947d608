"""Evaluations in a run, the best checkpoint, early stopping; export, inspect, dry run.

Options that change no loss.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import student_train
from shared.errors import UserError
from student_train.adapter.export import export
from student_train.run.dry_run import dry_run
from student_train.run.inspect import inspect
from student_train.run.train import train
from tests.fixtures import student_runs
from tests.fixtures.student_runs import write_run, write_train_file

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def values(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation")
    values = write_run(folder)
    names = [f"image{number}.png" for number in range(6)]
    values["data"]["validation"] = str(write_train_file(folder / "validation.json", names, 5))
    values["evaluation"] = {"max_new_tokens": 4, "batch_size": 2}
    return values


def recipe(values, **changes):
    """The recipe with changes.

    The validation file is named only where evaluations are asked for.
    """
    if "train__eval_steps" not in changes:
        changes["data__validation"] = None
    return student_runs.recipe(values, **changes)


def history(output):
    return json.loads((Path(output) / "trainer_state.json").read_text())["log_history"]


def test_evaluation_losses_and_sample_answers(values, tmp_path):
    output = train(
        recipe(values, output=str(tmp_path / "run"), train__eval_steps=1, train__sample_answers=2)
    )
    rows = [row for row in history(output) if "eval_loss" in row]
    assert len(rows) == 3
    for row in rows:
        total = row["eval_loss_lm"] + row["eval_loss_vis"] + 0.1 * row["eval_loss_att"]
        assert row["eval_loss"] == pytest.approx(total, rel=1e-5)
    samples = [json.loads(line) for line in (output / "samples.jsonl").read_text().splitlines()]
    assert [sample["step"] for sample in samples] == [1, 1, 2, 2, 3, 3]
    assert {"id", "question", "reference", "answer"} <= samples[0].keys()


def test_evaluations_do_not_change_the_training(values, tmp_path):
    plain = train(recipe(values, output=str(tmp_path / "plain"), lora__dropout=0.2))
    watched = train(
        recipe(values, output=str(tmp_path / "watched"), lora__dropout=0.2, train__eval_steps=1)
    )
    curves = [
        [row["loss"] for row in history(output) if "loss_lm" in row] for output in (plain, watched)
    ]
    assert curves[0] == curves[1]


def test_a_term_that_is_off_is_not_logged_as_0(values, tmp_path, capsys):
    settings = {"losses__beta": 0.0, "train__eval_steps": 3}
    output = train(recipe(values, output=str(tmp_path / "run"), **settings))
    said = capsys.readouterr().err.splitlines()
    rows = [row for row in history(output) if "loss_lm" in row or "eval_loss_lm" in row]
    assert len(rows) == 4
    for row in rows:
        assert not [name for name in row if "att" in name or name == "beta"]
        assert row.get("alpha") == (None if "eval_loss" in row else 1.0)
    assert "loss_att" not in str(inspect(output)["last losses"])
    assert "loss_att" not in (output / "README.md").read_text()
    # What a person reads of it, in 80 columns.
    last = rows[-2]
    step = f"step 3/3  loss {last['loss']:.4g}  lm {last['loss_lm']:.4g}"
    assert any(line.startswith(f"{step}  vis {last['loss_vis']:.4g}") for line in said)
    assert f"eval 3/3  loss {rows[-1]['eval_loss']:.4g}  lm " in "\n".join(said)
    assert max(map(len, (line for line in said if line[:5] in ("step ", "eval ")))) <= 80


def test_the_evaluation_batch_does_not_matter(values, tmp_path):
    results = []
    for size in (1, 3):
        settings = {
            "train__batch_size": size,
            "train__accumulation": 1,
            "train__eval_steps": 1,
            "train__max_steps": 1,
        }
        settings |= {"train__learning_rate": 1e-12, "train__sample_answers": 0}
        output = train(recipe(values, output=str(tmp_path / f"run{size}"), **settings))
        results.append(next(row for row in history(output) if "eval_loss" in row))
    for name in ("eval_loss", "eval_loss_lm", "eval_loss_vis", "eval_loss_att"):
        assert results[0][name] == pytest.approx(results[1][name], rel=1e-4)


def test_the_best_checkpoint_is_kept_and_the_run_stops_early(values, tmp_path):
    scores = iter([0.1, 0.9, 0.5, 0.4, 0.3, 0.2])
    asked = []

    def score(records, answers):
        asked.append((len(records), len(answers)))
        return {"accuracy": next(scores)}

    settings = {
        "train__epochs": 4.0,
        "train__eval_steps": 1,
        "train__best_metric": "accuracy",
        "train__early_stopping": 2,
        "train__keep_checkpoints": 2,
    }
    output = train(recipe(values, output=str(tmp_path / "run"), **settings), score=score)
    state = json.loads((output / "trainer_state.json").read_text())
    assert state["best_global_step"] == 2
    assert state["global_step"] == 4  # two evaluations without a better score
    assert asked == [(5, 5)] * 4
    for name in ("adapter_model.safetensors", "rotation.safetensors"):
        assert (output / name).read_bytes() == (output / "checkpoint-2" / name).read_bytes()
    student_train.load(output)


@pytest.mark.parametrize("kind", ["full", "none", "orthogonal"])
def test_export_merges_lora_and_keeps_w(values, tmp_path, kind):
    rotation = {"kind": kind, "rank": 4, "learning_rate": 0.1}
    output = train(recipe(values, output=str(tmp_path / "run"), rotation=rotation))
    merged = export(output, tmp_path / "merged")
    assert not (merged / "adapter_config.json").exists()
    assert (merged / "rotation.safetensors").exists() == (kind != "none")
    for folder, library in ((output, "peft"), (merged, "transformers")):
        card = (folder / "README.md").read_text()
        assert f"library_name: {library}\n" in card
        assert ("rotation.safetensors" in card) == (kind != "none")
        assert ("PEFT would drop W" in card) == (kind != "none" and folder == output)
    ours, processor = student_train.load(output)
    theirs, other = student_train.load(merged)
    images = [[f"{values['data']['image_root']}/image{number}.png"] for number in (0, 1)]
    questions = ["What is shown?", "Where is the longer question looking?"]
    with torch.no_grad():
        expected = ours(**processor.encode(questions, images)).logits
        found = theirs(**other.encode(questions, images)).logits
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-3)
    answer = theirs.generate(**other.encode(questions[0], images[0]), max_new_tokens=4)
    assert answer.shape[1] > 4
    with pytest.raises(UserError, match="is not empty"):
        export(output, merged)
    if kind != "none":
        (merged / "rotation.safetensors").unlink()
        with pytest.raises(UserError, match=r"holds no rotation\.safetensors"):
            student_train.load(merged)


@pytest.mark.parametrize(
    "lora",
    [
        {"rslora": True},
        {"dora": True},
        {"init": "pissa"},
        {"init": "olora"},
        {"init": "pissa", "rslora": True},
    ],
)
def test_variants_of_lora_load_on_the_untouched_base(values, tmp_path, lora, monkeypatch):
    from student_train.run import trainer

    kept = {}
    save_model = trainer.AlignmentTrainer.save_model

    def keeping(self, *args, **kwargs):
        kept["model"] = self.model
        save_model(self, *args, **kwargs)

    monkeypatch.setattr(trainer.AlignmentTrainer, "save_model", keeping)
    output = train(
        recipe(
            values, output=str(tmp_path / "run"), lora={"r": 4, "alpha": 8, "dropout": 0.0, **lora}
        )
    )
    model, processor = student_train.load(output)
    batch = processor.encode(["What is shown?"], [[f"{values['data']['image_root']}/image0.png"]])
    with torch.no_grad():
        torch.testing.assert_close(
            model(**batch).logits, kept["model"].eval()(**batch).logits, atol=2e-4, rtol=1e-3
        )


def test_inspect(values, tmp_path):
    output = train(recipe(values, output=str(tmp_path / "run")))
    found: Any = inspect(output)
    assert found["lora"].startswith("28 pairs of rank 4")
    assert found["W 2.weight"].startswith("32x32, Frobenius norm ")
    assert found["steps"] == "3 of 3"
    assert "loss_att" in found["last losses"]
    with pytest.raises(UserError, match=r"holds no adapter_config\.json"):
        inspect(tmp_path)


@pytest.mark.parametrize("deepspeed", ["none", "zero2", "zero3-offload"])
def test_a_dry_run_checks_everything_and_writes_nothing(values, tmp_path, deepspeed):
    found: Any = dry_run(recipe(values, output=str(tmp_path / "run"), deepspeed=deepspeed))
    assert found["records"] == 12
    assert found["optimiser steps"] == "3 of 4 samples"
    assert found["trainable parameters"] > 0
    assert found["model states per device"].endswith(" kB")
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match="layer"):
        dry_run(recipe(values, output=str(tmp_path / "run"), losses__layer=12))


def test_a_dry_run_says_what_does_not_fit_and_looks_at_resuming(
    values, tmp_path, monkeypatch, capsys
):
    asked = recipe(values, output=str(tmp_path / "run"), train__max_steps=2, train__save_steps=1)
    dry_run(asked)
    assert "warning" not in capsys.readouterr().err
    monkeypatch.setattr("student_train.run.dry_run._free_memory", lambda cpu: 1000)
    dry_run(asked)
    assert "the model states alone need 4" in capsys.readouterr().err
    with pytest.raises(UserError, match="no run to resume"):
        dry_run(asked, resume=True)
    train(asked)
    assert dry_run(asked, resume=True)["records"] == 12
    with pytest.raises(UserError, match="already holds a run"):
        dry_run(asked)


def test_several_teachers_and_layers_are_averaged(values, tmp_path):
    from tests.fixtures.student_runs import write_store

    folder = Path(values["data"]["image_root"])
    names = [f"image{number}.png" for number in range(6)]
    write_store(tmp_path / "store", folder, names)
    write_store(tmp_path / "store", folder, names[::-1], teacher="unimed-b")

    def first(name, **changes):
        settings = {"targets__store": str(tmp_path / "store"), "train__max_steps": 1}
        row = history(train(recipe(values, output=str(tmp_path / name), **settings, **changes)))[0]
        return row["loss_vis"], row["loss_att"]

    single = {
        (teacher, layer): first(f"{teacher}{layer}", targets__teacher=teacher, losses__layer=layer)
        for teacher in ("dinov2-small", "unimed-b")
        for layer in (1, 3)
    }
    both = first("both", targets__teacher=["dinov2-small", "unimed-b"], losses__layer=[1, 3])
    for term in (0, 1):
        mean = sum(pair[term] for pair in single.values()) / 4
        assert both[term] == pytest.approx(mean, rel=1e-4)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("warmup", [0.0, 0.5, 1.0, 1.0]),
        ("linear", [1.0, 0.75, 0.5, 0.25]),
        ("cosine", [1.0, 0.853553, 0.5, 0.146447]),
    ],
)
def test_weights_follow_their_schedule(values, tmp_path, schedule, expected):
    settings = {
        "losses__alpha_schedule": schedule,
        "losses__schedule_ratio": 0.5,
        "train__max_steps": 4,
    }
    output = train(recipe(values, output=str(tmp_path / "run"), **settings, train__epochs=2.0))
    rows = [row for row in history(output) if "loss_lm" in row]
    for row, alpha in zip(rows, expected, strict=True):
        assert row["loss"] == pytest.approx(
            row["loss_lm"] + alpha * row["loss_vis"] + 0.1 * row["loss_att"], rel=1e-5
        )


@pytest.mark.parametrize(
    "change",
    [
        {"train__gradient_checkpointing": True},
        {"model__attention": "eager"},
        {"data__workers": 1},
        {"data__group_by_segment": False},
    ],
    ids=["checkpointing", "eager", "worker", "plain order"],
)
def test_losses_and_gradients_do_not_depend_on_how_they_are_computed(values, tmp_path, change):
    first = history(train(recipe(values, output=str(tmp_path / "a"))))
    second = history(train(recipe(values, output=str(tmp_path / "b"), **change)))
    for row, other in zip(first, second, strict=True):
        for name in ("loss", "loss_lm", "loss_vis", "loss_att", "grad_norm"):
            if name in row:
                assert row[name] == pytest.approx(other[name], rel=2e-4, abs=1e-6)
