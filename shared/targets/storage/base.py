"""The few operations that a store needs of the place where its files live."""

from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol, runtime_checkable

TEMPORARY = ".tmp-"
Hold = Callable[[], bool]  # renews a lock, and says whether it is still held


class Range(NamedTuple):
    """At most `length` bytes of a file, from `offset`."""

    path: str
    offset: int
    length: int


@runtime_checkable
class Storage(Protocol):
    """Files by relative path; every method raises FileNotFoundError where there is nothing."""

    location: str
    remote: bool  # each operation is a request over a network, or several
    youngest_stray: float  # seconds: what is younger may be a live writer's, however it looks

    def names(self, folder: str, begin: str = "", known: Set[str] = frozenset()) -> list[str]:
        """Name the folders directly under `folder` from `begin` on, sorted, not temporary ones.

        [] if there is none. Those in `known` may be named while they are being removed.
        """

    def sizes(self, folder: str) -> dict[str, int]:
        """Size in bytes of every file under `folder`, by path relative to it."""

    def read(self, path: str) -> bytes:
        """Read a whole file."""

    def read_range(self, path: str, offset: int, length: int) -> bytes:
        """Read at most `length` bytes from `offset`."""

    def read_all(self, paths: Sequence[str]) -> list[bytes | None]:
        """Read whole files side by side; None where there is none."""

    def read_ranges(self, ranges: Sequence[Range]) -> list[bytes]:
        """Read parts of files side by side; each as `read_range`."""

    def exists(self, path: str) -> bool:
        """Whether there is a file."""

    def create(self, path: str, data: bytes) -> bool:
        """Write a file in one step if it is absent; False, and nothing changed, if it is there."""

    def publish(self, folder: str, files: Mapping[str, bytes]) -> bool:
        """Make a new folder visible with all its files in one step.

        False if it is already there.
        """

    def remove(self, folder: str) -> None:
        """Remove a folder and all below it so that no reader takes the rest for a whole."""

    def discard(self, path: str) -> None:
        """Remove one file; nothing happens where it is not there."""

    def exclusive(self, namespace: str) -> AbstractContextManager[Hold | None]:
        """Hold a namespace against others that remove or replace parts of it; never waits.

        None where another holds it. Writers of new parts need no lock.
        """

    def modified(self, path: str) -> float:
        """When a file was last written, in seconds since the epoch."""

    def sweep(self, namespace: str, older_than: float | None = None) -> list[str]:
        """Remove what dead writers left in a namespace, and name it.

        `older_than` in seconds; None removes only what is certainly dead: this host's, its lock
        free.
        """


def join(*parts: str) -> str:
    """Join the parts of a relative path."""
    return "/".join(part for part in parts if part)
