"""Embeddings of prompts: what a teacher's text tower makes of the words of a question.

A store's namespace of the encoding `texts` holds one for a prompt under the sha256 of its normal
form: lower case, single blanks, none at the ends. The normal form is also what is embedded, so
that two spellings of a question are one prompt.

n prompts, c width of the embeddings.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from shared.errors import UserError
from shared.targets.identity import Identity, Preprocessing
from shared.targets.maps import normalised
from shared.targets.namespace import list_namespaces
from shared.targets.storage import Storage
from shared.targets.store import TargetStore


def text_key(text: str) -> bytes:
    """Name the embedding of a prompt: sha256 of its normal form."""
    return hashlib.sha256(normalised(text).encode()).digest()


def texts_identity(teacher: str, architecture: str, weights: str, width: int) -> Identity:
    """Return the identity of a text tower's embeddings.

    They see no image: the fields of preprocessing and grid have one value for all towers.
    """
    return Identity(
        teacher=teacher,
        architecture=architecture,
        weights=weights,
        preprocessing=Preprocessing(size=1, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
        encoding="texts",
        grid=(1, 1),
        width=width,
        attention="none",
    )


def texts_of(root: str | Path | Storage, weights: str) -> TargetStore | None:
    """Open the embeddings by the text tower with this digest; None where the store has none."""
    for one in list_namespaces(root):
        if one.identity.kind == "texts" and one.identity.weights == weights:
            place, fingerprint = one.storage, one.identity.fingerprint()
            return TargetStore.open(place, fingerprint=fingerprint, texts=True)
    return None


def embeddings(store: TargetStore, texts: Sequence[str]) -> Float32[np.ndarray, "n c"]:
    """Read the unit embeddings of prompts.

    Raises
    ------
    UserError
        The store lacks one of them.
    """
    keys = [text_key(text) for text in texts]
    absent = [text for text, key in zip(texts, keys, strict=True) if key not in store]
    if absent:
        raise UserError(
            f"{len(absent)} of {len(texts)} prompts are not in {store.namespace.name}, the first: "
            f"{absent[0]!r}; `cache text` writes those of a data set file, or --prompt"
        )
    return np.asarray(store.arrays(keys)["embedding"], dtype=np.float32)
