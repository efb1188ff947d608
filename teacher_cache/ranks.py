"""One build shared by processes, as `torchrun` starts them, and one that is asked to stop."""

import os
import signal
import threading
from collections.abc import Iterator, Sequence
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

    def owned(self, keys: Sequence[bytes]) -> list[bytes]:
        """Return the content keys that are this rank's.

        Ownership follows from the key alone, so ranks that see the store at different moments still
        agree.
        """
        return [key for key in keys if int.from_bytes(key[:8], "big") % self.world == self.rank]

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
        """
        if not self.meets:
            return numbers
        import torch
        from torch import distributed

        summed = torch.from_numpy(numbers.copy())
        distributed.all_reduce(summed)
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
