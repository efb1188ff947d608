"""Questions about lung opacity that a caption cannot answer: in which lung, at which place.

Each closed question has as many "Yes" as "No", so that its words alone are right in half of the
cases. Half of the No's about one lung come from X-rays whose other lung is opaque: to know that
there is an opacity is not enough. A marked box is asked about once on its own X-ray and once on
another patient's, where it marks none: the box alone says nothing.

The picture's left is the patient's right: the X-rays are frontal.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from pipelines.datasets.nih_rsna.reading import Box, Xray
from pipelines.datasets.release import question_record
from shared.records import Record

Side = Literal["right", "left"]
SIDES: tuple[Side, ...] = ("right", "left")
# Upper and lower border of the middle zone, in heights of the image: the thirds of the centres of
# the challenge's boxes.
ZONES = (0.47, 0.56)
ZONE_NAMES = ("upper", "middle", "lower")


class Shown(NamedTuple):
    """An X-ray as it is asked about: its name in the set, its size, where it is opaque."""

    name: str  # of its file, without suffix
    image: str  # path in the set
    width: int
    height: int
    xray: Xray

    def sides(self) -> set[Side]:
        """Return the patient's lungs in which a box has its centre."""
        return {
            "right" if x + width / 2 < self.width / 2 else "left"
            for x, _, width, _ in self.xray.boxes
        }

    def zones(self) -> set[str]:
        """Return the zones in which a box has its centre."""
        heights = [(y + height / 2) / self.height for _, y, _, height in self.xray.boxes]
        return {ZONE_NAMES[int(np.searchsorted(ZONES, place))] for place in heights}


class Marked(NamedTuple):
    """A copy of an X-ray with one box drawn on it."""

    image: str  # path in the set
    shown: Shown
    box: Box


def make_records(
    shown: Sequence[Shown], generator: np.random.Generator
) -> tuple[list[Record], list[Marked]]:
    """Ask everything about `shown`, in a drawn order, and name the marked copies it needs."""
    opaque = [one for one in shown if one.xray.boxes]
    clear = [one for one in shown if not one.xray.boxes]
    records = list(_paired("any", "Is there a lung opacity?", opaque, clear, generator))
    for side in SIDES:
        yes = [one for one in opaque if side in one.sides()]
        other = [one for one in opaque if side not in one.sides()]
        harder = _draw(other, len(yes) // 2, generator)
        no = harder + _draw(clear, len(yes) - len(harder), generator)
        records += _paired(side, f"Is there an opacity in the {side} lung?", yes, no, generator)
    for one in opaque:
        sides, zones = one.sides(), one.zones()
        answer = "both" if len(sides) == 2 else next(iter(sides))
        records.append(_record(one, "side", "Which lung is opaque: right, left or both?", answer))
        if len(zones) == 1:
            question = "Where is the opacity: upper, middle or lower zone?"
            records.append(_record(one, "zone", question, next(iter(zones))))
    boxes, marked = _boxes(opaque, clear, generator)
    records += boxes
    return [records[i] for i in generator.permutation(len(records))], marked


def _paired(
    kind: str,
    question: str,
    yes: Sequence[Shown],
    no: Sequence[Shown],
    generator: np.random.Generator,
) -> Iterator[Record]:
    """Ask one question with as many Yes as No."""
    count = min(len(yes), len(no))
    for answer, images in (("Yes", yes), ("No", no)):
        for one in _draw(images, count, generator):
            yield _record(one, kind, question, answer)


def _boxes(
    opaque: Sequence[Shown], clear: Sequence[Shown], generator: np.random.Generator
) -> tuple[list[Record], list[Marked]]:
    """Mark each box on its own X-ray and on another patient's, where it touches no opacity.

    Another opaque X-ray if there is one, so that the X-ray's class says nothing either.
    """
    records, marked = [], []
    question = "Is the marked box an opacity?"
    uses = dict.fromkeys((one.name for one in (*opaque, *clear)), 0)
    for owner in opaque:
        for number, box in enumerate(owner.xray.boxes):
            scaled = _relative(box, owner)
            other = _other(scaled, owner, opaque, uses, generator) or _other(
                scaled, owner, clear, uses, generator
            )
            if other is None:
                continue
            uses[other.name] += 1
            for one, answer in ((owner, "Yes"), (other, "No")):
                x, y, width, height = scaled
                place = (x * one.width, y * one.height, width * one.width, height * one.height)
                image = f"images/{one.name}-{owner.name}-box{number}.png"
                marked.append(Marked(image, one, place))
                record = _record(one, "box", question, answer, image=image)
                record.extra["box"] = [round(side, 1) for side in place]
                records.append(record)
    return records, marked


def _other(
    box: Box,
    owner: Shown,
    candidates: Sequence[Shown],
    uses: dict[str, int],
    generator: np.random.Generator,
) -> Shown | None:
    """Return the least used X-ray of another patient that is clear inside the box, or None."""
    free = [
        one
        for one in candidates
        if one.xray.patient != owner.xray.patient
        and not any(_touch(box, _relative(own, one)) for own in one.xray.boxes)
    ]
    if not free:
        return None
    least = min(uses[one.name] for one in free)
    fewest = [one for one in free if uses[one.name] == least]
    return fewest[int(generator.integers(len(fewest)))]


def _relative(box: Box, shown: Shown) -> Box:
    x, y, width, height = box
    return x / shown.width, y / shown.height, width / shown.width, height / shown.height


def _touch(first: Box, second: Box) -> bool:
    return (
        first[0] < second[0] + second[2]
        and second[0] < first[0] + first[2]
        and first[1] < second[1] + second[3]
        and second[1] < first[1] + first[3]
    )


def _draw(images: Sequence[Shown], count: int, generator: np.random.Generator) -> list[Shown]:
    chosen = generator.permutation(len(images))[:count]
    return [images[i] for i in sorted(chosen.tolist())]


def _record(one: Shown, kind: str, question: str, answer: str, image: str | None = None) -> Record:
    shown = one.image if image is None else image
    fields = {"kind": kind, "patient": one.xray.patient, "xray": one.name}
    return question_record(
        f"{Path(shown).stem}-{kind}",
        shown,
        question,
        answer,
        "CLOSED" if answer in ("Yes", "No") else "OPEN",
        extra=fields,
    )
