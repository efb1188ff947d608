"""Reading targets: open a namespace, look up a content key, read records singly or in batches."""

import bisect
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from numpy.typing import NDArray

from shared.console import UserError
from shared.targets.chunks import DamagedChunk, decode_chunk, decode_shard_index, shard_index_length
from shared.targets.identity import Identity, first_difference
from shared.targets.layout import ArraySpec, arrays_of, chunk_path
from shared.targets.namespace import Namespace, list_namespaces
from shared.targets.segments import DamagedSegment, check_segment, read_keys


class Target(NamedTuple):
    """What the teacher says about one image; in a batch every array has a leading axis B.

    Attributes
    ----------
    similarity
        Strict upper triangle of S_e, row-major, float16 (`matrix`) or float32 (`factors`).
    attention
        CLS attention per patch, float32, raw: not normalised.
    coverage
        255 times the share of each patch that shows image rather than padding, uint8.
    """

    similarity: Float[np.ndarray, "*B pairs"]
    attention: Float[np.ndarray, "*B N"]
    coverage: UInt8[np.ndarray, "*B N"]


class TargetStore:
    """A read-only view of one namespace as it was when opened; `TargetStore.open` makes one."""

    @classmethod
    def open(
        cls,
        root: str | Path,
        teacher: str | None = None,
        fingerprint: str | None = None,
        grid: tuple[int, int] | None = None,
        identity: Identity | None = None,
    ) -> "TargetStore":
        """Open the one namespace of the store that fits.

        Parameters
        ----------
        root
            The store: a folder, or `s3://bucket/prefix`.
        teacher, fingerprint, grid
            What the namespace must have: the teacher's name, its fingerprint (or at least 6 leading digits), the
            grid (rows, columns) that targets shall have. `factors` serve any grid.
        identity
            A full identity that is expected, for a message that names the field in which the store differs.

        Raises
        ------
        UserError
            If no namespace fits (with both fingerprints and the first field that differs), or more than one does.
        """
        ...

    def __len__(self) -> int:
        """Count the images, each once."""
        ...

    def __contains__(self, key: bytes) -> bool: ...

    def __getitem__(self, key: bytes) -> Target:
        """Read one target.

        Raises
        ------
        KeyError
            If the store has no such key.
        DamagedSegment
            If the bytes are not those that were written (a `UserError`).
        """
        ...

    def batch(self, keys: Sequence[bytes]) -> Target:
        """Read many targets in the order of `keys` (repeats allowed), grouped by segment; raises as `[]` does."""
        ...

    def missing(self, keys: Iterable[bytes]) -> list[bytes]:
        """Return those of `keys` that the store lacks, each once, in order."""
        ...
