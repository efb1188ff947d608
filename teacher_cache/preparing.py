"""What a build needs loaded: the teacher, and for `--query` its text tower and the basis.

The basis of a namespace is the one that its first build made, kept in its provenance: what joins
later, on this machine or another, reads in that one, so that all records of it can be asked alike.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from shared.errors import UserError
from shared.targets.identity import Identity, QueryIdentity
from shared.targets.namespace import Namespace, find_namespace
from shared.targets.numbers.query import basis_of
from teacher_cache.query.blocks import modules_of
from teacher_cache.query.readouts import with_readout
from teacher_cache.query.textspan import LAYERS
from teacher_cache.settings import Asked, Settings, load_for
from teacher_cache.teachers.base import Teacher, TextTower
from teacher_cache.texts import basis
from teacher_cache.texts.towers import load_text_tower


class Ready(NamedTuple):
    """A teacher ready to encode for one namespace.

    `query` is what the namespace's provenance says of the basis, and `tower` the text tower; both
    None without `--query`.
    """

    teacher: Teacher
    identity: Identity
    query: Mapping[str, object] | None = None
    tower: TextTower | None = None

    def into(self, namespace: Namespace) -> Teacher:
        """Return the teacher, which reads in the basis of this namespace."""
        return reading(self.teacher, namespace)


def load_ready(
    teacher: str, weights: str | None, settings: Settings, device: str, store: str | Path | None
) -> Ready:
    """Load what encodes under `settings` into `store`.

    The teacher reads already, in the store's basis if its namespace is there, else in its own.

    Raises
    ------
    UserError
        As `load_for`; or a teacher that cannot be asked.
    """
    loaded, plain = load_for(teacher, weights, settings, device)
    asked = settings.query
    if asked is None:
        return Ready(loaded, plain)
    depth = len(modules_of(loaded))
    tower = load_text_tower(teacher, weights, asked.tokenizer, settings.trained)
    query = QueryIdentity(
        method=asked.method,
        heads=asked.heads if asked.method == "grad-eclip" else None,
        layers=min(LAYERS, depth) if asked.method == "textspan" else None,
        rank=asked.rank,
        terms=basis.terms()[0],
        text=tower.weights,
        grid=loaded.grid,
    )
    identity = Identity.model_validate({**plain.model_dump(), "query": query})
    there = None if store is None else find_namespace(store, identity)
    if there is not None:
        return Ready(reading(loaded, there), identity, None, tower)
    made = basis.basis_of(tower, asked.rank)
    ready = with_readout(loaded, query, made.matrix)
    return Ready(ready, identity, basis.provenance_of(made), tower)


def reading(teacher: Teacher, namespace: Namespace) -> Teacher:
    """Return the teacher, which reads what the namespace can be asked; as it is if it cannot."""
    query = namespace.identity.query
    if query is None:
        return teacher
    try:
        kept = basis_of(namespace.provenance)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{namespace.name} says that it can be asked, but keeps no usable basis ({error}): "
            "build into another --store"
        ) from None
    return with_readout(teacher, query, kept)


def asked_of(query: QueryIdentity) -> Asked:
    """Return the settings that give a query again with the same text tower."""
    return Asked(query.method, query.rank, query.heads or "published")
