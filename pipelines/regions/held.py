"""Held-out images, each with one question, its target, and the regions that it asks about."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipelines.evaluation.clusters import PATIENT_FIELDS
from pipelines.regions.masks import Mask
from pipelines.regions.patches import Shares, inside, patch_shares
from pipelines.regions.reading import Box, Region, Regions, regions_of
from shared.errors import UserError
from shared.imaging.grid import Grid
from shared.imaging.images import ImageReference, open_image
from shared.imaging.keys import content_key
from shared.records import Record, image_root_of, load_records
from shared.targets import TargetStore
from shared.vocabulary import Geometry


class Held(NamedTuple):
    """One held-out image with its question, its target, and its regions (None: not known).

    `asked`: the regions that the question is about.
    """

    record: Record
    reference: ImageReference
    patient: str
    similarity: NDArray[np.generic]  # (pairs,)
    attention: NDArray[np.generic] | None  # (N,); None where the store holds S_e alone
    coverage: NDArray[np.uint8]  # (N,)
    width: int
    height: int
    regions: Regions | None
    asked: tuple[Region, ...]
    geometry: Geometry  # of the store, which has to be the student's

    @property
    def visible(self) -> NDArray[np.bool_]:
        """Patches that show image."""
        visible: NDArray[np.bool_] = self.coverage > 0
        return visible

    def asked_places(self, grid: Grid) -> tuple[Shares, NDArray[np.bool_]]:
        """Share of each patch of the grid in the regions asked about, and whether its centre is."""
        places = [region.place for region in self.asked]
        size = (self.width, self.height, grid, self.geometry)
        return patch_shares(places, *size), inside(places, *size)


def held_out(
    data: Path,
    image_root: Path | None,
    store: TargetStore,
    regions: Mapping[str, Regions],
    limit: int | None = None,
    where: Mapping[str, str] | None = None,
) -> list[Held]:
    """Take one question about each image of a data set file: the first that asks about a region.

    Where no question does, the first one. With a `limit` images that are asked about regions come
    first: every number speaks of them. `where`: only records whose fields have these values.

    Raises
    ------
    UserError
        An image has no target in the store, or no record shows exactly one image.
    """
    root = image_root_of(data, image_root)
    records = _about_one_image(data, root, where or {})
    labels = {region.label for one in regions.values() for region in one.regions}
    chosen: dict[str, tuple[Record, tuple[Region, ...]]] = {}
    for record in records:
        (image,) = record.images
        asked = asked_about(record.question, regions_of(regions, image), labels)
        if image not in chosen or (asked and not chosen[image][1]):
            chosen[image] = record, asked
    pairs = list(chosen.values())
    if limit is not None:
        pairs = sorted(pairs, key=lambda pair: not pair[1])[:limit]
    return [_held(record, asked, root, store, regions) for record, asked in pairs]


def _about_one_image(data: Path, root: Path, where: Mapping[str, str]) -> list[Record]:
    """Return the records of a file that show one image and whose fields have these values."""
    records = [record for record in load_records(data, root) if len(record.images) == 1]
    for field, value in where.items():
        records = [one for one in records if _field(one, field).lower() == value.lower()]
        if not records:
            raise UserError(f"{data}: no record about one image has {field}={value}")
    if not records:
        raise UserError(f"{data}: no record shows exactly one image")
    return records


def asked_about(question: str, known: Regions | None, labels: set[str]) -> tuple[Region, ...]:
    """Return the regions of an image whose label the question names.

    Where a file knows one label alone, every question is about it.
    """
    if known is None or len(labels) < 2:
        return known.regions if known is not None else ()
    return tuple(
        region
        for region in known.regions
        if re.search(rf"\b{re.escape(region.label)}\b", question, re.IGNORECASE)
    )


def _held(
    record: Record,
    asked: tuple[Region, ...],
    root: Path,
    store: TargetStore,
    regions: Mapping[str, Regions],
) -> Held:
    (reference,), known = record.references(root), regions_of(regions, record.images[0])
    key = content_key(reference.path, reference.part)
    if key not in store:
        raise UserError(
            f"record {record.id}: {reference} has no target in {store.namespace.name}; "
            "`cache build` it into the same store first"
        )
    target, image = store[key], open_image(reference)
    patient = next(
        (str(record.extra[name]) for name in PATIENT_FIELDS if name in record.extra),
        known.patient if known is not None else record.images[0],
    )
    return Held(
        record, reference, patient, target.similarity, target.attention, target.coverage,
        image.width, image.height, known, asked, store.identity.geometry,
    )  # fmt: skip


def _field(record: Record, name: str) -> str:
    """Return a field of a record as text; nothing where it has none."""
    known = {"id": record.id, "image": record.images[0], "answer_type": record.answer_type}
    return str(known.get(name, record.extra.get(name, "")))


def priors_of(held: Sequence[Held], pool: Sequence[Held], grid: Grid) -> dict[str, Shares]:
    """For each record that asks about a region, the mean region of the pool's other patients.

    Of the same labels, and of the same view where the file names views.
    """
    known = [(one, _shares(one, grid)) for one in pool]
    found = {}
    for one in held:
        labels = {region.label for region in one.asked}
        others = [
            np.minimum(np.sum([shares[label] for label in labels & shares.keys()], axis=0), 1.0)
            for other, shares in known
            if other.patient != one.patient
            and _view(other) == _view(one)
            and labels & shares.keys()
        ]
        if others:
            found[one.record.id] = np.asarray(np.mean(others, axis=0), dtype=np.float64)
    return found


def _shares(one: Held, grid: Grid) -> dict[str, Shares]:
    """Return the share of each patch in the regions of each label of an image."""
    places: dict[str, list[Box | Mask]] = {}
    for label, place in one.regions.regions if one.regions else ():
        places.setdefault(label, []).append(place)
    size = (one.width, one.height, grid, one.geometry)
    return {label: patch_shares(own, *size) for label, own in places.items()}


def _view(one: Held) -> str | None:
    return one.regions.view if one.regions else None
