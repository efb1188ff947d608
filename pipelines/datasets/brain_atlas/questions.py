"""Questions and answers over slices: what is visible, in which plane, in which marked box."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from pipelines.datasets.brain_atlas.volumes import PLANES, Plane, Slice
from shared.records import Record, Turn

# mm2 of a structure that count as visible; 0 is absent, and between the two nothing is asked
LEAST_VISIBLE = 300
LARGEST = 3  # structures that the answer to "which are visible" names
TURNS = 8  # questions of one training conversation at most
BOX_EVERY, BOX_LEAST = 3, 11  # a marked copy of every third slice; least side of the box, mm


def make_records(
    slices: list[Slice], names: dict[int, str], presence: int, generator: np.random.Generator
) -> list[Record]:
    """Questions and answers over the slices of one split, in a seeded random order.

    A yes and its no stay together, so that the beginning of the file is balanced too.
    """
    closed = list(presence_records(slices, names, presence * len(slices), generator))
    others = [
        *_plane_records(slices, generator),
        *_list_records(slices, names),
        *_box_records(slices, names),
    ]
    groups = [closed[i : i + 2] for i in range(0, len(closed), 2)] + [[record] for record in others]
    return [record for i in generator.permutation(len(groups)) for record in groups[i]]


class _Pool(NamedTuple):
    """Pairs of slices, of which the first shows a structure and the second does not."""

    number: int  # of the structure
    pairs: list[tuple[Slice, Slice]]


def presence_records(
    slices: list[Slice], names: dict[int, str], total: int, generator: np.random.Generator
) -> Iterator[Record]:
    """Ask closed questions "is X visible", in pairs of a yes and a no over one structure and plane.

    Neither the structure nor the plane nor both together tell the answer. Half of the no's come
    from the slices nearest to one that shows the structure, the rest from anywhere.
    """
    pools = [pool for plane in PLANES for pool in _pools(plane, slices, names, generator)]
    # Rounds over all structures, so that a small total covers them evenly.
    left = total // 2
    for turn in range(max((len(pool.pairs) for pool in pools), default=0)):
        for i in generator.permutation(len(pools)):
            number, pairs = pools[i]
            if turn < len(pairs) and left > 0:
                left -= 1
                for piece, answer in zip(pairs[turn], ("Yes", "No"), strict=True):
                    yield _record(piece, "presence", _visible(names[number]), answer, names[number])


def _pools(
    plane: Plane, slices: list[Slice], names: dict[int, str], generator: np.random.Generator
) -> Iterator[_Pool]:
    """Yield the pairs of each structure that some slices of the plane show and others do not."""
    of_plane = [piece for piece in slices if piece.plane == plane]
    areas = {piece.position: piece.areas() for piece in of_plane}
    for number in names:
        yes = [p for p in of_plane if areas[p.position].get(number, 0) >= LEAST_VISIBLE]
        no = [piece for piece in of_plane if number not in areas[piece.position]]
        if yes and no:
            yield _Pool(number, _pairs(yes, no, generator))


def _visible(structure: str) -> str:
    return f"Is the {structure} visible in this slice?"


def text_records(
    slices: list[Slice],
    names: dict[int, str],
    generator: np.random.Generator,
    pairs: int = TURNS // 2,
) -> Iterator[Record]:
    """Conversations without an image.

    The slice's plane and structures as a list of words, then closed questions.

    A small language model has to learn what "is X visible?" asks for before it can answer it from
    an image, and learns that sooner from words.
    """
    for piece in slices:
        areas = piece.areas()
        shown = [names[number] for number, area in areas.items() if area >= LEAST_VISIBLE]
        absent = [name for number, name in names.items() if number not in areas]
        asked = _asked_in_words(piece.plane, shown, absent, generator, pairs)
        words = f"{piece.plane} {', '.join(generator.permutation(shown).tolist())}"
        asked[0] = (f"{words}\n{asked[0][0]}", asked[0][1])
        turns = [
            turn
            for question, answer in asked
            for turn in (Turn("human", question), Turn("gpt", answer))
        ]
        extra = {"kind": "text", "plane": piece.plane, "slice": piece.name}
        yield Record(f"{piece.name}-text", (), tuple(turns), extra=extra)


def _asked_in_words(
    plane: Plane,
    shown: list[str],
    absent: list[str],
    generator: np.random.Generator,
    pairs: int,
) -> list[tuple[str, str]]:
    """Return closed questions with their answers, shuffled: structures in pairs, and the plane."""
    count = min(pairs, len(shown), len(absent))
    yes, no = (generator.choice(part, count, replace=False).tolist() for part in (shown, absent))
    asked = [(_visible(name), "Yes") for name in yes] + [(_visible(name), "No") for name in no]
    other = str(generator.choice([one for one in PLANES if one != plane]))
    asked.append(
        [(f"Is this slice {plane}?", "Yes"), (f"Is this slice {other}?", "No")][
            generator.integers(2)
        ]
    )
    return [asked[i] for i in generator.permutation(len(asked))]


def _pairs(
    yes: list[Slice], no: list[Slice], generator: np.random.Generator
) -> list[tuple[Slice, Slice]]:
    count = min(len(yes), len(no))
    shown = np.array([piece.position for piece in yes])
    nearest_first = sorted(
        no, key=lambda piece: (int(np.abs(shown - piece.position).min()), piece.position)
    )
    hard = nearest_first[: (count + 1) // 2]
    rest = nearest_first[len(hard) :]
    easy = [rest[i] for i in generator.choice(len(rest), count - len(hard), replace=False)]
    chosen = [yes[i] for i in generator.choice(len(yes), count, replace=False)]
    refused = [*hard, *easy]
    return list(zip(chosen, (refused[i] for i in generator.permutation(count)), strict=True))


def _plane_records(slices: list[Slice], generator: np.random.Generator) -> Iterator[Record]:
    """By turns an open question for the plane and a closed one, which is true every second time."""
    for plane in PLANES:
        others = [other for other in PLANES if other != plane]
        for count, piece in enumerate(p for p in slices if p.plane == plane):
            if count % 2 == 0:
                yield _record(piece, "which-plane", "Which plane is this slice?", plane)
            elif count % 4 == 1:
                yield _record(piece, "plane", f"Is this slice {plane}?", "Yes")
            else:
                yield _record(piece, "plane", f"Is this slice {generator.choice(others)}?", "No")


def _list_records(slices: list[Slice], names: dict[int, str]) -> Iterator[Record]:
    for piece in slices[::2]:
        largest = list(piece.areas())[:LARGEST]
        if len(largest) < LARGEST:
            continue
        question = "Which structures are visible? Name the three largest."
        yield _record(piece, "structures", question, ", ".join(names[number] for number in largest))


def _box_records(slices: list[Slice], names: dict[int, str]) -> Iterator[Record]:
    """Open questions for the structure in a marked box that lies wholly inside it.

    Seldom asked structures first.
    """
    from scipy.ndimage import distance_transform_cdt

    asked: dict[int, int] = defaultdict(int)
    for piece in slices[::BOX_EVERY]:
        best = None
        for number in piece.areas():
            room = distance_transform_cdt(np.pad(piece.regions == number, 1), "chessboard")[
                1:-1, 1:-1
            ]
            row, column = np.unravel_index(int(room.argmax()), room.shape)
            half = int(room[row, column]) - 1
            if 2 * half + 1 >= BOX_LEAST and (best is None or asked[number] < asked[best[0]]):
                best = (
                    number,
                    [
                        int(column) - half,
                        int(row) - half,
                        int(column) + half + 1,
                        int(row) + half + 1,
                    ],
                )
        if best is not None:
            number, box = best
            asked[number] += 1
            question = "Which structure fills the marked box?"
            record = _record(piece, "box", question, names[number], structure=names[number])
            yield replace(
                record, images=(f"images/{piece.name}-box.png",), extra=record.extra | {"box": box}
            )


def _record(
    piece: Slice, kind: str, question: str, answer: str, structure: str | None = None
) -> Record:
    extra = {"kind": kind, "plane": piece.plane, "slice": piece.name}
    if structure is not None:
        extra["structure"] = structure
    name = f"{piece.name}-{kind}" + (
        f"-{structure.replace(' ', '-')}" if structure and kind == "presence" else ""
    )
    return Record(
        id=name,
        images=(f"images/{piece.name}.png",),
        turns=(Turn("human", f"<image>\n{question}"), Turn("gpt", answer)),
        answer_type="CLOSED" if answer in ("Yes", "No") else "OPEN",
        extra=extra,
    )
