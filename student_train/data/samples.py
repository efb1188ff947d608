"""Records, images and targets as one data set, its order by seed, and its batches for either padding side."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from shared.console import track
from shared.errors import UserError
from shared.imaging.images import ImageReference
from shared.imaging.squares import ImageReader
from shared.records import Record
from student_train.attention import Request
from student_train.data.join import Join, Targets
from student_train.models.prompts import IGNORED, Encoded, Span, encode_conversation

Array = np.ndarray[Any, np.dtype[Any]]


class Prepared(NamedTuple):
    """What a data set needs to know of the base model."""

    template: Any
    tokenizer: Any
    image_token_id: int
    patches: int
    reader: ImageReader


class AlignmentData(Dataset[dict[str, Any]]):
    """Training samples by number.

    The sampler's fillers, numbered below 0, are sample `-1 - n` without any loss.

    Parameters
    ----------
    records
        Conversations, each ending with an answer.
    image_root
        Folder of the image paths.
    prepared
        Tokenizer, template and image reader.
    targets
        The records' images joined with the store; None trains without targets.
    max_length, truncation
        As in the recipe's `data` section.

    Raises
    ------
    UserError
        Names the record that cannot be trained on: no answer, too long, nothing labelled.
    """

    def __init__(
        self,
        records: Sequence[Record],
        image_root: Path,
        prepared: Prepared,
        targets: Join | None,
        max_length: int,
        truncation: Literal["error", "answer"],
        quiet: bool = False,
    ) -> None:
        self.records, self.image_root, self.prepared, self.targets = (
            list(records),
            image_root,
            prepared,
            targets,
        )
        self.max_length, self.truncation = max_length, truncation
        long = len(self.records) > 5000 and not quiet  # seconds
        rows = (
            track(self.records, len(self.records), "checking records", "records")
            if long
            else self.records
        )
        self.lengths = np.array(
            [len(self._encode(record).input_ids) for record in rows], dtype=np.int64
        )

    def __len__(self) -> int:
        return len(self.records)

    def _encode(self, record: Record) -> Encoded:
        kit = self.prepared
        try:
            encoded = encode_conversation(
                record.turns,
                kit.template,
                kit.tokenizer,
                kit.patches,
                kit.image_token_id,
                self.max_length,
                self.truncation,
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
            return self.prepared.reader(reference)
        except (ValueError, OSError) as error:  # `UnreadableImage` is the former
            raise UserError(f"record {record.id}: {reference}: {error}") from None

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return one sample, or {"error": line}.

        An exception would lose its one line on the way out of a worker.
        """
        filler = index < 0
        record = self.records[-1 - index if filler else index]
        try:
            encoded = self._encode(record)
            references = record.references(self.image_root)
            pixels = [self._pixels(reference, record) for reference in references]
            wanted = self.targets is not None and not filler
            targets = [self.targets.get(reference) if wanted else None for reference in references]  # type: ignore[union-attr]
        except (UserError, ValueError, OSError) as error:
            line = " ".join(str(error).split())
            return {
                "error": line if isinstance(error, UserError) else f"record {record.id}: {line}"
            }
        labels = [IGNORED] * len(encoded.labels) if filler else encoded.labels
        return {
            "id": record.id,
            "input_ids": encoded.input_ids,
            "labels": labels,
            "pixels": pixels,
            "columns": [span.start for span in encoded.images],
            "questions": [question_spans(spans, encoded.labels) for spans in encoded.questions],
            "targets": targets,
        }


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


