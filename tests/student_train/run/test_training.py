"""Whole small runs: what is written, what is logged, what a fresh process loads."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import student_train
from shared.errors import UserError
from student_train.run.train import train
from tests.fixtures.student_runs import changed, recipe, write_run

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def values(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("student"))


def history(output):
    return json.loads((Path(output) / "trainer_state.json").read_text())["log_history"]


def logits_of(model, processor, images):
    batch = processor.encode(
        ["What is shown?", "Where is the longer question looking?"], [[images[0]], [images[1]]]
    )
    with torch.no_grad():
        return model(**batch).logits[:, -3:]


IN_A_NEW_PROCESS = """
import sys, torch
import student_train
model, processor = student_train.load(sys.argv[1])
questions = ["What is shown?", "Where is the longer question looking?"]
batch = processor.encode(questions, [[sys.argv[2]], [sys.argv[3]]])
with torch.no_grad():
    torch.save(model(**batch).logits[:, -3:], sys.argv[4])
"""


def test_the_adapter_gives_the_same_logits_in_a_new_process(values, tmp_path, monkeypatch):
    from student_train.run.trainer import AlignmentTrainer

    trained = {}

    class Kept(AlignmentTrainer):
        def save_model(self, *args, **kwargs):
            trained["model"] = self.model
            super().save_model(*args, **kwargs)

    monkeypatch.setattr("student_train.run.trainer.AlignmentTrainer", Kept)
    output = train(recipe(values, output=str(tmp_path / "run"), deepspeed="zero2"))
    assert not torch.distributed.is_initialized()  # the next run may be of another
    images = [f"{values['data']['image_root']}/image{number}.png" for number in (0, 1)]
    _, processor = student_train.load(output)
    model = trained["model"].eval()
    assert model.get_base_model().rotation["2"].weight.abs().max() > 0
    expected = logits_of(model, processor, images)
    out = tmp_path / "logits.pt"
    subprocess.run([sys.executable, "-c", IN_A_NEW_PROCESS, output, *images, out], check=True)
    assert torch.equal(expected, torch.load(out, weights_only=True))
    with model.disable_adapter():
        assert not torch.equal(expected, logits_of(model, processor, images))


def test_what_is_written_and_logged(values, tmp_path):
    from safetensors.torch import load_file

    output = train(recipe(values, output=str(tmp_path / "run")))
    names = {path.name for path in output.iterdir()}
    assert {
        "adapter_model.safetensors",
        "adapter_config.json",
        "rotation.safetensors",
        "recipe.yaml",
        "README.md",
    } <= names
    assert not any(name.startswith(".") for name in names)
    rows = [row for row in history(output) if "loss_lm" in row]
    assert len(rows) == 3
    for row in rows:
        assert row["loss"] == pytest.approx(
            row["loss_lm"] + row["loss_vis"] + 0.1 * row["loss_att"], rel=1e-5
        )
        assert row["loss_vis"] > 0
        assert row["loss_att"] > 0
    assert rows[-1]["loss_lm"] < rows[0]["loss_lm"]
    lora = load_file(output / "adapter_model.safetensors")
    assert len(lora) == 4 * 7 * 2  # every linear layer of four decoder layers
    assert all(".language_model.layers." in name for name in lora)
    assert set(load_file(output / "rotation.safetensors")) == {"2.weight"}
    card = (output / "README.md").read_text()
    assert "Not for clinical use" in card
    assert "licence" in card


@pytest.mark.parametrize("deepspeed", ["none", "zero2", "zero3"])
def test_bfloat16_keeps_a_float32_adapter(values, tmp_path, deepspeed):
    from safetensors.torch import load_file

    settings = {"train__learning_rate": 1e-5, "train__save_steps": 0}
    full = train(recipe(values, output=str(tmp_path / "full"), **settings))
    half = train(
        recipe(
            values,
            output=str(tmp_path / "half"),
            train__precision="bf16",
            deepspeed=deepspeed,
            **settings,
        )
    )
    for row, other in zip(history(full), history(half), strict=True):
        for name in ("loss_lm", "loss_vis", "loss_att"):
            if name in row:
                assert other[name] == pytest.approx(row[name], rel=0.05), name
    saved = load_file(half / "adapter_model.safetensors") | load_file(half / "rotation.safetensors")
    for name, tensor in saved.items():
        assert tensor.dtype == torch.float32
        # Steps of 1e-5 on values of 0.1 are not to be seen in bfloat16: the master that takes them
        # is float32.
        assert not torch.equal(tensor, tensor.bfloat16().float()), name


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_bare_peft_loads_the_lora_part(values, tmp_path):
    from peft import PeftModel

    from student_train.models import load_base

    output = train(recipe(values, output=str(tmp_path / "run"), rotation__kind="none"))
    assert not (output / "rotation.safetensors").exists()
    ours, processor = student_train.load(output)
    base = load_base(recipe(values).model)
    theirs = PeftModel.from_pretrained(base.model, str(output)).eval()
    images = [f"{values['data']['image_root']}/image{number}.png" for number in (0, 1)]
    assert torch.equal(logits_of(ours, processor, images), logits_of(theirs, processor, images))


@pytest.fixture
def gradients(monkeypatch):
    """The gradients that the optimiser saw at the last step, by name."""
    from student_train.run.trainer import AlignmentTrainer

    seen = {}
    create = AlignmentTrainer.create_optimizer

    def created(self, model=None):
        def look(*_):
            seen.update(
                {
                    name: one.grad.clone()
                    for name, one in self.model.named_parameters()
                    if one.requires_grad
                }
            )

        optimizer = create(self, model)
        optimizer.register_step_pre_hook(look)
        return optimizer

    monkeypatch.setattr(AlignmentTrainer, "create_optimizer", created)
    return seen


@pytest.mark.parametrize(
    ("alpha", "beta", "normalization"),
    # all terms; then one at a time beside L_LM, so that a wrong share of it cannot hide behind
    # another
    [
        (1.0, 0.1, "renormalized"),
        (30.0, 0.0, "renormalized"),
        (0.0, 30.0, "renormalized"),
        (0.0, 30.0, "softmax"),
        (0.0, 30.0, "l2"),
    ],
)
def test_eight_times_one_is_one_times_eight(tmp_path, alpha, beta, normalization, gradients):
    mixed = write_run(tmp_path / "mixed", records=8, text_only=2)
    results = []
    for size, steps in ((8, 1), (1, 8), (3, 3)):
        settings = {
            "train__batch_size": size,
            "train__accumulation": steps,
            "train__max_steps": 1,
            "train__max_grad_norm": 0.0,
            "losses__attention_normalization": normalization,
            "losses__alpha": alpha,
            "losses__beta": beta,
        }
        output = train(recipe(mixed, output=str(tmp_path / f"{size}x{steps}"), **settings))
        [row] = [row for row in history(output) if "loss_lm" in row]
        results.append((row, dict(gradients)))
    (row, expected), *others = results
    largest = max(float(one.abs().max()) for one in expected.values())
    assert largest > 0
    for other, found in others:
        assert other.keys() == row.keys()
        for term in {"loss", "loss_lm", "loss_vis", "loss_att"} & row.keys():
            assert other[term] == pytest.approx(row[term], rel=2e-4, abs=1e-7), term
        assert found.keys() == expected.keys()
        for name, gradient in found.items():
            torch.testing.assert_close(
                gradient, expected[name], atol=1e-5 * largest, rtol=1e-3, msg=name
            )


def test_data_without_an_image_train_with_loss_lm_alone(values, tmp_path):
    text = write_run(tmp_path / "text", records=4, text_only=4)
    with pytest.raises(UserError, match=r"shows no image, so losses.alpha and losses.beta"):
        train(recipe(text, output=str(tmp_path / "refused")))
    output = train(recipe(text, output=str(tmp_path / "run"), losses__alpha=0.0, losses__beta=0.0))
    assert [row["loss_lm"] for row in history(output) if "loss_lm" in row]


def test_the_projector_warm_up_is_a_base_for_the_next_run(values, tmp_path):
    from student_train.models import load_base

    first = train(
        recipe(
            values,
            output=str(tmp_path / "warm"),
            train__tune="projector",
            targets__store=None,
            deepspeed="zero2",
        )
    )
    before, after = load_base(recipe(values).model).model, load_base(str(first)).model
    moved = {
        name
        for name, tensor in after.state_dict().items()
        if not torch.equal(tensor, before.state_dict()[name])
    }
    assert moved
    assert all(".multi_modal_projector." in name for name in moved)
    second = train(recipe(values, output=str(tmp_path / "run"), model={"name": str(first)}))
    student_train.load(second)


def test_the_command_line(values, tmp_path):
    import yaml

    path = tmp_path / "recipe.yaml"
    path.write_text(
        yaml.safe_dump(changed(values, output=str(tmp_path / "run"), deepspeed="zero2"))
    )
    command = [
        sys.executable,
        "-m",
        "student_train",
        "train",
        str(path),
        "train.max_steps=1",
        "--json",
    ]
    plain = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run(command, env=plain, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    ours = ("first step done ", "step 1/1 ", "done: ")
    assert all(line.startswith(ours) for line in done.stderr.splitlines()), (
        done.stderr
    )  # no library's chatter
    assert json.loads(done.stdout)["output"] == str(tmp_path / "run")
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 1
    assert "already holds a run" in again.stderr
    assert "Traceback" not in again.stderr
    typo = subprocess.run(
        [*command[:5], "train.epoch=2"], capture_output=True, text=True, check=False
    )
    assert "did you mean `train.epochs`" in typo.stderr


@pytest.mark.filterwarnings(
    "ignore:This DataLoader will create:UserWarning"
)  # on a machine of one core
def test_two_runs_of_one_seed_are_equal_and_workers_do_not_matter(values, tmp_path):
    from safetensors.torch import load_file

    results = []
    for name, workers in (("a", 0), ("b", 2)):
        output = train(
            recipe(values, output=str(tmp_path / name), data__workers=workers, lora__dropout=0.1)
        )
        results.append(
            (
                load_file(output / "adapter_model.safetensors"),
                [row["loss"] for row in history(output) if "loss" in row],
            )
        )
    assert results[0][1] == results[1][1]
    for name, tensor in results[0][0].items():
        assert torch.equal(tensor, results[1][0][name])


def test_another_folder_is_needed_for_another_run(values, tmp_path):
    output = train(recipe(values, output=str(tmp_path / "run"), train__max_steps=1))
    with pytest.raises(UserError, match=r"already holds a run \(recipe.yaml\)"):
        train(recipe(values, output=str(output)))
