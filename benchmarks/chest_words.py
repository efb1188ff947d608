"""Pointing of words on patients that the map was not fitted on: the table of docs/cache.md.

`python -m benchmarks.chest_words STORE REGIONS`: a store of `patches` and a file of regions with
`key` and `size`, so that no image is opened. Five folds over patients.
"""

import sys
from pathlib import Path

import numpy as np

from pipelines.regions.grounding import grounding, priors
from pipelines.regions.patches import inside, patch_shares
from pipelines.regions.query.ridge import fit
from pipelines.regions.query.words import embed
from pipelines.regions.reading import read_regions
from pipelines.regions.scoring import tests_of, values_of
from shared.imaging.grid import Grid
from shared.targets import TargetStore

FOLDS = 5
Scores = dict[str, dict[str, float]]


def main() -> None:
    store = TargetStore.open(sys.argv[1])
    known = {image: one for image, one in read_regions(Path(sys.argv[2])).items() if one.seen}
    labels = sorted({region.label for one in known.values() for region in one.regions})
    words = embed(labels).vectors.astype(np.float64)
    grid = Grid(*store.grid)
    features, shares, centres = {}, {}, {}
    for image, one in known.items():
        assert one.seen is not None
        features[image] = store.features([one.seen.key]).tokens[0].astype(np.float64)
        size = (one.seen.width, one.seen.height, grid, store.identity.geometry)
        places = [[r.place for r in one.regions if r.label == label] for label in labels]
        shares[image] = np.stack([patch_shares(own, *size) for own in places], axis=1)
        centres[image] = np.stack([inside(own, *size) for own in places], axis=1)
    names = sorted({one.patient for one in known.values()})
    order = np.random.default_rng(0).permutation(len(names)).tolist()
    fold = {names[place]: number % FOLDS for number, place in enumerate(order)}
    fitted = [
        fit(((features[i], shares[i]) for i in known if fold[known[i].patient] != number), words)
        for number in range(FOLDS)
    ]
    rows: dict[str, Scores] = {"words": {}, "prior": {}, "other words": {}}
    patients = {}
    visible = np.ones(grid.size, dtype=bool)
    for column, label in enumerate(labels):
        shown = [image for image in known if shares[image][:, column].any()]
        own = {image: shares[image][:, column] for image in shown}
        prior = priors(own, {image: known[image].patient for image in shown})
        for image in shown:
            name = f"{image}, {label}"
            patients[name] = known[image].patient
            region = (own[image], centres[image][:, column], visible)
            matrix = fitted[fold[known[image].patient]]
            rows["prior"][name] = grounding(prior[image], *region)
            for other in range(len(labels)):
                row = "words" if other == column else "other words"
                if other != column and shares[image][:, other].any():
                    continue
                weights = matrix @ words[other]
                found = np.maximum(features[image] @ weights[:-1] + weights[-1], 0)
                rows[row][name] = grounding(found, *region)
    for row, values in values_of({r: s for r, s in rows.items() if s}, patients).items():
        for score, mean in values.items():
            low, high = mean["interval"]
            print(f"{row:12} {score:9} {mean['value']:.3f} [{low:.3f}, {high:.3f}] of {mean['n']}")
    for test in tests_of([("words", "prior"), ("words", "other words")], rows, patients):
        least, most = test["interval"]
        print(
            f"{test['a']} - {test['b']}: {test['score']} {test['difference']:+.3f} "
            f"[{least or 0:+.3f}, {most or 0:+.3f}], Holm p {test['p_holm']:.3f}"
        )


if __name__ == "__main__":
    main()
