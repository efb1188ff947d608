"""A question asked of a store: its map over the patches of an image, without teacher and image.

B texts, N patches of the grid, c width of the words' embedding.
"""

import re
from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image

from pipelines.regions.query.file import Query
from pipelines.regions.query.stored import Stored
from pipelines.regions.query.words import embed
from shared.errors import UserError
from shared.files import refused_as
from shared.imaging.images import open_image, parse_reference
from shared.imaging.keys import content_key
from shared.targets import TargetStore

SIDE = 384  # pixels of the picture


def ask(
    query: Query | Stored, store: TargetStore, key: bytes, text: str, encoder: str | None = None
) -> Float[np.ndarray, " N"]:
    """Return the map of one image for `text`, not negative.

    By a fitted query, or by what the store itself keeps to be asked.

    Raises
    ------
    UserError
        The store lacks the image, keeps no features or is of another teacher; or the encoder is not
        the fit's.
    """
    if isinstance(query, Query):
        query.check(store.identity, store.namespace.name)
    if key not in store:
        raise UserError(f"{store.namespace.name} holds no target of the key {key.hex()}")
    if isinstance(query, Stored):
        asked: Float[np.ndarray, " N"] = query.maps([key], [text])[0, 0]
        return asked
    words = words_of(query, [text], encoder)
    return map_in(query, store, key, words[0])


def map_in(
    query: Query, store: TargetStore, key: bytes, words: Float[np.ndarray, " c"]
) -> Float[np.ndarray, " N"]:
    """Return the map of an image that the store holds, 0 where a patch shows padding alone."""
    tokens, coverage = store.features([key])
    found = query.map_of(tokens[0].astype(np.float64), words)
    return np.where(coverage[0] > 0, found, 0.0)


def key_of(image: Path | None, key: str | None) -> bytes:
    """Return the content key that the command line names, by an image or in hexadecimal.

    Raises
    ------
    UserError
        Both or neither is given, the image cannot be read, or the key is none.
    """
    if (image is None) == (key is None):
        raise UserError("name the image with --image FILE or with --key, one of the two")
    if image is not None:
        reference = parse_reference(str(image))
        with refused_as(f"cannot read {image}"):
            return content_key(reference.path, reference.part)
    if key is None or not re.fullmatch("[0-9a-f]{64}", key):
        raise UserError(f"--key is 64 hexadecimal digits, not {key!r}")
    return bytes.fromhex(key)


def words_of(
    query: Query, texts: list[str], encoder: str | None = None
) -> Float[np.ndarray, "B c"]:
    """Embed texts by the encoder of the fit.

    Raises
    ------
    UserError
        It is another one.
    """
    words = embed(texts, encoder)
    if words.encoder != query.encoder:
        raise UserError(
            "the query was fitted with another sentence encoder: pass its folder as --encoder"
        )
    return words.vectors.astype(np.float64)


def draw_map(
    values: Float[np.ndarray, " N"], grid: tuple[int, int], image: Path | None, store: TargetStore
) -> Image.Image:
    """Draw a map over its image; over grey where there is none."""
    from teacher_cache.keeping.view import heat
    from teacher_cache.stream import reader_of

    base = Image.new("RGB", (SIDE, SIDE), (96, 96, 96))
    if image is not None:
        reader = reader_of(store.identity.preprocessing, store.identity.geometry)
        base = reader.square(open_image(parse_reference(str(image))), SIDE)
    relative = values / max(float(values.max()), np.finfo(np.float64).tiny)
    return heat(base, relative.reshape(grid).astype(np.float32))
