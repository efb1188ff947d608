"""Images in the rows of a parquet file: the hub's form, a column of struct {bytes, path}.

Bytes are read some rows at a time, and the last few such pieces are in memory. So is the page in
which they lie, and the dictionary of its row group: pyarrow writes up to 1,024 values into either.
"""

import threading
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from shared.errors import UserError
from shared.imaging.contained import FileState, file_state
from shared.records import IMAGE_KEYS
from teacher_cache.containers.faults import LISTS, NO_BYTES, TABLE, ContainerFault, Faulty

if TYPE_CHECKING:
    from pyarrow import DataType, RecordBatch
    from pyarrow.parquet import FileMetaData, ParquetFile

ROWS = 16  # read at a time
KEPT = 4  # such pieces in memory: readers are a few rows apart
_BUFFER = 1 << 20  # bytes of a column chunk that are read ahead


class RowImage(NamedTuple):
    """The image of one row, counted from 0 over all row groups."""

    table: Path
    column: str
    row: int

    def __str__(self) -> str:
        return f"{self.table}#row={self.row},column={self.column}"

    def read(self) -> bytes:
        """Return its bytes; raises OSError where the file cannot be read."""
        return _reader(self.table, self.column).read(self.row)

    def place(self) -> tuple[str, str]:
        """Return the file, and row and column."""
        return str(self.table), f"row={self.row},column={self.column}"

    def state(self) -> FileState | None:
        """Return the state of the file."""
        return file_state(self.table)


class ImageColumn(NamedTuple):
    """A column that holds images: `leaf` is what has the bytes, None where it holds lists."""

    name: str
    leaf: str | None


def image_columns(path: Path) -> list[ImageColumn]:
    """Return the columns of a parquet file that hold bytes of images; none in a plain table.

    A struct with bytes counts under any name, bytes alone under the name of a field of images.

    Raises
    ------
    UserError
        It is no parquet file.
    OSError
        It cannot be read.
    """
    from pyarrow import ArrowException
    from pyarrow.parquet import read_schema

    try:
        schema = read_schema(path)
    except ArrowException as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} cannot be read as parquet: {reason}") from None
    return [
        found for field in schema if (found := _image_column(field.name, field.type)) is not None
    ]


def _image_column(name: str, kind: "DataType") -> ImageColumn | None:
    from pyarrow import types

    if types.is_list(kind) or types.is_large_list(kind):
        inside = _image_column(name, kind.value_type)
        return None if inside is None else ImageColumn(name, None)
    if types.is_struct(kind):
        held = any(one.name == "bytes" and _is_bytes(one.type) for one in kind)
        return ImageColumn(name, f"{name}.bytes") if held else None
    return ImageColumn(name, name) if _is_bytes(kind) and name.lower() in IMAGE_KEYS else None


def _is_bytes(kind: "DataType") -> bool:
    from pyarrow import types

    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def table_images(path: Path, columns: list[ImageColumn]) -> Iterator[RowImage | Faulty]:
    """Yield the images of a parquet file, column by column.

    Rows without an image are passed over. Without them only the file's footer is read.
    """
    from pyarrow import ArrowException

    for column in columns:
        if column.leaf is None:
            yield Faulty(f"{path}#column={column.name}", LISTS)
            continue
        try:
            with _opened(path) as table:
                if _has_none(table.metadata, column.leaf):
                    yield from _rows_with_bytes(path, table, column.name)
                else:
                    rows = range(table.metadata.num_rows)
                    yield from (RowImage(path, column.name, row) for row in rows)
        except ArrowException:
            yield Faulty(f"{path}#column={column.name}", TABLE)


def _has_none(metadata: "FileMetaData", leaf: str) -> bool:
    """Whether rows may be without bytes, as far as the file's statistics tell."""
    for group in range(metadata.num_row_groups):
        chunks = [metadata.row_group(group).column(at) for at in range(metadata.num_columns)]
        statistics = next(one.statistics for one in chunks if one.path_in_schema == leaf)
        if statistics is None or not statistics.has_null_count or statistics.null_count:
            return True
    return False


def _rows_with_bytes(path: Path, table: "ParquetFile", column: str) -> Iterator[RowImage | Faulty]:
    row = 0
    for batch in table.iter_batches(ROWS, columns=[column]):
        for value in batch.column(0):
            found = value.as_py()
            if isinstance(found, dict):
                named = found.get("path") is not None and found.get("bytes") is None
                found = found.get("bytes")
                if named:
                    yield Faulty(f"{path}#row={row},column={column}", NO_BYTES)
            if found is not None:
                yield RowImage(path, column, row)
            row += 1


def _opened(path: Path) -> "ParquetFile":
    from pyarrow.parquet import ParquetFile

    return ParquetFile(path, buffer_size=_BUFFER, pre_buffer=False, page_checksum_verification=True)


@lru_cache(maxsize=2)  # files are read one after another
def _reader(table: Path, column: str) -> "_Reader":
    return _Reader(table, column)


class _Reader:
    """Reads rows of one column that are asked for nearly in order, by several threads."""

    def __init__(self, path: Path, column: str) -> None:
        self._path, self._column = path, column
        self._lock = threading.Lock()
        self._table = _opened(path)
        groups = self._table.metadata.num_row_groups
        sizes = (self._table.metadata.row_group(group).num_rows for group in range(groups))
        self._starts = list(accumulate(sizes, initial=0))
        self._leaf = next(one.leaf for one in image_columns(path) if one.name == column)
        self._pieces: deque[tuple[int, RecordBatch]] = deque(maxlen=KEPT)
        self._group = -1  # whose pieces are being read
        self._next = 0  # the row with which its next piece begins
        self._left: Iterator[RecordBatch] = iter(())
        self._broken: dict[int, int] = {}  # from which row on a group cannot be read

    def read(self, row: int) -> bytes:
        with self._lock:
            for first, piece in self._pieces:
                if first <= row < first + piece.num_rows:
                    return self._bytes_of(piece, row - first)
            return self._advanced(row)

    def _advanced(self, row: int) -> bytes:
        """Read on to a row, from the beginning of its group if it lies behind."""
        from pyarrow import ArrowException

        group = bisect_right(self._starts, row) - 1
        if row >= self._broken.get(group, row + 1):
            raise ContainerFault(TABLE)
        try:
            if group != self._group or row < self._next:
                self._left = self._table.iter_batches(
                    ROWS, row_groups=[group], columns=[self._leaf]
                )
                self._group, self._next = group, self._starts[group]
            while self._next <= row:
                piece = next(self._left)
                self._pieces.append((self._next, piece))
                self._next += piece.num_rows
        except (ArrowException, StopIteration, OSError) as error:
            self._group = -1
            if isinstance(error, OSError) and error.errno is not None:
                raise
            self._broken[group] = self._next
            raise ContainerFault(TABLE) from None  # pyarrow's own OSError is of broken pages
        first, piece = self._pieces[-1]
        return self._bytes_of(piece, row - first)

    def _bytes_of(self, piece: "RecordBatch", place: int) -> bytes:
        value = piece.column(0)[place].as_py()
        found = value["bytes"] if isinstance(value, dict) else value
        if not isinstance(found, bytes):
            raise ContainerFault(NO_BYTES)
        return found
