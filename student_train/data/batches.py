"""Samples as one batch, for either padding side, with the `Request` of its images.

B rows of a batch, T tokens, P images in it, N patches, I spans, R rows, K teachers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NotRequired, TypedDict, final

import numpy as np
import torch
from torch import Tensor

from shared.vocabulary import AttentionRows
from student_train.attention import Request
from student_train.data.join import Array, Targets
from student_train.data.samples import Failure, Sample
from student_train.models.prompts import IGNORED

Side = Literal["right", "left"]  # where a row of a batch is padded


@final
class Batch(TypedDict):
    """Flat tensors: the model's inputs; of the P images with targets their `Request` and targets.

    Without such images the latter are left out.
    """

    input_ids: Tensor  # (B, T)
    attention_mask: Tensor  # (B, T), 1 on real tokens
    labels: Tensor  # (B, T)
    ids: list[str]  # of the B records
    pixel_values: NotRequired[Tensor]  # of all images, those without targets as well
    image_sample: NotRequired[Tensor]  # this and the next four: see `Request`
    image_columns: NotRequired[Tensor]
    span_image: NotRequired[Tensor]
    span_rows: NotRequired[Tensor]
    span_lengths: NotRequired[Tensor]
    similarity: NotRequired[Tensor]  # (K, P, pairs)
    attention: NotRequired[Tensor]  # (K, P, N); not of stores that hold S_e alone
    coverage: NotRequired[Tensor]  # (K, P, N) uint8
    maps: NotRequired[Tensor]  # (I, N) of the spans' questions, where `mapped` (I,) is true
    mapped: NotRequired[Tensor]


class _Asked:
    """What is gathered over the samples of a batch: the images with targets and their spans."""

    def __init__(self) -> None:
        self.image_sample: list[int] = []
        self.first_column: list[int] = []
        self.span_image: list[int] = []
        self.spans: list[list[int]] = []
        self.targets: list[Targets] = []
        self.maps: list[Array | None] = []  # of each span

    def add(self, sample: Sample, row: int, offset: int, rows_wanted: AttentionRows) -> None:
        """Add the images of one sample, which stands in `row` of the batch from `offset` on."""
        maps = sample.get("maps") or [[None] * len(turns) for turns in sample["questions"]]
        for column, turns, target, own in zip(
            sample["columns"], sample["questions"], sample["targets"], maps, strict=True
        ):
            if target is None:
                continue
            for rows in turns:
                wanted = rows if rows_wanted == "question" else rows[-1:]
                self.span_image.append(len(self.targets))
                self.spans.append([offset + place for place in wanted])
            self.maps += own
            self.image_sample.append(row)
            self.first_column.append(offset + column)
            self.targets.append(target)

    def request(self, patches: int) -> Request:
        """Return what is asked of a forward pass."""
        widest = max((len(span) for span in self.spans), default=1)
        # A short span repeats its first row: the row of a padding token would have no visible key
        # at all.
        filled = [span + span[:1] * (widest - len(span)) for span in self.spans]
        return Request(
            image_sample=torch.tensor(self.image_sample),
            image_columns=torch.tensor(self.first_column).unsqueeze(1) + torch.arange(patches),
            span_image=torch.tensor(self.span_image, dtype=torch.long),
            span_rows=torch.tensor(filled).reshape(-1, widest),
            span_lengths=torch.tensor([len(span) for span in self.spans], dtype=torch.long),
        )


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
    rows: AttentionRows = "question"
    mask_padding: bool = True
    side: Side = "right"

    def __call__(self, samples: Sequence[Sample | Failure]) -> Batch | Failure:
        """Return the batch, or the first failure among the samples."""
        whole: list[Sample] = []
        for sample in samples:
            if "error" in sample:
                return sample
            whole.append(sample)
        length = max(len(sample["input_ids"]) for sample in whole)
        ids = torch.full((len(whole), length), self.pad_token_id)
        labels, mask = torch.full_like(ids, IGNORED), torch.zeros_like(ids)
        asked = _Asked()
        for row, sample in enumerate(whole):
            count = len(sample["input_ids"])
            offset = length - count if self.side == "left" else 0
            ids[row, offset : offset + count] = torch.tensor(sample["input_ids"])
            labels[row, offset : offset + count] = torch.tensor(sample["labels"])
            mask[row, offset : offset + count] = 1
            asked.add(sample, row, offset, self.rows)
        batch: Batch = {
            "input_ids": ids,
            "attention_mask": mask,
            "labels": labels,
            "ids": [sample["id"] for sample in whole],
        }
        pixels = [image for sample in whole for image in sample["pixels"]]
        if pixels:
            batch["pixel_values"] = torch.stack(pixels)
        if asked.targets:
            self._put(batch, asked)
        return batch

    def _put(self, batch: Batch, asked: _Asked) -> None:
        """Put the request and the targets of the images into the batch."""
        request, targets = asked.request(self.patches), asked.targets
        batch["image_sample"], batch["image_columns"] = request.image_sample, request.image_columns
        batch["span_image"], batch["span_rows"] = request.span_image, request.span_rows
        batch["span_lengths"] = request.span_lengths
        batch["similarity"] = _stacked([target.similarity for target in targets])
        attention = [one.attention for one in targets if one.attention is not None]
        if len(attention) == len(targets):
            batch["attention"] = _stacked(attention)
        if any(one is not None for one in asked.maps):
            nothing = np.zeros(self.patches, dtype=np.float32)
            rows = [nothing if one is None else one for one in asked.maps]
            batch["maps"] = torch.from_numpy(np.stack(rows))
            batch["mapped"] = torch.tensor([one is not None for one in asked.maps])
        if self.mask_padding:
            batch["coverage"] = _stacked([target.coverage for target in targets])


def _stacked(arrays: Sequence[Array]) -> Tensor:
    """Put the arrays (K, ...) of P images side by side, (K, P, ...)."""
    return torch.from_numpy(np.stack(arrays, axis=1))


def request_of(batch: Batch) -> Request | None:
    """Return the `Request` inside a collated batch; None where no image of it has targets."""
    if "image_sample" not in batch:
        return None
    return Request(
        batch["image_sample"],
        batch["image_columns"],
        batch["span_image"],
        batch["span_rows"],
        batch["span_lengths"],
    )
