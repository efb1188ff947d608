"""Targets that know the regions: what a perfect expert would teach.

If these do not help answers, no expert can. An image with regions gets

- as E_a the share of each patch in its regions, of sum 1, over a floor of one hundredth of it;
- as S_e the cosine of the patches' memberships (inside, outside): 1 within a region and within the
  rest, 0 between them.

An image without a region keeps the teacher's own targets. Where those are S_e alone, so is the
oracle's.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipelines.regions.patches import Shares, patch_shares
from pipelines.regions.reading import Regions, read_regions, reference_to
from shared.console import track
from shared.errors import UserError
from shared.imaging.grid import Grid
from shared.imaging.images import open_image
from shared.imaging.keys import content_key
from shared.targets import TargetStore, TargetWriter
from shared.targets.numbers.arrays import Arrays

FLOOR = 0.01  # of the attention's mass, over all visible patches


class Oracle(NamedTuple):
    """What was written: into which namespace, for how many images, how many with regions."""

    namespace: str
    images: int
    with_regions: int


def write_oracle(
    store: str | Path,
    to: str | Path,
    files: Sequence[Path],
    image_root: Path,
    *,
    teacher: str | None = None,
) -> Oracle:
    """Write the oracle of a store's images into the store `to`.

    Parameters
    ----------
    store, teacher
        The teacher's targets, of the encoding `matrix`; their images get the oracle's.
    files
        Files of regions (`pipelines.regions.reading`).
    image_root
        What the images in them are relative to.

    Raises
    ------
    UserError
        Another encoding, a faulty file, or no image with regions that the store knows.
    """
    opened = TargetStore.open(store, teacher)
    if opened.identity.encoding != "matrix":
        raise UserError(
            f"{opened.namespace.name} is of the encoding {opened.identity.encoding}; the oracle "
            "needs a `matrix` store (cache build --encoding matrix)"
        )
    known = {image: found for file in files for image, found in read_regions(file).items()}
    grid = Grid(*opened.identity.grid)
    shares = _shares(known, image_root, opened, grid)
    if not shares:
        raise UserError(
            f"no image with regions of {files[0]} has a target in {opened.namespace.name}; "
            "`cache build` them first"
        )
    text = f"oracle of {opened.identity.fingerprint()}" + "".join(
        f" {key.hex()} {values.round(4).tolist()}" for key, values in sorted(shares.items())
    )
    identity = opened.identity.without_query().model_copy(
        update={
            "teacher": f"{opened.identity.teacher}-oracle",
            "weights": hashlib.sha256(text.encode()).hexdigest(),
        }
    )
    keys = list(opened.keys())
    with TargetWriter(to, identity, {"control": f"oracle of {opened.namespace.name}"}) as writer:
        for key in track(keys, len(keys), "oracle", "images"):
            own = opened[key]
            arrays: Arrays = own.arrays()
            if key in shares:
                made = oracle_arrays(shares[key], own.coverage)
                arrays = {name: made[name] for name in arrays}
            writer.add(key, arrays)
    return Oracle(identity.namespace(), len(keys), len(shares))


def oracle_arrays(shares: Shares, coverage: NDArray[np.uint8]) -> Arrays:
    """Return the oracle's arrays of an image whose regions cover `shares` (N,) of each patch."""
    attention = region_attention(shares, coverage)
    members = np.stack([shares, 1 - shares], axis=1)
    members /= np.linalg.norm(members, axis=1, keepdims=True)
    similarity = (members @ members.T)[np.triu_indices(len(shares), 1)]
    return {
        "similarity": similarity.astype(np.float16),
        "attention": attention.astype(np.float32),
        "coverage": coverage,
    }


def region_attention(shares: Shares, coverage: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the shares (N,) as an attention of sum 1 over the visible patches, above the floor."""
    visible = coverage > 0
    within = np.where(visible, shares, 0.0)
    found: NDArray[np.float64] = (
        1 - FLOOR
    ) * within / within.sum() + FLOOR * visible / visible.sum()
    return found


def _shares(
    known: Mapping[str, Regions], image_root: Path, opened: TargetStore, grid: Grid
) -> dict[bytes, Shares]:
    """Return the regions' share of each patch, of every image of the store that has some."""
    found = {}
    for image, regions in track(known.items(), len(known), "regions", "images"):
        if not regions.regions:
            continue
        reference = reference_to(image, image_root)
        try:
            key = content_key(reference.path, reference.part)
        except OSError as error:
            raise UserError(f"{reference} cannot be read: {error.strerror or error}") from None
        if key not in opened:
            continue
        picture = open_image(reference)
        places = [region.place for region in regions.regions]
        values = patch_shares(places, picture.width, picture.height, grid, opened.identity.geometry)
        if (values * (opened[key].coverage > 0)).sum() > 0:
            found[key] = values
    return found
