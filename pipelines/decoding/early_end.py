"""A beam search ends as soon as nothing that still runs can become its answer.

The answer is the same.

Beam search waits until as many answers have ended as there are beams. After a one-word answer that
takes many steps, spent on beams that lose all the same: a beam's sum of log-probabilities only
falls, and no answer that grows out of it scores better than `attainable`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def attainable(total: float, length: int, longest: int, length_penalty: float) -> float:
    """Bound the score of every answer that grows out of a beam.

    It has `length` tokens and log-probability `total`. A score is the sum of log-probabilities (at
    most `total`, at most 0) over the answer's length, at most `longest`, to the power
    `length_penalty`.
    """
    return float(total / max(length**length_penalty, longest**length_penalty))


class EarlyEnd:
    """Watches a beam search over several items; ends each as soon as its answer is certain.

    `normalised` is its last logits processor, the object itself its stopping criterion: told that
    all candidates of an item end here, the search files them behind the answer that it has.
    """

    def __init__(
        self,
        items: int,
        prompt_length: int,
        num_beams: int,
        end_ids: Sequence[int],
        longest: int,
        length_penalty: float,
    ) -> None:
        self._start, self._beams, self._longest, self._penalty = (
            prompt_length,
            num_beams,
            longest,
            length_penalty,
        )
        self._end_ids = frozenset(end_ids)
        self._totals: list[dict[tuple[int, ...], float]] = [{(): 0.0} for _ in range(items)]
        self._best = [float("-inf")] * items
        self._certain = [False] * items
        self._rows: dict[tuple[int, tuple[int, ...]], int] = {}
        self._logs = torch.empty(0)

    def normalised(self, ids: Tensor, scores: Tensor) -> Tensor:
        """Return log-probabilities (items x beams, V) over the allowed tokens; beams add these."""
        self._logs = torch.log_softmax(scores, dim=-1)
        self._rows = {}
        for row, tokens in enumerate(ids[:, self._start :].tolist()):
            self._rows.setdefault((row // self._beams, tuple(tokens)), row)
        return self._logs

    def __call__(self, ids: Tensor, scores: object, **unused: object) -> Tensor:
        """Return which candidates (items x C, best first; `ids` holds their tokens) end here."""
        candidates = [tuple(tokens) for tokens in ids[:, self._start :].tolist()]
        each = len(candidates) // len(self._totals)
        rows = [self._rows[number // each, tokens[:-1]] for number, tokens in enumerate(candidates)]
        steps = self._logs[rows, [tokens[-1] for tokens in candidates]].tolist()
        for item, before in enumerate(self._totals):
            totals: dict[tuple[int, ...], float] = {}
            running = float("-inf")
            for rank in range(each):
                tokens, step = candidates[item * each + rank], steps[item * each + rank]
                total, length = before[tokens[:-1]] + step, len(tokens)
                totals.setdefault(tokens, total)
                if tokens[-1] not in self._end_ids and length < self._longest:
                    running = max(running, attainable(total, length, self._longest, self._penalty))
                elif rank < self._beams:
                    self._best[item] = max(self._best[item], total / length**self._penalty)
            self._totals[item] = totals
            self._certain[item] |= running <= self._best[item]
        return torch.tensor(self._certain, device=ids.device).repeat_interleave(each)
