"""What distillation did, as numbers: the student's patches and attention against the teacher's.

For each arm, on one question about each held-out image, before (the base model that the arm began
with) and after:

- `loss_vis`, `loss_att`: the two losses against the store, at the distillation layer;
- `similarity`: the correlation of S_x with S_e over the pairs of patches;
- with regions, `pointing`, `energy` and `auc` of the question's attention (`grounding`), beside
  chance, the positional prior, another patient's map and the teacher's own E_a;
- with regions, `separable`: whether a region's features are told apart (`separability`), of the
  student's patches at the layer.

Every number has an interval over patients, every change and every pair of arms a paired test.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from pipelines.evaluation.clusters import PATIENT_FIELDS
from pipelines.evaluation.observed import observe
from pipelines.regions.grounding import chance, grounding, partners, priors
from pipelines.regions.patches import inside, patch_shares
from pipelines.regions.reading import Regions, regions_of
from pipelines.regions.separability import Hits, hits_of, region_places, vectors_of
from shared.console import track
from shared.errors import UserError
from shared.imaging.grid import Grid
from shared.imaging.images import ImageReference, open_image
from shared.imaging.keys import content_key
from shared.records import Record, image_root_of, load_records
from shared.targets import TargetStore

if TYPE_CHECKING:
    from pipelines.evaluation.loading import Loaded
    from shared.recipe import Recipe

Scores = dict[str, dict[str, float]]  # item -> score -> value
LOSSES = ("loss_vis", "loss_att")


class Held(NamedTuple):
    """One held-out image with its question, its target, and its regions (None: not known).

    `shares` and `centres` are of the student's grid.
    """

    record: Record
    reference: ImageReference
    patient: str
    similarity: NDArray[np.generic]  # (pairs,)
    attention: NDArray[np.generic]  # (N,)
    coverage: NDArray[np.uint8]  # (N,)
    width: int
    height: int
    regions: Regions | None

    @property
    def visible(self) -> NDArray[np.bool_]:
        """Patches that show image."""
        visible: NDArray[np.bool_] = self.coverage > 0
        return visible


def held_out(
    data: Path,
    image_root: Path | None,
    store: TargetStore,
    regions: Mapping[str, Regions],
    limit: int | None = None,
    where: Mapping[str, str] | None = None,
) -> list[Held]:
    """Take the first question about each image of a data set file.

    With a `limit` those with regions come first: every number speaks of them. `where`: only records
    whose fields have these values.

    Raises
    ------
    UserError
        An image has no target in the store, or no record shows exactly one image.
    """
    found: dict[str, Held] = {}
    root = image_root_of(data, image_root)
    records = [record for record in load_records(data, root) if len(record.images) == 1]
    for field, value in (where or {}).items():
        records = [one for one in records if _field(one, field).lower() == value.lower()]
        if not records:
            raise UserError(f"{data}: no record about one image has {field}={value}")
    if limit is not None:
        records.sort(key=lambda one: not _has_regions(regions_of(regions, one.images[0])))
    for record in records:
        if record.images[0] in found:
            continue
        if limit is not None and len(found) >= limit:
            break
        (reference,) = record.references(root)
        key = content_key(reference.path, reference.part)
        if key not in store:
            raise UserError(
                f"record {record.id}: {reference} has no target in {store.namespace.name}; "
                "`cache build` it into the same store first"
            )
        target, known = store[key], regions_of(regions, record.images[0])
        image = open_image(reference)
        patient = next(
            (str(record.extra[name]) for name in PATIENT_FIELDS if name in record.extra),
            known.patient if known is not None else record.images[0],
        )
        found[record.images[0]] = Held(
            record, reference, patient, target.similarity, target.attention, target.coverage,
            image.width, image.height, known,
        )  # fmt: skip
    if not found:
        raise UserError(f"{data}: no record shows exactly one image")
    return list(found.values())


def _field(record: Record, name: str) -> str:
    """Return a field of a record as text; nothing where it has none."""
    known = {"id": record.id, "image": record.images[0], "answer_type": record.answer_type}
    return str(known.get(name, record.extra.get(name, "")))


def _has_regions(known: Regions | None) -> bool:
    return known is not None and bool(known.regions)


class Observed(NamedTuple):
    """Patch tokens at layer l after W, and the question's attention over them, of each image."""

    tokens: list[Float[np.ndarray, "N d"]]
    attention: list[Float[np.ndarray, " N"]]


