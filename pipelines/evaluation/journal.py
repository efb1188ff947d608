"""The journal of an evaluation: one JSON line per answer, on disk before the next batch starts.

A killed run continues.

Each rank appends to its own `answers-RANK.jsonl`; opening a folder reads them all, so the number of
ranks may change between runs. A line torn by a kill is the last of its file; it is cut off and its
item answered again.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import cast

from pipelines.evaluation.result import Answer, JournalLine
from shared.errors import UserError


def answer_key(
    *,
    model: str,
    adapter: str,
    decoding: Mapping[str, object],
    item: str,
    prompt: str,
    code: Mapping[str, object],
) -> str:
    """Hex sha256 over everything an answer depends on.

    Weights, adapter, decoding settings, item and prompt; and `code`, by what it was computed.
    """
    canonical = json.dumps(
        {
            "model": model,
            "adapter": adapter,
            "decoding": decoding,
            "item": item,
            "prompt": prompt,
            "code": code,
        },
        sort_keys=True,
        ensure_ascii=False,
        separators=(",", ":"),
    )
    return hashlib.sha256(canonical.encode()).hexdigest()


class Journal:
    """Answers by key, in memory and in `folder`.

    Raises UserError where another process writes this rank's file, or where a line before the last
    is broken.
    """

    def __init__(self, folder: Path, rank: int = 0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._path = folder / f"answers-{rank}.jsonl"
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._file)
            raise UserError(
                f"another evaluation is writing to {self._path}; wait for it, or choose another "
                "--out"
            ) from None
        self._cut_torn_line()
        self._answers: dict[str, Answer] = {}
        self.refresh()

    def refresh(self) -> None:
        """Read every rank's file again (after a barrier, to see what the others wrote)."""
        for path in sorted(self.folder.glob("answers-*.jsonl")):
            self._answers |= _read(path)

    def __contains__(self, key: str) -> bool:
        return key in self._answers

    def __getitem__(self, key: str) -> Answer:
        return self._answers[key]

    def __len__(self) -> int:
        return len(self._answers)

    def append(self, answers: Iterable[tuple[str, Answer]]) -> None:
        """Append answers with one write and one fsync.

        When this returns they survive a kill or a power cut.
        """
        answers = list(answers)
        lines = "".join(
            json.dumps(JournalLine(key=key, **answer), ensure_ascii=False) + "\n"
            for key, answer in answers
        )
        data = memoryview(lines.encode())
        while data:
            data = data[os.write(self._file, data) :]
        os.fsync(self._file)
        self._answers |= dict(answers)

    def close(self) -> None:
        """Release the lock."""
        os.close(self._file)

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _cut_torn_line(self) -> None:
        content = self._path.read_bytes()
        if content and not content.endswith(b"\n"):
            os.ftruncate(self._file, content.rfind(b"\n") + 1)


def _read(path: Path) -> dict[str, Answer]:
    answers: dict[str, Answer] = {}
    whole = path.read_bytes().split(b"\n")[:-1]  # what follows the last newline is torn
    for number, line in enumerate(whole, start=1):
        try:
            answer = json.loads(line)
            key = answer.pop("key")
        except (ValueError, KeyError, AttributeError):
            raise UserError(
                f"{path}, line {number}, is no journal line; delete that line to answer its item "
                "again"
            ) from None
        answers[key] = cast("Answer", answer)
    return answers
