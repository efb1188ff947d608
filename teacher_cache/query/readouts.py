"""The read-out that an identity's query names, ready to be called behind a teacher's pass.

B images, T tokens, M patches, b teacher width, c text width, r rank.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from shared.targets.identity import QueryIdentity
from teacher_cache.query.blocks import block_of, modules_of, tail_of
from teacher_cache.query.cosines import cosines
from teacher_cache.query.grad_eclip import grad_eclip
from teacher_cache.query.textspan import LAYERS, textspan
from teacher_cache.teachers.base import Teacher


class QueryReadout:
    """R B of a batch by one method, in float32."""

    def __init__(self, teacher: Teacher, query: QueryIdentity, basis: np.ndarray) -> None:
        modules = modules_of(teacher)
        self.depth = min(LAYERS, len(modules)) if query.method == "textspan" else 1
        self._query, self._layers, self._patches = query, len(modules), teacher.grid.size
        self._blocks = [block_of(one) for one in modules[-self.depth :]]
        self._tail = tail_of(teacher)
        self._basis = torch.from_numpy(np.asarray(basis)).to(self._tail.matrix)

    def __call__(self, entering: Sequence[Tensor], leaving: Tensor) -> Tensor:
        """Return R B (B, M, r) of what enters the last `depth` blocks and leaves the last one."""
        block, given = self._blocks[-1], (self._tail, self._basis)
        method, x = self._query.method, entering[-1]
        if method == "grad-eclip":
            heads = self._query.heads or "published"
            found = grad_eclip(x, block, *given, heads, self._patches)
        elif method == "textspan":
            found = textspan(entering, leaving, self._blocks, *given, self._layers, self._patches)
        else:
            found = cosines(x, block, *given, method, self._patches)
        return found


def with_readout(teacher: Teacher, query: QueryIdentity | None, basis: np.ndarray) -> Teacher:
    """Return the teacher with the read-out of its query; without a query as it is."""
    if query is None:
        return teacher
    return teacher._replace(readout=QueryReadout(teacher, query, basis))
