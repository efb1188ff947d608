"""Deletion and insertion of an audit's maps, scored by the store's own teacher.

Where the teacher has a text space the score is the cosine of the picture's embedding with that of
the region's label. Elsewhere it is the cosine of its vector with the whole image's: what is left of
the representation (RELAX, Wickstrøm et al., IJCV 2023, masks images under this score).

N patches of the grid, K pictures, c width of a vector.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pipelines.regions.deletion import Score, areas
from pipelines.regions.experts import OWN, PRIOR, Case, Scores, prior_maps
from pipelines.regions.grounding import Map
from shared.console import track
from shared.errors import UserError
from shared.imaging.grid import Grid
from shared.imaging.pixels import UnreadableImage
from shared.targets import TargetStore
from shared.targets.maps import normalised
from teacher_cache.teachers.base import Teacher

RANDOM = "random map"
BY_TEXT, BY_IMAGE = "the label's text", "the whole image"

# Of a case: the map of its image for its label.
MapOf = Callable[[Case], Map | None]


class Deleted(NamedTuple):
    """The areas of each row's maps by case, and what the pictures were compared with."""

    rows: dict[str, Scores]
    against: str


def deletion_rows(
    cases: Sequence[Case],
    opened: TargetStore,
    maps: Mapping[str, MapOf],
    count: int,
    *,
    weights: str | None = None,
    tokenizer: str | None = None,
    device: str = "auto",
) -> Deleted:
    """Measure `count` cases' maps, and beside them a random map, the prior and E_a.

    Parameters
    ----------
    maps
        Further rows by name.
    count
        Cases, in an order by lot that takes one of each patient first.
    weights, tokenizer
        Of a teacher that brings none; of its text tower.
    device
        Where it runs.

    Raises
    ------
    UserError
        An image file is missing, or the teacher is not the store's, or its text tower lacks files.
    """
    from shared.processes import choose_device
    from teacher_cache.settings import load_of
    from teacher_cache.stream import prepare

    identity = opened.identity
    chosen = _drawn(cases, count)
    absent = [case.image for case in chosen if case.reference is None]
    if absent:
        raise UserError(
            f"deletion and insertion encode images again, and {absent[0]} is not there; pass its "
            "folder as --image-root"
        )
    place = choose_device(device)
    teacher = load_of(identity, weights, place, "--weights" if weights else identity.teacher)
    texts = _texts(teacher, opened, [case.label for case in chosen], weights, tokenizer)
    prior = prior_maps(cases)
    rows: dict[str, Scores] = {}
    for number, case in enumerate(track(chosen, len(chosen), "deletion, insertion", "images")):
        if case.reference is None:
            continue
        try:
            pixels = prepare(case.reference, identity.preprocessing, identity.geometry)[0]
        except UnreadableImage as error:
            raise UserError(f"{case.image} cannot be read: {error}") from None
        own: dict[str, Map | None] = {name: map_of(case) for name, map_of in maps.items()}
        attention = None if case.attention is None else case.attention.astype(np.float64)
        own |= {OWN: attention, PRIOR: prior.get(case.name)}
        given = {name: map_ for name, map_ in own.items() if map_ is not None}
        given[RANDOM] = np.ones(len(case.visible))  # all equal: in a random order
        vector = None if texts is None else texts[normalised(case.label)]
        score = _score_of(teacher, place, pixels, vector)
        found = areas(pixels, given, case.visible, Grid(*opened.grid), score, number)
        for name, values in found.items():
            rows.setdefault(name, {})[case.name] = values
    return Deleted(rows, BY_IMAGE if texts is None else BY_TEXT)


def _drawn(cases: Sequence[Case], count: int) -> list[Case]:
    """Draw cases by lot: first one of each patient, then the others."""
    order = np.random.default_rng(0).permutation(len(cases)).tolist()
    seen: dict[str, int] = {}
    turns = []
    for place in order:
        patient = cases[place].patient
        seen[patient] = seen.get(patient, 0) + 1
        turns.append((seen[patient], place))
    return [cases[place] for _, place in sorted(turns, key=lambda turn: turn[0])[:count]]


def _score_of(
    teacher: Teacher, device: str, pixels: Tensor, vector: Float[np.ndarray, " c"] | None
) -> Score:
    """Return the cosine of pictures with a text's vector, or with that of the whole image."""
    from teacher_cache.pooled import image_vectors

    kind = next(teacher.model.parameters()).dtype

    def vectors(pictures: Tensor) -> Tensor:
        return image_vectors(teacher, pictures.to(device=device, dtype=kind)).double().cpu()

    wanted = vectors(pixels[None])[0] if vector is None else torch.from_numpy(vector).double()

    def score(pictures: Tensor) -> Float[np.ndarray, " K"]:
        found: Float[np.ndarray, " K"] = (vectors(pictures) @ wanted).numpy()
        return found

    return score


def _texts(
    teacher: Teacher,
    opened: TargetStore,
    labels: Sequence[str],
    weights: str | None,
    tokenizer: str | None,
) -> dict[str, Float[np.ndarray, " c"]] | None:
    """Embed the labels by the teacher's own text tower; None of a teacher without a text space."""
    from teacher_cache.pooled import has_text_space
    from teacher_cache.settings import settings_of
    from teacher_cache.texts.towers import embed, load_text_tower

    if not has_text_space(teacher):
        return None
    said = settings_of(opened.identity).trained
    tower = load_text_tower(opened.identity.teacher, weights, tokenizer, said)
    different = sorted({normalised(label) for label in labels})
    return dict(zip(different, embed(tower, different), strict=True))
