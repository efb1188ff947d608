"""BMC-CLIP, the CLIP of BIOMEDICA: a training checkpoint of open_clip's ViT-L-14.

It went on from open_clip's weights commonpool_xl_clip_s13b_b90k, whose preprocessing it keeps.
"""

from shared.imaging.grid import Grid
from teacher_cache.teachers.base import Teacher, TeacherInfo, need_weights
from teacher_cache.teachers.checkpoints import find_weights, read_weights, tensors_below
from teacher_cache.teachers.open_clip_models import (
    open_clip_config,
    open_clip_tower,
    tag_settings,
)

FILE, BEGAN_WITH = "BMC_CLIP_CF.pt", "commonpool_xl_clip_s13b_b90k"
BMC_CLIP = TeacherInfo(
    "bmc-clip",
    "ViT-L-14",
    f"hub BIOMEDICA/BMC_CLIP_CF ({FILE})",
    "MIT",
    "16x16 @ 224",
    1024,
    "CLIP",
    gated=False,
)


def load_bmc_clip(info: TeacherInfo, weights: str | None, grid: Grid | None = None) -> Teacher:
    """Load it from its published file, a folder with it, or a hub id; its grid is its own."""
    tensors = read_weights(find_weights(need_weights(info, weights), (FILE,)))
    return open_clip_tower(
        info,
        open_clip_config(info.architecture),
        tensors_below(tensors, "visual.", info.name),
        tag_settings(info.architecture, BEGAN_WITH),
    )
