"""Pictures of more than 8 bits in the formats that Pillow opens.

Pillow keeps one channel of 16 or 32 bits as it is, but knows no inverted one (TIFF's MinIsWhite),
wraps unsigned numbers of 32 bits, and keeps the upper bytes alone of several channels. Here
MinIsWhite is inverted, unsigned numbers stay positive, and of 16-bit colour the lower bytes are
read too, by a second decoding in the other byte order. All are scaled from their own range
(`shared.imaging.levels`), colour channels together, so that 12 bits kept in 16 are not black.
"""

import sys
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, ImageOps, TiffImagePlugin

from shared.imaging.levels import counts_of, gray_levels, integer_levels
from shared.imaging.pixels import UnreadableImage

_TAG = ExifTags.Base
_SAMPLE_FORMAT = 339
_GRAY = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")
_ORDER = "L" if sys.byteorder == "little" else "B"
_OTHER = {"L": "B", "B": "L"}
_COLOUR = ("RGB;16", "RGBX;16", "RGBA;16")  # each with the byte order behind it
_GRAY_ALPHA = "LA;16B"
_NATIVE = {"F;32BF": "F;32NF", "I;32BS": "I;32NS", "I;32B": "I;32N", "I;16BS": "I;16NS"}
_DARK = 128  # levels: what Pillow shows of deep colour darker than this may be fewer bits in more

# TIFFs that Pillow's decoders read and its table lacks: MinIsWhite of more than 8 bits, and
# big-endian unsigned numbers of 32.
_II, _MM = TiffImagePlugin.II, TiffImagePlugin.MM
for _key, _modes in {
    (_II, 0, (1,), 1, (12,), ()): ("I;16", "I;12"),
    (_MM, 0, (1,), 1, (16,), ()): ("I;16B", "I;16B"),
    (_II, 0, (2,), 1, (16,), ()): ("I", "I;16S"),
    (_MM, 0, (2,), 1, (16,), ()): ("I", "I;16BS"),
    (_II, 0, (1,), 1, (32,), ()): ("I", "I;32N"),
    (_MM, 0, (1,), 1, (32,), ()): ("I", "I;32B"),
    (_MM, 1, (1,), 1, (32,), ()): ("I", "I;32B"),
    (_II, 0, (2,), 1, (32,), ()): ("I", "I;32S"),
    (_MM, 0, (2,), 1, (32,), ()): ("I", "I;32BS"),
}.items():
    TiffImagePlugin.OPEN_INFO.setdefault(_key, _modes)


class Deep(NamedTuple):
    """What an image's header says of its numbers, read before Pillow decodes them.

    Attributes
    ----------
    rawmode
        Pillow's name of the layout of 16-bit colour, or None.
    inverted
        Whether the smallest number is white.
    unsigned, signed
        Whether a channel is unsigned of 32 bits, or signed of 8.
    """

    rawmode: str | None
    inverted: bool = False
    unsigned: bool = False
    signed: bool = False


def deep_of(image: Image.Image) -> Deep:
    """Return how an opened image keeps its numbers, and mend Pillow's layout where it is wrong.

    Raises UnreadableImage where colour is deeper than 8 bits and cannot be read in full.
    """
    rawmode = _rawmode(image)
    deep = ";16" in rawmode and not rawmode.startswith("I;")
    if deep and rawmode != _GRAY_ALPHA and rawmode[:-1] not in _COLOUR:
        raise UnreadableImage(f"16 bits a channel laid out as {rawmode} are not read: save 8 bits")
    if deep and "transparency" in image.info:
        raise UnreadableImage("16-bit colour with one transparent colour is not read: save 8 bits")
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return Deep(rawmode if deep else None)
    tags = image.tag_v2
    bits = tuple(tags.get(_TAG.BitsPerSample, (1,)))
    if max(bits) > 8 and len(bits) > 1 and tags.get(_TAG.PlanarConfiguration) == 2:
        raise UnreadableImage("16-bit channels in planes of their own are not read: save 8 bits")
    if image.tile[0][0] == "libtiff" and rawmode in _NATIVE:  # libtiff has swapped the bytes
        _set_rawmode(image, _NATIVE[rawmode])
    form = tuple(tags.get(_SAMPLE_FORMAT, (1,)))
    return Deep(
        rawmode if deep else None,
        inverted=tags.get(_TAG.PhotometricInterpretation) == 0 and image.mode in _GRAY,
        unsigned=form[0] == 1 and bits == (32,),
        signed=form[0] == 2 and bits == (8,),
    )


