"""Grounding of a query's maps, beside the same map for other words and another patient's.

N patches of the grid, L labels, b teacher width.
"""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

from pipelines.regions.experts import OWN, PRIOR, Case, Scores
from pipelines.regions.grounding import grounding, partners
from pipelines.regions.query.asking import words_of
from pipelines.regions.query.file import Query, hashed
from pipelines.regions.query.stored import Stored
from shared.errors import UserError
from shared.targets import TargetStore
from shared.targets.maps import normalised

ASKED = "query"
WORDS = "query, other words"
ELSEWHERE = "query, other patient"
QUERY_PAIRS = ((ASKED, PRIOR), (ASKED, OWN), (ASKED, WORDS), (ASKED, ELSEWHERE))

# Of an image (its content key) and a label in its normal form: the map.
MapFor = Callable[[bytes, str], Float[np.ndarray, " N"]]


def query_rows(
    cases: Sequence[Case], opened: TargetStore, query: Query | Stored, encoder: str | None
) -> tuple[list[Case], dict[str, Scores]]:
    """Return the cases of patients that the query was not fitted on, and the rows of its maps.

    What a store keeps to be asked was fitted on nobody. `WORDS` asks for another label of the file
    (the next one that the image does not show), so that words that do not matter score alike;
    `ELSEWHERE` is another patient's map for the same words.

    Raises
    ------
    UserError
        The query is another teacher's, or was fitted on every patient.
    """
    labels = sorted({normalised(case.label) for case in cases})
    if isinstance(query, Stored):
        held, map_for = list(cases), _stored(query, labels)
    else:
        query.check(opened.identity, opened.namespace.name)
        held = [case for case in cases if hashed(case.patient) not in query.patients]
        if not held:
            raise UserError(
                "the query was fitted on every patient with regions: fit it on others (--data)"
            )
        map_for = _fitted(query, opened, labels, encoder)
    shown = {
        image: {normalised(case.label) for case in held if case.image == image}
        for image in {case.image for case in held}
    }
    other = partners([case.name for case in held], {case.name: case.patient for case in held})
    by_name = {case.name: case for case in held}
    rows: dict[str, Scores] = {ASKED: {}, WORDS: {}, ELSEWHERE: {}}
    for case in held:
        label = normalised(case.label)
        region = (case.shares, case.centres, case.visible)
        rows[ASKED][case.name] = grounding(map_for(case.key, label), *region)
        place = labels.index(label)
        following = [*labels[place + 1 :], *labels[:place]]
        absent = next((one for one in following if one not in shown[case.image]), None)
        if absent is not None:
            rows[WORDS][case.name] = grounding(map_for(case.key, absent), *region)
        if case.name in other:
            map_ = map_for(by_name[other[case.name]].key, label)
            rows[ELSEWHERE][case.name] = grounding(map_, *region)
    return held, {name: scores for name, scores in rows.items() if scores}


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
