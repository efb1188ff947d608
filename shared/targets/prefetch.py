"""Reading ahead: the next batches are decoded while the present one is used."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from shared.targets.store import Target, TargetStore


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
    waiting: deque[Future[Target]] = deque()
    with ThreadPoolExecutor(1, thread_name_prefix="targets") as thread:
        try:
            for keys in batches:
                waiting.append(thread.submit(store.batch, keys))
                if len(waiting) > depth:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
