"""The gate: every condition alone can close it, and what was not measured does."""

import copy
from typing import Any

import numpy as np
import pytest

from pipelines.regions import scoring
from pipelines.regions.experts import PRIOR, Case
from pipelines.regions.gate import gate_of, verdict
from pipelines.regions.query.scoring import ASKED, NAMES, WORDS, Asked, query_rows
from pipelines.regions.scorers import RANDOM
from pipelines.regions.table import audit_lines

pytestmark = pytest.mark.unit
PATIENTS = {str(number): str(number) for number in range(60)}
BETTER = {ASKED: 0.95, PRIOR: 0.3, NAMES: 0.1, WORDS: 0.1}


def measured(pointing: dict[str, float], deletion: dict[str, float], insertion: dict[str, float]):
    """Make rows of 60 patients with these shares of hits, and these areas with a little noise."""
    rows: dict[str, dict[str, dict[str, float]]] = {}
    random = np.random.default_rng(0)
    for row, share in pointing.items():
        for number in range(60):
            rows.setdefault(row, {})[str(number)] = {"pointing": float(number < 60 * share)}
    for score, means in (("deletion", deletion), ("insertion", insertion)):
        for row, mean in means.items():
            for name in PATIENTS:
                value = mean + random.normal(0, 0.01)
                rows.setdefault(row, {}).setdefault(name, {})[score] = value
    pairs = [(ASKED, other) for other in (PRIOR, NAMES, WORDS, RANDOM) if other in rows]
    pairs = pairs if ASKED in rows else []
    return scoring.values_of(rows, PATIENTS), scoring.tests_of(pairs, rows, PATIENTS)


def judge(*scores: dict[str, float]) -> Any:
    return gate_of(*measured(*scores))


AREAS = {ASKED: 0.3, PRIOR: 0.4, RANDOM: 0.5}, {ASKED: 0.7, PRIOR: 0.6, RANDOM: 0.5}


def test_it_opens_where_all_holds() -> None:
    gate = judge(BETTER, *AREAS)
    assert gate["may_be_default"]
    assert [check["holds"] for check in gate["checks"]] == [True] * 4
    assert verdict(gate) == "may be a default: yes, because every condition holds"


@pytest.mark.parametrize(
    ("place", "row", "value", "reason"),
    [
        (0, PRIOR, 0.85, "beats the positional prior, intervals apart"),
        (0, NAMES, 0.95, "names swapped swap maps"),
        (0, WORDS, 0.95, "a shuffled text loses"),
        (1, PRIOR, 0.2, "deletion and insertion beat a random map and the prior"),
        (1, RANDOM, 0.2, "deletion and insertion beat a random map and the prior"),
        (2, RANDOM, 0.9, "deletion and insertion beat a random map and the prior"),
    ],
)
def test_each_condition_alone_closes_it(place: int, row: str, value: float, reason: str) -> None:
    scores = [dict(BETTER), *map(dict, AREAS)]
    scores[place][row] = value
    gate = judge(*scores)
    assert not gate["may_be_default"]
    assert verdict(gate) == f"may be a default: no, because this does not hold: {reason}"


def test_each_test_stands_at_its_own_level() -> None:
    """Seven patients that all agree: p is 2/128, which Holm over a whole table would lift."""
    rows, tests = measured(BETTER, *AREAS)
    few = [{**test, "p": 2 / 128, "p_holm": 0.4} for test in tests]
    gate: Any = gate_of(rows, few)  # type: ignore[arg-type]
    assert gate["may_be_default"]
    none = [{**test, "p": 2 / 32, "p_holm": 0.4} for test in tests]
    gate = gate_of(rows, none)  # type: ignore[arg-type]
    assert [check["holds"] for check in gate["checks"]] == [True, False, False, False]


def test_what_was_not_measured_closes_it() -> None:
    alone = judge(BETTER, {}, {})
    assert [check["holds"] for check in alone["checks"]] == [True, True, True, None]
    assert "this was not measured: deletion and insertion" in verdict(alone)
    half = judge(BETTER, {ASKED: 0.3, RANDOM: 0.5}, {ASKED: 0.7, RANDOM: 0.5})
    assert half["checks"][3]["holds"] is None  # no prior, such as of one patient
    lost = judge(BETTER, {ASKED: 0.5, RANDOM: 0.3}, {ASKED: 0.7, RANDOM: 0.5})
    assert lost["checks"][3]["holds"] is False  # whatever the prior would be
    one = {row: value for row, value in BETTER.items() if row in (ASKED, PRIOR)}
    assert [check["holds"] for check in judge(one, {}, {})["checks"]] == [True, None, None, None]
    assert judge({PRIOR: 0.3}, {}, {}) is None


def test_it_is_printed_in_80_columns() -> None:
    gate = judge({**BETTER, PRIOR: 0.85}, *AREAS)
    audited: Any = {
        "teacher": "t", "grid": "5x5", "rows": {}, "tests": [], "left_out": "", "silhouette": None,
        "deletion_against": None, "gate": gate,
    }  # fmt: skip
    found: Any = {"images": 1, "patients": 1, "without_target": 0, "teachers": {"t": audited},
                  "between": []}  # fmt: skip
    lines = list(audit_lines(copy.deepcopy(found)))
    assert max(map(len, lines)) <= 80
    assert "  names swapped swap maps: yes" in lines
    assert lines[-2:] == [
        "may be a default: no, because this does not hold: beats the positional prior,",
        "  intervals apart",
    ]


def case(image: str, label: str, place: int) -> Case:
    shares = np.eye(4)[place]
    return Case(
        f"{image}, {label}", image, label, image, None, None, image.encode(), np.zeros(6), None,
        np.ones(4, dtype=bool), shares, shares > 0, [],
    )  # fmt: skip


def test_names_are_exchanged_by_side_or_within_an_image() -> None:
    """A map for a text points at the patch of that text's number."""
    texts = ["left lung", "right lung", "spleen", "liver"]
    asked: list[tuple[bytes, str]] = []

    def map_for(key: bytes, text: str) -> np.ndarray:
        asked.append((key, text))
        return np.eye(4)[texts.index(text)]

    cases = [
        case("a", "Left  lung", 0),  # the right one is not shown, and is asked for nevertheless
        case("b", "spleen", 2),
        case("b", "liver", 3),
        case("c", "liver", 3),  # nothing stands beside it
    ]
    rows = query_rows(Asked(cases, sorted(texts), map_for))
    assert set(rows[NAMES]) == {"a, Left  lung", "b, spleen", "b, liver"}
    assert all(scores["pointing"] == 0 for scores in rows[NAMES].values())
    assert all(scores["pointing"] == 1 for scores in rows[ASKED].values())
    assert (b"a", "right lung") in asked
    assert len(rows[WORDS]) == 4
    without = query_rows(Asked(cases[:1], ["left lung"], map_for))
    assert NAMES not in without
    assert WORDS not in without