@dataclass
class Collator:
    """Stack samples into one batch.

    Padding on the right, or on the left with positions moved along.

    Attributes
    ----------
    pad_token_id
        Fills `input_ids` beyond a sample's end; never attended to.
    patches
        N, tokens of one image.
    rows
        `question`: all rows of a turn; `last`: its last one only.
    mask_padding
        Whether coverage goes along.
    side
        Padding side.
    """

    pad_token_id: int
    patches: int
    rows: Literal["question", "last"] = "question"
    mask_padding: bool = True
    side: Literal["right", "left"] = "right"

    def __call__(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return flat tensors.

        The model's inputs, the `Request`'s fields and the targets of the images in it.
        """
        for sample in samples:
            if "error" in sample:
                return {"error": sample["error"]}
        length = max(len(sample["input_ids"]) for sample in samples)
        ids = torch.full((len(samples), length), self.pad_token_id)
        labels, mask = torch.full_like(ids, IGNORED), torch.zeros_like(ids)
        image_sample, first_column, spans, span_image = [], [], [], []
        targets: list[Targets] = []
        for row, sample in enumerate(samples):
            count = len(sample["input_ids"])
            offset = length - count if self.side == "left" else 0
            ids[row, offset : offset + count] = torch.tensor(sample["input_ids"])
            labels[row, offset : offset + count] = torch.tensor(sample["labels"])
            mask[row, offset : offset + count] = 1
            for column, turns, target in zip(
                sample["columns"], sample["questions"], sample["targets"], strict=True
            ):
                if target is None:
                    continue
                for rows in turns:
                    span_image.append(len(targets))
                    spans.append(
                        [
                            offset + place
                            for place in (rows if self.rows == "question" else rows[-1:])
                        ]
                    )
                image_sample.append(row)
                first_column.append(offset + column)
                targets.append(target)
        batch: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "labels": labels}
        pixels = [image for sample in samples for image in sample["pixels"]]
        if pixels:
            batch["pixel_values"] = torch.stack(pixels)
        if targets:
            batch |= self._request(image_sample, first_column, span_image, spans)
            batch["similarity"] = torch.from_numpy(
                np.stack([target.similarity for target in targets], axis=1)
            )
            batch["attention"] = torch.from_numpy(
                np.stack([target.attention for target in targets], axis=1)
            )
            if self.mask_padding:
                batch["coverage"] = torch.from_numpy(
                    np.stack([target.coverage for target in targets], axis=1)
                )
        batch["ids"] = [sample["id"] for sample in samples]
        return batch

    def _request(
        self,
        image_sample: list[int],
        first_column: list[int],
        span_image: list[int],
        spans: list[list[int]],
    ) -> dict[str, Tensor]:
        widest = max((len(span) for span in spans), default=1)
        return Request(
            image_sample=torch.tensor(image_sample),
            image_columns=torch.tensor(first_column).unsqueeze(1) + torch.arange(self.patches),
            span_image=torch.tensor(span_image, dtype=torch.long),
            # A short span repeats its first row: the row of a padding token would have no visible
            # key at all.
            span_rows=torch.tensor(
                [span + span[:1] * (widest - len(span)) for span in spans]
            ).reshape(-1, widest),
            span_lengths=torch.tensor([len(span) for span in spans], dtype=torch.long),
        )._asdict()


def request_of(batch: Mapping[str, Any]) -> Request | None:
    """Return the `Request` inside a collated batch; None where no image of it has targets."""
    return Request(*(batch[name] for name in Request._fields)) if "image_sample" in batch else None


class EpochOrder(Sampler[int]):
    """The order of an epoch.

    A function of seed, epoch and effective batch alone, whatever ranks and workers there are.

    Samples are shuffled and cut into steps of `step` samples; only inside a step are they sorted by
    length, so that a micro-batch holds little padding while every step stays a fair draw: grouping
    whole steps by length would make one step all short closed questions and the next all reports.
    Where `multiple` does not divide the epoch, it is filled up with numbers below 0: copies without
    any loss, so that every rank has as many micro-batches.

    Parameters
    ----------
    lengths
        Tokens of each sample.
    seed
        Of the run.
    step
        Samples of one optimiser step over all ranks.
    multiple
        Samples of one micro-batch over all ranks; 1 fills nothing up.
    segments
        Store segment of each sample: the samples of a step then come from few segments.
    """

    def __init__(
        self,
        lengths: Array,
        seed: int,
        step: int,
        multiple: int = 1,
        segments: Sequence[int] | None = None,
    ) -> None:
        self.lengths, self.seed, self.step, self.multiple, self.segments = (
            lengths,
            seed,
            step,
            multiple,
            segments,
        )
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration orders."""
        self.epoch = epoch

    def __len__(self) -> int:
        return math.ceil(len(self.lengths) / self.multiple) * self.multiple

    def __iter__(self) -> Iterator[int]:
        generator = np.random.default_rng([self.seed, self.epoch])
        order = generator.permutation(len(self.lengths))
        if self.segments is not None:
            place = {
                name: number
                for number, name in enumerate(generator.permutation(sorted(set(self.segments))))
            }
            order = order[
                np.argsort([place[self.segments[index]] for index in order], kind="stable")
            ]
        drawn = [order[start : start + self.step] for start in range(0, len(order), self.step)]
        steps = [part[np.argsort(-self.lengths[part], kind="stable")] for part in drawn]
        whole = [step for step in steps if len(step) == self.step]
        rest = [step for step in steps if len(step) != self.step]  # at most one: the epoch's end
        sequence = [
            int(index) for number in generator.permutation(len(whole)) for index in whole[number]
        ]
        sequence += [int(index) for step in rest for index in step]
        fillers = len(self) - len(sequence)
        yield from sequence
        yield from (-1 - sequence[number % len(sequence)] for number in range(fillers))
