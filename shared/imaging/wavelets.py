"""JPEG 2000 that is damaged: its decoder says nothing, and cuts off what goes beyond its bits.

The reversible wavelet gives back the very numbers that it was given, so none goes beyond the bits
that the codestream tells (ISO 15444-1, A.5.1). It is decoded once more with eight bits more to a
number: what the decoder cuts off otherwise is then seen. Damage to the irreversible wavelet, or
that stays within the bits, cannot be told.
"""

import numpy as np

from shared.imaging.pixels import UnreadableImage

_START = b"\xff\x4f\xff\x51"  # start of codestream, image and tile size
_CODING, _TILE = 0x52, 0x90  # COD, and SOT, before which the main header ends
_REVERSIBLE = 1
_MORE = 8  # bits
_MOST = 16  # bits that pictures have


def check_wavelets(data: bytes, *, whole: bool) -> None:
    """Raise UnreadableImage where a reversible codestream holds numbers that no picture gave it.

    Parameters
    ----------
    data
        A codestream, or the file around it.
    whole
        Whether nothing was left out of the codestream. Where a rate was kept, the numbers are
        rounded, and may go beyond their bits by half of the range.
    """
    from openjpeg.utils import decode

    start = data.find(_START)
    if start < 0 or not _is_reversible(data, start):
        return
    components = int.from_bytes(data[start + 40 : start + 42], "big")
    places = [start + 42 + 3 * number for number in range(components)]
    sizes = {data[place] for place in places}
    if len(sizes) != 1 or (bits := 1 + (sizes.pop() & 0x7F)) > _MOST:
        return
    wide = bytearray(data[start:])
    for place in places:
        wide[place - start] = 0x80 | (bits - 1 + _MORE)  # signed: nothing is added to a number
    try:
        numbers = decode(bytes(wide), j2k_format=0)
    except RuntimeError:  # components of several sizes, which the decoder of pictures reads
        return
    top = 1 << (bits - 1)
    allowed = 0 if whole else top
    smallest, largest = int(np.min(numbers)), int(np.max(numbers))
    if smallest < -top - allowed or largest >= top + allowed:
        raise UnreadableImage("a broken JPEG 2000: its numbers go beyond its bits")


def _is_reversible(data: bytes, start: int) -> bool:
    """Whether the main header names the wavelet that loses nothing (ISO 15444-1, A.6.1)."""
    place = start + 2
    while place + 14 <= len(data) and data[place] == 0xFF and data[place + 1] != _TILE:
        if data[place + 1] == _CODING:
            return data[place + 13] == _REVERSIBLE
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return False
