"""The set on disk: images, marked copies, questions of every fold, `about.json`.

    OUT/images/            the X-rays as released, and copies with one box drawn on them
    OUT/regions.json       every X-ray with its patient, boxes and part
    OUT/regions-marked.json  the same of the marked copies
    OUT/regions-sides.json   of the X-rays, labelled by lung: "opacity in the right lung"
    OUT/choose/            train.json: all folds; test.json: the patients set aside
    OUT/fold0/ ... fold4/  train.json: the other folds; test.json: this one
    OUT/*/conversations.json  train.json joined to conversations about one image each
    OUT/records.json       all questions of all parts
    OUT/about.json         source, licence, counts, and what constant answers score

No patient is in two parts. Settings are chosen on `choose`, whose patients are in no fold; each
other patient is tested in one fold.
"""

import shutil
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict, cast

import numpy as np

from pipelines.datasets.nih_rsna.questions import Marked, Shown, make_records
from pipelines.datasets.nih_rsna.reading import REGIONS, Xray, read_xrays
from pipelines.datasets.release import join_by_image
from pipelines.documents import write_document
from shared.console import track
from shared.errors import UserError
from shared.files import check_new
from shared.imaging.keys import content_key
from shared.records import Record, write_records

SCHEMA_NUMBER = 1
ABOUT, MARKED, SIDES = "about.json", "regions-marked.json", "regions-sides.json"
FOLDS = 5
ASIDE = "choose"  # the part on which settings are chosen
TURNS = 8  # questions of one conversation at most
RED, FRAME = (255, 0, 0), 4  # of a marked box: colour, width in pixels at 512


class About(TypedDict):
    """What `about.json` holds."""

    schema: int
    title: str
    licence: str
    seed: int
    patients: dict[str, int]  # of each part
    counts: dict[str, dict[str, int]]  # part -> questions of each kind
    constant: dict[str, float]  # kind -> share of the questions that one answer gets right


def prepare_nih_rsna(source: Path, out: Path, *, seed: int = 0) -> About:
    """Write the set into `out`; equal arguments give equal files.

    Parameters
    ----------
    source
        A folder in one of the layouts of `reading`.
    out
        A folder that does not exist yet or is empty.
    seed
        Of parts, questions and their order.

    Raises
    ------
    UserError
        `source` lacks something, `out` holds something, or there are too few patients.
    """
    check_new(out)
    xrays = read_xrays(source)
    parts = assign_parts(xrays, seed)
    (out / "images").mkdir(parents=True)
    asked: dict[str, list[Record]] = {}
    rows: list[dict[str, object]] = []
    copies: list[dict[str, object]] = []
    for number, part in enumerate(sorted(set(parts.values()))):
        chosen = [xray for xray in xrays if parts[xray.patient] == part]
        shown = [_copy(xray, out) for xray in track(chosen, len(chosen), part, "images")]
        asked[part], marked = make_records(shown, np.random.default_rng([seed, number]))
        _write_marked(marked, out)
        rows += [_row(one, part, out, one.image) for one in shown]
        copies += [_row(one.shown, part, out, one.image) for one in marked]
    sides = [one for row in rows for one in _by_side(row)]
    for name, found in ((REGIONS, rows), (MARKED, copies), (SIDES, sides)):
        write_document(out / name, {"schema": SCHEMA_NUMBER, "records": found})
    _write_parts(out, asked)
    write_records(out / "records.json", [one for part in asked.values() for one in part])
    about = _about(seed, parts, asked)
    write_document(out / ABOUT, about)
    return about


def _write_parts(out: Path, asked: Mapping[str, Sequence[Record]]) -> None:
    """Write each part's questions as its test set, and those of the other folds for training."""
    folds = [part for part in asked if part != ASIDE]
    for part, records in asked.items():
        trained = [record for fold in folds if fold != part for record in asked[fold]]
        (out / part).mkdir()
        joined = join_by_image(trained, TURNS, ("patient", "xray"))
        for name, written in (("train", trained), ("conversations", joined), ("test", records)):
            write_records(out / part / f"{name}.json", written)


