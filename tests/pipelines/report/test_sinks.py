"""A sink takes much of the attention on every image; a patch that one image calls for is none."""

import numpy as np
import pytest

from pipelines.report.sinks import TIMES, sink_lines, sinks_of

pytestmark = pytest.mark.unit


def peaked(shares: dict[int, float], patches: int = 64) -> np.ndarray:
    """A distribution with these shares; the rest is even."""
    left = (1 - sum(shares.values())) / (patches - len(shares))
    values = np.full(patches, left)
    values[list(shares)] = list(shares.values())
    return values.reshape(8, -1)


def test_a_sink_is_high_on_every_image() -> None:
    first, second = peaked({9: 0.4, 20: 0.3}), peaked({9: 0.25, 40: 0.3})
    assert sinks_of([first, second]) == [9]
    assert sink_lines({"LoRA": [first, second], "start": [peaked({})] * 2}) == [
        "LoRA: patch 9 (row 2, column 2) takes 25% to 40% of the attention"
    ]


def test_the_even_share_is_that_of_patches_that_show_image() -> None:
    half = np.zeros(64)
    half[:32] = (1 - 0.25) / 31
    half[3] = 0.25  # 16 times 1/64, 8 times 1/32
    assert 0.25 * 64 >= TIMES > 0.25 * 32
    assert sinks_of([half.reshape(8, 8)]) == []
