"""Any folder in transformers' own `LlavaForConditionalGeneration` format."""

from pathlib import Path
from typing import TYPE_CHECKING

from shared.errors import UserError
from shared.recipe import ModelSection
from student_train.models.base import BaseStudent, make_base
from student_train.models.folder import read_config, weight_files
from student_train.models.pretrained import from_pretrained, load_part

if TYPE_CHECKING:
    import torch

MODEL_TYPE = "llava"


def load_llava(
    folder: Path, section: ModelSection, dtype: "torch.dtype", template: str | None
) -> BaseStudent:
    """Load a transformers Llava folder, strictly.

    Parameters
    ----------
    dtype
        The torch dtype to hold the weights in.
    template
        Name of the prompt template; None takes the one in the folder's config.
    """
    from transformers import (
        AutoImageProcessor,
        AutoTokenizer,
        LlavaConfig,
        LlavaForConditionalGeneration,
    )

    weight_files(folder)
    if section.vision_weights != "checkpoint":
        raise UserError(
            "model.vision_weights=openai applies to LLaVA-Med's original checkpoint; a "
            "transformers folder has its own"
        )
    config = LlavaConfig.from_dict(read_config(folder))
    model = from_pretrained(LlavaForConditionalGeneration, section, dtype, folder, config=config)
    tokenizer = load_part(AutoTokenizer, folder, "tokenizer")
    processor = load_part(AutoImageProcessor, folder, "image processor")
    return make_base(model, tokenizer, processor, template)
