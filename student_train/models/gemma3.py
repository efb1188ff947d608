"""MedGemma and other Gemma 3 models with pictures (`model_type: gemma3`).

A SigLIP tower, a projector that pools patches, and a decoder most of whose layers see a sliding
window. B rows of a batch, T tokens, S side of an image in pixels.

An image is shown as one square of 896 pixels, whose 64x64 patches become 16x16 tokens; the model's
own pan and scan is left aside. Tokens of one image attend to each other in both directions. The
model draws that mask from `token_type_ids`, and without them it answers as another model without a
word: here they follow from the token ids inside every forward.
"""

from math import isqrt
from pathlib import Path

import torch
from torch import Tensor, nn

from shared.errors import UserError
from shared.recipe import ModelSection
from student_train.imagetext import ImageProcessor, Inputs, Tokenizer, cached
from student_train.models.base import BaseStudent, assemble, processor_size
from student_train.models.features import accept_lists
from student_train.models.folder import read_config, weight_files
from student_train.models.pretrained import from_pretrained, load_part, own_tower

MODEL_TYPE = "gemma3"


def load_gemma3(
    folder: Path, section: ModelSection, dtype: torch.dtype, template: str | None
) -> BaseStudent:
    """Load a Gemma 3 folder, strictly; its own chat template unless another is named."""
    from transformers import (
        AutoImageProcessor,
        AutoTokenizer,
        Gemma3Config,
        Gemma3ForConditionalGeneration,
    )

    weight_files(folder)
    own_tower(section, "Gemma 3")
    if section.attention == "flash_attention_2":
        raise UserError(
            "Gemma 3 masks the tokens of an image in both directions, which FlashAttention leaves "
            "out without a word; set model.attention=sdpa or eager"
        )
    config = Gemma3Config.from_dict(read_config(folder))
    model = from_pretrained(Gemma3ForConditionalGeneration, section, dtype, folder, config=config)
    accept_lists(model.model)
    model.model.register_forward_pre_hook(_TokenTypes(config.image_token_id), with_kwargs=True)
    tokenizer: Tokenizer = load_part(AutoTokenizer, folder, "tokenizer")
    processor: ImageProcessor = load_part(AutoImageProcessor, folder, "image processor")
    if tokenizer("").input_ids != [tokenizer.bos_token_id]:
        raise UserError(
            f"{folder}: its tokenizer does not begin a text with {tokenizer.bos_token_id} (<bos>), "
            "as Gemma 3 is trained; copy all tokenizer files again from the model's own folder"
        )
    size, vision = processor_size(processor), config.vision_config
    tokens, patches = isqrt(config.mm_tokens_per_image), vision.image_size // vision.patch_size
    if size != vision.image_size or tokens**2 != config.mm_tokens_per_image or patches % tokens:
        raise UserError(
            f"{folder}: images of {size} pixels, patches of {vision.patch_size}, a tower of "
            f"{vision.image_size} and {config.mm_tokens_per_image} tokens an image do not fit each "
            "other; copy the folder again"
        )
    return assemble(
        model,
        tokenizer,
        processor,
        template or "gemma3",
        image_size=size,
        token_pixels=size // tokens,
    )


class _TokenTypes:
    """Before the multimodal model: say which tokens are of images, where the caller does not."""

    def __init__(self, image_token_id: int) -> None:
        self.image_token_id = image_token_id

    def __call__(
        self, module: nn.Module, args: tuple[object, ...], kwargs: Inputs
    ) -> tuple[tuple[object, ...], Inputs] | None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        if kwargs.get("token_type_ids") is not None or not isinstance(ids, Tensor):
            return None
        types = (ids == self.image_token_id).long()  # (B, T)
        if not bool(types.any()):
            return None  # text, or an answer's next token
        if cached(kwargs) or isinstance(kwargs.get("attention_mask"), dict):
            raise UserError(
                "this model masks an image by the token types of the whole prompt: give image and "
                "prompt in one forward, with a cache that grows"
            )
        return args, kwargs | {"token_type_ids": types}
