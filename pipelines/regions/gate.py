"""The gate: may a query's map be taught by default? What an audit has measured decides it.

1. It points better than the positional prior, with their intervals apart.
2. Names swapped swap maps: the map for the other name leaves the region.
3. A shuffled text loses.
4. Deletion and insertion beat a random map and the prior.

All must hold; what was not measured does not. 2 to 4 are paired tests: the right sign, and p below
0.05. As the gate opens only where every test rejects, none is corrected for the others: the level
of the whole is that of each (an intersection-union test: Berger, Technometrics 1982).
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypedDict

from pipelines.regions.deletion import DELETION, INSERTION
from pipelines.regions.experts import PRIOR
from pipelines.regions.query.scoring import ASKED, NAMES, WORDS
from pipelines.regions.scorers import RANDOM
from pipelines.regions.scoring import Test, Value

SCORE, LEVEL = "pointing", 0.05


class Check(TypedDict):
    """One condition: whether it holds (None: not measured), and the numbers."""

    name: str
    holds: bool | None
    said: str


class Gate(TypedDict):
    """The verdict on the row `of`, and the conditions that it rests on."""

    of: str
    may_be_default: bool
    checks: list[Check]


class _Wanted(NamedTuple):
    """A paired test that has to show the row above `other` on a score; or below it."""

    other: str
    score: str
    above: bool = True


_PAIRED = {
    "names swapped swap maps": [_Wanted(NAMES, SCORE)],
    "a shuffled text loses": [_Wanted(WORDS, SCORE)],
    "deletion and insertion beat a random map and the prior": [
        _Wanted(other, score, score == INSERTION)
        for other in (RANDOM, PRIOR)
        for score in (DELETION, INSERTION)
    ],
}


def gate_of(rows: Mapping[str, Mapping[str, Value]], tests: Sequence[Test]) -> Gate | None:
    """Judge the query's maps; None where none was asked.

    Parameters
    ----------
    rows, tests
        Of one teacher, as an audit gives them.
    """
    if ASKED not in rows:
        return None
    found = {(test["a"], test["b"], test["score"]): test for test in tests}
    checks = [_apart(rows)]
    for name, wanted in _PAIRED.items():
        made = [(one, found.get((ASKED, one.other, one.score))) for one in wanted]
        measured = [(one, test) for one, test in made if test is not None]
        holds = all(_shown(one, test) for one, test in measured)
        said = [f"{one.score} less {one.other} {_numbers(test)}" for one, test in measured]
        whole = len(measured) == len(made)
        # One that fails is a failure, whatever else was not measured.
        checks.append({"name": name, "holds": holds if whole or not holds else None,
                       "said": "; ".join(said) or "not measured"})  # fmt: skip
    return {
        "of": ASKED,
        "may_be_default": all(check["holds"] for check in checks),
        "checks": checks,
    }


def verdict(gate: Gate) -> str:
    """Say the verdict in one sentence."""
    if gate["may_be_default"]:
        return "may be a default: yes, because every condition holds"
    failed = [check["name"] for check in gate["checks"] if check["holds"] is False]
    unknown = [check["name"] for check in gate["checks"] if check["holds"] is None]
    reasons = [f"this does not hold: {one}" for one in failed]
    reasons += [f"this was not measured: {one}" for one in unknown]
    return f"may be a default: no, because {'; '.join(reasons)}"


def _apart(rows: Mapping[str, Mapping[str, Value]]) -> Check:
    name = "beats the positional prior, intervals apart"
    own, prior = rows[ASKED].get(SCORE), rows.get(PRIOR, {}).get(SCORE)
    if own is None or prior is None:
        return {"name": name, "holds": None, "said": "not measured"}
    (low, high), (least, most) = own["interval"], prior["interval"]
    said = (
        f"{SCORE} {own['value']:.3f} [{low:.3f}, {high:.3f}] against "
        f"{prior['value']:.3f} [{least:.3f}, {most:.3f}]"
    )
    return {"name": name, "holds": low > most, "said": said}


def _shown(wanted: _Wanted, test: Test) -> bool:
    right = test["difference"] > 0 if wanted.above else test["difference"] < 0
    return right and test["p"] < LEVEL


def _numbers(test: Test) -> str:
    low, high = ("?" if end is None else f"{end:+.3f}" for end in test["interval"])
    return f"{test['difference']:+.3f} [{low}, {high}], p {test['p']:.4f}"
