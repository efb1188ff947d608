"""Maps for the questions of a data set, as a store to train with.

Made by the store's own array `query`, by a fitted query, by regions, or given as pictures.

An image's question gets what the query's map for its words is, or where the regions lie whose label
it names. Questions that get nothing have no map: L_att teaches them E_a.

N patches of the grid, c width of the words' embedding.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from pipelines.regions.held import asked_about
from pipelines.regions.oracle import region_attention
from pipelines.regions.patches import patch_shares
from pipelines.regions.query.asking import map_in, words_of
from pipelines.regions.query.file import read_query
from pipelines.regions.query.fitting import seen_of
from pipelines.regions.query.given import Given
from pipelines.regions.query.stored import FEW, Stored
from pipelines.regions.reading import read_regions, regions_of
from shared.console import track, warn
from shared.errors import UserError
from shared.files import refused_as
from shared.imaging.grid import Grid
from shared.imaging.images import parse_reference
from shared.imaging.keys import content_key
from shared.records import image_root_of, load_records, strip_marks
from shared.targets import Identity, TargetStore, TargetWriter
from shared.targets.maps import map_key, normalised
from shared.targets.numbers.query import basis_of

# Of an image (its path in the file, its key) and a question: its map, or None.
MapOf = Callable[[str, bytes, str], Float[np.ndarray, " N"] | None]


class Written(NamedTuple):
    """What was written: into which namespace, of how many questions how many have a map."""

    namespace: str
    questions: int
    maps: int


def write_maps(
    store: TargetStore,
    to: str | Path,
    data: Path,
    *,
    image_root: Path | None = None,
    query: Path | None = None,
    regions: Path | None = None,
    given: Path | None = None,
    encoder: str | None = None,
    weights: str | None = None,
    tokenizer: str | None = None,
) -> Written:
    """Write a map for each question of a data set file that has one; what is there already stays.

    Parameters
    ----------
    store
        Targets of the images, of whose coverage and geometry the maps are; of `patches` for a
        fitted query, built with `--query` without query and regions.
    data, image_root
        The questions and the folder of their images.
    query, encoder
        A fitted query and the folder of its sentence encoder.
    regions
        Or a file of regions; the questions name their labels.
    given
        Or a file of maps (`pipelines.regions.query.given`).
    weights, tokenizer
        Of the store's own text tower, for questions whose embeddings it does not keep.

    Raises
    ------
    UserError
        Several of query, regions and given, or none for a store that cannot be asked; an image
        without a target, or no question with a map.
    """
    if sum(one is not None for one in (query, regions, given)) > 1:
        raise UserError("maps come from --query, from --regions or from --given: name one of them")
    root = image_root_of(data, image_root)
    asked = list(_asked(data, root))
    if query is not None:
        make = _by_query(store, query, [text for _, _, text in asked], encoder)
        identity = _identity(store, query, "query")
    elif regions is not None:
        make, identity = _by_regions(store, regions, root), _identity(store, regions, "regions")
    elif given is not None:
        make, identity = _by_file(store, given, root, asked), _identity(store, given, "given")
    else:
        make = _by_store(store, [text for _, _, text in asked], weights, tokenizer)
        identity = _identity(store, None, "asked")
    count = 0
    with TargetWriter(to, identity, {"maps": identity.teacher}) as writer:
        held = TargetStore.open(to, identity=identity, maps=True)
        written: set[bytes] = set()
        for image, key, text in track(asked, len(asked), "maps", "questions"):
            if key not in store:
                raise UserError(
                    f"{image} of {data} has no target in {store.namespace.name}; build it first"
                )
            name = map_key(key, text)
            map_ = None if name in written else make(image, key, text)
            if map_ is None:
                count += name in written
                continue
            written.add(name)
            count += 1
            if name not in held:
                values = np.asarray(map_, dtype=np.float32)
                writer.add(name, {"attention": values, "coverage": store[key].coverage})
    if not count:
        raise UserError(
            f"no question of {data} has a map: does what you gave show what it asks about?"
        )
    return Written(identity.namespace(), len(asked), count)


def _asked(data: Path, root: Path) -> Iterator[tuple[str, bytes, str]]:
    """Yield the image, its content key and the text of every question of a file."""
    keys: dict[str, bytes] = {}
    for record in load_records(data):
        for image in record.images:
            if image not in keys:
                reference = parse_reference(image, root)
                with refused_as(f"cannot read {reference}"):
                    keys[image] = content_key(reference.path, reference.part)
            for turn in record.turns[::2]:
                yield image, keys[image], strip_marks(turn.text)


def _by_query(store: TargetStore, file: Path, texts: list[str], encoder: str | None) -> MapOf:
    query = read_query(file)
    query.check(store.identity, store.namespace.name)
    different = sorted({normalised(text) for text in texts})
    vectors: Mapping[str, Float[np.ndarray, " c"]] = dict(
        zip(different, words_of(query, different, encoder), strict=True)
    )

    def make(image: str, key: bytes, text: str) -> Float[np.ndarray, " N"] | None:
        found = map_in(query, store, key, vectors[normalised(text)])
        return found if found.sum() > 0 else None

    return make


def _by_store(
    store: TargetStore, texts: list[str], weights: str | None, tokenizer: str | None
) -> MapOf:
    own = Stored(store, weights, tokenizer)
    different = list(dict.fromkeys(map(normalised, texts)))
    outside = sum(share > FEW for share in own.outside(different))
    if outside:
        warn(
            f"{outside} of {len(different)} questions lie outside of the store's basis for more "
            f"than {FEW:.0%}: their maps say little; a larger --query-rank keeps more"
        )

    def make(image: str, key: bytes, text: str) -> Float[np.ndarray, " N"] | None:
        found: Float[np.ndarray, " N"] = own.maps([key], [text])[0, 0]
        return found if found.sum() > 0 else None

    return make


def _by_file(
    store: TargetStore, file: Path, root: Path, asked: Sequence[tuple[str, bytes, str]]
) -> MapOf:
    maps = Given(file)
    unknown = maps.unknown({image: key for image, key, _ in asked})
    if unknown:
        warn(
            f"{file} has maps of {len(unknown)} images that no question shows, such as {unknown[0]}"
        )
    grid, geometry = Grid(*store.grid), store.identity.geometry

    def make(image: str, key: bytes, text: str) -> Float[np.ndarray, " N"] | None:
        found = maps.of(image, text, root, grid, geometry)
        if found is None:
            return None
        found = np.where(store.coverage([key])[0] > 0, found, 0.0)
        return found if found.sum() > 0 else None

    return make


def _by_regions(store: TargetStore, file: Path, root: Path) -> MapOf:
    known = read_regions(file)
    labels = {region.label for one in known.values() for region in one.regions}
    grid, geometry = Grid(*store.grid), store.identity.geometry

    def make(image: str, key: bytes, text: str) -> Float[np.ndarray, " N"] | None:
        own = regions_of(known, image)
        places = [region.place for region in asked_about(text, own, labels)]
        if own is None or not places:
            return None
        _, width, height = seen_of(image, own, root)
        coverage = store[key].coverage
        shares = patch_shares(places, width, height, grid, geometry)
        if not (shares * (coverage > 0)).sum() > 0:
            return None  # the crop has cut the region off
        return region_attention(shares, coverage)

    return make


def _identity(store: TargetStore, source: Path | None, kind: str) -> Identity:
    """Return the identity of maps made of a file's bytes, for the images of a store's teacher.

    Of a folder (masks) it is the bytes of all of its files, of a file of maps also those of its
    pictures; without a file the store's own identity and basis.
    """
    digest = hashlib.sha256()
    if source is None:
        digest.update(store.identity.fingerprint().encode())
        digest.update(basis_of(store.namespace.provenance).tobytes())
    else:
        files = sorted(source.rglob("*")) if source.is_dir() else [source]
        if kind == "given":
            files += sorted(set(Given(source).files.values()))
        with refused_as(f"cannot read {source}"):
            for file in (one for one in files if one.is_file()):
                name = file.relative_to(source) if source.is_dir() else ""
                digest.update(f"{name}\0".encode() + file.read_bytes())
    changed = {
        "format": 2,
        "teacher": f"{store.identity.teacher}-{kind}",
        "weights": digest.hexdigest(),
        "encoding": "maps",
        "grid": store.grid,
        "precision": "f16",
        "tolerance": None,
        "width": None,
        "rotation": None,
        "attention": "pooled",
        "query": None,
    }
    return Identity.model_validate({**store.identity.model_dump(), **changed})
