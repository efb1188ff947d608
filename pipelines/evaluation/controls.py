"""Controls of an evaluation: the same questions over images that hold no answer, or the mirrored.

    blank     every image is one colour: the encoder's mean, with which images are padded
    shuffled  every image is one of another cluster (patient or image), each as often as before
    mirrored  left and right exchanged in the image, and in question, options and reference

A model that looks at the image loses on the first two, and names the other side on the third.
Questions without an image are left out. An item under a control draws its random numbers as the
item itself does, so that only what is shown differs.
"""

import dataclasses
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pipelines.evaluation.clusters import Clusters, connected
from pipelines.evaluation.items import Item, items_of, sampled
from pipelines.evaluation.sides import mirrored_record
from shared.errors import UserError
from shared.records import Record

if TYPE_CHECKING:
    from PIL import Image

    from student_train.models.processor import Picture, Processor

NAMES = BLANK, SHUFFLED, MIRRORED = ("blank", "shuffled", "mirrored")
# An image equals its mirror where they differ by this share of how much its pixels differ from
# their mean. The least of VQA-RAD's 315 images has 0.075, of 339 chest radiographs 0.19, a slice
# of a symmetric brain template 0.
MIRROR_TOLERANCE = 0.02


class Questions(NamedTuple):
    """A test set: its records, the content keys of each one's images, and their clusters."""

    records: Sequence[Record]
    contents: Sequence[tuple[str, ...]]
    clusters: Clusters


class Control(NamedTuple):
    """The questions of a control as they are asked; `places` are theirs in the test set."""

    name: str
    places: list[int]
    questions: Questions

    def items(self, asked: Sequence[Item], template: str) -> list[Item]:
        """Return its items; `asked` are those of the test set."""
        records, contents, _ = self.questions
        return [
            item._replace(control=self.name, drawn_as=asked[place].name)
            for item, place in zip(items_of(records, contents, template), self.places, strict=True)
        ]


def control_names(asked: Sequence[str]) -> list[str]:
    """Return the controls asked for, in the order of `NAMES`.

    Raises
    ------
    UserError
        There is no such control.
    """
    unknown = [name for name in asked if name not in NAMES]
    if unknown:
        raise UserError(f"no control is called {unknown[0]}; there are {', '.join(NAMES)}")
    return [name for name in NAMES if name in asked]


def make_controls(
    names: Sequence[str], questions: Questions, image_root: Path, limit: int | None = None
) -> list[Control]:
    """Return what is asked under each control, of `limit` items that show an image (None: all).

    Raises
    ------
    UserError
        An unknown control, no item shows an image, `mirrored` where an image equals its mirror, or
        `shuffled` where more than half of the images are of one cluster.
    """
    names = control_names(names)
    if not names:
        return []
    records, contents, clusters = questions
    places = sampled([place for place, shown in enumerate(contents) if shown], limit)
    if not places:
        raise UserError("no question of this test set shows an image; leave out --controls")
    chosen = Questions(
        [records[place] for place in places],
        [contents[place] for place in places],
        Clusters(clusters.unit, [clusters.names[place] for place in places]),
    )
    make = {BLANK: _blank, SHUFFLED: _shuffled, MIRRORED: _mirrored}
    if MIRRORED in names:
        refuse_symmetric(chosen.records, image_root)
    return [Control(name, places, make[name](chosen)) for name in names]


def pictures(item: Item, processor: "Processor", image_root: Path) -> "list[Picture]":
    """Return what the model is shown of an item."""
    if item.control == BLANK:
        return [blank(processor)] * len(item.record.images)
    references = item.record.references(image_root)
    if item.control != MIRRORED:
        return [*references]
    from PIL import ImageOps

    from shared.imaging.images import open_image

    return [ImageOps.mirror(open_image(one)) for one in references]


def blank(processor: "Processor") -> "Image.Image":
    """Return the picture of nothing: the colour with which this encoder's images are padded."""
    from PIL import Image

    red, green, blue = (int(255 * level) for level in processor.reader.mean)
    return Image.new("RGB", (processor.image_size, processor.image_size), (red, green, blue))


def refuse_symmetric(records: Sequence[Record], image_root: Path) -> None:
    """Refuse images that equal their mirror: no side can be told from them."""
    from shared.imaging.images import open_image

    known: dict[str, bool] = {}
    for record in records:
        for image, reference in zip(record.images, record.references(image_root), strict=True):
            if image not in known:
                known[image] = asymmetry(open_image(reference)) <= MIRROR_TOLERANCE
    same = [image for image, equal in known.items() if equal]
    if same:
        raise UserError(
            f"--controls mirrored: {len(same)} of {len(known)} images equal their mirror (to "
            f"{MIRROR_TOLERANCE:.0%} of their contrast), first {same[0]}; leave out mirrored"
        )


def asymmetry(image: "Image.Image") -> float:
    """Mean difference from the mirror over that from the mean of all pixels; 0: its own mirror."""
    levels = np.asarray(image.convert("L"), dtype=np.float64)
    contrast = float(np.abs(levels - levels.mean()).mean())
    difference = float(np.abs(levels - levels[:, ::-1]).mean())
    return difference / contrast if contrast else 0.0


def _blank(questions: Questions) -> Questions:
    shown = [tuple(BLANK for _ in images) for images in questions.contents]
    return questions._replace(contents=shown)


def _mirrored(questions: Questions) -> Questions:
    return questions._replace(
        records=[mirrored_record(record) for record in questions.records],
        contents=[
            tuple(f"{MIRRORED} {content}" for content in shown) for shown in questions.contents
        ],
    )


def _shuffled(questions: Questions) -> Questions:
    """Give every place of an image one of another cluster, by rotation of the shuffled clusters."""
    records, contents, clusters = questions
    groups = connected(
        [(*shown, f"cluster {name}") for shown, name in zip(contents, clusters.names, strict=True)]
    )
    order = list(dict.fromkeys(groups))
    random.Random(0).shuffle(order)
    rank: Mapping[str, int] = {group: place for place, group in enumerate(order)}
    slots = [
        (row, image) for row, record in enumerate(records) for image in range(len(record.images))
    ]
    slots.sort(key=lambda slot: rank[groups[slot[0]]])
    largest = max(np.bincount([rank[groups[row]] for row, _ in slots]).tolist())
    if 2 * largest > len(slots):
        raise UserError(
            f"--controls shuffled: {largest} of {len(slots)} images are of one cluster "
            f"({clusters.unit}), so not every question can show another's; leave out shuffled"
        )
    donors = {slot: slots[(place + largest) % len(slots)] for place, slot in enumerate(slots)}
    taken = [
        [donors[row, image] for image in range(len(record.images))]
        for row, record in enumerate(records)
    ]
    return questions._replace(
        records=[
            dataclasses.replace(record, images=tuple(records[row].images[i] for row, i in given))
            for record, given in zip(records, taken, strict=True)
        ],
        contents=[tuple(contents[row][i] for row, i in given) for given in taken],
    )
