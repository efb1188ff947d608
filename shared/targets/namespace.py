"""A namespace.

One teacher's folder in the store, with its identity, its segments and its quarantine list.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Set
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from shared.errors import UserError
from shared.files import refused_as
from shared.targets.documents import digest, encode_sorted, group_document
from shared.targets.identity import Identity, parse_identity
from shared.targets.storage import Storage, join, open_storage

GROUPS = ("segments", "quarantine")
_NAME = re.compile(r".+-[0-9a-f]{12}")
# Of a manifest's digest: 32 digits (format 1), or 20 after the time in ms since 1970 (format 2).
_SEGMENT = re.compile(r"[0-9a-f]{32}|[0-9a-f]{12}-[0-9a-f]{20}")
CATALOGUE = "catalogue"
_CATALOGUE = re.compile(r"[0-9a-f]{12}-[0-9a-f]{32}")
_QUARANTINE = re.compile(r"[0-9a-f]{64}-[0-9a-f]{16}\.json")


class Namespace(NamedTuple):
    """One namespace of a store.

    `provenance` says when and with what it was made, outside the fingerprint.
    """

    storage: Storage
    name: str
    identity: Identity
    provenance: dict[str, object]

    def segments(self, begin: str = "", known: Set[str] = frozenset()) -> list[str]:
        """List the ids of all visible segments from `begin` on, sorted; not foreign folders.

        `known` ones count as visible as long as a part of them is there, which is less to list in a
        bucket.
        """
        return segment_names(self.storage, self.name, begin, known)

    def path(self, *parts: str) -> str:
        """Path below this namespace, relative to the store."""
        return join(self.name, *parts)


class Quarantined(NamedTuple):
    """An image that could not be read: its content key, why, and when (ISO 8601, UTC).

    Never a path.
    """

    key: bytes
    reason: str
    time: str


def segment_names(
    storage: Storage, namespace: str, begin: str = "", known: Set[str] = frozenset()
) -> list[str]:
    """List the segments of a namespace by its name; as `Namespace.segments`."""
    names = storage.names(join(namespace, "segments"), begin, known)
    return [name for name in names if _SEGMENT.fullmatch(name)]


def segment_id(store_format: int, digest: str, when: float) -> str:
    """Name a new segment by its manifest's digest, since format 2 in the order of time.

    Parameters
    ----------
    when
        Seconds since 1970.
    """
    return digest[:32] if store_format == 1 else f"{round(when * 1000):012x}-{digest[:20]}"


def digest_in(segment: str) -> str:
    """Return the leading digits of the manifest's digest in a segment's name."""
    return segment.rpartition("-")[2]


def create_namespace(
    root: str | Path | Storage, identity: Identity, provenance: Mapping[str, object] | None = None
) -> Namespace:
    """Open the namespace of `identity` in the store at `root`, created first if it is absent.

    Parameters
    ----------
    root
        The store: a folder, or `s3://bucket/prefix`.
    provenance
        Software versions, licence note and the like; `created` is added. Kept from the first build.

    Raises
    ------
    UserError
        If the place cannot be written, or holds another identity under the same name.
    """
    storage = open_storage(root) if isinstance(root, str | Path) else root
    name = identity.namespace()
    made = {"created": datetime.now(UTC).isoformat(timespec="seconds"), **(provenance or {})}
    body = {"format": identity.format, "identity": identity.document(), "provenance": made}
    attributes = {"medalign": {**body, "digest": digest(body)}}
    with refused_as(f"cannot write to the store {storage.location}"):
        storage.create(join(name, "zarr.json"), encode_sorted(group_document(attributes)))
        for group in GROUPS:
            storage.create(join(name, group, "zarr.json"), encode_sorted(group_document()))
    namespace = read_namespace(storage, name)
    if namespace.identity != identity:
        raise UserError(
            f"{storage.location}/{name} holds another identity under this name: choose another "
            "--store"
        )
    return namespace


def read_namespace(storage: Storage, name: str) -> Namespace:
    """Read one namespace's identity and provenance.

    Raises
    ------
    UserError
        If it is no namespace of this store format, or its identity does not have the fingerprint in
        its name.
    """
    source = f"{storage.location}/{name}/zarr.json"
    try:
        data = storage.read(join(name, "zarr.json"))
        document = json.loads(data)
        attributes = document["attributes"]["medalign"]
        identity = parse_identity(attributes["identity"], source)
        provenance = dict(attributes["provenance"])
        body = {
            "format": attributes["format"],
            "identity": attributes["identity"],
            "provenance": provenance,
        }
    except FileNotFoundError:
        raise UserError(
            f"{source} is missing: this is not a target store; `cache build` makes one"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{source} is not a target store's ({type(error).__name__}: {error})"
        ) from None
    whole = group_document({"medalign": {**body, "digest": digest(body)}})
    if identity.namespace() != name or encode_sorted(whole) != data:
        raise UserError(
            f"{source} was edited or damaged (fingerprint {identity.fingerprint()[:12]}): restore "
            "it from a copy of "
            "the store, or move the folder away and build anew"
        )
    return Namespace(storage, name, identity, provenance)


def find_namespace(root: str | Path, identity: Identity) -> Namespace | None:
    """Read the namespace of `identity`.

    None where the store does not have it, or is not there at all.

    Raises
    ------
    UserError
        If the store cannot be reached, or the namespace cannot be read.
    """
    storage = open_storage(root)
    with refused_as(f"cannot read the store {storage.location}"):
        there = storage.exists(join(identity.namespace(), "zarr.json"))
    return read_namespace(storage, identity.namespace()) if there else None


class Survey(NamedTuple):
    """What lies in a store: namespaces, and why others cannot be read, by name."""

    readable: list[Namespace]
    unreadable: dict[str, str]


def survey(root: str | Path | Storage) -> Survey:
    """Read every namespace of the store, sorted by name; one that cannot be read harms no other.

    Raises
    ------
    UserError
        If there is no store at `root`, or it cannot be reached.
    """
    storage = open_storage(root) if isinstance(root, str | Path) else root
    found = Survey([], {})
    for name in namespace_names(storage):
        try:
            found.readable.append(read_namespace(storage, name))
        except UserError as error:
            found.unreadable[name] = str(error)
        except OSError as error:
            found.unreadable[name] = (
                f"{storage.location}/{name} cannot be read: {error.strerror or error}"
            )
    return found


def list_namespaces(root: str | Path | Storage) -> list[Namespace]:
    """List the namespaces of the store that can be read, sorted by name.

    Raises
    ------
    UserError
        If there is no store at `root`, or none of its namespaces can be read.
    """
    readable, unreadable = survey(root)
    if not readable:
        raise UserError("; ".join(unreadable.values()))
    return readable


def namespace_names(storage: Storage) -> list[str]:
    """Name every namespace of the store, sorted, those that lost their zarr.json included.

    Folders of others (`@eaDir`, `lost+found`) have other names and are passed over.

    Raises
    ------
    UserError
        If there is no store, or it cannot be read.
    """
    # A build killed at its very start leaves a folder with nothing in it; one that lost its
    # zarr.json has segments.
    with refused_as(f"cannot read the store {storage.location}"):
        names = [
            name
            for name in storage.names("")
            if _NAME.fullmatch(name)
            and (storage.exists(join(name, "zarr.json")) or storage.names(name))
        ]
    if not names:
        raise UserError(
            f"no target store at {storage.location}: `cache build --store {storage.location}` "
            "makes one"
        )
    return names


def foreign_entries(namespace: Namespace) -> list[str]:
    """Name what lies in a namespace and is none of the store's own, relative to the store.

    Such as the folders `@eaDir` of a NAS. It harms nothing.
    """
    folders = [
        namespace.path("segments", name)
        for name in namespace.storage.names(namespace.path("segments"))
        if not _SEGMENT.fullmatch(name)
    ]
    files = [
        namespace.path("quarantine", name)
        for name in namespace.storage.sizes(namespace.path("quarantine"))
        if name != "zarr.json" and not _QUARANTINE.fullmatch(name)
    ]
    return sorted(folders + [file for file in files if "/.tmp-" not in file])


def catalogue_files(namespace: Namespace) -> dict[str, int]:
    """Name the catalogues of a namespace with their sizes in bytes, the newest last.

    None of format 1 is one.
    """
    if namespace.identity.format == 1:
        return {}
    try:
        sizes = namespace.storage.sizes(namespace.path(CATALOGUE))
    except FileNotFoundError:
        return {}
    return {name: sizes[name] for name in sorted(sizes) if _CATALOGUE.fullmatch(name)}


def catalogue_name(data: bytes, when: float) -> str:
    """Name a catalogue by the time, in seconds since 1970, and a digest of its bytes."""
    return f"{round(when * 1000):012x}-{hashlib.sha256(data).hexdigest()[:32]}"


def is_catalogue(data: bytes, name: str) -> bool:
    """Whether these are the bytes that a catalogue was named by."""
    return named_by(hashlib.sha256(data).hexdigest(), name)


def named_by(digest: str, name: str) -> bool:
    """Whether a catalogue was named by bytes with this sha256, in hexadecimal digits."""
    return digest[:32] == name.partition("-")[2]


def check_groups(namespace: Namespace) -> None:
    """Check the metadata of the groups `segments` and `quarantine`.

    Raises
    ------
    UserError
        Naming the file that is missing or changed.
    """
    for group in GROUPS:
        path = namespace.path(group, "zarr.json")
        try:
            sound = namespace.storage.read(path) == encode_sorted(group_document())
        except FileNotFoundError:
            sound = False
        if not sound:
            raise UserError(
                f"damaged metadata {namespace.storage.location}/{path}: delete the file if it is "
                "there, and the same "
                "`cache build` writes it again"
            )


def quarantine(namespace: Namespace, key: bytes, reason: str) -> None:
    """Record why the image with this content key was left out; `reason` must not name a path.

    Raises
    ------
    UserError
        If the store cannot be written.
    """
    document = {
        "key": key.hex(),
        "reason": " ".join(reason.split()),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    data = encode_sorted(document)
    with refused_as(f"cannot write to the store {namespace.storage.location}"):
        namespace.storage.create(namespace.path("quarantine", quarantine_name(data)), data)


def quarantine_name(data: bytes) -> str:
    """Name a quarantine record's file.

    Its key, and a digest of its bytes that `cache verify` checks.
    """
    return f"{json.loads(data)['key']}-{hashlib.sha256(data).hexdigest()[:16]}.json"


def quarantined(namespace: Namespace) -> Iterator[Quarantined]:
    """Yield the latest record of each quarantined image, sorted by key.

    Raises as `read_quarantined`.
    """
    latest: dict[bytes, Quarantined] = {}
    for name in quarantine_files(namespace):
        document = json.loads(read_quarantined(namespace, name))
        one = Quarantined(bytes.fromhex(document["key"]), document["reason"], document["time"])
        if one.key not in latest or latest[one.key].time <= one.time:
            latest[one.key] = one
    yield from (latest[key] for key in sorted(latest))


def release(namespace: Namespace, present: Callable[[list[bytes]], list[bool]]) -> int:
    """Remove the records of quarantined images that have a target by now; return how many.

    Parameters
    ----------
    present
        Says of each of some content keys whether the namespace holds its target.
    """
    names = quarantine_files(namespace)
    held = present([bytes.fromhex(name[:64]) for name in names]) if names else []
    gone = [name for name, there in zip(names, held, strict=True) if there]
    for name in gone:
        namespace.storage.discard(namespace.path("quarantine", name))
    return len(gone)


def quarantine_files(namespace: Namespace) -> list[str]:
    """Name the files of all quarantine records, sorted."""
    names = namespace.storage.sizes(namespace.path("quarantine"))
    return sorted(name for name in names if _QUARANTINE.fullmatch(name))


def read_quarantined(namespace: Namespace, name: str) -> bytes:
    """Read the file of one quarantine record.

    Raises
    ------
    UserError
        If the file is not the one that was written.
    """
    path = namespace.path("quarantine", name)
    data = namespace.storage.read(path)
    try:
        sound = quarantine_name(data) == name
    except (ValueError, KeyError, TypeError):
        sound = False
    if not sound:
        raise UserError(
            f"damaged quarantine record {namespace.storage.location}/{path}: delete it, and the "
            "next build that meets "
            "its image writes it again"
        )
    return data
