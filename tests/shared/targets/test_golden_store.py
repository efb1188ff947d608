"""The bytes of a small store of each kind are those of every store there is.

`golden_store.json` holds digests: of each file that no compressor touches (metadata, keys and the
other small arrays), and of each array as it is read, since another version of a compressor may
write other bytes for the same values. A change of them is another format, and needs a new number.
`python tests/shared/targets/test_golden_store.py` prints the document.
"""

import hashlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shared.targets import TargetStore, TargetWriter
from tests.fixtures.targets import (
    ASKED,
    asked_record,
    factors_record,
    identity,
    key,
    matrix_record,
    patches_record,
)

pytestmark = pytest.mark.unit

GOLDEN = Path(__file__).with_name("golden_store.json")
COMPRESSED = {
    "similarity", "attention", "coverage", "factors", "scale", "patches", "query", "query_scale",
}  # fmt: skip
CREATED = {"created": "2025-01-01T00:00:00+00:00", "licence": "MIT"}


def half_factors(number):
    """Return a `factors` record in float16."""
    record = factors_record(number)
    return {**record, "factors": (record["factors"] / 127).astype(np.float16)}


KINDS: dict[str, Any] = {
    "matrix f16": (matrix_record, {"format": 1}),
    "matrix u8": (matrix_record, {"precision": "u8", "format": 1}),
    "factors u8": (factors_record, {"encoding": "factors", "tolerance": 0.01, "format": 1}),
    "factors f16": (
        half_factors,
        {"encoding": "factors", "tolerance": 0.01, "precision": "f16", "format": 1},
    ),
    "matrix f16, format 2": (matrix_record, {}),
    "factors u8, format 2": (factors_record, {"encoding": "factors", "tolerance": 0.01}),
    "patches, format 2": (
        patches_record,
        {"encoding": "patches", "width": 6, "rotation": "hadamard"},
    ),
    "matrix f16 with a query, format 2": (asked_record, ASKED),
}


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def digests(kind, root):
    """Write a store of `kind` with five records in two segments; return its digests."""
    record, changes = KINDS[kind]
    with TargetWriter(root, identity(**changes), CREATED, segment_records=3) as writer:
        for number in range(5):
            writer.add(key(number), record(number))
    namespace = Path(root) / writer.namespace.name
    files = {}
    for path in sorted(namespace.rglob("*")):
        place = path.relative_to(namespace)
        if not path.is_file() or path.name == "manifest.json":
            continue
        parts = list(place.parts)
        if len(parts) > 2 and parts[0] == "segments":
            if parts[2] in COMPRESSED and parts[-1] != "zarr.json":
                continue
            # A segment's id follows from its compressed bytes: it is named by its records instead.
            shape = json.loads((namespace / "segments" / parts[1] / "key/zarr.json").read_text())
            parts[1] = f"{shape['shape'][0]} records"
        files["/".join(parts)] = sha256(path.read_bytes())
    store = TargetStore.open(root)
    arrays = store.arrays([key(number) for number in range(5)])
    read = {
        name: f"{values.dtype} {values.shape} {sha256(np.ascontiguousarray(values).tobytes())}"
        for name, values in arrays.items()
    }
    return {"namespace": namespace.name, "files": files, "arrays": read}


@pytest.mark.parametrize("kind", KINDS)
def test_a_store_has_the_bytes_of_every_store_of_its_kind(tmp_path, kind, monkeypatch):
    monkeypatch.setenv("MEDALIGN_CACHE", str(tmp_path / "cache"))
    assert digests(kind, tmp_path / "store") == json.loads(GOLDEN.read_text())[kind]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        document = {kind: digests(kind, Path(folder) / kind) for kind in KINDS}
    sys.stdout.write(json.dumps(document, indent=1) + "\n")
