"""What distillation did, as numbers: the student's patches and attention against the teacher's.

For each arm, on one question about each held-out image, before (the base model that the arm began
with) and after:

- `loss_vis`, `loss_att`: the two losses against the store, at the distillation layer;
- `similarity`: the correlation of S_x with S_e over the pairs of patches;
- with regions, `pointing`, `energy` and `auc` of the question's attention (`grounding`), beside
  chance, the positional prior, another patient's map and the teacher's own E_a;
- with regions, `separable`: whether a region's features are told apart (`separability`), of the
  student's patches at the layer, and at further layers (`layers`);
- where questions name a side, the same attention with left and right exchanged (`sided`).

Every number has an interval over patients, every change and every pair of arms a paired test.

N patches, d student width.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from pipelines.evaluation.observed import observe
from pipelines.regions.grounding import chance, grounding, partners
from pipelines.regions.held import Held, priors_of
from pipelines.regions.separability import (
    Hits,
    Places,
    Vector,
    hits_of,
    region_places,
    vectors_of,
)
from shared.console import track
from shared.imaging.grid import Grid

if TYPE_CHECKING:
    from pipelines.evaluation.loading import Loaded
    from shared.recipe import Recipe

Scores = dict[str, dict[str, float]]  # item -> score -> value


class Observed(NamedTuple):
    """Patch tokens at layer l after W, and the question's attention over them, of each image.

    `vectors`: the mean features of the regions of all images, by further layer.
    """

    tokens: list[Float[np.ndarray, "N d"]]
    attention: list[Float[np.ndarray, " N"]]
    vectors: dict[int, list[Vector]]


def observe_all(
    student: "Loaded", held: Sequence[Held], layer: int, title: str, layers: Sequence[int] = ()
) -> Observed:
    """Run a student over the images, one question each.

    `layers`: the further ones. Of those only the regions' means are kept: whole patches of many
    layers would fill the memory.
    """
    tokens, attention = [], []
    vectors: dict[int, list[Vector]] = {other: [] for other in layers}
    places = _places(held, student.processor.grid)
    wanted = list(dict.fromkeys([layer, *layers]))
    shown = track(zip(held, places, strict=True), len(held), title, "images")
    for one, own in shown:
        asked, told = one.record.question, one.record.system
        seen = observe(student, asked, [one.reference], wanted, system=told)
        tokens.append(seen.tokens[layer])
        attention.append(seen.attention[layer])
        for other in layers:
            vectors[other] += vectors_of(seen.tokens[other], one.record.id, one.patient, own)
    return Observed(tokens, attention, vectors)


def scores_of(observed: Observed, held: Sequence[Held], recipe: "Recipe", grid: Grid) -> Scores:
    """Score what was observed of each image."""
    import torch

    from student_train.losses import attention_alignment_terms, visual_alignment_terms

    scores: Scores = {}
    for tokens, attention, one in zip(observed.tokens, observed.attention, held, strict=True):
        seen = torch.from_numpy(one.coverage)[None] if recipe.losses.mask_padding else None
        patches = torch.from_numpy(tokens)[None]
        similarity = torch.from_numpy(np.asarray(one.similarity))[None]
        scores[one.record.id] = {
            "loss_vis": float(visual_alignment_terms(patches, similarity, seen)[0]),
            "similarity": similarity_correlation(tokens, np.asarray(one.similarity), one.visible),
        }
        if one.attention is not None:
            terms = attention_alignment_terms(
                torch.from_numpy(attention)[None],
                torch.from_numpy(np.asarray(one.attention))[None],
                recipe.losses.attention_normalization,
                seen,
            )
            scores[one.record.id]["loss_att"] = float(terms[0])
        if one.asked:
            scores[one.record.id] |= grounding(attention, *one.asked_places(grid), one.visible)
    for name, value in _separable(observed.tokens, held, grid).hits.items():
        scores[name]["separable"] = value
    return scores


def references_of(held: Sequence[Held], grid: Grid) -> dict[str, Scores]:
    """Grounding of what a map is worth beside: the teacher's E_a (if stored), chance, the prior."""
    with_regions = [one for one in held if one.asked]
    patients = {one.record.id: one.patient for one in with_regions}
    prior = priors_of(held, held, grid)
    swapped = partners(list(patients), patients)
    maps = {
        one.record.id: np.asarray(one.attention)
        for one in with_regions
        if one.attention is not None
    }
    found: dict[str, Scores] = {"teacher": {}, "teacher, other patient": {}, "prior": {}}
    found["chance"] = {}
    for one in with_regions:
        name, region = one.record.id, one.asked_places(grid)
        if name in maps:
            found["teacher"][name] = grounding(maps[name], *region, one.visible)
        found["chance"][name] = chance(*region, one.visible)
        if name in prior:
            found["prior"][name] = grounding(prior[name], *region, one.visible)
        if swapped.get(name) in maps:
            other = maps[swapped[name]]
            found["teacher, other patient"][name] = grounding(other, *region, one.visible)
    same = [np.ones((grid.size, 1), dtype=np.float32)] * len(held)  # chance is the labels' alone
    for name, value in _separable(same, held, grid).chance.items():
        found["chance"][name]["separable"] = value
    return {name: scores for name, scores in found.items() if scores}


def other_patients_map(observed: Observed, held: Sequence[Held], grid: Grid) -> Scores:
    """Grounding of the student's attention to another patient's image: what position gives."""
    rows = {one.record.id: row for row, one in enumerate(held) if one.asked}
    swapped = partners(list(rows), {name: held[row].patient for name, row in rows.items()})
    return {
        name: grounding(
            observed.attention[rows[other]], *held[rows[name]].asked_places(grid),
            held[rows[name]].visible,
        )
        for name, other in swapped.items()
    }  # fmt: skip


def cosines(tokens: Float[np.ndarray, "N d"]) -> NDArray[np.float64]:
    """S_x (N, N): the cosine similarity of every pair of patches; 0 to a patch of zeros."""
    features = tokens.astype(np.float64)
    features /= np.linalg.norm(features, axis=1, keepdims=True).clip(1e-12)
    return np.asarray(features @ features.T)


def similarity_correlation(
    tokens: Float[np.ndarray, "N d"], similarity: NDArray[np.generic], visible: NDArray[np.bool_]
) -> float:
    """Pearson's correlation of S_x with S_e over the pairs of visible patches; 0 where one is flat.

    `similarity` is the strict upper triangle, row-major.
    """
    rows, columns = np.triu_indices(len(tokens), 1)
    kept = visible[rows] & visible[columns]
    own = cosines(tokens)[rows, columns][kept]
    taught = similarity.astype(np.float64)[kept]
    if own.std() < 1e-9 or taught.std() < 1e-9:
        return 0.0
    return float(np.corrcoef(own, taught)[0, 1])


def _separable(
    tokens: Sequence[Float[np.ndarray, "N d"]], held: Sequence[Held], grid: Grid
) -> Hits:
    """Whether each image's regions are told apart by the student's patch tokens."""
    vectors = []
    for own, one, places in zip(tokens, held, _places(held, grid), strict=True):
        vectors += vectors_of(own, one.record.id, one.patient, places)
    return hits_of(vectors)


def _places(held: Sequence[Held], grid: Grid) -> list[Places]:
    """Return the patches of each image's labelled regions; none where its regions are unknown."""
    regions = [one.regions.regions if one.regions else () for one in held]
    alone = len({region.label for own in regions for region in own}) < 2
    return [
        region_places(own, one.width, one.height, grid, one.geometry, alone=alone)
        for one, own in zip(held, regions, strict=True)
    ]
