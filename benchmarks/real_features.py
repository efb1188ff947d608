"""Features of real medical images from the packaged ViT-S/14, for benchmarks and tests.

Images: twelve distinct DICOM files of the package pydicom-data (radiographs, MR, CT, ultrasound),
eight MNI152 slices.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from shared.imaging.geometry import Box
from shared.imaging.grid import Grid
from shared.imaging.images import parse_reference
from teacher_cache.encoder import encode
from teacher_cache.stream import prepare
from teacher_cache.teachers.dinov2_small import dinov2_small

DICOM = [
    "RG1_UNCR",
    "RG3_UNCR",
    "MR2_UNCR",
    "693_UNCR",
    "JPEG-LL",
    "JPEG2000_UNC",
    "MR-SIEMENS-DICOM-WithOverlays",
    "OBXXXX1A",
    "US1_UNCR",
    "color-px",
    "eCT_Supplemental",
    "gdcm-US-ALOKA-16",
]
SLICES = [f"axial={place}" for place in (50, 75, 100, 125)] + [
    f"coronal={place}" for place in (80, 110, 130, 150)
]


class Features(NamedTuple):
    """E_v (B, M, b), E_a (B, M) and the content boxes of B images, on `grid`."""

    tokens: Tensor
    attention: Tensor
    boxes: list[Box]
    grid: Grid


def real_images(limit: int | None = None) -> list[str]:
    """Return references to the images that are installed."""
    spec = find_spec("data_store")
    folder = Path(next(iter(spec.submodule_search_locations or []))) / "data" if spec else Path()
    found = [str(folder / f"{name}.dcm") for name in DICOM if (folder / f"{name}.dcm").is_file()]
    atlas = find_spec("nilearn")
    if atlas is not None and atlas.submodule_search_locations:
        root = Path(next(iter(atlas.submodule_search_locations)))
        for volume in root.rglob("mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"):
            found += [f"{volume}#{part}" for part in SLICES]
    return found[:limit]


def real_features(grid: Grid, limit: int | None = None) -> Features:
    """Encode the images by a teacher whose own grid is `grid` (`pad` geometry).

    14x14 patches are 196 x 196 pixels.
    """
    teacher = dinov2_small(grid)
    prepared = [
        prepare(parse_reference(text), teacher.preprocessing, "pad") for text in real_images(limit)
    ]
    pixels = torch.stack([image for image, _ in prepared])
    encoded = [encode(teacher, batch) for batch in pixels.split(4)]
    tokens = torch.cat([one.tokens for one in encoded])
    attention = torch.cat([one.attention for one in encoded if one.attention is not None])
    return Features(tokens.clone(), attention.clone(), [box for _, box in prepared], grid)
