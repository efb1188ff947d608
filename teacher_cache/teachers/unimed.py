"""UniMed-CLIP: a training checkpoint whose `visual.*` tensors are open_clip's VisionTransformer."""

from shared.imaging.grid import Grid
from teacher_cache.teachers.base import Teacher, TeacherInfo, need_weights
from teacher_cache.teachers.checkpoints import find_weights, read_weights, tensors_below
from teacher_cache.teachers.open_clip_models import open_clip_config, open_clip_tower
from teacher_cache.teachers.trained import OPEN_CLIP

LARGE = TeacherInfo(
    "unimed-l",
    "ViT-L-14-336-quickgelu",
    "unimed_clip_vit_l14_base_text_encoder.pt from github.com/mbzuai-oryx/UniMed-CLIP",
    "CC BY-NC 4.0: no commercial use",
    "24x24 @ 336",
    1024,
    "BiomedBERT",
    gated=False,
)
BASE = TeacherInfo(
    "unimed-b",
    "ViT-B-16-quickgelu",
    "unimed_clip_vit_b16.pt from github.com/mbzuai-oryx/UniMed-CLIP",
    "CC BY-NC 4.0: no commercial use",
    "14x14 @ 224",
    768,
    "BiomedBERT",
    gated=False,
)


def load_unimed(info: TeacherInfo, weights: str | None, grid: Grid | None = None) -> Teacher:
    """Load one of the two from its published file, a folder with it, or a hub id."""
    published = info.source.partition(" ")[0]
    tensors = read_weights(find_weights(need_weights(info, weights), (published,)))
    return open_clip_tower(
        info,
        open_clip_config(info.architecture),
        tensors_below(tensors, "visual.", info.name),
        OPEN_CLIP._replace(quick_gelu=True),
    )
