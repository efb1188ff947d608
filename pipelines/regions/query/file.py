"""A fitted query as a file: the map, what it was fitted on, and which stores it reads.

b teacher width, c width of the words' embedding, N patches of the grid that is asked for.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from shared.errors import UserError
from shared.files import refused_as, whole_file
from shared.targets import Identity

SCHEMA_NUMBER = 1
# What E_v depends on; grid and encoding of another store do not matter.
SAME = ("teacher", "architecture", "weights", "features", "preprocessing", "geometry", "definition")


class Query(NamedTuple):
    """A map from words to patches.

    Attributes
    ----------
    matrix
        (b + 1, c): a map is [E_v, 1] @ matrix @ words, cut off at 0.
    labels
        What it was fitted on.
    patients
        sha256 of each patient of the fit; who guesses a short id can tell that it was among them.
    encoder
        sha256 of the sentence encoder's weights.
    teacher
        Fields of the store's identity on which E_v depends (`SAME`), as JSON.
    images
        How many were fitted on.
    """

    matrix: Float[np.ndarray, "b_and_1 c"]
    labels: tuple[str, ...]
    patients: frozenset[str]
    encoder: str
    teacher: Mapping[str, object]
    images: int

    def map_of(
        self, features: Float[np.ndarray, "N b"], words: Float[np.ndarray, " c"]
    ) -> Float[np.ndarray, " N"]:
        """Return the map of one image for one question's words, not negative."""
        weights = self.matrix @ words
        found: Float[np.ndarray, " N"] = np.maximum(features @ weights[:-1] + weights[-1], 0.0)
        return found

    def check(self, identity: Identity, name: str) -> None:
        """Refuse a store whose E_v the query was not fitted on.

        Raises
        ------
        UserError
            Naming the first field that differs.
        """
        own = teacher_of(identity)
        for field in SAME:
            if own[field] != self.teacher.get(field):
                raise UserError(
                    f"the query was fitted on another teacher than that of {name}: `{field}` is "
                    f"{self.teacher.get(field)!r}, in the store {own[field]!r}"
                )


def teacher_of(identity: Identity) -> dict[str, object]:
    """Return the fields on which E_v depends, as JSON."""
    document = {**identity.document()}
    return {field: document[field] for field in SAME}


def hashed(patient: str) -> str:
    """Return what the file keeps of a patient's name."""
    return hashlib.sha256(patient.encode()).hexdigest()


def write_query(query: Query, file: Path) -> None:
    """Write a query as safetensors; its header holds the rest."""
    from safetensors.numpy import save_file

    if file.exists():
        raise UserError(f"{file} is there already; choose another --out or remove it first")
    about = {
        "schema": SCHEMA_NUMBER,
        "labels": list(query.labels),
        "patients": sorted(query.patients),
        "encoder": query.encoder,
        "teacher": dict(query.teacher),
        "images": query.images,
    }
    tensors = {"matrix": np.ascontiguousarray(query.matrix, dtype=np.float32)}
    with refused_as(f"cannot write {file}"):
        file.parent.mkdir(parents=True, exist_ok=True)
        whole_file(file, lambda part: save_file(tensors, part, {"query": json.dumps(about)}))


def read_query(file: Path) -> Query:
    """Read a query.

    Raises
    ------
    UserError
        It is not there, or no query of this version.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "np") as opened:
            about = json.loads((opened.metadata() or {})["query"])
            matrix = np.asarray(opened.get_tensor("matrix"), np.float64)
        if about["schema"] != SCHEMA_NUMBER:
            raise ValueError(f"schema {about['schema']}, this version reads {SCHEMA_NUMBER}")
        return Query(
            matrix,
            tuple(map(str, about["labels"])),
            frozenset(map(str, about["patients"])),
            str(about["encoder"]),
            dict(about["teacher"]),
            int(about["images"]),
        )
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror or error}") from None
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise UserError(f"{file} is no query of `cache query fit` ({error})") from None
