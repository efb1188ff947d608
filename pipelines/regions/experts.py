"""What the targets of one teacher say of the regions: the rows of an audit.

- grounding of E_a, beside chance, the positional prior and another patient's E_a;
- grounding of the read-out of E_v (`readout`): what a linear map finds in the same features;
- `separable` of E_v (`separability`), beside chance;
- `together` of S_e: whether the patches most similar to a patch of the region lie in the region
  too, beside another patient's S_e at the same place, which knows only that near patches are alike.

N patches, b teacher width.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from pipelines.regions.features import teacher_features
from pipelines.regions.grounding import auc, chance, grounding, partners, priors
from pipelines.regions.patches import Shares, inside, patch_shares
from pipelines.regions.reading import Regions, Seen
from pipelines.regions.readout import read_out
from pipelines.regions.separability import Places, hits_of, region_places, vectors_of
from shared.console import track
from shared.errors import UserError
from shared.imaging.grid import Grid
from shared.imaging.images import ImageReference, open_image
from shared.imaging.keys import content_key
from shared.targets import TargetStore
from shared.targets.numbers.triangle import square_of

OWN, OTHER, PRIOR, CHANCE = "E_a", "E_a, other patient", "prior", "chance"
READ, FEATURES = "E_v, linear read-out", "E_v"
SIMILARITY, SWAPPED = "S_e", "S_e, other patient"
PAIRS = (
    (OWN, CHANCE), (OWN, OTHER), (OWN, PRIOR), (READ, CHANCE), (READ, PRIOR), (READ, OWN),
    (FEATURES, CHANCE), (SIMILARITY, SWAPPED),
)  # fmt: skip

Scores = dict[str, dict[str, float]]


class Case(NamedTuple):
    """An image, one label's regions in it on the target's grid, and its target.

    `places`: of all labels, for `separable`.
    """

    name: str
    image: str
    label: str
    patient: str
    view: str | None
    reference: ImageReference | None
    key: bytes
    similarity: NDArray[np.generic]  # (pairs,)
    attention: NDArray[np.generic] | None  # (N,); None where the store holds S_e alone
    visible: NDArray[np.bool_]  # (N,)
    shares: Shares  # (N,)
    centres: NDArray[np.bool_]  # (N,)
    places: Places


def cases_of(
    known: Mapping[str, Regions], references: Mapping[str, ImageReference], opened: TargetStore
) -> list[Case]:
    """Read the targets of the images with regions; those without a target are left out.

    `references`: the image files that are there; key and size are those that `known` says.
    """
    grid, geometry = Grid(*opened.grid), opened.identity.geometry
    labels = {region.label for one in known.values() for region in one.regions}
    cases = []
    for image, regions in track(known.items(), len(known), opened.identity.teacher, "images"):
        reference = references.get(image)
        seen = regions.seen or (_look(reference) if reference is not None else None)
        if seen is None or seen.key not in opened:
            continue
        target = opened[seen.key]
        size = (seen.width, seen.height, grid, geometry)
        visible = target.coverage > 0
        every = region_places(regions.regions, *size, alone=len(labels) < 2)
        for label in dict.fromkeys(region.label for region in regions.regions):
            places = [region.place for region in regions.regions if region.label == label]
            shares = patch_shares(places, *size)
            if not (shares[visible] > 0).any():
                continue  # the crop has cut the region off
            name = f"{image}, {label}" if len(labels) > 1 else image
            cases.append(
                Case(
                    name, image, label, regions.patient, regions.view, reference, seen.key,
                    target.similarity, target.attention, visible,
                    shares, inside(places, *size), every,
                )
            )  # fmt: skip
    return cases


def _look(reference: ImageReference) -> Seen:
    picture = open_image(reference)
    key = content_key(reference.path, reference.part)
    return Seen(key, picture.width, picture.height)


def store_rows(cases: Sequence[Case]) -> dict[str, Scores]:
    """Return the rows that the stored targets give; prior and partners are of the same label.

    A store of S_e alone gives none of E_a.
    """
    rows: dict[str, Scores] = {row: {} for row in (OWN, OTHER, PRIOR, CHANCE, SIMILARITY, SWAPPED)}
    for group in _groups(cases, by_view=True):
        by_name = {case.name: case for case in group}
        patients = {case.name: case.patient for case in group}
        prior = prior_maps(group)
        other = partners(list(by_name), patients)
        for name, case in by_name.items():
            region = (case.shares, case.centres, case.visible)
            if case.attention is not None:
                rows[OWN][name] = grounding(case.attention.astype(np.float64), *region)
            rows[CHANCE][name] = chance(*region)
            if name in prior:
                rows[PRIOR][name] = grounding(prior[name], *region)
            rows[SIMILARITY][name] = together(case.similarity, case.centres, case.visible)
            if name in other:
                partner = by_name[other[name]]
                if partner.attention is not None:
                    rows[OTHER][name] = grounding(partner.attention.astype(np.float64), *region)
                rows[SWAPPED][name] = together(partner.similarity, case.centres, case.visible)
    return {row: scores for row, scores in rows.items() if any(scores.values())}


def prior_maps(cases: Sequence[Case]) -> dict[str, Shares]:
    """Return the positional prior of each case that has one: of its label and view."""
    found: dict[str, Shares] = {}
    for group in _groups(cases, by_view=True):
        patients = {case.name: case.patient for case in group}
        found |= priors({case.name: case.shares for case in group}, patients)
    return found


def _groups(cases: Sequence[Case], by_view: bool) -> list[list[Case]]:
    """Return the cases of each label, and of each view of it."""
    groups: dict[tuple[str, str | None], list[Case]] = {}
    for case in cases:
        groups.setdefault((case.label, case.view if by_view else None), []).append(case)
    return list(groups.values())


def feature_rows(
    cases: Sequence[Case], opened: TargetStore, weights: str | None, device: str
) -> tuple[dict[str, Scores], float | None]:
    """Return the rows of E_v, with chance of `separable`, and the silhouette of its regions."""
    images = {case.image: case for case in cases}
    features = dict(
        zip(images, _encoded(list(images.values()), opened, weights, device), strict=True)
    )
    read = _read_out(cases, features)
    rows: dict[str, Scores] = {READ: read} if read else {}
    vectors = [
        vector
        for image, case in images.items()
        for vector in vectors_of(features[image], case.name, case.patient, case.places)
    ]
    found = hits_of(vectors)
    if found.hits:
        rows[FEATURES] = {name: {"separable": value} for name, value in found.hits.items()}
        rows[CHANCE] = {name: {"separable": value} for name, value in found.chance.items()}
    return rows, found.silhouette


def _encoded(
    cases: Sequence[Case], opened: TargetStore, weights: str | None, device: str
) -> Sequence[Float[np.ndarray, "N b"]]:
    """Return E_v of each image: from a store of `patches`, else by its teacher from the files."""
    if opened.identity.encoding == "patches":
        return [opened.features([case.key]).tokens[0] for case in cases]
    references = [case.reference for case in cases if case.reference is not None]
    if len(references) < len(cases):
        raise UserError("E_v is not in the store (--encoding patches keeps it), nor are the images")
    return teacher_features(
        opened.identity, references, Grid(*opened.grid), weights=weights, device=device
    )


def _read_out(cases: Sequence[Case], features: Mapping[str, Float[np.ndarray, "N b"]]) -> Scores:
    """Score the linear read-out of E_v for each label with patients enough; by image its E_v."""
    scores: Scores = {}
    for group in _groups(cases, by_view=False):
        maps = read_out(
            [features[case.image] for case in group], [case.shares for case in group],
            [case.visible for case in group], [case.patient for case in group],
        )  # fmt: skip
        for case, map_ in zip(group, maps or (), strict=False):
            scores[case.name] = grounding(map_, case.shares, case.centres, case.visible)
    return scores


def together(
    similarity: NDArray[np.generic], centres: NDArray[np.bool_], visible: NDArray[np.bool_]
) -> dict[str, float]:
    """Score S_e: AUC of each region patch's similarities, region patches against the rest.

    Parameters
    ----------
    similarity
        S_e (pairs,), strict upper triangle.
    centres, visible
        (N,) patches whose centre is in the region, and that show image.

    Returns
    -------
    The mean as `together`; nothing where fewer than two patches are in the region, or all.
    """
    positive = centres[visible]
    count = int(positive.sum())
    if count < 2 or count == len(positive):
        return {}
    matrix = square_of(similarity)[np.ix_(visible, visible)].astype(np.float64)
    values = []
    for row in np.flatnonzero(positive):
        rest = np.arange(len(positive)) != row
        values.append(auc(matrix[row][rest], positive[rest]))
    return {"together": float(np.mean(values))}
