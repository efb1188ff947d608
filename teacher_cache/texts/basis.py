"""The basis B of a namespace's queries: where the words of medicine lie in the text space.

B (c, r) holds the first r right singular vectors of the embeddings of a fixed list of terms
(anatomy, finding and modality, `terms.json`), so that two labs with one text tower get one basis.
Of a text t the part B B^T t is asked; what is outside is its residual energy |t - B B^T t|^2.

n terms, c width of the embeddings, r rank.
"""

import base64
import json
from collections.abc import Mapping
from importlib.resources import files
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float16

from shared.errors import UserError
from shared.targets.maps import normalised
from teacher_cache.teachers.base import TextTower
from teacher_cache.texts.towers import embed


class Basis(NamedTuple):
    """B (c, r) as it is stored, and the residual energy of the terms: mean and largest."""

    matrix: Float16[np.ndarray, "c r"]
    residual: float
    largest: float


def terms() -> tuple[int, list[str]]:
    """Return the version of the list and its prompts, each once, in order."""
    document = json.loads((files(__package__) / "terms.json").read_text("utf-8"))
    found: dict[str, None] = {}
    for group in document["groups"]:
        for template in document["templates"]:
            names = [
                name for name in ("finding", "anatomy", "modality") if f"{{{name}}}" in template
            ]
            found |= dict.fromkeys(map(normalised, _filled(template, names, group)))
    return int(document["version"]), list(found)


def _filled(template: str, names: list[str], group: Mapping[str, list[str]]) -> list[str]:
    texts = [template]
    for name in names:
        texts = [text.replace(f"{{{name}}}", word) for text in texts for word in group[name]]
    return texts


def basis_of(tower: TextTower, rank: int) -> Basis:
    """Embed the terms and take their first `rank` directions.

    Raises
    ------
    UserError
        A rank above the width of the embeddings, or above the number of terms.
    """
    prompts = terms()[1]
    most = min(tower.width, len(prompts))
    if rank > most:
        raise UserError(
            f"--query-rank {rank}: the text tower of {tower.teacher} has at most {most} directions"
        )
    return basis_in(embed(tower, prompts), rank)


def basis_in(vectors: Float[np.ndarray, "n c"], rank: int) -> Basis:
    """Take the first directions of embeddings; in each the largest component is positive."""
    given = np.asarray(vectors, np.float64)
    right = np.linalg.svd(given, full_matrices=False)[2][:rank]
    signs = np.sign(right[np.arange(rank), np.abs(right).argmax(axis=1)])
    matrix = (right * signs[:, None]).T.astype(np.float16)
    left = residuals(matrix, given)
    return Basis(matrix, float(left.mean()), float(left.max()))


def residuals(
    matrix: Float[np.ndarray, "c r"], vectors: Float[np.ndarray, "n c"]
) -> Float[np.ndarray, " n"]:
    """Return the share of each vector's energy outside the basis."""
    given, basis = np.asarray(vectors, np.float64), np.linalg.qr(matrix.astype(np.float64))[0]
    energy = (given**2).sum(axis=1)
    left: Float[np.ndarray, " n"] = np.maximum(1 - ((given @ basis) ** 2).sum(axis=1) / energy, 0.0)
    return left


def provenance_of(basis: Basis) -> dict[str, object]:
    """Return what a namespace's provenance keeps: B itself, without which none can ask."""
    return {
        "basis": base64.b64encode(basis.matrix.tobytes()).decode(),
        "shape": list(basis.matrix.shape),
        "residual": round(basis.residual, 6),
        "largest_residual": round(basis.largest, 6),
    }
