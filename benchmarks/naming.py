"""What naming many images takes: bytes a reference, and files hashed a second by threads.

    python -m benchmarks.naming [--references 1000000] [--files 2000]

- **Bytes a reference**: what lives after the listing and after the naming, by tracemalloc, and the
  most that ever lived in between. The keys are synthetic, so that no million files are needed:
  `content_keys` is replaced by sha256 of the path; everything else is the build's own code.
- **Hashing**: processor and wall seconds of `content_keys` over real files of 256 KiB, by threads.
"""

import argparse
import hashlib
import os
import tempfile
import time
import tracemalloc
from pathlib import Path


def memory(count: int) -> dict[str, float]:
    """Bytes a reference: of the list, of what a build keeps, and at the most in between."""
    from shared.imaging import ImageReference
    from teacher_cache import distinct

    def synthetic(references, workers):
        for one in references:
            yield one, hashlib.sha256(os.fspath(one.path).encode()).digest()

    distinct.content_keys = synthetic
    tracemalloc.start()
    references = [
        ImageReference(Path(f"/data/mimic/files/p{number // 1000:03}/{number:08}.jpg"))
        for number in range(count)
    ]
    listed = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    found = distinct.distinct_images(references, 1)
    kept, peak = tracemalloc.get_traced_memory()
    assert len(found.by_key) == count
    tracemalloc.stop()
    return {"listed": listed / count, "kept": kept / count, "peak": peak / count}


def hashing(count: int, workers: int) -> tuple[float, float]:
    """Wall and processor seconds of naming `count` files with so many threads, none remembered."""
    from shared.imaging import ImageReference
    from shared.imaging.keys import content_keys

    with tempfile.TemporaryDirectory() as scratch:
        os.environ["MEDALIGN_CACHE"] = f"{scratch}/cache"
        folder = Path(scratch) / "files"
        folder.mkdir()
        for number in range(count):
            (folder / f"{number}.bin").write_bytes(number.to_bytes(8, "big") * (1 << 15))
        references = [ImageReference(path) for path in sorted(folder.iterdir())]
        wall, processor = time.perf_counter(), time.process_time()
        assert sum(isinstance(key, bytes) for _, key in content_keys(references, workers)) == count
        return time.perf_counter() - wall, time.process_time() - processor


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--references", type=int, default=1_000_000)
    parser.add_argument("--files", type=int, default=2000)
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}")
    found = memory(options.references)
    print("| references | listed, B each | kept after naming, B each | most, B each |")
    print("|---|---|---|---|")
    print(f"| {options.references:,} | " + " | ".join(f"{v:.0f}" for v in found.values()) + " |")
    print("\n| threads | wall, s | processor, s | files/s |\n|---|---|---|---|")
    for workers in (1, 2, 4):
        wall, processor = hashing(options.files, workers)
        print(f"| {workers} | {wall:.2f} | {processor:.2f} | {options.files / wall:.0f} |")


if __name__ == "__main__":
    main()
