"""Opening a store of ten million records: seconds and memory with an index, without, and with news.

    OMP_NUM_THREADS=1 python -m benchmarks.store_many [--records 10000000] [--folder DIR]

The store is a true one: every record of it reads. Only the files of values are the same in all
segments, so they are one file with many names; keys and manifests are each segment's own (1 GB for
ten million). Memory is the peak of the process above an empty one, mapped files counted.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from shared.targets import TargetWriter
from shared.targets.catalogue import publish_catalogue
from shared.targets.namespace import segment_id
from shared.targets.numbers.arrays import Arrays
from shared.targets.segment.checks import read_segment
from shared.targets.segment.chunks import encode_chunk
from shared.targets.segment.layout import SEGMENT_RECORDS, arrays_of
from shared.targets.segment.manifest import MANIFEST, read_manifest
from shared.targets.segment.writer import with_manifest
from tests.fixtures.targets import identity

SAMPLED = 1_000  # records, in batches of 32
RECORD: Arrays = {
    "similarity": np.zeros(6, np.float16),
    "attention": np.zeros(4, np.float32),
    "coverage": np.full(4, 255, np.uint8),
}


def keys_of(first: int, count: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return keys that are spread as digests are, (count, 32), a function of their numbers."""
    generator = np.random.Generator(np.random.Philox(key=first))
    return generator.integers(0, 256, (count, 32), dtype=np.uint8)


class Maker:
    """Makes segments of a store out of its first one."""

    def __init__(self, root: Path) -> None:
        with TargetWriter(root, identity(grid=(2, 2))) as writer:
            for row in keys_of(0, SEGMENT_RECORDS):
                writer.add(row.tobytes(), RECORD)
        self.namespace = writer.namespace
        first = self.namespace.segments()[0]
        manifest = read_manifest(self.namespace, first)
        assert manifest.opening is not None
        self.opening, self.first = manifest.opening, first
        self.files = read_segment(self.namespace, first)
        del self.files[MANIFEST]
        self.folder = root / self.namespace.path("segments")

    def add(self, number: int) -> None:
        """Make the segment of a number: its keys and manifest, and other names of the rest."""
        rows = keys_of(number, SEGMENT_RECORDS)
        own = {"key/c/0/0": encode_chunk(rows, arrays_of(self.namespace.identity)[0])}
        whole = with_manifest(
            self.namespace,
            self.files | own,
            [row.tobytes() for row in rows],
            self.opening.shapes,
            self.opening.lengths,
        )
        digest = str(json.loads(whole[MANIFEST])["digest"])
        when = (int(self.first[:12], 16) + number) / 1000
        folder = self.folder / segment_id(2, digest, when)
        for file in whole:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            if file in (MANIFEST, *own):
                (folder / file).write_bytes(whole[file])
            else:
                os.link(self.folder / self.first / file, folder / file)


CHILD = """
import json, sys, time
import psutil
empty = psutil.Process().memory_info().rss
import numpy as np
from benchmarks.store_many import keys_of
from shared.targets import TargetStore
generator = np.random.default_rng(0)
root, segments, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
keys = [keys_of(int(one), 256)[int(generator.integers(256))].tobytes()
        for one in generator.integers(0, segments, count)]
clocks = [(time.perf_counter(), time.process_time())]
store = TargetStore.open(root)
clocks.append((time.perf_counter(), time.process_time()))
for start in range(0, count, 32):
    store.batch(keys[start:start + 32])
clocks.append((time.perf_counter(), time.process_time()))
with open("/proc/self/status") as status:
    peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024
(wall, cpu), opened, sampled = clocks
print(json.dumps({"records": len(store), "peak": peak - empty, "clocks": [
    opened[0] - wall, opened[1] - cpu, sampled[0] - wall, sampled[1] - cpu]}))
"""


def child(root: Path, segments: int, label: str) -> None:
    """Open and sample in a fresh process; print a row of the table."""
    command = [sys.executable, "-c", CHILD, str(root), str(segments), str(SAMPLED)]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    cells = [f"{seconds:.2f}" for seconds in found["clocks"]]
    cells = [f"{found['records']:,}", *cells, f"{found['peak'] / 2**20:.0f}"]
    print(f"| {label} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--records", type=int, default=10_000_000)
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        root = Path(name) / "store"
        os.environ["MEDALIGN_CACHE"] = str(Path(name) / "cache")
        start, maker = time.perf_counter(), Maker(root)
        segments = arguments.records // SEGMENT_RECORDS
        for number in range(1, segments):
            maker.add(number)
        print(f"{segments:,} segments written in {time.perf_counter() - start:.0f} s")
        measure(root, maker, segments)


def measure(root: Path, maker: Maker, segments: int) -> None:
    """Open the store with every kind of index."""
    start = time.process_time()
    publish_catalogue(maker.namespace)
    print(f"catalogue written in {time.process_time() - start:.1f} s of CPU time\n")
    print("| index | records | opened, s | CPU, s | sampled too, s | CPU, s | peak, MiB |")
    print("|---|---|---|---|---|---|---|", flush=True)
    shutil.rmtree(os.environ["MEDALIGN_CACHE"], ignore_errors=True)
    child(root, segments, "none: from the catalogue")
    child(root, segments, "present")
    maker.add(segments)
    child(root, segments, "present, one new segment")
    child(root, segments, "present")
    shutil.rmtree(os.environ["MEDALIGN_CACHE"])
    shutil.rmtree(root / maker.namespace.path("catalogue"))
    child(root, segments, "none, no catalogue: from the manifests")


if __name__ == "__main__":
    main()
