"""Grounding of a fitted query's maps, beside the same map for other words and another patient's."""

from collections.abc import Sequence

import numpy as np

from pipelines.regions.experts import OWN, PRIOR, Case, Scores
from pipelines.regions.grounding import grounding, partners
from pipelines.regions.query.asking import words_of
from pipelines.regions.query.file import Query, hashed
from shared.errors import UserError
from shared.targets import TargetStore
from shared.targets.maps import normalised

ASKED = "query"
WORDS = "query, other words"
ELSEWHERE = "query, other patient"
QUERY_PAIRS = ((ASKED, PRIOR), (ASKED, OWN), (ASKED, WORDS), (ASKED, ELSEWHERE))


def query_rows(
    cases: Sequence[Case], opened: TargetStore, query: Query, encoder: str | None
) -> tuple[list[Case], dict[str, Scores]]:
    """Return the cases of patients that the query was not fitted on, and the rows of its maps.

    `WORDS` asks for another label of the file (the next one that the image does not show), so that
    words that do not matter score alike; `ELSEWHERE` is another patient's map for the same words.

    Raises
    ------
    UserError
        The query is another teacher's, or was fitted on every patient.
    """
    query.check(opened.identity, opened.namespace.name)
    held = [case for case in cases if hashed(case.patient) not in query.patients]
    if not held:
        raise UserError(
            "the query was fitted on every patient with regions: fit it on others (--data)"
        )
    labels = sorted({normalised(case.label) for case in cases})
    vectors = dict(zip(labels, words_of(query, labels, encoder), strict=True))
    shown = {
        image: {normalised(case.label) for case in held if case.image == image}
        for image in {case.image for case in held}
    }
    keys = {case.image: case.key for case in held}
    tokens = {
        image: opened.features([key]).tokens[0].astype(np.float64) for image, key in keys.items()
    }
    other = partners([case.name for case in held], {case.name: case.patient for case in held})
    by_name = {case.name: case for case in held}
    rows: dict[str, Scores] = {ASKED: {}, WORDS: {}, ELSEWHERE: {}}
    for case in held:
        label = normalised(case.label)
        region = (case.shares, case.centres, case.visible)
        rows[ASKED][case.name] = grounding(
            query.map_of(tokens[case.image], vectors[label]), *region
        )
        place = labels.index(label)
        following = [*labels[place + 1 :], *labels[:place]]
        absent = next((one for one in following if one not in shown[case.image]), None)
        if absent is not None:
            map_ = query.map_of(tokens[case.image], vectors[absent])
            rows[WORDS][case.name] = grounding(map_, *region)
        if case.name in other:
            map_ = query.map_of(tokens[by_name[other[case.name]].image], vectors[label])
            rows[ELSEWHERE][case.name] = grounding(map_, *region)
    return held, {name: scores for name, scores in rows.items() if scores}
