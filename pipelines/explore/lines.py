"""Lines of a large text file by number, read as far as somebody asks for."""

import os
import threading
from array import array
from pathlib import Path

import numpy as np

_FIRST, _LARGEST = 1 << 16, 1 << 22  # bytes that are read at once: twice as many each time


class LineFile:
    """A UTF-8 file of lines that end in a line feed; threads may share it.

    It stays the file that was opened, also where another one is renamed over it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("rb")
        self._ends = array("q")  # offset behind each line known so far
        self._read = 0
        self._chunk = _FIRST
        self._whole = False
        self._lock = threading.Lock()

    def lines(self, start: int, count: int) -> list[str]:
        """Return up to `count` lines from number `start` on (from 0), without their line feeds."""
        with self._lock:
            self._reach(start + count)
            stop = min(start + count, len(self._ends))
            if stop <= start:
                return []
            begin = self._ends[start - 1] if start else 0
            end = self._ends[stop - 1]
        data = os.pread(self._file.fileno(), end - begin, begin)
        return data.decode("utf-8").removesuffix("\n").split("\n")

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _reach(self, number: int) -> None:
        """Find the ends of the first `number` lines, as far as there are so many."""
        while len(self._ends) < number and not self._whole:
            chunk = os.pread(self._file.fileno(), self._chunk, self._read)
            self._chunk = min(2 * self._chunk, _LARGEST)
            found = np.flatnonzero(np.frombuffer(chunk, np.uint8) == ord("\n")) + 1 + self._read
            self._ends.frombytes(found.astype(np.int64).tobytes())
            self._read += len(chunk)
            if not chunk:
                self._whole = True
                if self._read > (self._ends[-1] if self._ends else 0):  # no line feed at the end
                    self._ends.append(self._read)
