"""Open any image file as RGB, and name it by its content.

What a file is follows from its bytes, never from its name: DICOM (`shared.imaging.dicom`), NIfTI
(`shared.imaging.nifti`), else Pillow with the formats listed here. Whatever cannot be shown
faithfully raises `UnreadableImage` with a reason that names no path, so that it may go into a
quarantine list that others read.
"""

import warnings
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from shared.imaging.pixels import UnreadableImage, check_size, frame_number, gray_to_rgb

FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "JPEG2000", "PPM")
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

    16-bit and floating-point pixels are scaled from their own range to 8 bits; transparent pixels
    become black, as they are shown over nothing (an image of nothing else is refused).

    Raises
    ------
    UnreadableImage
        No image, a truncated one, another format, more than `max_pixels` pixels, a part that is not
        there.
    OSError
        The file itself cannot be opened or read.
    """
    from shared.imaging.dicom import is_dicom, open_dicom
    from shared.imaging.nifti import is_nifti, open_nifti

    if not isinstance(reference, ImageReference):
        reference = ImageReference(Path(reference))
    path, part = reference
    with path.open("rb") as file:
        head = file.read(352)
        if not head:
            raise UnreadableImage("the file is empty")
        file.seek(0)
        if is_dicom(head):
            return open_dicom(file, part, max_pixels)
        if is_nifti(path, head):
            return open_nifti(path, part, max_pixels)
        return _open_with_pillow(file, part, max_pixels)


def _open_with_pillow(file: BinaryIO, part: str | None, max_pixels: int) -> Image.Image:
    try:
        image: Image.Image = Image.open(file, formats=FORMATS)
        if part is not None:
            image.seek(frame_number(part, getattr(image, "n_frames", 1)))
        check_size(image.width, image.height, max_pixels)
        image.load()
        if image.format in ("JPEG", "MPO") and not _jpeg_ends(file):
            raise UnreadableImage("a truncated JPEG: its end marker is missing")
        image = ImageOps.exif_transpose(image)
    except UnreadableImage:
        raise
    except Image.DecompressionBombError:
        raise UnreadableImage(f"more than {max_pixels} pixels") from None
    except UnidentifiedImageError:
        raise UnreadableImage(
            f"not an image of a known format (DICOM, NIfTI, {', '.join(FORMATS)})"
        ) from None
    # Pillow's decoders raise what their parsing stumbles over: OSError, SyntaxError, ...
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UnreadableImage(f"a broken image: {type(error).__name__}: {reason}") from None
    return _to_rgb(image)


def _jpeg_ends(file: BinaryIO) -> bool:
    """Whether an end marker follows the first scan.

    A file whose tail a crash left as zeros decodes without error.
    """
    file.seek(0)
    data = file.read()
    position = 2
    while data[position : position + 1] == b"\xff" and data[position + 1 : position + 2] != b"\xda":
        filler = data[position + 1 : position + 2] == b"\xff"
        position += 1 if filler else 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return data.find(b"\xff\xd9", position) >= 0


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "I;16", "I;16B", "I;16L", "I;16N", "F"):
        return gray_to_rgb(np.asarray(image))
    if image.mode in ("LA", "PA", "RGBA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema() == (0, 0):
            raise UnreadableImage("every pixel is transparent")
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        image = Image.alpha_composite(black, image)
    return image.convert("RGB")
