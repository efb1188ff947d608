"""An image as one vector: what a teacher itself makes of its tokens.

| teacher | the vector |
|---|---|
| with a text space (open_clip, UniMed-CLIP, BiomedCLIP) | its image embedding |
| timm's ViTs | the final norm's CLS token, as timm pools it |
| `hf:` | the tower's pooled output: the probe's of a SigLIP, else the CLS token's |
| timm's maps | the mean over places |

B images, M places, c width of the vector.
"""

from typing import Protocol, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from teacher_cache.teachers.base import Teacher
from teacher_cache.teachers.timm_maps import TimmMap
from teacher_cache.teachers.transformers_models import TransformersViT


class _Pooling(Protocol):
    """What is read of timm's `VisionTransformer`."""

    def forward_features(self, x: Tensor) -> Tensor: ...
    def forward_head(self, x: Tensor, pre_logits: bool) -> Tensor: ...


class _Output(Protocol):
    """What is read of what a transformers tower returns; not every one has every field."""

    last_hidden_state: Tensor


@torch.inference_mode()
def image_vectors(teacher: Teacher, pixels: Float[Tensor, "B 3 size size"]) -> Float[Tensor, "B c"]:
    """Return vectors of length 1, float32; pixels as for `encode`."""
    return nn.functional.normalize(_pooled(teacher, pixels).float(), dim=-1)


def has_text_space(teacher: Teacher) -> bool:
    """Whether `image_vectors` can be compared with the embeddings of the teacher's texts.

    SigLIP's towers have no projection: their pooled outputs are the embeddings.
    """
    siglip = isinstance(teacher.model, TransformersViT) and teacher.model.head is not None
    return teacher.projection is not None or siglip


def _pooled(teacher: Teacher, pixels: Tensor) -> Tensor:
    model = teacher.model
    if isinstance(model, TimmMap):
        places: Tensor = model(pixels)
        return places.mean(1)
    if isinstance(model, TransformersViT):
        found = cast("_Output", model.tower(pixels))
        model.row.clear()
        for name in ("pooler_output", "summary"):  # the second is RADIO's
            pooled: Tensor | None = getattr(found, name, None)
            if pooled is not None:
                return pooled
        return found.last_hidden_state[:, 0]
    if not hasattr(model, "forward_head"):  # open_clip's: pooled, normed and projected
        embedded: Tensor = model(pixels)
        return embedded
    timm = cast("_Pooling", model)
    token = timm.forward_head(timm.forward_features(pixels), pre_logits=True)
    return token if teacher.projection is None else token @ teacher.projection.to(token)
