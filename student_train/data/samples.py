"""Records, images and targets as one data set: each sample is checked before the run begins.

S side of an image in pixels.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NotRequired, TypedDict, final

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from shared.console import track
from shared.errors import UserError
from shared.imaging.images import ImageReference
from shared.records import Record, strip_marks
from shared.vocabulary import Truncation
from student_train.data.files import Share
from student_train.data.join import Array, Join, Targets
from student_train.models.processor import Processor
from student_train.models.prompts import IGNORED, Encoded, Span


@final
class Sample(TypedDict):
    """One record, ready for a batch."""

    id: str
    input_ids: list[int]
    labels: list[int]
    pixels: list[Tensor]  # of its images, (3, S, S) each
    columns: list[int]  # where each image's tokens begin
    questions: list[list[list[int]]]  # of each image, of each turn: the question's rows
    targets: list[Targets | None]  # of each image
    maps: NotRequired[list[list[Array | None]]]  # of each image, of each turn: (N,), or E_a's place


@final
class Failure(TypedDict):
    """What is wrong with a sample, in one line.

    An exception would lose its one line on the way out of a worker.
    """

    error: str


class AlignmentData(Dataset[Sample | Failure]):
    """Training samples by number.

    The sampler's fillers, numbered below 0, are sample `-1 - n` without any loss.

    Parameters
    ----------
    records
        Conversations, each ending with an answer.
    image_root
        Folder of the image paths.
    processor
        Of the base model.
    targets
        The records' images joined with the store; None trains without targets.
    max_length, truncation
        As in the recipe's `data` section.
    shares
        Of several weighted files, how many of each one's records an epoch takes; None: all, once.

    Raises
    ------
    UserError
        Names the record that cannot be trained on: no answer, too long, nothing labelled.
    """

    def __init__(
        self,
        records: Sequence[Record],
        image_root: Path,
        processor: Processor,
        targets: Join | None,
        max_length: int,
        truncation: Truncation,
        quiet: bool = False,
        shares: Sequence[Share] | None = None,
    ) -> None:
        self.shares = shares
        self.records, self.image_root = list(records), image_root
        self.processor, self.targets = processor, targets
        self.max_length, self.truncation = max_length, truncation
        long = len(self.records) > 5000 and not quiet  # seconds
        rows = (
            track(self.records, len(self.records), "checking records", "records")
            if long
            else self.records
        )
        self.asked = self.mapped = 0  # questions about images, and those with a map of their own
        self.lengths = np.array([self._checked(record) for record in rows], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.records)

    def _checked(self, record: Record) -> int:
        """Return the tokens of a sample, and count its questions where some have maps."""
        encoded = self._encode(record)
        if self.targets is not None and self.targets.questions is not None:
            references = record.references(self.image_root)
            for reference, spans in zip(references, encoded.questions, strict=True):
                texts = asked_after(record, len(question_spans(spans, encoded.labels)))
                self.asked += len(texts)
                self.mapped += self.targets.mapped(reference, texts)
        return len(encoded.input_ids)

    def _encode(self, record: Record) -> Encoded:
        try:
            encoded = self.processor.encode_conversation(
                record.turns, self.max_length, self.truncation, system=record.system
            )
        except UserError as error:
            raise UserError(f"record {record.id}: {error}") from None
        if len(encoded.images) != len(record.images):
            raise UserError(
                f"record {record.id}: {len(encoded.images)} <image> marks for {len(record.images)} "
                "images"
            )
        if all(label == IGNORED for label in encoded.labels[1:]):
            raise UserError(
                f"record {record.id}: no token is left to learn from; raise data.max_length"
            )
        return encoded

    def _pixels(self, reference: ImageReference, record: Record) -> Tensor:
        try:
            return self.processor.reader(reference)
        except (ValueError, OSError) as error:  # `UnreadableImage` is the former
            raise UserError(f"record {record.id}: {reference}: {error}") from None

    def __getitem__(self, index: int) -> Sample | Failure:
        """Return one sample, or what is wrong with it."""
        filler = index < 0
        record = self.records[-1 - index if filler else index]
        try:
            encoded = self._encode(record)
            references = record.references(self.image_root)
            pixels = [self._pixels(reference, record) for reference in references]
            targets = self._targets(references, wanted=not filler)
        except (UserError, ValueError, OSError) as error:
            line = " ".join(str(error).split())
            return {
                "error": line if isinstance(error, UserError) else f"record {record.id}: {line}"
            }
        labels = [IGNORED] * len(encoded.labels) if filler else encoded.labels
        questions = [question_spans(spans, encoded.labels) for spans in encoded.questions]
        return {
            "id": record.id,
            "input_ids": encoded.input_ids,
            "labels": labels,
            "pixels": pixels,
            "columns": [span.start for span in encoded.images],
            "questions": questions,
            "targets": targets,
            "maps": self._maps(record, references, [len(turns) for turns in questions]),
        }

    def _maps(
        self, record: Record, references: Sequence[ImageReference], turns: Sequence[int]
    ) -> list[list[Array | None]]:
        """Return the map of each of an image's turns; None where it is taught E_a."""
        if self.targets is None:
            return [[None] * count for count in turns]
        return [
            self.targets.maps(reference, asked_after(record, count))
            for reference, count in zip(references, turns, strict=True)
        ]

    def _targets(self, references: Sequence[ImageReference], wanted: bool) -> list[Targets | None]:
        if self.targets is None or not wanted:
            return [None for _ in references]
        return [self.targets.get(reference) for reference in references]


def asked_after(record: Record, turns: int) -> list[str]:
    """Return the questions of the last `turns` human turns of a record, without image marks.

    An image's turns are those that it stands before, so that they are the last ones.
    """
    human = [turn.text for turn in record.turns[::2]]
    return [strip_marks(text) for text in human[len(human) - turns :]]


def question_spans(spans: Sequence[Span], labels: Sequence[int]) -> list[list[int]]:
    """Positions of each turn's question rows.

    Spans with no answer between them belong to one turn.
    """
    turns: list[list[int]] = []
    end = None
    for span in spans:
        rows = list(range(span.start, span.end))
        if end is not None and all(label == IGNORED for label in labels[end : span.start]):
            turns[-1] += rows
        else:
            turns.append(rows)
        end = span.end
    return turns