def observe_all(student: "Loaded", held: Sequence[Held], layer: int, title: str) -> Observed:
    """Run a student over the images, one question each."""
    tokens, attention = [], []
    for one in track(held, len(held), title, "images"):
        seen = observe(student, one.record.question, [one.reference], [layer])
        tokens.append(seen.tokens[layer])
        attention.append(seen.attention[layer])
    return Observed(tokens, attention)


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
            "loss_att": float(
                attention_alignment_terms(
                    torch.from_numpy(attention)[None],
                    torch.from_numpy(np.asarray(one.attention))[None],
                    recipe.losses.attention_normalization,
                    seen,
                )[0]
            ),
            "similarity": _correlation(tokens, np.asarray(one.similarity), one.visible),
        }
        if _has_regions(one.regions):
            scores[one.record.id] |= grounding(attention, *_region(one, grid), one.visible)
    for name, value in _separable(observed.tokens, held, grid).hits.items():
        scores[name]["separable"] = value
    return scores


def references_of(held: Sequence[Held], grid: Grid) -> dict[str, Scores]:
    """Grounding of what a map is worth beside: the teacher's E_a, chance, the prior."""
    with_regions = [one for one in held if _has_regions(one.regions)]
    shares = {one.record.id: _region(one, grid)[0] for one in with_regions}
    patients = {one.record.id: one.patient for one in with_regions}
    prior = priors(shares, patients)
    swapped = partners(list(shares), patients)
    maps = {one.record.id: np.asarray(one.attention) for one in with_regions}
    found: dict[str, Scores] = {"teacher": {}, "teacher, other patient": {}, "prior": {}}
    found["chance"] = {}
    for one in with_regions:
        name, region = one.record.id, _region(one, grid)
        found["teacher"][name] = grounding(maps[name], *region, one.visible)
        found["chance"][name] = chance(*region, one.visible)
        if name in prior:
            found["prior"][name] = grounding(prior[name], *region, one.visible)
        if name in swapped:
            other = maps[swapped[name]]
            found["teacher, other patient"][name] = grounding(other, *region, one.visible)
    same = [np.ones((grid.size, 1), dtype=np.float32)] * len(held)  # chance is the labels' alone
    for name, value in _separable(same, held, grid).chance.items():
        found["chance"][name]["separable"] = value
    return {name: scores for name, scores in found.items() if scores}


def other_patients_map(observed: Observed, held: Sequence[Held], grid: Grid) -> Scores:
    """Grounding of the student's attention to another patient's image: what position gives."""
    rows = {one.record.id: row for row, one in enumerate(held) if _has_regions(one.regions)}
    swapped = partners(list(rows), {name: held[row].patient for name, row in rows.items()})
    return {
        name: grounding(
            observed.attention[rows[other]], *_region(held[rows[name]], grid),
            held[rows[name]].visible,
        )
        for name, other in swapped.items()
    }  # fmt: skip


def _region(one: Held, grid: Grid) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    places = [region.place for region in (one.regions.regions if one.regions else ())]
    size = (one.width, one.height, grid)
    return patch_shares(places, *size), inside(places, *size)


def _correlation(
    tokens: Float[np.ndarray, "N d"], similarity: NDArray[np.generic], visible: NDArray[np.bool_]
) -> float:
    """Pearson's correlation of S_x with S_e over the pairs of visible patches; 0 where one is flat.

    `similarity` is the strict upper triangle, row-major.
    """
    features = tokens.astype(np.float64)
    features /= np.linalg.norm(features, axis=1, keepdims=True).clip(1e-12)
    rows, columns = np.triu_indices(len(features), 1)
    kept = visible[rows] & visible[columns]
    own = (features @ features.T)[rows, columns][kept]
    taught = similarity.astype(np.float64)[kept]
    if own.std() < 1e-9 or taught.std() < 1e-9:
        return 0.0
    return float(np.corrcoef(own, taught)[0, 1])


def _separable(
    tokens: Sequence[Float[np.ndarray, "N d"]], held: Sequence[Held], grid: Grid
) -> Hits:
    """Whether each image's regions are told apart by the student's patch tokens."""
    labels = {region.label for one in held if one.regions for region in one.regions.regions}
    vectors = []
    for own, one in zip(tokens, held, strict=True):
        if one.regions is not None:
            size = (one.width, one.height, grid)
            places = region_places(one.regions.regions, *size, alone=len(labels) < 2)
            vectors += vectors_of(own, one.record.id, one.patient, places)
    return hits_of(vectors)
