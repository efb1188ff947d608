"""Opening a store in a bucket from a fresh host: requests and seconds, 30 ms added to each request.

`python -m benchmarks.store_remote [SEGMENTS [RECORDS]]` starts moto's S3 server and a proxy before
it that waits and counts, fills a store in both formats, and opens it with an empty cache directory.
Then it streams records from a folder, from the bucket, and from this machine's copies of it.
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
from teacher_cache.keeping.merge import merge
from tests.fixtures.proxy import Proxy, counted_bucket
from tests.fixtures.targets import identity, key, matrix_record

DELAY = 0.030  # seconds added to each request


def fill(root: str, segments: int, records: int, **changes: Any) -> Namespace:
    """Write a store: written in memory's file system, then copied object by object."""
    import obstore

    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        local = Path(folder) / "store"
        kind = identity(**changes)
        record = matrix_record(0, kind.patches)
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


def streamed(store: TargetStore) -> tuple[float, float]:
    """Return records per second of the clock and of CPU time, in the order of segments."""
    count, wall, cpu = 0, time.perf_counter(), time.process_time()
    for keys in store.by_segment():
        for start in range(0, len(keys), 32):
            count += len(store.batch(keys[start : start + 32]).similarity)
    return count / (time.perf_counter() - wall), count / (time.process_time() - cpu)


def stream(proxy: Proxy) -> None:
    """Compare reading a folder with reading a bucket, far away and from this machine's copies."""
    os.environ["MEDALIGN_CACHE"] = tempfile.mkdtemp()
    kind = {"grid": (24, 24)}
    root = "s3://bucket/streamed"
    fill(root, 2, 128, **kind)
    with tempfile.TemporaryDirectory() as folder:
        merge([root], folder)
        proxy.delay = DELAY
        places = {"folder": folder, "bucket, first time": root, "bucket, copies": root}
        rates: dict[str, tuple[float, float]] = dict.fromkeys(places, (0.0, 0.0))
        for _ in range(5):
            for name, place in places.items():
                if name == "bucket, first time":
                    os.environ["MEDALIGN_CACHE"] = tempfile.mkdtemp()
                store = TargetStore.open(place)
                before, now = rates[name], streamed(store)
                rates[name] = (max(before[0], now[0]), max(before[1], now[1]))
        proxy.delay = 0.0
    print("\n| 24x24, streamed | records/s | share | of CPU time | share |\n|---|---|---|---|---|")
    near = rates["folder"]
    for name, (wall, cpu) in rates.items():
        print(f"| {name} | {wall:,.0f} | {wall / near[0]:.2f} | {cpu:,.0f} | {cpu / near[1]:.2f} |")


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
        stream(proxy)


if __name__ == "__main__":
    main()
