"""PackBits, which DICOM's RLE and some TIFFs use: it has no checksum, but it has a length.

A byte below 128 is followed by one more bytes than it says, one above 128 by a byte to be repeated
257 less that many times (TIFF 6.0 section 9, DICOM PS3.5 G.3.1). Damage changes how long the result
is. Both standards pack each row by itself, so that the ends of rows tell how long rows are.
"""

from math import isqrt

from shared.imaging.pixels import UnreadableImage

_ROWS = 64  # whose ends are compared
_FEWEST = 8  # rows that tell their length: packets end there by chance in no picture


def check_packed(data: bytes, length: int, row: int, format_name: str) -> None:
    """Raise UnreadableImage where `data` does not unpack to `length` bytes, or has other rows.

    Parameters
    ----------
    data
        Packed bytes; at most one more may follow what they unpack to.
    length, row
        Bytes of the whole and of one row, unpacked.
    format_name
        For the reason.
    """
    ends: set[int] = set()  # of the first packets
    watched = min(length, _ROWS * row)
    place = unpacked = 0
    size = len(data)
    while unpacked < length and place < size:
        head = data[place]
        if head < 128:
            unpacked += head + 1
            place += head + 2
        elif head > 128:
            unpacked += 257 - head
            place += 2
        else:
            place += 1
        if unpacked <= watched:
            ends.add(unpacked)
    if unpacked != length or place > size:
        raise UnreadableImage(f"a broken or truncated {format_name}: its rows have other lengths")
    if size - place > 1 and any(data[place:]):
        raise UnreadableImage(f"a broken {format_name}: the picture ends before its data does")
    if _ends_rows(ends, row, watched):
        return
    for other in _divisors(length):
        if _FEWEST * other <= watched and _ends_rows(ends, other, watched):
            raise UnreadableImage(f"{format_name} rows of {other} bytes, where {row} are told")


def _divisors(number: int) -> list[int]:
    """Return the divisors from `_FEWEST` on, the smallest first."""
    small = [n for n in range(_FEWEST, isqrt(number) + 1) if number % n == 0]
    return small + [number // n for n in reversed(small)]


def _ends_rows(ends: set[int], row: int, watched: int) -> bool:
    """Whether packets end where the first rows of so many bytes do.

    Some writers pack on over the ends of rows; then no length fits.
    """
    return all(end in ends for end in range(row, watched + 1, row))
