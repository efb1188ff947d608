"""SmolVLM and SmolVLM2 (`model_type: smolvlm`).

A SigLIP tower, a pixel-shuffling connector, a Llama decoder.

An image is shown as one square (SmolVLM's "global" image) without the tiles its own processor may
add, so that image tokens stay one grid: 512 pixels, patches of 16 and a shuffle of 4 give 8x8.
"""

from pathlib import Path

import torch
from torch import Tensor

from shared.recipe import ModelSection
from student_train.imagetext import ImageFeatures, ImageProcessor, Multimodal, Tokenizer
from student_train.models.base import BaseStudent, assemble
from student_train.models.folder import read_config, weight_files
from student_train.models.pretrained import from_pretrained, load_part, own_tower

MODEL_TYPE = "smolvlm"


def load_smolvlm(
    folder: Path, section: ModelSection, dtype: torch.dtype, template: str | None
) -> BaseStudent:
    """Load a SmolVLM folder, strictly; its own chat template unless another is named."""
    from transformers import (
        AutoImageProcessor,
        AutoTokenizer,
        SmolVLMConfig,
        SmolVLMForConditionalGeneration,
    )

    weight_files(folder)
    own_tower(section, "SmolVLM")
    config = SmolVLMConfig.from_dict(read_config(folder))
    model = from_pretrained(SmolVLMForConditionalGeneration, section, dtype, folder, config=config)
    _accept_flat_images(model.model)
    vision = model.config.vision_config
    tokenizer: Tokenizer = load_part(AutoTokenizer, folder, "tokenizer")
    processor: ImageProcessor = load_part(AutoImageProcessor, folder, "image processor")
    return assemble(
        model,
        tokenizer,
        processor,
        template or "smolvlm",
        image_size=vision.image_size,
        token_pixels=vision.patch_size * int(getattr(model.config, "scale_factor")),  # noqa: B009,
    )


def _accept_flat_images(model: Multimodal) -> None:
    """Let `get_image_features` take images (P, 3, S, S) as Llava's does.

    P galleries of one image.
    """
    own = model.get_image_features

    def get_image_features(
        pixel_values: Tensor, *others: object, **options: object
    ) -> ImageFeatures:
        galleries = pixel_values.unsqueeze(1) if pixel_values.ndim == 4 else pixel_values
        return own(galleries, *others, **options)

    model.get_image_features = get_image_features  # type: ignore[method-assign]
