"""Words on patients that the map was not fitted on, and the gate: the tables of docs/cache.md.

`python -m benchmarks.chest_words STORE REGIONS [IMAGES COUNT]`: a store of `patches` and a file of
regions with `key` and `size`, so that no image is opened. Five folds over patients, and each is
asked with the map of the others. With the folder IMAGES that the file's paths are relative to,
deletion and insertion of COUNT regions' maps are measured too.
"""

import sys
from pathlib import Path

import numpy as np
from jaxtyping import Float

from pipelines.regions.deletion import DELETION, INSERTION
from pipelines.regions.experts import OWN, PRIOR, Case, cases_of, store_rows
from pipelines.regions.gate import gate_of, verdict
from pipelines.regions.patches import patch_shares
from pipelines.regions.query.ridge import fit
from pipelines.regions.query.scoring import ASKED, QUERY_PAIRS, Asked, query_rows
from pipelines.regions.query.words import embed
from pipelines.regions.reading import Regions, read_regions
from pipelines.regions.scorers import RANDOM, deletion_rows
from pipelines.regions.scoring import Scores, tests_of, values_of
from shared.imaging.grid import Grid
from shared.imaging.images import ImageReference
from shared.targets import TargetStore
from shared.targets.maps import normalised

FOLDS = 5


def asked_in_folds(store: TargetStore, known: dict[str, Regions], cases: list[Case]) -> Asked:
    """Ask each image with a map that was fitted on the other folds' patients."""
    labels = sorted({normalised(region.label) for one in known.values() for region in one.regions})
    words = dict(zip(labels, embed(labels).vectors.astype(np.float64), strict=True))
    grid = Grid(*store.grid)
    features, shares, fold = {}, {}, {}
    names = sorted({one.patient for one in known.values()})
    order = np.random.default_rng(0).permutation(len(names)).tolist()
    of_patient = {names[place]: number % FOLDS for number, place in enumerate(order)}
    for one in known.values():
        assert one.seen is not None
        key, width, height = one.seen
        features[key] = store.features([key]).tokens[0].astype(np.float64)
        places = [[r.place for r in one.regions if normalised(r.label) == own] for own in labels]
        shares[key] = np.stack([patch_shares(own, width, height, grid) for own in places], axis=1)
        fold[key] = of_patient[one.patient]
    fitted = [
        fit(
            ((features[key], shares[key]) for key in features if fold[key] != number),
            np.stack([words[label] for label in labels]),
        )
        for number in range(FOLDS)
    ]

    def map_for(key: bytes, label: str) -> Float[np.ndarray, " N"]:
        weights = fitted[fold[key]] @ words[label]
        found: Float[np.ndarray, " N"] = np.maximum(features[key] @ weights[:-1] + weights[-1], 0)
        return found

    return Asked(cases, labels, map_for)


def main() -> None:
    store, file = TargetStore.open(sys.argv[1]), Path(sys.argv[2])
    known = {image: one for image, one in read_regions(file).items() if one.seen}
    images = Path(sys.argv[3]) if len(sys.argv) > 3 else None
    references = {} if images is None else {one: ImageReference(images / one) for one in known}
    cases = cases_of({image: one for image, one in known.items() if one.regions}, references, store)
    asked = asked_in_folds(store, known, cases)
    rows: dict[str, dict[str, dict[str, float]]] = {**store_rows(cases), **query_rows(asked)}
    if images is not None:
        maps = {ASKED: lambda case: asked.map_for(case.key, normalised(case.label))}
        for row, scores in deletion_rows(cases, store, maps, int(sys.argv[4])).rows.items():
            for name, own in scores.items():
                rows.setdefault(row, {}).setdefault(name, {}).update(own)
    patients = {case.name: case.patient for case in cases}
    given: dict[str, Scores] = {**rows}
    values = values_of(given, patients)
    pairs = [*QUERY_PAIRS, (ASKED, RANDOM), (OWN, RANDOM), (OWN, PRIOR), (PRIOR, RANDOM)]
    tests = tests_of([(a, b) for a, b in pairs if a in rows and b in rows], given, patients)
    for row, scores_of_row in values.items():
        for score, mean in scores_of_row.items():
            low, high = mean["interval"]
            print(
                f"{row:20} {score:9} {mean['value']:.3f} [{low:.3f}, {high:.3f}] of {mean['n']} "
                f"({mean['patients']} patients)"
            )
    for test in tests:
        if test["score"] in ("pointing", "energy", "auc", DELETION, INSERTION):
            least, most = test["interval"]
            print(
                f"{test['a']} - {test['b']}: {test['score']} {test['difference']:+.3f} "
                f"[{least or 0:+.3f}, {most or 0:+.3f}], Holm p {test['p_holm']:.3f}"
            )
    gate = gate_of(values, tests)
    assert gate is not None
    for check in gate["checks"]:
        print(f"{check['name']}: {check['holds']}: {check['said']}")
    print(verdict(gate))


if __name__ == "__main__":
    main()
