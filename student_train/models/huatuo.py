"""HuatuoGPT-Vision-7B in its own layout (`model_type: llava_qwen2`).

Published as `FreedomIntelligence/HuatuoGPT-Vision-7B`.

Its vision tower is always the checkpoint's. The authors train with OpenAI's CLIP and test with the
checkpoint's; here training and inference see the same tower.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from shared.recipe import ModelSection
from student_train.models.base import BaseStudent
from student_train.models.original import load_original
from student_train.models.pieces import piece_tokenizer
from student_train.models.pretrained import own_tower

if TYPE_CHECKING:
    import torch

MODEL_TYPE = "llava_qwen2"


def load_huatuo(
    folder: Path, section: ModelSection, dtype: "torch.dtype", template: str | None
) -> BaseStudent:
    """Load an original HuatuoGPT-Vision folder.

    The authors' training template `huatuo_v1` unless another is named.
    """
    from transformers import Qwen2Config, Qwen2Tokenizer

    own_tower(section, "HuatuoGPT-Vision")
    return load_original(
        folder,
        section,
        dtype,
        template=template or "huatuo_v1",
        text_class=Qwen2Config,
        tokenizer=piece_tokenizer(Qwen2Tokenizer, folder),
        padding=None,
    )
