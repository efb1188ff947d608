"""What the controls say: how much of a score needs the image, and whose gain does not.

- **Visual reliance**: the score minus that on blank images, paired by item.
- **Image sensitivity**: the share of answers that change with the image. Under `mirrored` it is
  that of the items whose reference names a side, where the answer must change.
- A gain **survives blank images** where row a is better than row b, and with blank images as well,
  both by the paired test.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pipelines.evaluation.controls import BLANK, MIRRORED
from pipelines.evaluation.result import Comparison, ControlledRow, Controls, Score, Survivor
from pipelines.evaluation.scores import Scored, compare_rows, score_of, summarise

LEVEL = 0.05


class Controlled(NamedTuple):
    """The answers of a row under a control; `places` are its items among the row's.

    `sided`: whether the reference of each names a side.
    """

    places: list[int]
    scored: Scored
    sided: list[bool]


Rows = Mapping[str, tuple[Scored, Mapping[str, Controlled]]]


def controlled(rows: Rows, pairs: Sequence[tuple[str, str]]) -> Controls | None:
    """Test every row against itself under each control, and every gain of `pairs` without images.

    Parameters
    ----------
    rows
        Each row's answers, and those under the controls, by name.
    pairs
        The rows that the evaluation compares.

    Returns
    -------
    None where there is no control.
    """
    asked = [
        (name, control, scored, answers)
        for name, (scored, controls) in rows.items()
        for control, answers in controls.items()
    ]
    if not asked:
        return None
    places = asked[0][3].places
    seen = {name: scored.at(places) for name, (scored, _) in rows.items()}
    named = {under(name, control): answers.scored for name, control, _, answers in asked}
    losses = compare_rows(
        {**seen, **named}, [(name, under(name, control)) for name, control, _, _ in asked]
    )
    return {
        "items": len(places),
        "rows": [
            ControlledRow(
                row=name,
                control=control,
                scores=summarise(answers.scored),
                changed=_changed(control, seen[name], answers),
            )
            for name, control, _, answers in asked
        ],
        "losses": losses,
        "survivors": _survivors(seen, named, pairs) if under(asked[0][0], BLANK) in named else [],
    }


def under(row: str, control: str) -> str:
    """Name of a row under a control."""
    return f"{row}, {control}"


def _changed(control: str, seen: Scored, answers: Controlled) -> Score | None:
    differs = [
        (float(_plain(one) != _plain(other)), cluster)
        for one, other, cluster, sided in zip(
            seen.texts, answers.scored.texts, seen.clusters, answers.sided, strict=True
        )
        if sided or control != MIRRORED
    ]
    if not differs:
        return None
    return score_of([value for value, _ in differs], [cluster for _, cluster in differs])


def _plain(text: str) -> str:
    return " ".join(text.lower().split()).rstrip(".")


def _survivors(
    seen: Mapping[str, Scored], named: Mapping[str, Scored], pairs: Sequence[tuple[str, str]]
) -> list[Survivor]:
    """Return the gains that the paired test finds with the images and without them."""
    gains = compare_rows(seen, pairs)
    blind = compare_rows(named, [(under(a, BLANK), under(b, BLANK)) for a, b in pairs])
    return [
        {
            "a": gain["a"],
            "b": gain["b"],
            "score": gain["score"],
            "gain": gain["difference"],
            "blank_gain": blank["difference"],
            "interval": blank["interval"],
            "p_holm": blank["p_holm"],
        }
        for gain, blank in zip(gains, blind, strict=True)
        if _same_way(gain, blank) and max(gain["p_permutation"], blank["p_holm"]) <= LEVEL
    ]


def _same_way(gain: Comparison, blank: Comparison) -> bool:
    return gain["difference"] * blank["difference"] > 0
