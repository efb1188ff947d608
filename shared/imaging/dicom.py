"""DICOM images through pydicom, as a viewer shows them first.

Stored values go through the modality LUT (or rescale), then the first window (or VOI LUT); without one, the image's
own range is used. MONOCHROME1 is inverted, colour is converted to RGB. A multi-frame image without `frame=N` (0-based)
shows its middle frame: the first is often empty. Compressed pixel data is decoded by pylibjpeg.
"""

from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shared.imaging.images import UnreadableImage, check_size, frame_number, gray_to_rgb


def open_dicom(file: BinaryIO, part: str | None, max_pixels: int) -> Image.Image:
    """Return one frame as RGB.

    Raises UnreadableImage where there is no pixel data, it cannot be decoded, or it is more than `max_pixels` pixels.
    """
    import pydicom

    try:
        dataset = pydicom.dcmread(file)
    except Exception as error:  # a broken file surfaces as many kinds of errors
        raise UnreadableImage(f"broken DICOM file: {type(error).__name__}: {str(error)[:200]}") from None
    if "PixelData" not in dataset and "FloatPixelData" not in dataset and "DoubleFloatPixelData" not in dataset:
        raise UnreadableImage("a DICOM file without pixel data")
    try:
        check_size(int(dataset.Columns), int(dataset.Rows), max_pixels)
        frames = int(dataset.get("NumberOfFrames") or 1)
        index = frames // 2 if part is None else frame_number(part, frames)
        return _shown(dataset, _frame(dataset, index))
    except UnreadableImage:
        raise
    except Exception as error:
        raise UnreadableImage(f"pixel data not decoded: {type(error).__name__}: {str(error)[:200]}") from None


def _frame(dataset: Any, index: int) -> NDArray[Any]:
    """Decode one frame: (rows, columns) or (rows, columns, 3) in RGB."""
    from pydicom.pixels import pixel_array

    return np.asarray(pixel_array(dataset, index=index))


def _shown(dataset: Any, pixels: NDArray[Any]) -> Image.Image:
    from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut

    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        return _colour(
            apply_color_lut(pixels, dataset), 16 if int(dataset.RedPaletteColorLookupTableDescriptor[2]) > 8 else 8
        )
    if pixels.ndim == 3:
        return _colour(pixels, int(dataset.BitsStored))
    values = apply_modality_lut(pixels, dataset)
    values = np.asarray(apply_voi_lut(values, dataset, index=0), dtype=np.float64)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        values = -values
    return gray_to_rgb(values)


def _colour(pixels: NDArray[Any], bits: int) -> Image.Image:
    eight = pixels if bits <= 8 else pixels.astype(np.float64) * 255 / (2**bits - 1)
    return Image.fromarray(np.rint(eight).astype(np.uint8)[..., :3], "RGB")
