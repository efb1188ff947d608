"""Whether the data of an opened file is whole: its own checksums, and its decoders' warnings.

Pillow reads past both: the checksum of a PNG's data, the warnings of libjpeg, and those of libtiff.
"""

import io
import zlib
from collections.abc import Iterator
from math import ceil
from typing import BinaryIO

from PIL import ExifTags, Image, TiffImagePlugin

from shared.imaging.jpeg import check_jpeg
from shared.imaging.packbits import check_packed
from shared.imaging.pixels import UnreadableImage
from shared.imaging.wavelets import check_wavelets

_TAG = ExifTags.Base
_TABLES = 347  # JPEGTables, which all strips share (TIFF technical note 2)
_PLANAR = _TAG.PlanarConfiguration
# Of strips, and of tiles.
_PIECES = (
    (_TAG.StripOffsets, _TAG.StripByteCounts),
    (_TAG.TileOffsets, _TAG.TileByteCounts),
)


def check_whole(image: Image.Image, file: BinaryIO) -> None:
    """Raise UnreadableImage where the data of `image`, opened from `file`, is cut or damaged."""
    if image.format == "PNG":
        _check_png(file)
    elif image.format in ("JPEG", "MPO"):
        if image.mode == "CMYK" and "adobe" not in image.info:
            # Pillow takes it for inverted, as Adobe writes it; others do not.
            raise UnreadableImage("a CMYK JPEG that does not say whether it is inverted: save RGB")
        file.seek(int(getattr(image, "offset", 0)))  # of this picture among several
        check_jpeg(file.read())
    elif isinstance(image, TiffImagePlugin.TiffImageFile):
        compression = image.info.get("compression")
        tables = bytes(image.tag_v2.get(_TABLES, b""))
        for number, piece in enumerate(_tiff_pieces(image, file)):
            if compression == "jpeg":
                check_jpeg(tables[:-2] + piece[2:] if tables else piece)
            elif compression in ("tiff_adobe_deflate", "tiff_deflate"):
                zlib.decompress(piece)  # with its checksum
            elif compression == "packbits":
                _check_packed_piece(image.tag_v2, number, piece)
    elif image.format == "JPEG2000":
        file.seek(0)
        check_wavelets(file.read(), whole=False)


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
    """Yield the strips, or the tiles; Pillow leaves black what none of them covers."""
    tags = image.tag_v2
    tiled = _TAG.TileOffsets in tags
    offsets, sizes = _PIECES[tiled]
    starts, lengths = tags.get(offsets, ()), tags.get(sizes, ())
    if len(starts) < _pieces_of(tags, tiled) or (tiled and _TAG.StripOffsets in tags):
        raise UnreadableImage("a broken TIFF: its strips or tiles do not cover the picture")
    for start, length in zip(starts, lengths, strict=False):
        file.seek(start)
        data = file.read(length)
        if len(data) < length:
            raise UnreadableImage("a truncated TIFF: it ends inside its data")
        yield data


def _check_packed_piece(
    tags: TiffImagePlugin.ImageFileDirectory_v2, number: int, piece: bytes
) -> None:
    """Check a strip or tile that is packed by PackBits; the last strip may have fewer rows."""
    width, height = int(tags[_TAG.ImageWidth]), int(tags[_TAG.ImageLength])
    rows = int(tags.get(_TAG.RowsPerStrip, height))
    if _TAG.TileWidth in tags:
        width, rows = int(tags[_TAG.TileWidth]), int(tags[_TAG.TileLength])
    else:
        pieces = ceil(height / rows)
        rows = min(rows, height - number % pieces * rows)
    bits = tags.get(_TAG.BitsPerSample, (1,))
    row = ceil(width * (bits[0] if tags.get(_PLANAR) == 2 else sum(bits)) / 8)
    check_packed(piece, rows * row, row, "TIFF")


def _pieces_of(tags: TiffImagePlugin.ImageFileDirectory_v2, tiled: bool) -> int:
    """Count the strips or tiles that a picture needs."""
    width, height = int(tags[_TAG.ImageWidth]), int(tags[_TAG.ImageLength])
    if tiled:
        across, down = int(tags[_TAG.TileWidth]), int(tags[_TAG.TileLength])
    else:
        across, down = width, int(tags.get(_TAG.RowsPerStrip, height))
    planes = int(tags.get(_TAG.SamplesPerPixel, 1)) if tags.get(_PLANAR) == 2 else 1
    return ceil(width / max(1, across)) * ceil(height / max(1, down)) * planes
