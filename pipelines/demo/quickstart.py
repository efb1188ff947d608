"""`medalign quickstart`: targets, training, L_vis before and after, and a page, in two minutes.

Real slices of the MNI152 template and the demo's teacher, but a tiny student with random weights:
it shows what distillation moves, not what a trained model would answer.
"""

from pathlib import Path
from typing import NamedTuple

from pipelines.demo.quickpage import write_page
from pipelines.regions.measuring import BEFORE, Alignment, read_alignment
from pipelines.stages import Diary, Stage
from shared.console import say
from shared.errors import UserError

RECIPE = Path(__file__).parents[1] / "recipes" / "quickstart.yaml"
LEAST_FALL = 0.3  # of the held-out L_vis: less means that nothing was distilled


class Size(NamedTuple):
    """How much of everything; the same on every machine."""

    train: int  # slices
    test: int  # slices, of slabs that no training slice comes from
    grid: str
    steps: int


WHOLE = Size(train=48, test=12, grid="12x12", steps=60)


def run_quickstart(out: Path, size: Size = WHOLE) -> Path:
    """Run what is not done yet into the folder `out`; return the page's path.

    Raises
    ------
    UserError
        A stage failed, `out` holds something else, a package with images or weights is missing, or
        the held-out L_vis fell by less than `LEAST_FALL`.
    """
    diary = Diary(out, "quickstart")
    for stage in stages(out, size):
        diary.run(stage)
    measured = read_alignment(out / "medalign")
    if measured is None:
        raise UserError(f"{out} lacks its measurement; remove it and start again")
    before, after = held_out_loss(measured)
    page = write_page(out, before, after)
    fall = 1 - after / before
    line = f"held-out L_vis {before:.4f} -> {after:.4f} ({-fall:+.0%})"
    if fall < LEAST_FALL:
        raise UserError(
            f"{line}: it was to fall by {LEAST_FALL:.0%} at least, so little was distilled; "
            f"{page} shows it. Remove {out} and start again, and report it if it stays so"
        )
    say(f"\n{line}, at least {-LEAST_FALL:.0%} were asked for; {diary.seconds:.0f} s of commands")
    say(f"open {page}")
    return page


def stages(out: Path, size: Size) -> list[Stage]:
    """Return the commands; each can be pasted into a shell."""
    data, store, run = out / "data", out / "store", out / "medalign"
    sample = ["medalign", "data", "sample", "--out", str(data)]
    counts = ["--train", str(size.train), "--test", str(size.test)]
    build = ["cache", "build", "--teacher", "dinov2-small", "--images", str(data / "images")]
    values = {
        "output": run,
        "model.name": out / "start",
        "data.train": data / "train.json",
        "data.image_root": data,
        "targets.store": store,
        "evaluation.data": data / "test.json",
        "evaluation.image_root": data,
        "train.max_steps": size.steps,
    }
    train = ["student", "train", str(RECIPE), *(f"{key}={value}" for key, value in values.items())]
    tiny = ["student", "tiny", "--grid", size.grid, "--out", str(out / "start")]
    return [
        Stage("data", [*sample, *counts], data),
        Stage("student", tiny, out / "start"),
        Stage("cache", [*build, "--grid", size.grid, "--store", str(store)]),
        Stage("train", train, run),
        Stage("alignment", ["medalign", "alignment", "--run", str(run)]),
    ]


def held_out_loss(measured: Alignment) -> tuple[float, float]:
    """Mean L_vis over the held-out images before and after training."""
    [arm] = measured["arms"]
    rows = measured["rows"]
    return rows[BEFORE]["loss_vis"]["value"], rows[arm]["loss_vis"]["value"]
