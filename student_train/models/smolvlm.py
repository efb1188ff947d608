"""SmolVLM and SmolVLM2 (`model_type: smolvlm`): a SigLIP tower, a pixel-shuffling connector, a Llama decoder.

An image is shown as one square (SmolVLM's "global" image) without the tiles its own processor may add, so that image
tokens stay one grid: 512 pixels, patches of 16 and a shuffle of 4 give 8x8.
"""

from pathlib import Path
from typing import Any

from shared.console import UserError
from shared.recipe import ModelSection
from student_train.models.base import BaseStudent, assemble
from student_train.models.folder import weight_files
from student_train.models.llava import from_pretrained, load_part

MODEL_TYPE = "smolvlm"


def load_smolvlm(folder: Path, section: ModelSection, dtype: Any, template: str | None) -> BaseStudent:
    """Load a SmolVLM folder, strictly; its own chat template unless another is named."""
    from transformers import AutoImageProcessor, AutoTokenizer, SmolVLMForConditionalGeneration

    weight_files(folder)
    if section.vision_weights != "checkpoint":
        raise UserError("model.vision_weights=openai applies to LLaVA-Med only; SmolVLM brings its own tower")
    model = from_pretrained(SmolVLMForConditionalGeneration, section, dtype, folder)
    model.model.register_forward_pre_hook(_one_gallery, with_kwargs=True)
    vision = model.config.vision_config
    return assemble(
        model,
        load_part(AutoTokenizer, folder, "tokenizer"),
        load_part(AutoImageProcessor, folder, "image processor"),
        template or "smolvlm",
        image_size=vision.image_size,
        token_pixels=vision.patch_size * model.config.scale_factor,
    )


def _one_gallery(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Put the images (P, 3, S, S) of a batch into the one gallery (1, P, 3, S, S) that SmolVLM's forward reads."""
    pixels = kwargs.get("pixel_values")
    if pixels is not None and pixels.ndim == 4:
        kwargs = {**kwargs, "pixel_values": pixels.unsqueeze(0)}
    return args, kwargs
