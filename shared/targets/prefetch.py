"""Reading ahead: the next batches are decoded while the present one is used."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from shared.targets.store import Target, TargetStore

T = TypeVar("T")


def prefetch(
    store: TargetStore, batches: Iterable[Sequence[bytes]], depth: int = 2
) -> Iterator[Target]:
    """Yield the targets of each batch of keys, in order.

    `depth` batches are on their way in one other thread.

    Decompression releases the interpreter's lock, so it runs beside the consumer. Errors of a batch
    are raised where it would have been yielded.

    Raises
    ------
    ValueError
        If `depth` is less than 1.
    """
    if depth < 1:
        raise ValueError(f"prefetch needs a depth of at least 1, got {depth}")
    with ThreadPoolExecutor(1, thread_name_prefix="targets") as thread:
        yield from ahead((thread.submit(store.batch, keys) for keys in batches), depth)


def ahead(futures: Iterable[Future[T]], depth: int) -> Iterator[T]:
    """Yield results in order while `depth` more are under way.

    What is left is cancelled if the consumer stops.
    """
    waiting: deque[Future[T]] = deque()
    try:
        for future in futures:
            waiting.append(future)
            if len(waiting) > depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