def shown_gray(image: Image.Image, deep: Deep) -> NDArray[np.uint8] | None:
    """Return the gray levels of one deep channel; None where the image has 8 bits, or colour."""
    if image.mode not in _GRAY and not deep.signed:
        return None
    pixels = np.asarray(image)
    if deep.unsigned:
        pixels = pixels.view(np.uint32)
    if deep.signed:
        pixels = pixels.view(np.int8)
    return gray_levels(pixels, deep.inverted)


def shown_colour(image: Image.Image, rawmode: str, file: BinaryIO, page: int) -> NDArray[np.uint8]:
    """Return 16-bit colour of a loaded image as RGB levels, transparent pixels over black.

    `file` is where it was opened; it is decoded once more for the lower bytes.
    """
    again = Image.open(file, formats=(str(image.format),))
    if page:
        again.seek(page)
    four = rawmode == _GRAY_ALPHA  # two numbers of two bytes: four channels of one
    stem, order = rawmode[:-1], rawmode[-1]
    other = _OTHER[_ORDER if order == "N" else order]
    _set_rawmode(again, "RGBA" if four else stem + other)
    again.load()
    low = np.asarray(ImageOps.exif_transpose(again))
    if four:
        values = low[..., [0, 0, 0, 2]].astype(np.uint16) << 8 | low[..., [1, 1, 1, 3]]
    else:
        values = np.asarray(ImageOps.exif_transpose(image)).astype(np.uint16) << 8 | low
    colours = np.ascontiguousarray(values[..., :3])
    if values.shape[-1] == 3:
        counts = counts_of(colours)
        assert counts is not None
        return integer_levels(colours, counts)
    alpha = values[..., 3]
    if not alpha.any():
        raise UnreadableImage("every pixel is transparent")
    counts = counts_of(colours[alpha > 0])
    assert counts is not None
    seen = integer_levels(colours, counts) * (alpha / alpha.max())[..., None]
    levels: NDArray[np.uint8] = np.rint(seen).astype(np.uint8)
    return levels


def check_deep_rest(image: Image.Image, file: BinaryIO) -> None:
    """Raise UnreadableImage where Pillow shows deep colour of another format as all but black."""
    if image.mode not in ("RGB", "RGBA") or image.format not in ("JPEG2000", "PPM"):
        return
    if _bits_of(image, file) > 8 and int(np.asarray(image)[..., :3].max()) < _DARK:
        raise UnreadableImage(
            f"{image.format} colour of more than 8 bits that uses few of them: save 8 bits"
        )


def _bits_of(image: Image.Image, file: BinaryIO) -> int:
    file.seek(0)
    head = file.read(4096)
    if image.format == "PPM":
        words = [line.split(b"#")[0] for line in head.split(b"\n")]
        numbers = b" ".join(words).split()[1:4]
        return int(numbers[2]).bit_length() if len(numbers) == 3 and numbers[2].isdigit() else 16
    size = head.find(b"\xff\x51")  # the codestream's first segment tells the depth
    return (head[size + 40] & 0x7F) + 1 if 0 <= size < len(head) - 40 else 16


def _rawmode(image: Image.Image) -> str:
    """Return Pillow's name of the layout in the file; empty where it tells none."""
    tiles = image.tile if isinstance(image, ImageFile.ImageFile) else []
    arguments = tiles[0][3] if tiles else ""
    first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return first if isinstance(first, str) else ""


def _set_rawmode(image: ImageFile.ImageFile, rawmode: str) -> None:
    image.tile = [
        tile._replace(args=(rawmode, *tile.args[1:]) if isinstance(tile.args, tuple) else rawmode)
        for tile in image.tile
    ]
