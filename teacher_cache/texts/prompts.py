"""The prompts of data set files, and their embeddings in a store."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from shared.console import track
from shared.errors import UserError
from shared.records import load_records, strip_marks
from shared.targets import TargetStore, TargetWriter
from shared.targets.maps import normalised
from shared.targets.texts import text_key, texts_identity
from teacher_cache.teachers.base import TextTower
from teacher_cache.texts.towers import BATCH, embed


class Embedded(NamedTuple):
    """What was written: into which namespace, of how many prompts how many are new."""

    namespace: str
    prompts: int
    new: int
    width: int


def prompts_of(data: Path | None, more: Sequence[str] = ()) -> list[str]:
    """Return the questions of a data set file and the prompts named, each once, normalised.

    Raises
    ------
    UserError
        There is none.
    """
    asked = dict.fromkeys(normalised(text) for text in (*_questions(data), *more))
    found = [text for text in asked if text]
    if not found:
        raise UserError("no prompt: give --data FILE with questions, or --prompt TEXT")
    return found


def _questions(data: Path | None) -> Iterator[str]:
    if data is None:
        return
    for record in load_records(data):
        for turn in record.turns[::2]:
            yield strip_marks(turn.text)


def write_texts(tower: TextTower, prompts: Iterable[str], store: str | Path) -> Embedded:
    """Embed the prompts that a store lacks.

    Raises
    ------
    UserError
        The store cannot be written, or the tower's values are not finite.
    """
    identity = texts_identity(tower.teacher, tower.architecture, tower.weights, tower.width)
    asked = list(dict.fromkeys(normalised(text) for text in prompts))
    with TargetWriter(store, identity) as writer:
        held = TargetStore.open(store, identity=identity, texts=True)
        missing = [text for text in asked if text_key(text) not in held]
        starts = range(0, len(missing), BATCH)
        for start in track(starts, len(starts), "prompts", "batches"):
            part = missing[start : start + BATCH]
            for text, vector in zip(part, embed(tower, part), strict=True):
                if not np.isfinite(vector).all():
                    raise UserError(f"the text tower's values for {text!r} are not finite")
                writer.add(text_key(text), {"embedding": vector})
    return Embedded(identity.namespace(), len(asked), len(missing), tower.width)
