"""A question that is typed in: its map from the store, its answer from the run's model.

N patches of the store's grid.
"""

import threading
from pathlib import Path

from pipelines.explore.students import Students
from pipelines.explore.targets import Targets, Weights
from pipelines.regions.query.file import Query, read_query
from pipelines.regions.query.stored import Stored
from shared.errors import UserError
from shared.imaging.images import ImageReference

LONGEST = 2000  # characters of a question
NO_MAP = (
    "build the store with --query, or fit a query to one of `patches` (cache query fit) and start "
    "again with --query FILE"
)
NO_ANSWER = "start again with --answers, which loads the run's model"


class Questions:
    """What can be asked in words; threads may share it, and wait for one another.

    Parameters
    ----------
    targets
        The store, where there is one.
    query
        Of `cache query fit`, or what the store itself keeps to be asked; None: no maps.
    encoder
        Folder of the query's sentence encoder; None is the packaged one.
    students
        Who answers, if `answers`.
    """

    def __init__(
        self,
        targets: Targets | None,
        query: Query | Stored | None,
        encoder: str | None,
        students: Students,
        answers: bool,
    ) -> None:
        self._targets = targets
        self._query = query
        self._encoder = encoder
        self._students = students
        self._answers = answers
        self._lock = threading.Lock()

    @property
    def no_map(self) -> str:
        """Why no question has a map, and what to do; empty where one can be asked for."""
        if self._targets is None:
            return f"no map of a question: no store is open; name it with --store, {NO_MAP}"
        return f"no map of a question: {NO_MAP}" if self._query is None else ""

    @property
    def no_answer(self) -> str:
        """Why the model answers no question, and what to do; empty where it does."""
        return "" if self._answers else f"no answer of a model: {NO_ANSWER}"

    def map_of(self, reference: ImageReference, text: str) -> Weights:
        """Return the map (N,) of an image for a question, not negative.

        Raises
        ------
        UserError
            No question can be asked, or the store lacks the image.
        """
        if self._targets is None or self._query is None:
            raise UserError(self.no_map)
        with self._lock:
            return self._targets.asked(reference, self._query, text, self._encoder)

    def answer(self, reference: ImageReference, text: str) -> str:
        """Return what the run's model says; raises UserError where it is not to be asked."""
        if not self._answers:
            raise UserError(self.no_answer)
        return self._students.answer(text, reference)


def checked(text: str) -> str:
    """Return a question without blanks around it.

    Raises
    ------
    UserError
        It is empty or too long.
    """
    words = text.strip()
    if not words:
        raise UserError("type a question first")
    if len(words) > LONGEST:
        raise UserError(f"the question has {len(words)} characters; at most {LONGEST} are asked")
    return words


def open_questions(
    targets: Targets | None,
    students: Students,
    query: Path | None,
    encoder: str | None,
    answers: bool,
    weights: str | None = None,
    tokenizer: str | None = None,
) -> Questions:
    """Read the query and load the model, so that what cannot be asked is refused at the start.

    Raises
    ------
    UserError
        The query is none, or not of this store; there is no store for it; or no model.
    """
    fitted = None if query is None else read_query(query)
    if fitted is not None:
        if targets is None:
            raise UserError("--query asks a store: name it with --store")
        targets.check(fitted)
    own = None if targets is None or fitted is not None else targets.own_query(weights, tokenizer)
    if answers:
        students.load()
    return Questions(targets, fitted or own, encoder, students, answers)
