"""Opening a store in a bucket from a fresh host: requests and seconds, 30 ms added to each request.

`python -m benchmarks.store_remote [SEGMENTS [RECORDS]]` starts moto's S3 server and a proxy before
it that waits and counts, fills a store in both formats, and opens it with an empty cache directory.
"""

import asyncio
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from shared.targets import TargetStore, TargetWriter
from shared.targets.catalogue import discard_catalogues, publish_catalogue
from shared.targets.namespace import Namespace
from tests.fixtures.proxy import Proxy, counted_bucket
from tests.fixtures.targets import identity, key, matrix_record

DELAY = 0.030  # seconds added to each request


def fill(root: str, segments: int, records: int, **changes: Any) -> Namespace:
    """Write a store: written in memory's file system, then copied object by object."""
    import obstore

    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        local = Path(folder) / "store"
        record = matrix_record(0)
        kind = identity(**changes)
        with TargetWriter(local, kind, segment_records=records) as writer:
            for number in range(segments * records):
                writer.add(key(number), record)
        namespace = TargetStore.open(local, identity=kind).namespace
        publish_catalogue(namespace, force=True)
        from shared.targets.storage.objects import ObjectStorage

        bucket = ObjectStorage(root)._store.store

        async def copy() -> None:
            free = asyncio.Semaphore(16)

            async def one(file: Path) -> None:
                async with free:
                    name = file.relative_to(local).as_posix()
                    await obstore.put_async(bucket, name, file.read_bytes())

            await asyncio.gather(*(one(f) for f in sorted(local.rglob("*")) if f.is_file()))

        asyncio.run(copy())
    return TargetStore.open(root, identity=kind).namespace


def opened(root: str, proxy: Proxy, **wanted: Any) -> tuple[float, int, float, int]:
    """Open with an empty cache, then read a first record: seconds and requests of each."""
    with tempfile.TemporaryDirectory() as cache:
        os.environ["MEDALIGN_CACHE"] = cache
        proxy.requests, proxy.delay = 0, DELAY
        begin = time.perf_counter()
        store = TargetStore.open(root, identity=identity(**wanted))
        seconds, requests = time.perf_counter() - begin, proxy.requests
        begin, proxy.requests = time.perf_counter(), 0
        first = store[key(len(store) // 2)]
        assert first.attention is not None
        assert np.isfinite(first.attention).all()
        proxy.delay = 0.0
        return seconds, requests, time.perf_counter() - begin, proxy.requests


def main() -> None:
    segments, records = (int(one) for one in [*sys.argv[1:], "1500", "64"][:2])
    print(f"{segments} segments of {records} records; {DELAY * 1000:.0f} ms added to each request")
    print("\n| store | open, s | requests | first record, s | requests |\n|---|---|---|---|---|")
    with counted_bucket() as proxy:
        os.environ["MEDALIGN_CACHE"] = tempfile.mkdtemp()
        few = min(segments, 60)  # format 1 takes a third of a second for each
        for name, store_format, catalogued, count in (
            (f"format 1, {few} segments", 1, False, few),
            (f"format 2, {few} segments, no catalogue", 2, False, few),
            (f"format 2, {segments} segments, no catalogue", 2, False, segments),
            (f"format 2, {segments} segments, catalogue", 2, True, segments),
        ):
            root = f"s3://bucket/{store_format}{catalogued}{count}"
            namespace = fill(root, count, records, format=store_format)
            if not catalogued:
                discard_catalogues(namespace)
            found = opened(root, proxy, format=store_format)
            print(f"| {name} | {found[0]:.2f} | {found[1]} | {found[2]:.2f} | {found[3]} |")


if __name__ == "__main__":
    main()
