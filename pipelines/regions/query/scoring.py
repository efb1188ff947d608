"""Grounding of a query's maps, beside the maps for other words, and another patient's.

N patches of the grid, b teacher width, L labels.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from pipelines.evaluation.sides import side_named, swapped
from pipelines.regions.experts import OWN, PRIOR, Case, Scores
from pipelines.regions.grounding import grounding, partners
from pipelines.regions.query.asking import words_of
from pipelines.regions.query.file import Query, hashed
from pipelines.regions.query.stored import Stored
from shared.errors import UserError
from shared.targets import TargetStore
from shared.targets.maps import map_key, maps_of, normalised

ASKED = "query"
WORDS = "query, other words"
NAMES = "query, names swapped"
ELSEWHERE = "query, other patient"
QUERY_PAIRS = (
    (ASKED, PRIOR), (ASKED, OWN), (ASKED, NAMES), (ASKED, WORDS), (ASKED, ELSEWHERE)
)  # fmt: skip

# Of an image (its content key) and a label in its normal form: the map; None where there is none.
MapFor = Callable[[bytes, str], Float[np.ndarray, " N"] | None]


class Asked(NamedTuple):
    """The cases of patients that a query was not fitted on, all labels, and its maps."""

    cases: list[Case]
    labels: list[str]
    map_for: MapFor


def asked_of(
    cases: Sequence[Case], opened: TargetStore, query: Query | Stored, encoder: str | None
) -> Asked:
    """Ask for the labels of cases; what a store keeps to be asked was fitted on nobody.

    Raises
    ------
    UserError
        The query is another teacher's, or was fitted on every patient.
    """
    labels = sorted({normalised(case.label) for case in cases})
    if isinstance(query, Stored):
        return Asked(list(cases), labels, _stored(query, labels))
    query.check(opened.identity, opened.namespace.name)
    held = [case for case in cases if hashed(case.patient) not in query.patients]
    if not held:
        raise UserError(
            "the query was fitted on every patient with regions: fit it on others (--data)"
        )
    return Asked(held, labels, _fitted(query, opened, labels, encoder))


def imported_of(cases: Sequence[Case], opened: TargetStore, place: str | Path) -> Asked:
    """Look the labels up among maps that a store holds ready, of whatever origin.

    Raises
    ------
    UserError
        The store holds no maps, or several, or none of these images for its labels.
    """
    maps = TargetStore.open(place, grid=opened.grid, maps=True)

    def map_for(key: bytes, label: str) -> Float[np.ndarray, " N"] | None:
        [found] = maps_of(maps, key, [label])
        return found

    held = [case for case in cases if map_key(case.key, case.label) in maps]
    if not held:
        raise UserError(
            f"{place} holds no map of these images whose text is a label of the regions, such as "
            f"{cases[0].label!r}: `cache query maps --data` writes maps for the texts of questions"
        )
    return Asked(held, sorted({normalised(case.label) for case in cases}), map_for)


def query_rows(asked: Asked) -> dict[str, Scores]:
    """Return the rows of a query's maps.

    `WORDS` asks for another label of the file (the next one that the image does not show), so that
    words that do not matter score alike. `NAMES` exchanges names: left and right where the label
    names a side, else the label and the next one that the same image shows. `ELSEWHERE` is another
    patient's map for the same words.
    """
    held, labels, map_for = asked
    shown = {
        image: {normalised(case.label) for case in held if case.image == image}
        for image in {case.image for case in held}
    }
    other = partners([case.name for case in held], {case.name: case.patient for case in held})
    by_name = {case.name: case for case in held}
    rows: dict[str, Scores] = {ASKED: {}, NAMES: {}, WORDS: {}, ELSEWHERE: {}}
    for case in held:
        label = normalised(case.label)
        maps = {ASKED: (case.key, label)}
        place = labels.index(label)
        following = [*labels[place + 1 :], *labels[:place]]
        absent = next((one for one in following if one not in shown[case.image]), None)
        if absent is not None:
            maps[WORDS] = (case.key, absent)
        beside = [one for one in following if one in shown[case.image]]
        exchanged = [swapped(label)] if side_named(label) else beside
        if exchanged and exchanged[0] in labels:
            maps[NAMES] = (case.key, exchanged[0])
        if case.name in other:
            maps[ELSEWHERE] = (by_name[other[case.name]].key, label)
        for row, (key, text) in maps.items():
            map_ = map_for(key, text)
            if map_ is not None:
                rows[row][case.name] = grounding(map_, case.shares, case.centres, case.visible)
    return {name: scores for name, scores in rows.items() if scores}


def _fitted(query: Query, opened: TargetStore, labels: list[str], encoder: str | None) -> MapFor:
    vectors = dict(zip(labels, words_of(query, labels, encoder), strict=True))
    tokens: dict[bytes, Float[np.ndarray, "N b"]] = {}

    def map_for(key: bytes, label: str) -> Float[np.ndarray, " N"]:
        if key not in tokens:
            tokens[key] = opened.features([key]).tokens[0].astype(np.float64)
        return query.map_of(tokens[key], vectors[label])

    return map_for


def _stored(query: Stored, labels: list[str]) -> MapFor:
    query.outside(labels)  # which refuses at once where a label cannot be embedded
    places = {label: place for place, label in enumerate(labels)}
    maps: dict[bytes, Float[np.ndarray, "L N"]] = {}

    def map_for(key: bytes, label: str) -> Float[np.ndarray, " N"]:
        if key not in maps:
            maps[key] = query.maps([key], labels)[0]
        found: Float[np.ndarray, " N"] = maps[key][places[label]]
        return found

    return map_for
