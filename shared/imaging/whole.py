"""Whether the data of an opened file is whole: its own checksums, and its decoders' warnings.

Pillow reads past both: the checksum of a PNG's data, the warnings of libjpeg, and those of libtiff.
"""

import io
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from PIL import ExifTags, Image, TiffImagePlugin

from shared.imaging.jpeg import check_jpeg
from shared.imaging.pixels import UnreadableImage

_TAG = ExifTags.Base
_TABLES = 347  # JPEGTables, which all strips share (TIFF technical note 2)
_PIECES = ((_TAG.StripOffsets, _TAG.StripByteCounts), (324, 325))  # strips, tiles


def check_whole(image: Image.Image, file: BinaryIO) -> None:
    """Raise UnreadableImage where the data of `image`, opened from `file`, is cut or damaged."""
    if image.format == "PNG":
        _check_png(file)
    elif image.format in ("JPEG", "MPO"):
        file.seek(int(getattr(image, "offset", 0)))  # of this picture among several
        check_jpeg(file.read())
    elif isinstance(image, TiffImagePlugin.TiffImageFile):
        compression = image.info.get("compression")
        tables = bytes(image.tag_v2.get(_TABLES, b""))
        for piece in _tiff_pieces(image, file):
            if compression == "jpeg":
                check_jpeg(tables[:-2] + piece[2:] if tables else piece)
            elif compression in ("tiff_adobe_deflate", "tiff_deflate"):
                zlib.decompress(piece)  # with its checksum


def _check_png(file: BinaryIO) -> None:
    """Compare the checksums of the chunks that hold the picture."""
    size = file.seek(0, io.SEEK_END)
    file.seek(8)
    kind = b""
    while kind != b"IEND":
        head = file.read(8)
        length, kind = int.from_bytes(head[:4], "big"), head[4:]
        if len(head) < 8 or length + 4 > size - file.tell():
            raise UnreadableImage("a truncated PNG")
        if kind[:1].islower():  # no part of the picture
            file.seek(length + 4, io.SEEK_CUR)
        elif zlib.crc32(file.read(length), zlib.crc32(kind)) != int.from_bytes(file.read(4), "big"):
            raise UnreadableImage("a broken PNG: its data does not match its checksum")


def _tiff_pieces(image: TiffImagePlugin.TiffImageFile, file: BinaryIO) -> Iterator[bytes]:
    for offsets, sizes in _PIECES:
        starts, lengths = image.tag_v2.get(offsets, ()), image.tag_v2.get(sizes, ())
        for start, length in zip(starts, lengths, strict=False):
            file.seek(start)
            data = file.read(length)
            if len(data) < length:
                raise UnreadableImage("a truncated TIFF: it ends inside its data")
            yield data
