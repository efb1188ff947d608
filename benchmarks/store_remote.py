"""Opening a store in a bucket from a fresh host: requests and seconds, 30 ms added to each request.

`python -m benchmarks.store_remote [SEGMENTS [RECORDS]]` starts moto's S3 server and a proxy before
it that waits and counts, fills a store in both formats, and opens it with an empty cache directory.
"""

import asyncio
import os
import re
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from shared.targets import TargetStore, TargetWriter
from shared.targets.catalogue import discard_catalogues, publish_catalogue
from shared.targets.namespace import Namespace
from tests.fixtures.s3 import s3_server
from tests.fixtures.targets import identity, key, matrix_record

DELAY = 0.030  # seconds added to each request
_HEAD = re.compile(rb"^(GET|PUT|POST|HEAD|DELETE) \S+ HTTP/1", re.MULTILINE)


class Proxy:
    """Passes bytes on to a server; waits before each request, and counts them."""

    def __init__(self, port: int) -> None:
        self.to, self.requests, self.delay = port, 0, 0.0
        self.port = 0
        self._ready = threading.Event()
        threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True).start()
        self._ready.wait()

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._pass, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await server.serve_forever()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream, down = await asyncio.open_connection("127.0.0.1", self.to)

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter, ask: bool) -> None:
            while data := await source.read(1 << 16):
                if ask and _HEAD.search(data):
                    self.requests += 1
                    await asyncio.sleep(self.delay)
                sink.write(data)
                await sink.drain()
            sink.close()

        await asyncio.gather(
            pump(reader, down, True), pump(upstream, writer, False), return_exceptions=True
        )


@contextmanager
def slow_bucket() -> Iterator[Proxy]:
    """Start a bucket behind a proxy; the environment of this process points to it."""
    with s3_server() as environment:
        proxy = Proxy(int(environment["AWS_ENDPOINT_URL"].rpartition(":")[2]))
        os.environ.update(environment)
        os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{proxy.port}"
        yield proxy


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
    with slow_bucket() as proxy:
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
