"""Reads per second of the target store, against np.memmap, LMDB and the bare codec.

Opening 400,000 records; memory.

    OMP_NUM_THREADS=1 python -m benchmarks.store_reads [--records 512] [--synthetic 400000]
    [--folder DIR]

Rates are records per second of CPU time of one thread, page cache warm, all in this one run: on a
busy machine the clock on the wall would measure the neighbours. Opening and rebuilding are given in
both. The records are those of real images, repeated under other keys.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
from numpy.typing import NDArray

from benchmarks.real_features import real_features
from benchmarks.store_codecs import identity, records_of
from shared.imaging.grid import Grid
from shared.targets import Identity, TargetStore, TargetWriter
from shared.targets.numbers.arrays import Arrays
from shared.targets.numbers.restore import targets_on
from shared.targets.segment.chunks import decode_chunk, encode_chunk
from shared.targets.segment.layout import arrays_of

GRID = Grid(24, 24)
MIB = 2**20


def key_of(number: int) -> bytes:
    return hashlib.sha256(str(number).encode()).digest()


def rate(count: int, work: Callable[[], Any], repeats: int = 3) -> float:
    """Return records per second of CPU time, best of `repeats`."""
    best = float("inf")
    for _ in range(repeats):
        start = time.process_time()
        work()
        best = min(best, time.process_time() - start)
    return count / best


class Packed:
    """All chunks of a record joined, as one value of a plain key-value file.

    Decoding gives what the store gives.
    """

    def __init__(self, kind: Identity, records: list[Arrays]) -> None:
        self.kind = kind
        self.specs = [spec for spec in arrays_of(kind) if spec.name != "key"]
        self.values = [
            [encode_chunk(record[spec.name], spec) for spec in self.specs] for record in records
        ]
        self.shapes = [[np.shape(record[spec.name]) for spec in self.specs] for record in records]

    def joined(self, place: int) -> bytes:
        """Return the value of one record."""
        return b"".join(self.values[place])

    def decode(self, place: int, data: bytes | memoryview) -> Any:
        """Decode a value to the arrays of a target."""
        arrays: dict[str, NDArray[Any]] = {}
        offset = 0
        view = memoryview(data)
        for spec, chunk, shape in zip(
            self.specs, self.values[place], self.shapes[place], strict=True
        ):
            out = np.empty(shape, spec.dtype)
            decode_chunk(view[offset : offset + len(chunk)], spec, out)
            offset += len(chunk)
            arrays[spec.name] = out[None]
        if self.kind.encoding != "matrix":
            return targets_on(arrays, self.kind.grid, self.kind.grid)
        return arrays


def compare(name: str, kind: Identity, records: list[Arrays], count: int, folder: Path) -> None:
    """One row of the table: every reader over the same records."""
    keys = [key_of(number) for number in range(count)]
    with TargetWriter(folder / name, kind) as writer:
        for number, key in enumerate(keys):
            writer.add(key, records[number % len(records)])
    store = TargetStore.open(folder / name)
    packed = Packed(kind, records)
    joined = [packed.joined(place) for place in range(len(records))]
    order = np.random.default_rng(0).permutation(count).tolist()

    flat = folder / f"{name}.bin"
    offsets = np.cumsum([0] + [len(joined[number % len(records)]) for number in range(count)])
    flat.write_bytes(b"".join(joined[number % len(records)] for number in range(count)))
    mapped = np.memmap(flat, mode="r")
    environment = lmdb.open(
        str(folder / f"{name}.lmdb"), map_size=2**33, subdir=False, sync=False, lock=False
    )
    with environment.begin(write=True) as transaction:
        for number, key in enumerate(keys):
            transaction.put(key, joined[number % len(records)])

    def bare() -> None:
        for number in range(count):
            packed.decode(number % len(records), joined[number % len(records)])

    def random_reads() -> None:
        for number in order:
            store[keys[number]]

    def streamed() -> None:
        for group in store.by_segment():
            for start in range(0, len(group), 32):
                store.batch(group[start : start + 32])

    def from_memmap() -> None:
        for number in order:
            packed.decode(
                number % len(records), mapped[offsets[number] : offsets[number + 1]].tobytes()
            )

    def from_lmdb() -> None:
        for number in order:
            with environment.begin() as transaction:
                packed.decode(number % len(records), transaction.get(keys[number]))

    segments = [
        folder / name / store.namespace.path("segments", one) for one in store.namespace.segments()
    ]
    arrays = [[zarr_array(segment / spec.name) for spec in packed.specs] for segment in segments]

    def from_zarr() -> None:
        for number in range(min(count, 64)):
            for array in arrays[number % len(arrays)]:
                array[number % array.shape[0]]

    works = {
        "bare": bare,
        "streamed": streamed,
        "random": random_reads,
        "memmap": from_memmap,
        "lmdb": from_lmdb,
    }
    rates = {label: rate(count, work) for label, work in works.items()}
    rates["zarr"] = rate(min(count, 64), from_zarr, repeats=1)
    base = rates["bare"]
    cells = [f"{value:,.0f} ({value / base:.2f})" for value in rates.values()]
    print(f"| {name} | {' | '.join(cells)} |", flush=True)
    environment.close()


def zarr_array(path: Path) -> Any:
    import zarr

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return zarr.open_array(path, mode="r")


CHILD = """
import json, os, sys, time
import psutil
me = psutil.Process()
empty = me.memory_info().rss
from shared.targets import TargetStore
loaded = me.memory_info().rss
wall, cpu = time.perf_counter(), time.process_time()
store = TargetStore.open(sys.argv[1])
wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
opened = me.memory_info().rss
import random
keys = list(store.keys())
generator = random.Random(0)
peak = 0
for number in range(int(sys.argv[2])):
    store[generator.choice(keys)]
    if number % 500 == 0:
        peak = max(peak, me.memory_info().rss)
