"""Order, fillers and batches.

A function of seed and effective batch, positions moved along with the padding.
"""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from student_train.data.batches import Collator, request_of
from student_train.data.join import Targets
from student_train.data.order import EpochOrder
from student_train.data.samples import question_spans
from student_train.models.prompts import IGNORED, Span

pytestmark = pytest.mark.unit


def order(count, step, multiple=1, seed=4, epoch=0, segments=None):
    sampler = EpochOrder(
        np.random.default_rng(0).integers(20, 90, count), seed, step, multiple, segments
    )
    sampler.set_epoch(epoch)
    return list(sampler)


@settings(max_examples=60, deadline=None)
@given(count=st.integers(1, 300), per_step=st.sampled_from([4, 8, 12]), epoch=st.integers(0, 3))
def test_every_rank_count_sees_the_same_steps(count, per_step, epoch):
    alone = order(count, per_step, epoch=epoch)
    assert sorted(alone) == list(range(count))
    for multiple in (2, 4):
        shared = order(count, per_step, multiple, epoch=epoch)
        assert len(shared) % multiple == 0
        assert [index for index in shared if index >= 0] == alone
        assert all(0 <= -1 - index < count for index in shared if index < 0)


def test_epochs_differ_and_seeds_repeat():
    assert order(50, 4) == order(50, 4)
    assert order(50, 4) != order(50, 4, epoch=1)
    assert order(50, 4) != order(50, 4, seed=5)


def test_a_step_is_a_fair_draw_sorted_by_length():
    lengths = np.random.default_rng(1).integers(20, 500, 4096)
    steps = np.array(list(EpochOrder(lengths, 4, 8))).reshape(-1, 8)
    assert (np.diff(lengths[steps], axis=1) <= 0).all()
    # The mean length of a step of independent draws varies as the lengths do, over the square root
    # of eight.
    assert np.std(lengths[steps].mean(1)) == pytest.approx(np.std(lengths) / np.sqrt(8), rel=0.15)


def test_a_step_comes_from_few_segments_on_request():
    segments = [number % 4 for number in range(512)]
    steps = np.array(order(512, 4, segments=segments)).reshape(-1, 4)
    assert all(len({segments[index] for index in step}) == 1 for step in steps)
    assert sorted(steps.ravel()) == list(range(512))


def test_one_turn_is_one_span_even_around_another_image():
    labels = [IGNORED] * 20
    labels[10:13] = [1, 2, 3]
    spans = [Span(4, 5), Span(7, 10), Span(13, 16)]
    assert question_spans(spans, labels) == [[4, 7, 8, 9], [13, 14, 15]]


def sample(name, length, columns, questions, patches=4, targets=True):
    target = Targets(
        np.full((1, 6), 0.5, np.float16),
        np.ones((1, patches), np.float32),
        np.full((1, patches), 255, np.uint8),
    )
    return {
        "id": name,
        "input_ids": list(range(10, 10 + length)),
        "labels": [IGNORED] * (length - 2) + [10 + length - 2, 10 + length - 1],
        "pixels": [torch.full((3, 2, 2), float(column)) for column in columns],
        "columns": columns,
        "questions": questions,
        "targets": [target if targets else None for _ in columns],
    }


@pytest.mark.parametrize("side", ["right", "left"])
def test_positions_follow_the_padding(side):
    batch: Any = Collator(0, 4, side=side)(
        [
            sample("a", 12, [2], [[[6, 7, 8]]]),
            sample("b", 20, [1, 7], [[[5, 6, 11], [14]], [[11]]]),
            sample("c", 6, [], []),
        ]
    )
    offset = {"right": [0, 0, 0], "left": [8, 0, 14]}[side]
    request = request_of(batch)
    assert request is not None
    assert request.image_sample.tolist() == [0, 1, 1]
    assert request.image_columns[:, 0].tolist() == [2 + offset[0], 1, 7]
    assert request.span_image.tolist() == [0, 1, 1, 2]
    assert request.span_lengths.tolist() == [3, 3, 1, 1]
    for place in range(12):
        assert batch["input_ids"][0, offset[0] + place] == 10 + place
    assert request.span_rows[0].tolist() == [6 + offset[0], 7 + offset[0], 8 + offset[0]]
    assert request.span_rows[2].tolist() == [14, 14, 14]  # repeats its first row
    assert batch["attention_mask"].sum(1).tolist() == [12, 20, 6]
    assert (batch["labels"] != IGNORED).sum(1).tolist() == [2, 2, 2]
    assert batch["pixel_values"].shape[0] == 3


def test_the_last_row_only():
    batch: Any = Collator(0, 4, rows="last")(
        [sample("b", 20, [1, 7], [[[5, 6, 11], [14]], [[11]]])]
    )
    assert request_of(batch).span_rows[:, 0].tolist() == [11, 14, 11]


def test_images_without_targets_are_shown_but_ask_nothing():
    batch: Any = Collator(0, 4)(
        [sample("a", 12, [2], [[[6]]], targets=False), sample("b", 12, [3], [[[8]]])]
    )
    assert batch["pixel_values"].shape[0] == 2
    assert request_of(batch).image_sample.tolist() == [1]
    alone: Any = Collator(0, 4)([sample("a", 12, [2], [[[6]]], targets=False)])
    assert request_of(alone) is None
