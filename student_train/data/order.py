"""The order of an epoch, by seed, epoch and effective batch alone."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from student_train.data.files import Share


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
    shares
        The samples' files in their order, and how many samples of each an epoch takes: each one
        equally often, and the rest drawn anew. None: each sample once.
    """

    def __init__(
        self,
        lengths: NDArray[np.int64],
        seed: int,
        step: int,
        multiple: int = 1,
        segments: Sequence[int] | None = None,
        shares: Sequence[Share] | None = None,
    ) -> None:
        self.lengths, self.seed, self.step, self.multiple, self.segments = (
            lengths,
            seed,
            step,
            multiple,
            segments,
        )
        self.shares = shares
        self.taken = len(lengths) if shares is None else sum(one.taken for one in shares)
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration orders."""
        self.epoch = epoch

    def __len__(self) -> int:
        return math.ceil(self.taken / self.multiple) * self.multiple

    def __iter__(self) -> Iterator[int]:
        generator = np.random.default_rng([self.seed, self.epoch])
        order = self._drawn(generator)
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

    def _drawn(self, generator: np.random.Generator) -> NDArray[np.int64]:
        """Shuffle the samples that the epoch takes."""
        if self.shares is None:
            return generator.permutation(len(self.lengths))
        taken: list[NDArray[np.int64]] = []
        first = 0
        for records, wanted in self.shares:
            whole, rest = divmod(wanted, max(records, 1))
            taken += [np.arange(first, first + records)] * whole
            taken.append(first + generator.permutation(records)[:rest])
            first += records
        return generator.permutation(np.concatenate(taken))

    @staticmethod
    def _places(
        segments: Sequence[int], order: NDArray[np.int64], generator: np.random.Generator
    ) -> list[int]:
        """Shuffle the segments; return the place of each sample's."""
        names = generator.permutation(sorted(set(segments)))
        place = {name: number for number, name in enumerate(names)}
        return [place[segments[index]] for index in order]