def assign_parts(xrays: Sequence[Xray], seed: int) -> dict[str, str]:
    """Deal the patients into the part set aside (a fifth) and the folds (a fifth of the rest each).

    Those with an opacity and those without are dealt apart, so that every part has its share.

    Raises
    ------
    UserError
        Fewer than two patients of a kind for each part.
    """
    opaque: dict[str, bool] = defaultdict(bool)
    for xray in xrays:
        opaque[xray.patient] |= bool(xray.boxes)
    folds = [f"fold{number}" for number in range(FOLDS)]
    generator = np.random.default_rng(seed)
    parts = {}
    for kind in (True, False):
        patients = sorted(patient for patient, found in opaque.items() if found is kind)
        if len(patients) < 2 * (FOLDS + 1):
            which = "with" if kind else "without"
            raise UserError(
                f"{len(patients)} patients {which} an opacity are too few for {FOLDS + 1} parts"
            )
        order = [patients[i] for i in generator.permutation(len(patients))]
        aside = len(order) // 5
        for place, patient in enumerate(order):
            parts[patient] = ASIDE if place < aside else folds[place % FOLDS]
    return parts


def _copy(xray: Xray, out: Path) -> Shown:
    """Copy an X-ray into the set byte by byte, so that its content key stays."""
    from PIL import Image

    image = f"images/{xray.file.name}"
    shutil.copyfile(xray.file, out / image)
    with Image.open(out / image) as opened:
        width, height = opened.size
    outside = [box for box in xray.boxes if box[0] + box[2] > width or box[1] + box[3] > height]
    if outside:
        raise UserError(
            f"{xray.file} is {width} x {height}, its box {list(outside[0])} ends outside: are the "
            "boxes in pixels of these files?"
        )
    return Shown(xray.file.stem, image, width, height, xray)


def _write_marked(marked: Sequence[Marked], out: Path) -> None:
    from PIL import Image, ImageDraw

    for one in marked:
        with Image.open(out / one.shown.image) as opened:
            image = opened.convert("RGB")
        frame = max(2, round(FRAME * max(image.size) / 512))
        x, y, width, height = one.box
        # The frame is around the box: nothing inside it is covered.
        corners = (x - frame, y - frame, x + width + frame - 1, y + height + frame - 1)
        ImageDraw.Draw(image).rectangle(corners, outline=RED, width=frame)
        image.save(out / one.image)


def _row(one: Shown, part: str, out: Path, image: str) -> dict[str, object]:
    return {
        "image": image,
        "patient": one.xray.patient,
        "rsna_class": one.xray.finding,
        "boxes": [list(box) for box in one.xray.boxes],
        "label": "opacity",
        "part": part,
        "key": content_key(out / image).hex(),
        "size": [one.width, one.height],
    }


def _by_side(row: Mapping[str, object]) -> list[dict[str, object]]:
    """Divide an X-ray's boxes by lung: the patient's right one is on the left of the picture."""
    width, _ = cast("list[int]", row["size"])
    boxes = cast("list[list[float]]", row["boxes"])
    right = [box for box in boxes if box[0] + box[2] / 2 < width / 2]
    left = [box for box in boxes if box not in right]
    return [
        {**row, "boxes": found, "label": f"opacity in the {side} lung"}
        for side, found in (("right", right), ("left", left))
    ]


def _about(seed: int, parts: dict[str, str], asked: dict[str, list[Record]]) -> About:
    everything = [record for records in asked.values() for record in records]
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for record in everything:
        answers[record.extra["kind"]][record.answer] += 1
    return {
        "schema": SCHEMA_NUMBER,
        "title": "NIH ChestX-ray14 with boxes of the RSNA Pneumonia Detection Challenge 2018",
        "licence": "images: NIH Clinical Center, free use with attribution (Wang et al. 2017); "
        "boxes and classes: RSNA 2018, research and other use with attribution (Shih et al. 2019)",
        "seed": seed,
        "patients": dict(sorted(Counter(parts.values()).items())),
        "counts": {
            part: dict(sorted(Counter(record.extra["kind"] for record in records).items()))
            for part, records in asked.items()
        },
        "constant": {
            kind: round(max(counts.values()) / counts.total(), 4)
            for kind, counts in sorted(answers.items())
        },
    }
