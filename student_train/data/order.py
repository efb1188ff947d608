"""The order of an epoch, by seed, epoch and effective batch alone."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler


class EpochOrder(Sampler[int]):
    """The order of an epoch, whatever ranks and workers there are.

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
        lengths: NDArray[np.int64],
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
            order = order[np.argsort(self._places(self.segments, order, generator), kind="stable")]
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

    @staticmethod
    def _places(
        segments: Sequence[int], order: NDArray[np.int64], generator: np.random.Generator
    ) -> list[int]:
        """Shuffle the segments; return the place of each sample's."""
        names = generator.permutation(sorted(set(segments)))
        place = {name: number for number, name in enumerate(names)}
        return [place[segments[index]] for index in order]
