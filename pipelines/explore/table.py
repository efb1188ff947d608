"""The items of an evaluation by number, with every row's answer, read when they are asked for.

What filters need of an item is kept, once read, in a few bytes an item: right or wrong, the kind,
the cluster, and whether two texts are the same.
"""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipelines.evaluation.result import (
    AnswerLine,
    Result,
    answer_of,
    answers_file,
    row_name,
)
from pipelines.explore.lines import LineFile
from pipelines.metrics.items import kind_of_scores
from pipelines.metrics.question_kind import Kind
from pipelines.report.answers import is_question, main_score
from shared.errors import UserError

BLOCK = 1024  # items that are read together for a filter
KINDS: tuple[Kind, ...] = ("closed", "open", "choice", "report")
RIGHT, WRONG, NEITHER = 1, 0, -1


class Block(NamedTuple):
    """What filters need of `BLOCK` items in one row; each array has one entry an item."""

    verdicts: NDArray[np.int8]  # RIGHT, WRONG; NEITHER for a report
    kinds: NDArray[np.int8]  # place in KINDS
    texts: NDArray[np.int64]  # the same number for the same words
    clusters: NDArray[np.int64]


class Table:
    """Items times rows of an evaluation.

    Raises UserError where a row's answers file is missing.
    """

    def __init__(self, folder: Path, result: Result) -> None:
        self.names = [row_name(row) for row in result["rows"]]
        self.total = result["data"]["items"]
        paths = [answers_file(folder, name) for name in self.names]  # all are there
        self._files = [LineFile(path) for path in paths]
        self._blocks: dict[tuple[int, int], Block] = {}
        self._lock = threading.Lock()

    def items(self, places: Sequence[int]) -> list[list[AnswerLine]]:
        """Return the answers of all rows to the items at these places.

        Raises
        ------
        UserError
            A file is torn, too short, or about other items than the first row's.
        """
        return [self.item(place) for place in places]

    def item(self, place: int) -> list[AnswerLine]:
        """Return the answers of all rows to one item; raises as `items`."""
        answers = [self._read(row, place, 1)[0] for row in range(len(self._files))]
        if any(one["id"] != answers[0]["id"] for one in answers):
            raise UserError(
                f"item {place} is {answers[0]['id']} in {self.names[0]} and another one in other "
                "rows; run `medalign evaluate` again"
            )
        return answers

    def block(self, row: int, number: int) -> Block:
        """Return what filters need of items `number * BLOCK` on, in one row; raises as `items`."""
        found = self._blocks.get((row, number))
        if found is None:
            start = number * BLOCK
            answers = self._read(row, start, min(BLOCK, self.total - start))
            found = _block(answers)
            with self._lock:
                self._blocks[row, number] = found
        return found

    def close(self) -> None:
        """Close the files."""
        for file in self._files:
            file.close()

    def _read(self, row: int, start: int, count: int) -> list[AnswerLine]:
        file = self._files[row]
        lines = file.lines(start, count)
        if len(lines) < count:
            raise UserError(
                f"{file.path} holds fewer than the {self.total} answers of its result; run "
                "`medalign evaluate` again"
            )
        return [answer_of(line, file.path) for line in lines]


def verdict(answer: AnswerLine) -> int:
    """Say whether an answer is RIGHT or WRONG; a report is NEITHER."""
    if not is_question(answer["scores"]):
        return NEITHER
    return RIGHT if main_score(answer["scores"]) == 1 else WRONG


def number_of(text: str) -> int:
    """Return one number for texts that differ in white space and case alone."""
    return hash(" ".join(text.split()).casefold())


def _block(answers: Sequence[AnswerLine]) -> Block:
    return Block(
        np.array([verdict(one) for one in answers], np.int8),
        np.array([KINDS.index(kind_of_scores(one["scores"])) for one in answers], np.int8),
        np.array([number_of(one["prediction"]) for one in answers], np.int64),
        np.array([number_of(one["cluster"]) for one in answers], np.int64),
    )
