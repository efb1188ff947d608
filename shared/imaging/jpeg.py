"""JPEG data that is cut or overwritten: its decoders warn, and invent the rest.

Pillow and pylibjpeg drop these warnings. 8-bit JPEG is therefore read once more by simplejpeg, at
an eighth of its size, where a warning is an error. It warns not where whole scans are missing at
the end; the headers of those that are there tell what they leave open. No decoder of lossless JPEG,
JPEG-LS and 12-bit JPEG warns: their data is decoded with other bytes behind it, and with other last
bytes. A whole picture does not change with what follows it, and does with its end.
"""

from collections.abc import Iterator

import numpy as np

from shared.imaging.pixels import UnreadableImage

_EIGHTH = {"fastdct": True, "min_height": 1, "min_width": 1, "min_factor": 8}
_END = b"\xff\xd9"
_PADDING = 16  # bytes of 00 or FF that writers leave behind the end marker
_START_OF_FRAME = (0xC0, 0xC1, 0xC2)  # baseline, extended, progressive: all coded by Huffman
_START_OF_SCAN = 0xDA
_COEFFICIENTS = 64
_OTHERS = (b"\xaa\x55" * 32, b"\x12\x34" * 32)  # hold no marker


def check_jpeg(data: bytes) -> None:
    """Raise UnreadableImage where a decoder of 8-bit JPEG has anything to say against `data`."""
    import simplejpeg

    try:
        colours = simplejpeg.decode_jpeg_header(data)[2]
        four = colours in ("CMYK", "YCCK")
        simplejpeg.decode_jpeg(data, "CMYK" if four else "GRAY", strict=True, **_EIGHTH)
    except ValueError as error:
        reason = " ".join(str(error).split())[:200]
        raise UnreadableImage(f"a broken or truncated JPEG: {reason}") from None
    _check_scans(data)


def _check_scans(data: bytes) -> None:
    """Raise UnreadableImage where the scans do not tell every coefficient of every component.

    To its last bit (ISO 10918-1, B.2.3 and G.1.1). A decoder takes what is not told for zero.
    """
    open_bits: dict[int, list[int]] = {}  # of each component's coefficients; 255: not told at all
    for marker, segment in _segments(data):
        if marker in _START_OF_FRAME and not open_bits:
            open_bits = {
                segment[6 + 3 * number]: [255] * _COEFFICIENTS for number in range(segment[5])
            }
        if marker == _START_OF_SCAN:
            components, (first, last, bits) = segment[1:-3:2], segment[-3:]
            for component in components:
                told = open_bits.get(component, [0] * _COEFFICIENTS)
                told[first : last + 1] = [bits & 15] * (last + 1 - first)
    if any(any(told) for told in open_bits.values()):
        raise UnreadableImage("a truncated JPEG: it ends before its last scan")


def _segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the marker segments of the first picture in a file, without their lengths."""
    place = 2
    while 0 <= (place := data.find(b"\xff", place)) < len(data) - 3:
        marker = data[place + 1]
        if marker == _END[1]:
            return
        if marker in (0, 0xFF) or 0xD0 <= marker <= 0xD7:  # a byte of a scan, or a restart
            place += 2 - (marker == 0xFF)
            continue
        length = int.from_bytes(data[place + 2 : place + 4], "big")
        yield marker, data[place + 4 : place + 2 + length]
        place += 2 + length


def check_unwarned_jpeg(data: bytes) -> None:
    """Raise UnreadableImage where lossless JPEG, JPEG-LS or 12-bit JPEG is not whole.

    Decodes three times, a flat picture four times.
    """
    from libjpeg.utils import decode

    end = data.rfind(_END)
    if end < 0 or data[end + 2 :].strip(b"\0\xff") or len(data) - end - 2 > _PADDING:
        raise UnreadableImage("a truncated JPEG: its end marker is missing")
    scan = data[:end].rstrip(b"\xff")
    shown = decode(scan + _END)
    if not np.array_equal(shown, decode(scan + _OTHERS[0] + _END)):
        raise UnreadableImage("a truncated JPEG: its data ends before the picture does")
    try:
        # One of them may say by chance what a flat picture says.
        ends_with_it = any(
            not np.array_equal(shown, decode(scan[:-4] + other + _END)) for other in _OTHERS
        )
    except RuntimeError:  # what the other bytes say is nothing a picture says
        return
    if not ends_with_it:
        raise UnreadableImage("a broken JPEG: the picture ends before its data does")
