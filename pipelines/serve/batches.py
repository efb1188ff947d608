"""The one queue of a server: requests that wait are answered together, in one batch.

B requests of a batch, T tokens so far, V vocabulary.
"""

import secrets
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from queue import SimpleQueue
from typing import NamedTuple

import torch
from torch import Tensor

from pipelines.decoding.generation import Limits, Processor, check_positions, generate, sampler
from pipelines.decoding.methods import Decoding, watch_of
from pipelines.decoding.methods import decoding as decoding_named
from pipelines.decoding.prompts import Prompts, Reworded, collate
from pipelines.evaluation.loading import Loaded, end_ids, pad_id
from pipelines.serve.asked import Asked, Refused
from shared.errors import UserError
from student_train.imagetext import Tokenizer


class News(NamedTuple):
    """What a waiting client is told: the next words; or the end and why, or a fault."""

    text: str = ""
    finish: str = ""  # "stop" or "length"
    fault: str = ""


@dataclass(eq=False)
class Job:
    """A request in the queue or in a batch."""

    asked: Asked
    inputs: dict[str, Tensor]
    reworded: Reworded
    news: SimpleQueue[News] = field(default_factory=SimpleQueue)
    gone: bool = False  # its client went away
    sent: str = ""
    tokens: int = 0  # of the answer

    def __post_init__(self) -> None:
        """Name what names its random numbers; without a seed no two requests share them."""
        unlike = "" if self.asked.seed is not None else f"\x00{secrets.token_hex(8)}"
        self.item = self.asked.item + unlike

    @property
    def length(self) -> int:
        """Tokens of the prompt, those of its images included."""
        return int(self.inputs["input_ids"].shape[-1])


