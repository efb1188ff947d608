"""JPEG data that is cut or overwritten: its decoders warn, and invent the rest.

Pillow and pylibjpeg drop these warnings. 8-bit JPEG is therefore read once more by simplejpeg, at
an eighth of its size, where a warning is an error. No decoder of lossless JPEG, JPEG-LS and 12-bit
JPEG warns: their data is decoded with other bytes behind it, and with other last bytes. A whole
picture does not change with what follows it, and does with its end.
"""

import numpy as np

from shared.imaging.pixels import UnreadableImage

_EIGHTH = {"fastdct": True, "min_height": 1, "min_width": 1, "min_factor": 8}
_END = b"\xff\xd9"
_PADDING = 16  # bytes of 00 or FF that writers leave behind the end marker
_OTHER = b"\xaa\x55" * 32  # holds no marker


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


def check_unwarned_jpeg(data: bytes) -> None:
    """Raise UnreadableImage where lossless JPEG, JPEG-LS or 12-bit JPEG is not whole.

    Decodes three times.
    """
    from libjpeg.utils import decode

    end = data.rfind(_END)
    if end < 0 or data[end + 2 :].strip(b"\0\xff") or len(data) - end - 2 > _PADDING:
        raise UnreadableImage("a truncated JPEG: its end marker is missing")
    scan = data[:end].rstrip(b"\xff")
    shown = decode(scan + _END)
    if not np.array_equal(shown, decode(scan + _OTHER + _END)):
        raise UnreadableImage("a truncated JPEG: its data ends before the picture does")
    try:
        ends_with_it = not np.array_equal(shown, decode(scan[:-4] + _OTHER + _END))
    except RuntimeError:  # what the other bytes say is nothing a picture says
        return
    if not ends_with_it:
        raise UnreadableImage("a broken JPEG: the picture ends before its data does")
