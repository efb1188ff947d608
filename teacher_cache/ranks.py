"""One build shared by processes, as `torchrun` starts them, and one that is asked to stop."""

import os
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from shared.errors import UserError
from shared.processes import this_process

Number = TypeVar("Number", bound=np.integer)


class Ranks(NamedTuple):
    """Which of how many processes this one is.

    RANK, WORLD_SIZE and LOCAL_RANK of the environment.
    """

    rank: int
    world: int
    local: int

    @classmethod
    def of_environment(cls) -> "Ranks":
        """Read what `torchrun` set; a single process is rank 0 of 1.

        Raises
        ------
        UserError
            What is set is no rank of so many.
        """
        try:
            rank, world, local = this_process()
        except ValueError:
            rank, world, local = -1, 0, 0
        if not 0 <= rank < world:
            raise UserError(
                "RANK, WORLD_SIZE and LOCAL_RANK of the environment name no rank "
                f"(RANK={os.environ.get('RANK')}, WORLD_SIZE={os.environ.get('WORLD_SIZE')}): "
                "unset them, or start the build with `torchrun`"
            )
        return cls(rank, world, local)

    def share(self, named: Iterable[bytes], missing: Sequence[bytes]) -> list[bytes]:
        """Return those of the `missing` content keys that are this rank's, in order.

        A share is a block of a sorted list, so that two shares differ by one key at most. Ranks
        that meet cut the list of what is missing, on which they agreed (`of_first`). Those that do
        not meet see the store at different moments: they cut the list of all `named` keys.
        """
        whole = sorted(missing if self.meets or self.world == 1 else named)
        begin, end = (len(whole) * rank // self.world for rank in (self.rank, self.rank + 1))
        block = set(whole[begin:end])
        return [key for key in missing if key in block]

    def of_first(self, numbers: NDArray[Number]) -> NDArray[Number]:
        """Return the first rank's numbers on every rank that meets it; every rank must call it.

        A rank that meets no other keeps its own.
        """
        return self.sum(numbers if self.rank == 0 or not self.meets else np.zeros_like(numbers))

    @property
    def meets(self) -> bool:
        """Whether the ranks can talk.

        Those of an array job, without a common address, work each for itself.
        """
        return self.world > 1 and "MASTER_ADDR" in os.environ

    @property
    def speaks(self) -> bool:
        """Whether this rank reports, and fails where the build as a whole has."""
        return self.rank == 0 or not self.meets

    @contextmanager
    def meeting(self) -> Iterator[None]:
        """Connect the ranks that can talk, so that `sum` works inside."""
        from torch import distributed

        mine = self.meets and not distributed.is_initialized()
        if mine and "MASTER_PORT" not in os.environ:
            raise UserError(
                "MASTER_ADDR is set and MASTER_PORT is not: set both, or unset RANK, WORLD_SIZE "
                "and MASTER_ADDR to build in one process"
            )
        if mine:
            distributed.init_process_group(
                "gloo", timeout=timedelta(days=30)
            )  # the slowest rank may be far behind
        try:
            yield
        finally:
            if mine:
                distributed.destroy_process_group()

    def sum(self, numbers: NDArray[Number]) -> NDArray[Number]:
        """Sum an array over all ranks.

        Every rank must call this, with one shape, and waits there for the others.

        At the end of a build it keeps a rank that ends with an error from ending the others:
        `torchrun` stops all when one fails. Processes that do not meet return their own numbers.

        Raises
        ------
        UserError
            Another rank died meanwhile.
        """
        if not self.meets:
            return numbers
        import torch
        from torch import distributed

        summed = torch.from_numpy(numbers.copy())
        try:
            distributed.all_reduce(summed)
        except RuntimeError as error:  # gloo's word for a connection that ended
            raise UserError(
                "another rank of this build died, and its share is not done: run the same build "
                "again, which encodes what the store lacks"
            ) from error
        result: NDArray[Number] = summed.numpy()
        return result


@contextmanager
def stop_on_termination() -> Iterator[None]:
    """Turn SIGTERM into SystemExit: a batch system's notice, or `torchrun`'s after a rank's death.

    So the open segment is still published on the way out. Outside the main thread nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)  # a second one must not interrupt the publishing
        raise SystemExit(128 + number)

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
