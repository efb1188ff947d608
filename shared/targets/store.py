"""Reading targets: open a namespace, look up a content key, read records singly or in batches.

B images of a batch, N student patches, b teacher width; pairs = N (N - 1) / 2.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from numpy.typing import NDArray

from shared.errors import UserError
from shared.targets.choice import choose_namespace
from shared.targets.identity import Identity
from shared.targets.index import Index
from shared.targets.namespace import Namespace, check_groups
from shared.targets.opening import forget_index, open_index
from shared.targets.segment.held import OpenSegments
from shared.targets.segment.layout import arrays_of
from shared.targets.segment.manifest import DamagedSegment
from shared.targets.segment.reader import SegmentReader, read_rows
from shared.targets.storage import Storage
from shared.vocabulary import Kind


class Target(NamedTuple):
    """What the teacher says about one image; in a batch every array has a leading axis B.

    Attributes
    ----------
    similarity
        Strict upper triangle of S_e, row-major, float16 (`matrix`) or float32 (the others).
    attention
        Attention that pools the image, per patch, float32, raw: not normalised. None where the
        namespace's identity says `none`.
    coverage
        255 times the share of each patch that shows image rather than padding, uint8.
    """

    similarity: Float[np.ndarray, "*B pairs"]
    attention: Float[np.ndarray, "*B N"] | None
    coverage: UInt8[np.ndarray, "*B N"]

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """Return the arrays that are there, by name."""
        return {name: values for name, values in self._asdict().items() if values is not None}


class PatchFeatures(NamedTuple):
    """E_v of a batch (B, N, b), float32, and the coverage of its patches (B, N) as in `Target`."""

    tokens: Float[np.ndarray, "B N b"]
    coverage: UInt8[np.ndarray, "B N"]


class TargetStore:
    """A read-only view of one namespace as it was when opened; `TargetStore.open` makes one.

    It can be pickled (a DataLoader worker then opens the store itself) and holds no file open and
    no thread, so that it also survives a fork.
    """

    def __init__(self, namespace: Namespace, grid: tuple[int, int]) -> None:
        self.namespace = namespace
        self.grid = grid
        self._index: Index = open_index(namespace)
        self._open = OpenSegments(namespace)

    @classmethod
    def open(
        cls,
        root: str | Path | Storage,
        teacher: str | None = None,
        fingerprint: str | None = None,
        grid: tuple[int, int] | None = None,
        identity: Identity | None = None,
        maps: bool = False,
        texts: bool = False,
    ) -> "TargetStore":
        """Open the one namespace of the store that fits.

        Parameters
        ----------
        root
            The store: a folder, `s3://bucket/prefix`, or one that is open.
        teacher, fingerprint, grid
            What the namespace must have: the teacher's name, its fingerprint (or its leading
            digits, 6 at least), the grid (rows, columns) that targets shall have. `factors` and
            `patches` serve any grid.
        identity
            A full identity that is expected, for a message that names the field in which the store
            differs.
        maps
            Maps for questions instead of targets (`shared.targets.maps`); both may lie in one
            store.
        texts
            Embeddings of prompts instead (`shared.targets.texts`).

        Raises
        ------
        UserError
            If no namespace fits (with both fingerprints and the first field that differs), or more
            than one does.
        DamagedSegment
            If a segment is damaged whose keys are not in the cached index.
        """
        kind: Kind = "texts" if texts else "maps" if maps else "targets"
        namespace = choose_namespace(root, teacher, fingerprint, grid, identity, kind)
        check_groups(namespace)
        return cls(
            namespace, namespace.identity.grid if grid is None else (int(grid[0]), int(grid[1]))
        )

    @property
    def identity(self) -> Identity:
        """What the targets depend on; its `fingerprint()` names the namespace."""
        return self.namespace.identity

    def __reduce__(self) -> tuple[object, ...]:
        location, kind = self.namespace.storage.location, self.identity.kind
        return (_reopen, (location, self.identity.fingerprint(), self.grid, kind))

    def __len__(self) -> int:
        """Count the images, each once."""
        return len(self._index.keys)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, bytes) and len(key) == 32 and bool(self._index.find([key])[0] >= 0)

    def keys(self) -> Iterator[bytes]:
        """Yield all content keys, sorted."""
        padded = self._index.keys
        for start in range(0, len(padded), 4096):
            block = np.ascontiguousarray(padded[start : start + 4096]).tobytes()
            yield from (block[place : place + 32] for place in range(0, len(block), 32))

    def missing(self, keys: Iterable[bytes]) -> list[bytes]:
        """Return those of `keys` that the store lacks, each once, in order."""
        unique = list(dict.fromkeys(keys))
        found = self._index.find(unique) if unique else np.empty(0, np.int64)
        return [key for key, position in zip(unique, found, strict=True) if position < 0]

    def __getitem__(self, key: bytes) -> Target:
        """Read one target.

        Raises
        ------
        KeyError
            If the store has no such key.
        DamagedSegment
            If the bytes are not those that were written (a `UserError`).
        """
        batch = self.batch([key])
        attention = None if batch.attention is None else batch.attention[0]
        return Target(batch.similarity[0], attention, batch.coverage[0])

    def batch(self, keys: Sequence[bytes]) -> Target:
        """Read many targets in the order of `keys` (repeats allowed), grouped by segment.

        Raises as `[]` does.
        """
        arrays = self.arrays(keys, self._targets())
        if self.identity.encoding == "matrix":
            return Target(arrays["similarity"], arrays.get("attention"), arrays["coverage"])
        from shared.targets.numbers.restore import targets_on

        return Target(*targets_on(arrays, self.identity.grid, self.grid))

    def features(self, keys: Sequence[bytes]) -> PatchFeatures:
        """Read E_v itself on the grid of this view; stores of `patches` hold it.

        Raises
        ------
        UserError
            The store is of another encoding, which does not keep E_v.

        As `[]` does.
        """
        if self.identity.encoding != "patches":
            raise UserError(
                f"{self.namespace.name} is of the encoding {self.identity.encoding}, which keeps "
                "no features: build with --encoding patches"
            )
        from shared.targets.numbers.patches import patches_of
        from shared.targets.numbers.restore import coverage_on

        arrays, native = self.arrays(keys, self._targets()), self.identity.grid
        return PatchFeatures(
            patches_of(arrays, native, self.grid), coverage_on(arrays, native, self.grid)
        )

    def coverage(self, keys: Sequence[bytes]) -> UInt8[np.ndarray, "B N"]:
        """Read alone how much of each patch shows image, as in `Target`.

        Raises as `[]` does.
        """
        if self.identity.grid == self.grid:
            return np.asarray(self.arrays(keys, ("coverage",))["coverage"], dtype=np.uint8)
        from shared.targets.numbers.restore import coverage_on

        return coverage_on(self.arrays(keys, ("box",)), self.identity.grid, self.grid)

    def segments_of(self, keys: Sequence[bytes]) -> list[int]:
        """Return the segment number of each key, for readers that order by segment.

        -1 where the store lacks the key.
        """
        index = self._index
        numbers: list[int] = index.at(index.find(list(keys)))[:, 0].tolist()
        return numbers

    def by_segment(self) -> Iterator[list[bytes]]:
        """Yield the keys of each segment in the order in which they lie there.

        The fastest order to read in.
        """
        keys, places, _ = self._index  # reading may replace the index meanwhile
        order = np.lexsort((places[:, 1], places[:, 0]))
        numbers = places[order, 0]
        for group in np.split(order, np.flatnonzero(np.diff(numbers)) + 1) if len(order) else ():
            block = np.ascontiguousarray(keys[group]).tobytes()
            yield [block[place : place + 32] for place in range(0, len(block), 32)]

    def _targets(self) -> tuple[str, ...]:
        """Name the arrays of a target: all but what only a question reads."""
        return tuple(spec.name for spec in arrays_of(self.identity.without_query()))

    def arrays(
        self, keys: Sequence[bytes], names: Sequence[str] | None = None
    ) -> dict[str, NDArray[np.generic]]:
        """Read the stored arrays themselves, by name, with a leading record axis.

        `names`: only these of them; nothing else is fetched. Raises as `[]` does.
        """
        index = self._index
        try:
            return self._arrays(list(keys), names)
        except DamagedSegment:
            if set(index.segments) <= set(self.namespace.segments()):
                raise
            # `cache gc` has moved records to another segment since the store was opened.
            self._refresh()
            return self._arrays(list(keys), names)

    def _arrays(
        self, keys: list[bytes], names: Sequence[str] | None
    ) -> dict[str, NDArray[np.generic]]:
        places, readers = self._places(keys)
        out: dict[str, NDArray[np.generic]] = {}
        for spec in arrays_of(self.identity):
            if spec.name != "key" and (names is None or spec.name in names):
                widths = [reader.shape(spec.name) for reader in readers.values()] or [
                    tuple(map(abs, spec.shape))
                ]
                shape = tuple(max(sizes) for sizes in zip(*widths, strict=True))
                out[spec.name] = np.zeros((len(keys), *shape), dtype=spec.dtype)
        parts = []
        for number, reader in readers.items():
            wanted = np.flatnonzero(places[:, 0] == number)
            wanted = wanted[np.argsort(places[wanted, 1], kind="stable")]
            parts.append((reader, places[wanted, 1].tolist(), wanted.tolist()))
        read_rows(self.namespace, parts, out, self._open.copies)
        return out

    def _places(self, keys: list[bytes]) -> tuple[NDArray[np.int64], dict[int, SegmentReader]]:
        """Find segment number and row of each key, and the segments by number.

        Checked against the segments' own keys.
        """
        for _ in range(2):
            index = self._index  # another thread may replace it: both ends are of one
            positions = index.find(keys) if keys else np.empty(0, np.int64)
            if (positions < 0).any():
                absent = [
                    key.hex() for key, position in zip(keys, positions, strict=True) if position < 0
                ]
                raise KeyError(
                    f"{len(absent)} of {len(keys)} keys are not in the store, the first: "
                    f"{absent[0]}"
                )
            places = index.at(positions)
            readers = self._led_to(keys, places, index.segments)
            if readers is not None:
                return places, readers
            # The cached index is not this store's, or damaged: build it anew, once.
            forget_index(self.namespace)
            self._refresh()
        raise KeyError(f"the index of {self.namespace.name} does not agree with its segments")

    def _refresh(self) -> None:
        self._index = open_index(self.namespace, whole=True)

    def _led_to(
        self, keys: Sequence[bytes], places: NDArray[np.int64], segments: Sequence[str]
    ) -> dict[int, SegmentReader] | None:
        """Open the segments of places; None unless each is the record of its key, by their keys."""
        if int(places[:, 0].max(initial=0)) >= max(1, len(segments)):
            return None
        names = {number: segments[number] for number in dict.fromkeys(places[:, 0].tolist())}
        opened = self._open.open(names.values())
        readers = {number: opened[name] for number, name in names.items()}
        sound = all(
            readers[number].has(key, row)
            for key, (number, row) in zip(keys, places.tolist(), strict=True)
        )
        return readers if sound else None


def _reopen(location: str, fingerprint: str, grid: tuple[int, int], kind: Kind) -> TargetStore:
    maps, texts = kind == "maps", kind == "texts"
    return TargetStore.open(location, fingerprint=fingerprint, grid=grid, maps=maps, texts=texts)
