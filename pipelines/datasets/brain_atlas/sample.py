"""A few of the slices, one question each: the files with which quickstart and README begin."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from pipelines.datasets.brain_atlas.volumes import PLANES, SLAB, Slice, load_slices
from shared.errors import UserError
from shared.files import check_new
from shared.records import Record, Turn, write_records

QUESTION = "Which plane is this slice?"


def write_sample(out: Path, train: int, test: int) -> None:
    """Write `images/`, `train.json` and `test.json`: slices of the template, one question each.

    Training and test slices come from different slabs (`volumes`), `train` and `test` of them at
    even distances.

    Raises
    ------
    UserError
        `out` holds something, the package with the template is missing, or there are fewer slices.
    """
    check_new(out)
    slices, _ = load_slices()
    first = {plane: min(one.position for one in slices if one.plane == plane) for plane in PLANES}
    (out / "images").mkdir(parents=True)
    for split, count in (("train", train), ("test", test)):
        records = []
        for piece in _spread([one for one in slices if one.split == split], count, split):
            name = f"images/{piece.name}.png"
            Image.fromarray(piece.image).save(out / name)
            turns = (Turn("human", f"<image>\n{QUESTION}"), Turn("gpt", piece.plane))
            # one brain: neighbours show the same, so that a slab stands for a patient
            slab = (piece.position - first[piece.plane]) // SLAB
            about = {"slice": piece.name, "patient": f"{piece.plane}-slab-{slab}"}
            records.append(Record(piece.name, (name,), turns, "OPEN", extra=about))
        write_records(out / f"{split}.json", records)


def _spread(items: Sequence[Slice], count: int, split: str) -> list[Slice]:
    if count > len(items):
        raise UserError(f"--{split} {count}: the template has {len(items)} slices for it")
    return [items[place * len(items) // count] for place in range(count)]
