"""Carrying a store elsewhere and back: a folder, a bucket, or a repository of the hub.

Into a folder or a bucket, and out of all three, segments are merged: each is checked byte by byte,
appears in one step, and what is there already is not copied. The hub takes the files as they are.
"""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from shared.console import warn
from shared.errors import UserError
from shared.files import refused_as
from shared.hub import Kind, NotFetchedError, NotUploadedError, snapshot, upload
from shared.targets.choice import fitting_namespaces
from shared.targets.namespace import Namespace, Survey, list_namespaces, survey
from shared.targets.segment.scan import scan
from shared.targets.storage import LocalStorage, Storage, open_storage
from teacher_cache.keeping.info import describe
from teacher_cache.keeping.merge import Merged, merge_namespace
from teacher_cache.keeping.storecard import AUDITED, CARD, HEAD, card, read_audit

HUB = "hf://"
_KIND: Kind = "dataset"


class HubPlace(NamedTuple):
    """A repository of the hub, and its revision; None is the newest."""

    repository: str
    revision: str | None = None


def hub_place(place: str) -> HubPlace | None:
    """Read `hf://owner/name`, with an optional `datasets/` before it and `@revision` behind it.

    Returns
    -------
    None for any other place: the hub is asked only where it is named.

    Raises
    ------
    UserError
        It names no repository.
    """
    if not place.startswith(HUB):
        return None
    name, _, revision = place.removeprefix(HUB).removeprefix("datasets/").partition("@")
    parts = name.split("/")
    if len(parts) > 2 or not all(parts):
        raise UserError(f"{place} is no repository of the hub: hf://OWNER/NAME")
    return HubPlace(name, revision or None)


class Carried(NamedTuple):
    """What lies where now.

    `uploaded` is the hub's own name of a repository; `unreadable` are the namespaces that stayed,
    and why.
    """

    merged: list[Merged]
    unreadable: dict[str, str]
    uploaded: str | None = None


def push(
    store: str,
    place: str,
    *,
    teacher: str | None = None,
    fingerprint: str | None = None,
    audit: Path | None = None,
) -> Carried:
    """Carry namespaces of a store to another place, with a card.

    Parameters
    ----------
    place
        A folder, `s3://bucket/prefix`, or `hf://owner/name`, which is made private if it is not
        there.
    teacher, fingerprint
        Which namespaces; all without them.
    audit
        What `cache audit --json` printed, for the card.

    Raises
    ------
    DamagedSegment
        A segment of the store is damaged: it does not go.
    UserError
        A place that cannot be written, or a hub that refuses.
    """
    namespaces, unreadable = _chosen(store, teacher, fingerprint)
    names = [one.name for one in namespaces]
    known = None if audit is None else read_audit(audit, names)
    hub = hub_place(place)
    if hub is not None:
        text = card([describe(one) for one in namespaces], known)
        return Carried([], unreadable, _uploaded(namespaces, hub, text))
    storage = open_storage(place)
    _check_card(storage, audit)
    merged = [merge_namespace(one, storage) for one in namespaces]
    text = card([describe(one) for one in list_namespaces(storage)], known)
    with refused_as(f"cannot write to the store {storage.location}", "run push again"):
        storage.discard(CARD)
        storage.create(CARD, text.encode())
    return Carried(merged, unreadable)


def _check_card(storage: Storage, audit: Path | None) -> None:
    """Refuse to take the place of a README that is no card; a hub keeps the older one itself.

    Raises
    ------
    UserError
        Such a file lies there.
    """
    with suppress(FileNotFoundError, NotADirectoryError):
        there = storage.read(CARD).decode(errors="replace")
        if HEAD not in there:
            raise UserError(
                f"{storage.location} has a {CARD} of its own, which the card would replace: rename "
                "it, or push to a folder of its own"
            )
        if audit is None and AUDITED in there:
            warn(f"the card at {storage.location} loses its audit: --audit FILE keeps it")


def pull(
    place: str, store: str, *, teacher: str | None = None, fingerprint: str | None = None
) -> Carried:
    """Carry namespaces from another place into a store, which is made if it is absent.

    Parameters are those of `push`. From the hub the files come through its library's own cache.

    Raises
    ------
    DamagedSegment
        A segment came damaged: nothing of it is taken.
    UserError
        No store at that place, or it cannot be reached.
    """
    source: str | Path = place
    hub = hub_place(place)
    if hub is not None:
        try:
            source = snapshot(hub.repository, ["*"], hub.revision, _KIND)
        except NotFetchedError as error:
            raise UserError(f"{place} could not be fetched: {error}") from None
    namespaces, unreadable = _chosen(source, teacher, fingerprint)
    return Carried([merge_namespace(one, store) for one in namespaces], unreadable)


def _chosen(store: str | Path, teacher: str | None, fingerprint: str | None) -> Survey:
    if teacher is not None or fingerprint is not None:
        return Survey(fitting_namespaces(store, teacher, fingerprint), {})
    found = survey(store)
    if not found.readable:
        raise UserError("; ".join(found.unreadable.values()))
    return found


def _uploaded(namespaces: Sequence[Namespace], hub: HubPlace, text: str) -> str:
    """Upload namespaces that lie in a folder, once every byte of them has been checked."""
    storage = namespaces[0].storage
    if not isinstance(storage, LocalStorage):
        raise UserError(
            f"only a store in a folder goes to the hub: `cache pull {storage.location} --store "
            "FOLDER` first, then push that"
        )
    if hub.revision is not None:
        raise UserError("a push makes a revision of its own: leave @REVISION out")
    names = {one.name for one in namespaces}
    for one in scan(storage):
        if one.damage is not None and one.path.partition("/")[0] in names:
            raise UserError(one.damage)
    try:
        return upload(
            storage.root,
            hub.repository,
            kind=_KIND,
            texts={CARD: text},
            wanted=[f"{name}/*" for name in sorted(names)],
            unwanted=["*/.*"],
        )
    except NotUploadedError as error:
        raise UserError(
            f"upload of {storage.location} to {HUB}{hub.repository} failed ({error}); the store "
            "itself is as it was"
        ) from None
