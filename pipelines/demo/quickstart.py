"""`medalign quickstart`: targets, training, L_vis before and after, and a page, in two minutes.

Real slices of the MNI152 template and the demo's teacher, but a tiny student with random weights:
it shows what distillation moves, not what a trained model would answer.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pipelines.demo.quickpage import write_page
from pipelines.regions.measuring import BEFORE, Alignment, read_alignment
from pipelines.stages import Diary, Stage
from shared.console import say
from shared.errors import UserError

if TYPE_CHECKING:
    from pipelines.datasets.brain_atlas.volumes import Slice

RECIPE = Path(__file__).parents[1] / "recipes" / "quickstart.yaml"
LEAST_FALL = 0.3  # of the held-out L_vis: less means that nothing was distilled
QUESTION = "Which plane is this slice?"


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
    data = out / "data"
    if not (data / "test.json").is_file():  # the last file that is written
        shutil.rmtree(data, ignore_errors=True)
        write_samples(data, size)
    say(
        f"{size.train} slices to train on and {size.test} held out in {data}: MNI152 template, "
        "package nilearn, BSD-3-Clause. Not for clinical use."
    )
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


def write_samples(data: Path, size: Size) -> None:
    """Write `images/`, `train.json` and `test.json`: slices of the template, one question each.

    Training and test slices come from different slabs (`pipelines.datasets.brain_atlas.volumes`).
    """
    from PIL import Image

    from pipelines.datasets.brain_atlas.volumes import PLANES, SLAB, load_slices
    from shared.records import Record, Turn, write_records

    slices, _ = load_slices()
    first = {plane: min(one.position for one in slices if one.plane == plane) for plane in PLANES}
    (data / "images").mkdir(parents=True)
    for split, count in (("train", size.train), ("test", size.test)):
        records = []
        for piece in _spread([one for one in slices if one.split == split], count):
            name = f"images/{piece.name}.png"
            Image.fromarray(piece.image).save(data / name)
            turns = (Turn("human", f"<image>\n{QUESTION}"), Turn("gpt", piece.plane))
            # one brain: neighbours show the same, so that a slab stands for a patient
            slab = (piece.position - first[piece.plane]) // SLAB
            about = {"slice": piece.name, "patient": f"{piece.plane}-slab-{slab}"}
            records.append(Record(piece.name, (name,), turns, "OPEN", extra=about))
        write_records(data / f"{split}.json", records)


def _spread(items: "Sequence[Slice]", count: int) -> "list[Slice]":
    """Take `count` items at even distances."""
    return [items[place * len(items) // count] for place in range(count)]
