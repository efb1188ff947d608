"""LLaVA-Med-1.5 in its own layout (`model_type: llava_mistral`).

Published as `microsoft/llava-med-v1.5-mistral-7b`.

The checkpoint holds a fine-tuned vision tower, but LLaVA-Med's public loader (and the authors')
leaves it aside and loads OpenAI's CLIP afterwards; a conversion to transformers' format keeps it.
These are two different models, so the recipe chooses: `model.vision_weights: checkpoint | openai`,
the latter being the authors'.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from shared.recipe import ModelSection
from student_train.models.base import BaseStudent
from student_train.models.original import load_original
from student_train.models.pieces import piece_tokenizer

if TYPE_CHECKING:
    import torch

MODEL_TYPE = "llava_mistral"


def load_llava_med(
    folder: Path, section: ModelSection, dtype: "torch.dtype", template: str | None
) -> BaseStudent:
    """Load an original LLaVA-Med folder.

    The authors' training template `vicuna_v1` unless another is named.
    """
    from transformers import LlamaTokenizer, MistralConfig

    return load_original(
        folder,
        section,
        dtype,
        template=template or "vicuna_v1",
        text_class=MistralConfig,
        tokenizer=piece_tokenizer(LlamaTokenizer, folder),
        padding="<pad>",
    )