class Batches:
    """Answers requests in a thread of its own, `together` at most at once.

    Parameters
    ----------
    student
        Who answers.
    together
        Requests of a batch.
    waiting
        Requests that may wait.
    decoding
        How; by default greedy, and then a request's own temperature and top_p count.

    Raises
    ------
    UserError
        The method cannot decode with this model.
    """

    def __init__(
        self, student: Loaded, together: int, waiting: int, decoding: Decoding | None = None
    ) -> None:
        self.decoding = (decoding or decoding_named("greedy")).settled(student.model)
        self._student, self._together, self._waiting = student, together, waiting
        self._ends = end_ids(student.processor)
        self._bytes = _byte_ids(student.processor.tokenizer)
        known = getattr(student.model.config.get_text_config(), "max_position_embeddings", None)
        self._positions = None if known is None else int(known)
        self._queue: deque[Job] = deque()
        self._changed = threading.Condition()
        self._encoding = threading.Lock()  # a tokenizer is not for two threads at once
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="answers")
        self._thread.start()

    def submit(self, asked: Asked) -> Job:
        """Put a request in the queue.

        Raises
        ------
        Refused
            The queue is full; the server is stopping; the conversation cannot be encoded or is
            longer than the model's positions.
        """
        self._check_room()  # before the work of encoding
        try:
            with self._encoding:
                inputs = self._student.processor.encode_turns(
                    asked.turns, asked.images, system=asked.system
                )
            job = Job(asked._replace(images=[]), inputs, self._reworded(asked, len(asked.images)))
            check_positions(self._student.model, job.length, asked.max_new_tokens, "the request")
        except UserError as error:
            raise Refused(HTTPStatus.BAD_REQUEST, str(error)) from None
        with self._changed:
            self._check_room()
            self._queue.append(job)
            self._changed.notify()
        return job

    def _reworded(self, asked: Asked, images: int) -> Reworded:
        write = self._student.processor.reworded(asked.turns, images, system=asked.system)

        def locked(instruction: str) -> Tensor:
            with self._encoding:
                return write(instruction)

        return locked

    def leave(self, job: Job) -> None:
        """Forget a request whose client went away: its place in queue or batch is free."""
        with self._changed:
            job.gone = True
            if job in self._queue:
                self._queue.remove(job)

    def close(self) -> None:
        """Take nothing more, answer what is there, and end."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _check_room(self) -> None:
        if self._closed:
            raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, "the server is stopping")
        if len(self._queue) >= self._waiting:
            raise Refused(
                HTTPStatus.TOO_MANY_REQUESTS,
                f"{self._waiting} requests wait already; ask again later",
            )

    def _work(self) -> None:
        while jobs := self._next():
            try:
                self._answer(jobs)
            except Exception as error:  # the server goes on
                for job in jobs:
                    job.news.put(News(fault=f"{type(error).__name__}: {error}"))

    def _next(self) -> list[Job]:
        """Wait for requests and take those that fit one batch; none at the end of the server."""
        with self._changed:
            while not self._queue and not self._closed:
                self._changed.wait()
            jobs: list[Job] = []
            while self._queue and len(jobs) < self._together:
                if jobs and not self._fits([*jobs, self._queue[0]]):
                    break
                jobs.append(self._queue.popleft())
            return jobs

    def _fits(self, jobs: Sequence[Job]) -> bool:
        """Whether the requests may be one batch.

        The longest prompt and the longest answer have positions, padded; a method that draws has
        one seed; one that searches has one length of answers, on which its choice depends.
        """
        asked = [job.asked for job in jobs]
        if self.decoding.searches and len({one.max_new_tokens for one in asked}) > 1:
            return False
        seeds = {one.seed for one in asked if one.seed is not None}
        if self.decoding.draws and len(seeds) > 1:
            return False
        total = max(job.length for job in jobs) + max(job.asked.max_new_tokens for job in jobs)
        return self._positions is None or total <= self._positions

    def _answer(self, jobs: Sequence[Job]) -> None:
        model = self._student.model
        prompts = collate(
            [job.inputs for job in jobs],
            [job.item for job in jobs],
            model,
            pad_id(self._student.processor),
            watch_of([self.decoding]),
            [job.reworded for job in jobs],
        )
        limits = Limits(max(job.asked.max_new_tokens for job in jobs), self._ends)
        start = prompts.ids.shape[1]

        def watch(ids: Tensor, scores: Tensor) -> Tensor:
            rows = ids[:, start:].tolist()
            over = [self._tell(job, row) for job, row in zip(jobs, rows, strict=True)]
            if not any(over):
                return scores
            ended = torch.full_like(scores, -torch.inf)
            ended[:, self._ends[0]] = 0.0
            return torch.where(torch.tensor(over, device=scores.device)[:, None], ended, scores)

        if not self.decoding.searches:
            prompts = replace(prompts, heard=watch)
        if any(job.asked.temperature > 0 for job in jobs):
            found = generate(model, prompts, limits, draw=_draw(jobs, prompts))
        else:
            seeds = [job.asked.seed for job in jobs if job.asked.seed is not None]
            seed = seeds[0] if seeds else 0  # without one the items' names differ
            found = self.decoding.decode(model, prompts, limits, self.decoding.settings, seed)
        for job, tokens in zip(jobs, found, strict=True):
            self._finish(job, tokens)

    def _tell(self, job: Job, row: Sequence[int]) -> bool:
        """Send the words that are certain; True where the answer is over."""
        end = next((place for place, one in enumerate(row) if one in self._ends), None)
        tokens = row[:end]
        text = self._text(tokens)
        if job.gone or end is not None or len(tokens) >= job.asked.max_new_tokens:
            return True
        if _cut(text, job.asked.stop) is not None:
            return True
        if job.asked.stream:
            certain = self._text(self._settled(tokens))
            if not certain.endswith("\ufffd"):  # else half a character
                kept = max((len(stop) - 1 for stop in job.asked.stop), default=0)
                self._send(job, certain[: len(certain) - kept].rstrip())
        return False

    def _settled(self, tokens: Sequence[int]) -> Sequence[int]:
        """Leave out the bytes at the end: a run is read as one, and the next byte may change it."""
        end = len(tokens)
        while end and tokens[end - 1] in self._bytes:
            end -= 1
        return tokens[:end]

    def _finish(self, job: Job, tokens: Sequence[int]) -> None:
        text = self._text(tokens)
        cut = _cut(text, job.asked.stop)
        job.tokens = len(tokens)
        full = cut is None and len(tokens) >= job.asked.max_new_tokens
        whole = (text if cut is None else text[:cut]).strip()
        if not whole.startswith(job.sent):  # later tokens have changed what earlier ones are
            job.news.put(News(fault="the words sent so far have changed; ask without `stream`"))
            return
        self._send(job, whole)
        job.news.put(News(finish="length" if full else "stop"))

    def _send(self, job: Job, text: str) -> None:
        if text.startswith(job.sent) and text != job.sent:
            job.news.put(News(text=text[len(job.sent) :]))
            job.sent = text

    def _text(self, tokens: Sequence[int]) -> str:
        with self._encoding:
            words = self._student.processor.tokenizer.decode(list(tokens), skip_special_tokens=True)
        return str(words).lstrip()


def _byte_ids(tokenizer: Tokenizer) -> frozenset[int]:
    """Return the tokens that are one byte, as sentencepiece has them, and those that are not shown.

    The latter part no run of bytes.
    """
    names = [*(f"<0x{byte:02X}>" for byte in range(256)), *tokenizer.all_special_tokens]
    found: list[int | None] = [tokenizer.convert_tokens_to_ids(name) for name in names]
    return frozenset(one for one in found if one is not None)


def _cut(text: str, stops: Sequence[str]) -> int | None:
    """Where the first of the stop texts begins."""
    places = [text.find(stop) for stop in stops if stop in text]
    return min(places, default=None)


def _draw(jobs: Sequence[Job], prompts: Prompts) -> Processor:
    """Choose each row's token by its own request's settings."""
    rows = [
        sampler(
            replace(prompts, items=(job.item,)),
            job.asked.seed or 0,
            temperature=job.asked.temperature,
            top_p=job.asked.top_p,
        )
        for job in jobs
    ]

    def draw(ids: Tensor, scores: Tensor) -> Tensor:
        return torch.cat([own(ids[n : n + 1], scores[n : n + 1]) for n, own in enumerate(rows)])

    return draw
