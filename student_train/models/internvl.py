"""InternVL3 in transformers' format, and its tunes (`model_type: internvl`).

An InternViT tower, a pixel shuffle that joins four patches in one token, and a Qwen2 or Qwen3
decoder. S side of an image in pixels.

An image is shown as one square of 448 pixels, whose 32x32 patches become 16x16 tokens, row by row;
the tiles and the thumbnail that the model's own processor may add are left aside.
"""

from pathlib import Path

import torch

from shared.errors import UserError
from shared.recipe import ModelSection
from student_train.imagetext import ImageProcessor, Tokenizer
from student_train.models.base import BaseStudent, assemble, processor_size
from student_train.models.features import accept_lists
from student_train.models.folder import open_weights, read_config, weight_files
from student_train.models.pretrained import from_pretrained, load_part, own_tower

MODEL_TYPE = "internvl"


def load_internvl(
    folder: Path, section: ModelSection, dtype: torch.dtype, template: str | None
) -> BaseStudent:
    """Load an InternVL folder, strictly; its own chat template unless another is named."""
    from transformers import (
        AutoImageProcessor,
        AutoTokenizer,
        InternVLConfig,
        InternVLForConditionalGeneration,
    )

    files = weight_files(folder)
    own_tower(section, "InternVL")
    config = InternVLConfig.from_dict(read_config(folder))
    with open_weights(files) as readers:
        # the class ties where the file says nothing, whatever the checkpoint holds
        config.tie_word_embeddings = not any(name.endswith("lm_head.weight") for name in readers)
    model = from_pretrained(InternVLForConditionalGeneration, section, dtype, folder, config=config)
    accept_lists(model.model)
    tokenizer: Tokenizer = load_part(AutoTokenizer, folder, "tokenizer")
    processor: ImageProcessor = load_part(AutoImageProcessor, folder, "image processor")
    size, vision = processor_size(processor), config.vision_config
    side = int(size // vision.patch_size[0] * config.downsample_ratio)
    if (size, size) != tuple(vision.image_size) or side**2 != config.image_seq_length:
        raise UserError(
            f"{folder}: images of {size} pixels give {side}x{side} tokens, but its config.json "
            f"says images of {vision.image_size[0]} and {config.image_seq_length} tokens; copy the "
            "folder again"
        )
    return assemble(
        model,
        tokenizer,
        processor,
        template or "internvl",
        image_size=size,
        token_pixels=size // side,
    )
