"""Lingshu and other Qwen2.5-VL models (`model_type: qwen2_5_vl`).

A tower with window attention, a merger of four patches to one token, and a Qwen2 decoder. S side
of an image in pixels.

An image is shown as one square of 672 pixels, whose 48x48 patches become 24x24 tokens; the model's
own grids, which follow an image's shape, are left aside.
"""

from pathlib import Path

import torch

from shared.recipe import ModelSection
from student_train.imagetext import ImageProcessor, Tokenizer
from student_train.models.base import BaseStudent, assemble
from student_train.models.folder import read_config, weight_files
from student_train.models.pretrained import from_pretrained, load_part, own_tower
from student_train.models.qwen_vl import derive_inputs, largest_square, square_of

MODEL_TYPE = "qwen2_5_vl"


def load_qwen2_5_vl(
    folder: Path, section: ModelSection, dtype: torch.dtype, template: str | None
) -> BaseStudent:
    """Load a Qwen2.5-VL folder, strictly; its own chat template unless another is named."""
    from transformers import (
        AutoImageProcessor,
        AutoTokenizer,
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
    )

    weight_files(folder)
    own_tower(section, "Qwen2.5-VL")
    config = Qwen2_5_VLConfig.from_dict(read_config(folder))
    model = from_pretrained(
        Qwen2_5_VLForConditionalGeneration, section, dtype, folder, config=config
    )
    tokenizer: Tokenizer = load_part(AutoTokenizer, folder, "tokenizer")
    processor: ImageProcessor = load_part(AutoImageProcessor, folder, "image processor")
    size, side = square_of(config.vision_config, largest_square(folder))
    derive_inputs(model, config.vision_config, config.image_token_id, side**2)
    return assemble(
        model,
        tokenizer,
        processor,
        template or "qwen2_5_vl",
        image_size=size,
        token_pixels=size // side,
    )