peak = max(peak, me.memory_info().rss)
memory = {"loaded": loaded - empty, "opened": opened - empty, "peak": peak - empty}
print(json.dumps({"records": len(store), "wall": wall, "cpu": cpu, **memory}))
"""


def child(store: Path, reads: int) -> dict[str, Any]:
    """Open (and read) in a fresh process; memory in bytes above the empty interpreter."""
    command = [sys.executable, "-c", CHILD, str(store), str(reads)]
    result: dict[str, Any] = json.loads(
        subprocess.run(command, check=True, capture_output=True, text=True).stdout
    )
    return result


def memory(folder: Path, names: Iterable[str]) -> None:
    print(
        "\n| encoding, 24x24 | MiB above an empty process, after 10,000 random reads | of which "
        "imports |"
    )
    print("|---|---|---|")
    for name in names:
        found = child(folder / name, 10_000)
        print(f"| {name} | {found['peak'] / MIB:.0f} | {found['loaded'] / MIB:.0f} |", flush=True)


def opening(folder: Path, count: int) -> None:
    """Open `count` synthetic records on a 2x2 grid, with and without the cached index."""
    kind = identity("matrix", "f16", Grid(2, 2))
    record: Arrays = {
        "similarity": np.zeros(6, np.float16),
        "attention": np.zeros(4, np.float32),
        "coverage": np.full(4, 255, np.uint8),
    }
    start = time.perf_counter()
    with TargetWriter(folder / "many", kind) as writer:
        for number in range(count):
            writer.add(key_of(number), record)
    wrote = time.perf_counter() - start
    print(f"\n{count:,} synthetic records written in {wrote:.0f} s\n")
    print("| opening | wall s | CPU s | MiB above an empty process |\n|---|---|---|---|")
    for label in ("index rebuilt", "index present", "index present, again"):
        found = child(folder / "many", 1)
        print(
            f"| {label} | {found['wall']:.2f} | {found['cpu']:.2f} | {found['opened'] / MIB:.0f} |",
            flush=True,
        )


def reading(folder: Path, count: int) -> None:
    """Compare the readers over `count` records of every encoding, then measure memory."""
    features = real_features(GRID)
    kinds = {
        "matrix-f16": ("matrix", "f16"),
        "matrix-u8": ("matrix", "u8"),
        "factors-u8": ("factors", "u8"),
        "factors-f16": ("factors", "f16"),
    }
    print(
        "| encoding | bare decode | store, streamed | store, random | np.memmap | LMDB | plain "
        "zarr |"
    )
    print("|---|---|---|---|---|---|---|")
    for label, (encoding, precision) in kinds.items():
        compare(label, *records_of(features, encoding, precision), count, folder)
    print(
        "\nRecords per second of CPU time; in brackets the share of the bare decode rate.",
        flush=True,
    )
    memory(folder, kinds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--records", type=int, default=512)
    parser.add_argument("--synthetic", type=int, default=400_000)
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        os.environ["MEDALIGN_CACHE"] = str(folder / "cache")
        if arguments.records:
            reading(folder, arguments.records)
        if arguments.synthetic:
            opening(folder, arguments.synthetic)


if __name__ == "__main__":
    main()
