"""Qwen3-VL and its tunes (`model_type: qwen3_vl`).

A tower of full attention, mergers of four patches to one token, and a Qwen3 decoder. S side of an
image in pixels.

An image is shown as one square of 768 pixels, whose 48x48 patches become 24x24 tokens; the model's
own grids, which follow an image's shape, are left aside. What earlier layers of the tower make of
the image is added behind the first decoder layers (DeepStack), so a distillation layer stands above
them.
"""

from pathlib import Path

import torch

from shared.recipe import ModelSection
from student_train.imagetext import ImageProcessor, Tokenizer
from student_train.models.base import BaseStudent, assemble
from student_train.models.folder import read_config, weight_files
from student_train.models.pretrained import from_pretrained, load_part, own_tower
from student_train.models.qwen_vl import deepen_features, derive_inputs, largest_square, square_of

MODEL_TYPE = "qwen3_vl"


def load_qwen3_vl(
    folder: Path, section: ModelSection, dtype: torch.dtype, template: str | None
) -> BaseStudent:
    """Load a Qwen3-VL folder, strictly; its own chat template unless another is named."""
    from transformers import (
        AutoImageProcessor,
        AutoTokenizer,
        Qwen3VLConfig,
        Qwen3VLForConditionalGeneration,
    )

    weight_files(folder)
    own_tower(section, "Qwen3-VL")
    config = Qwen3VLConfig.from_dict(read_config(folder))
    model = from_pretrained(Qwen3VLForConditionalGeneration, section, dtype, folder, config=config)
    tokenizer: Tokenizer = load_part(AutoTokenizer, folder, "tokenizer")
    processor: ImageProcessor = load_part(AutoImageProcessor, folder, "image processor")
    size, side = square_of(config.vision_config, largest_square(folder))
    derive_inputs(model, config.vision_config, config.image_token_id, side**2)
    deepen_features(model.model, config.text_config.hidden_size)
    return assemble(
        model,
        tokenizer,
        processor,
        template or "qwen3_vl",
        image_size=size,
        token_pixels=size // side,
    )
