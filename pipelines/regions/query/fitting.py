"""`cache query fit`: learn on training patients which patches the words of a label name.

For teachers without a text tower: a packaged sentence encoder gives the words, regions say where
they are, and a store of `patches` gives E_v. No image is opened where the file of regions says key
and size.

n visible patches of an image, b teacher width, L labels.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from pipelines.regions.patches import patch_shares
from pipelines.regions.query.file import Query, hashed, teacher_of
from pipelines.regions.query.ridge import fit
from pipelines.regions.query.words import embed
from pipelines.regions.reading import Regions, Seen, read_regions, reference_to
from shared.console import track
from shared.errors import UserError
from shared.imaging.grid import Grid
from shared.imaging.images import open_image
from shared.imaging.keys import content_key
from shared.records import load_records
from shared.targets import TargetStore
from shared.targets.maps import normalised


def fit_query(
    store: TargetStore,
    regions: Path,
    *,
    image_root: Path | None = None,
    data: Path | None = None,
    encoder: str | None = None,
) -> Query:
    """Fit a query on the images of a store that a file of regions knows.

    Parameters
    ----------
    store
        Of the encoding `patches`.
    regions
        A file or folder of regions; an image without a label's region shows none.
    image_root
        What its images are relative to; default: its own folder.
    data
        A data set file: only its images are fitted on; None is all.
    encoder
        Folder of a sentence encoder; None is the packaged one.

    Raises
    ------
    UserError
        Another encoding, no image of the store with regions, or a faulty file.
    """
    root = image_root or (regions if regions.is_dir() else regions.parent)
    known = read_regions(regions)
    if data is not None:
        shown = {image for record in load_records(data) for image in record.images}
        known = {image: one for image, one in known.items() if image in shown}
    seen = {image: seen_of(image, one, root) for image, one in known.items()}
    held = {image: one for image, one in known.items() if seen[image].key in store}
    labels = sorted({normalised(one.label) for found in held.values() for one in found.regions})
    if not labels:
        raise UserError(
            f"no image with regions of {regions} is in {store.namespace.name}; `cache build "
            "--encoding patches` them first"
        )
    words = embed(labels, encoder)
    store.features([])  # says what is wrong with another encoding
    matrix = fit(_images(store, held, seen, labels), words.vectors.astype(np.float64))
    return Query(
        matrix,
        tuple(labels),
        frozenset(hashed(one.patient) for one in held.values()),
        words.encoder,
        teacher_of(store.identity),
        len(held),
    )


def seen_of(image: str, regions: Regions, root: Path) -> Seen:
    """Return key and size of an image, from the file of regions or from the image file."""
    if regions.seen is not None:
        return regions.seen
    reference = reference_to(image, root)
    picture = open_image(reference)
    return Seen(content_key(reference.path, reference.part), picture.width, picture.height)


def _images(
    store: TargetStore,
    known: Mapping[str, Regions],
    seen: Mapping[str, Seen],
    labels: Sequence[str],
) -> Iterator[tuple[Float[np.ndarray, "n b"], Float[np.ndarray, "n L"]]]:
    """Yield E_v of each image's visible patches, and their shares in each label's region."""
    grid = Grid(*store.grid)
    for image, regions in track(known.items(), len(known), "fitting", "images"):
        key, width, height = seen[image]
        shares: NDArray[np.float64] = np.zeros((grid.size, len(labels)))
        for column, label in enumerate(labels):
            places = [one.place for one in regions.regions if normalised(one.label) == label]
            if places:
                shares[:, column] = patch_shares(
                    places, width, height, grid, store.identity.geometry
                )
        tokens, coverage = store.features([key])
        visible = coverage[0] > 0
        yield tokens[0][visible], shares[visible]
