"""The JSON documents of a store: canonical where it is hashed, one form where it is written."""

import hashlib
import json
from collections.abc import Mapping


def canonical_json(document: Mapping[str, object]) -> bytes:
    """Encode JSON with sorted keys, no spaces and ASCII only.

    Equal documents have equal bytes.
    """
    return json.dumps(
        document, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    ).encode()


def digest(body: Mapping[str, object]) -> str:
    """Return the sha256 of a document's canonical JSON, in hexadecimal digits."""
    return hashlib.sha256(canonical_json(body)).hexdigest()


def encode_sorted(document: Mapping[str, object]) -> bytes:
    """Write the JSON of a namespace's own files.

    One document has one form, so that any change shows.
    """
    return json.dumps(document, indent=2, sort_keys=True).encode() + b"\n"


def encode_document(document: Mapping[str, object]) -> bytes:
    """Write the JSON of a segment's metadata."""
    return json.dumps(document, indent=2).encode() + b"\n"


def group_document(attributes: Mapping[str, object] | None = None) -> dict[str, object]:
    """Write the zarr.json of a group."""
    return {"zarr_format": 3, "node_type": "group", "attributes": dict(attributes or {})}
