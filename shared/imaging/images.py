"""Open any image file as RGB, and name it by its content.

What a file is follows from its bytes, never from its name: DICOM (`shared.imaging.dicom`), NIfTI
(`shared.imaging.nifti`), else Pillow with the formats listed here. Whatever cannot be shown
faithfully raises `UnreadableImage` with a reason that names no path, so that it may go into a
quarantine list that others read.
"""

import io
import warnings
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from shared.imaging.deep import check_deep_rest, deep_of, shown_colour, shown_gray
from shared.imaging.levels import rgb
from shared.imaging.pixels import UnreadableImage, check_size, frame_number
from shared.imaging.whole import check_whole

FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "JPEG2000", "PPM")
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
MAX_PIXELS = (
    100_000_000  # 10,000 x 10,000: larger than any radiograph, smaller than a decompression bomb
)

# These libraries warn of odd metadata and of sizes that the checks below decide upon. A filter for
# good, since `catch_warnings` around a call is not safe among threads.
for _library in ("PIL", "pydicom", "nibabel"):
    warnings.filterwarnings("ignore", module=rf"{_library}(\.|$)")


class ImageReference(NamedTuple):
    """A file, and which image of it: `frame=12` of a DICOM or TIFF, `axial=90` of a NIfTI.

    None where it holds one.
    """

    path: Path
    part: str | None = None

    def __str__(self) -> str:
        return str(self.path) if self.part is None else f"{self.path}#{self.part}"


def parse_reference(text: str, root: Path | None = None) -> ImageReference:
    """Read `scan.nii.gz#axial=90` as a path (below `root`, if given) and a part."""
    name, mark, part = text.rpartition("#")
    if not mark or "=" not in part or "/" in part:  # a `#` that belongs to the file name
        name, part = text, ""
    return ImageReference(Path(name) if root is None else root / name, part or None)


def open_image(
    reference: ImageReference | str | Path, *, max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """Return the image as mode RGB, upright (EXIF rotation applied), at its own size.

    16-bit and floating-point pixels are scaled from their own range to 8 bits, without the 0.5
    percent at either end; transparent pixels become black, as they are shown over nothing (an image
    of nothing else is refused).

    Raises
    ------
    UnreadableImage
        No image, a truncated or damaged one, one of a single value, another format, more than
        `max_pixels` pixels, one side over 64 times the other, a part that is not there.
    OSError
        The file itself cannot be opened or read.
    """
    if not isinstance(reference, ImageReference):
        reference = ImageReference(Path(reference))
    path, part = reference
    with path.open("rb") as file:
        return _open(file, part, max_pixels, path)


def open_bytes(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Open an image that is no file of its own, from its bytes; as `open_image` of a whole file.

    Raises
    ------
    UnreadableImage
        As `open_image`, and for a NIfTI volume, of which no slice can be named.
    """
    return _open(io.BytesIO(data), None, max_pixels, None)


def _open(file: BinaryIO, part: str | None, max_pixels: int, path: Path | None) -> Image.Image:
    from shared.imaging.dicom import is_dicom, open_dicom
    from shared.imaging.nifti import is_nifti, open_nifti

    head = file.read(352)
    if not head:
        raise UnreadableImage("the file is empty")
    file.seek(0)
    if is_dicom(head):
        image = open_dicom(file, part, max_pixels)
    elif is_nifti(file, head):
        if path is None:
            raise UnreadableImage(
                "a NIfTI volume inside another file or a bucket: make it a file, and name its "
                "slices"
            )
        image = open_nifti(path, part, max_pixels)
    else:
        image = _open_with_pillow(file, part, max_pixels)
    return _of_several_values(image)


def _open_with_pillow(file: BinaryIO, part: str | None, max_pixels: int) -> Image.Image:
    try:
        image: Image.Image = Image.open(file, formats=FORMATS)
        page = 0 if part is None else frame_number(part, getattr(image, "n_frames", 1))
        if part is not None:
            image.seek(page)
        check_size(image.width, image.height, max_pixels)
        deep = deep_of(image)
        image.load()
        check_whole(image, file)
        if deep.rawmode is not None:
            return Image.fromarray(shown_colour(image, deep.rawmode, file, page), "RGB")
        check_deep_rest(image, file)
        image = ImageOps.exif_transpose(image)
        levels = shown_gray(image, deep)
        return _over_black(image) if levels is None else rgb(levels)
    except UnreadableImage:
        raise
    except Image.DecompressionBombError:
        raise UnreadableImage(f"more than {max_pixels} pixels") from None
    except UnidentifiedImageError:
        file.seek(0)
        if file.read(4) in _TIFF:
            raise UnreadableImage(
                "a TIFF whose numbers are laid out in a way that is not read: save 8 or 16 bits a "
                "channel, or one channel of 32"
            ) from None
        raise UnreadableImage(
            f"not an image of a known format (DICOM, NIfTI, {', '.join(FORMATS)})"
        ) from None
    # Pillow's decoders raise what their parsing stumbles over: OSError, SyntaxError, ...
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UnreadableImage(f"a broken image: {type(error).__name__}: {reason}") from None


def _over_black(image: Image.Image) -> Image.Image:
    if image.mode == "La":
        image = image.convert("LA")  # the only mode that Pillow makes of it
    if image.mode in ("LA", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema() == (0, 0):
            raise UnreadableImage("every pixel is transparent")
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        image = Image.alpha_composite(black, image)
    return image.convert("RGB")


def _of_several_values(image: Image.Image) -> Image.Image:
    """Return an RGB image that shows something."""
    colours = image.getcolors(1)  # None where there are more
    if colours is not None:
        red, green, blue = np.asarray(colours[0][1]).tolist()
        value = red if red == green == blue else (red, green, blue)
        raise UnreadableImage(f"every pixel has the value {value}")
    return image
