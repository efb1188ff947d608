"""Which namespace of a store a reader means, and a clear error where none or several fit."""

from pathlib import Path

from shared.errors import UserError
from shared.targets.identity import FORMAT, Identity, first_difference
from shared.targets.namespace import Namespace, survey
from shared.targets.storage import Storage, open_storage
from shared.vocabulary import Kind

_MADE_BY: dict[Kind, str] = {
    "targets": "cache build",
    "maps": "cache query maps",
    "texts": "cache text",
}


def choose_namespace(
    root: str | Path | Storage,
    teacher: str | None = None,
    fingerprint: str | None = None,
    grid: tuple[int, int] | None = None,
    identity: Identity | None = None,
    kind: Kind = "targets",
) -> Namespace:
    """Find the one namespace that fits; parameters and errors as in `TargetStore.open`."""
    fitting = fitting_namespaces(root, teacher, fingerprint, grid, identity, kind)
    if len(fitting) > 1:
        names = ", ".join(namespace.name for namespace in fitting)
        location = root if isinstance(root, str | Path) else root.location
        raise UserError(
            f"{location} holds {len(fitting)} that fit ({names}): choose one by teacher, grid or "
            "fingerprint (the digits that end its name)"
        )
    return fitting[0]


def fitting_namespaces(
    root: str | Path | Storage,
    teacher: str | None = None,
    fingerprint: str | None = None,
    grid: tuple[int, int] | None = None,
    identity: Identity | None = None,
    kind: Kind = "targets",
) -> list[Namespace]:
    """Find every namespace that fits, one at least; parameters as in `TargetStore.open`.

    Raises
    ------
    UserError
        None fits: both fingerprints and the first field that differs.
    """
    if fingerprint is not None and (
        len(fingerprint) < 6 or set(fingerprint) - set("0123456789abcdef")
    ):
        raise UserError(f"a fingerprint is 6 to 64 hexadecimal digits, got {fingerprint!r}")
    storage = open_storage(root) if isinstance(root, str | Path) else root
    found, unreadable = survey(storage)
    namespaces = [one for one in found if one.identity.kind == kind]
    if found and not namespaces:
        raise UserError(f"{storage.location} holds no {kind}: `{_MADE_BY[kind]}` makes them")
    wanted = grid if grid is None else (int(grid[0]), int(grid[1]))
    fitting = [
        one for one in namespaces if _fits(one.identity, teacher, fingerprint, wanted, identity)
    ]
    if fitting:
        return _newest(fitting)
    if not namespaces:
        raise UserError("; ".join(unreadable.values()))
    lines = [_mismatch(one.identity, teacher, fingerprint, wanted, identity) for one in namespaces]
    lines += unreadable.values()
    raise UserError(
        f"no targets in {storage.location} fit: {'; '.join(lines)}; build the wanted ones with "
        "`cache build`"
    )


def _newest(fitting: list[Namespace]) -> list[Namespace]:
    """Leave out what `cache upgrade` has written anew: namespaces that differ in `format` alone."""
    newest: dict[str, Namespace] = {}
    for one in sorted(fitting, key=lambda one: one.identity.format):
        newest[one.identity.model_copy(update={"format": FORMAT}).fingerprint()] = one
    return sorted(newest.values(), key=lambda one: one.name)


def _fits(
    have: Identity,
    teacher: str | None,
    fingerprint: str | None,
    grid: tuple[int, int] | None,
    identity: Identity | None,
) -> bool:
    return (
        (teacher is None or have.teacher == teacher)
        and (fingerprint is None or have.fingerprint().startswith(fingerprint))
        and (grid is None or have.encoding != "matrix" or have.grid == grid)
        and (identity is None or have == identity)
    )


def _mismatch(
    have: Identity,
    teacher: str | None,
    fingerprint: str | None,
    grid: tuple[int, int] | None,
    identity: Identity | None,
) -> str:
    """Say how one namespace differs from what is wanted: both fingerprints, and the first field."""
    changes: dict[str, object] = {}
    if teacher is not None:
        changes["teacher"] = teacher
    if grid is not None and have.encoding == "matrix":
        changes["grid"] = grid
    expected = identity or have.model_copy(update=changes)
    difference = first_difference(have, expected)
    wanted = fingerprint or expected.fingerprint()
    if difference is None:
        reason = "which field differs cannot be told from a fingerprint alone"
    else:
        reason = f"`{difference.field}` is {difference.first!r}, wanted {difference.second!r}"
    found = f"found {have.teacher} with fingerprint {have.fingerprint()[:12]}"
    return f"{found}, wanted {wanted[:12]}: {reason}"
