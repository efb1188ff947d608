"""`medalign demo`: which commands of the pipeline run, in which order, with how much of everything.

Each is printed before it runs, timed and remembered (`diary`).
"""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, cast

from pipelines.evaluation.result import FOLDER, RESULT, read_result
from pipelines.report.demo_scores import DemoDescription, write_scores
from pipelines.stages import Diary, Stage
from shared.console import say

RECIPE = Path(__file__).parents[1] / "recipes" / "demo.yaml"


class Budget(NamedTuple):
    """How much of everything, in steps and images: the same work on every machine."""

    name: str
    warmup_steps: int
    arm_steps: int
    test_items: int | None  # None: all
    observed: int | None  # held-out images of the alignment; None: all
    control_items: int | None  # of the test items


# Within 15 minutes on two cores, also where bfloat16 is emulated.
SHORT = Budget("demo", 24, arm_steps=40, test_items=200, observed=48, control_items=40)
FULL = Budget("demo-full", 24, arm_steps=400, test_items=None, observed=None, control_items=None)
# `mirrored` is refused here: the template equals its mirror.
CONTROLS = ("blank", "shuffled")

# At 1, the recipe's, so few steps move L_vis by a hundredth of what it began with.
ALPHA = 30


def run_demo(out: Path, budget: Budget) -> Path:
    """Run every stage that is not done yet and return the report's path.

    Raises
    ------
    UserError
        A stage failed, or `out` holds a demo with another budget or from another version.
    """
    diary = Diary(out)
    say(
        f"demo: {budget.name} into {out}, {budget.arm_steps} steps in each arm. Not for clinical "
        "use."
    )
    precision = diary.remember("precision", _faster_precision)
    for stage in preparation(out, budget, precision):
        diary.run(stage)
    for stage in arms_and_scores(out, budget, precision):
        diary.run(stage)
    _write_scores(out, budget, diary)
    diary.run(Stage("report", ["medalign", "report", "--run", str(out)]))
    _write_scores(out, budget, diary)
    say(f"demo: done in {diary.seconds / 60:.1f} minutes; open {out / 'report.html'}")
    return out / "report.html"


def preparation(out: Path, budget: Budget, precision: str) -> list[Stage]:
    """Return what both arms share.

    Data, targets (twice, the second build finds them all), student, warm-up.
    """
    atlas, store = out / "atlas", out / "store"
    build = [
        "cache",
        "build",
        "--teacher",
        "dinov2-small",
        "--images",
        str(atlas / "images"),
        "--store",
        str(store),
    ]
    build += ["--grid", "8x8"]
    warmup: dict[str, object] = {
        "output": out / "warmup",
        "model.name": out / "start",
        "data.train": atlas / "conversations.json",
        "train.tune": "projector",
        "train.max_steps": budget.warmup_steps,
        # the regression is a good start: at the adapter's rate the warm-up would undo it
        "train.learning_rate": 2e-4,
        "train.precision": precision,
    }
    return [
        Stage("data", ["medalign", "data", "prepare", "brain-atlas", "--out", str(atlas)], atlas),
        Stage("cache", build),
        Stage("cache again", [*build, "--json"]),
        Stage(
            "student",
            ["medalign", "demo-student", "--atlas", str(atlas), "--out", str(out / "start")],
            out / "start",
        ),
        Stage("warm-up", _train(warmup), out / "warmup"),
    ]


def arms_and_scores(out: Path, budget: Budget, precision: str) -> list[Stage]:
    """Return the two arms, which differ in the three-term loss alone, and what is measured."""
    shared: dict[str, object] = {
        "model.name": out / "warmup",
        "data.train": out / "atlas" / "mixed.json",
        "evaluation.data": out / "atlas" / "test.json",
        "train.max_steps": budget.arm_steps,
        "train.learning_rate": 1e-3,
        "train.precision": precision,
    }
    lora = shared | {
        "output": out / "lora",
        "losses.alpha": 0,
        "losses.beta": 0,
        "rotation.kind": "none",
    }
    medalign = shared | {
        "output": out / "medalign",
        "losses.alpha": ALPHA,
        "targets.store": out / "store",
    }
    known = ["--run", str(out), "--regions", str(out / "atlas" / "regions.json")]
    alignment = ["medalign", "alignment", *known]
    if budget.observed is not None:
        alignment += ["--limit", str(budget.observed)]
    attention = ["medalign", "figures", "attention", *known, "--sample", "1"]
    evaluate = ["medalign", "evaluate", "--run", str(out), "--controls", ",".join(CONTROLS)]
    if budget.test_items is not None:
        evaluate += ["--limit", str(budget.test_items)]
    if budget.control_items is not None:
        evaluate += ["--control-limit", str(budget.control_items)]
    return [
        Stage("LoRA", _train(lora), out / "lora"),
        Stage("MedAlign", _train(medalign), out / "medalign"),
        Stage("alignment", alignment),
        Stage("attention", attention, out / "figures"),
        Stage("evaluate", evaluate),
    ]


def _write_scores(out: Path, budget: Budget, diary: Diary) -> None:
    result = read_result(out / FOLDER / RESULT)
    described = {
        "full": budget.name == FULL.name,
        "arm_steps": budget.arm_steps,
        "batch_size": _batch_size(),
        **diary.entries["remembered"],
        "stages": diary.entries["stages"],
    }
    write_scores(out, result, cast("DemoDescription", described))


def _train(overrides: Mapping[str, object]) -> list[str]:
    recipe = os.path.relpath(RECIPE) if RECIPE.is_relative_to(Path.cwd()) else str(RECIPE)
    return ["student", "train", recipe, *(f"{key}={value}" for key, value in overrides.items())]


def _batch_size() -> int:
    from shared.recipe import load_recipe

    train = load_recipe(RECIPE).train
    return train.batch_size * train.accumulation


def _faster_precision() -> str:
    """Return `bf16` where this machine multiplies its matrices faster than float32, else `fp32`.

    Processors without bfloat16 instructions emulate them, at several times the cost.
    """
    import torch

    if torch.cuda.is_available():
        return "bf16"
    seconds = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        a, b = torch.ones(512, 576, dtype=dtype), torch.ones(576, 1536, dtype=dtype)
        times = []
        for _ in range(10):
            began = time.perf_counter()
            a @ b
            times.append(time.perf_counter() - began)
        seconds[name] = min(times)
    return min(seconds, key=lambda name: seconds[name])
