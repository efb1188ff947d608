"""A tiny student with random weights in LLaVA's layout: to try every command without a download.

A CLIP vision tower, LLaVA's two-layer projector and a Llama decoder, as transformers publishes
them (`LlavaForConditionalGeneration`), with a tokenizer of one token a byte. It knows nothing:
its answers are noise, and only training gives its patches and attention a meaning.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from shared.errors import UserError
from shared.imaging.grid import Grid

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

PATCH = 14  # pixels, as in the published CLIP towers
IMAGE_TOKEN = "<image>"
TEMPLATE = "vicuna_v1"
# transformers starts every matrix with a standard deviation of 0.02, which is made for widths of
# thousands; at these widths attention would be uniform and all patch tokens alike.
GAIN = 6.0


def write_tiny_student(
    folder: Path, grid: Grid, *, width: int = 64, layers: int = 4, seed: int = 0
) -> None:
    """Write a student that sees `grid` patches as a folder that `model.name` of a recipe takes.

    Parameters
    ----------
    folder
        New or empty.
    grid
        A square one, as LLaVA's.
    width, layers
        Of the decoder; a multiple of 8. The vision tower has half the width and two layers.

    Raises
    ------
    UserError
        The grid is not square, the width is no multiple of 8, or the folder holds something.
    """
    import torch
    from transformers import CLIPImageProcessor

    from student_train.models.base import make_base
    from student_train.models.saving import save_base

    if grid.rows != grid.columns:
        raise UserError(f"a LLaVA student sees a square of patches, not {grid}; give --grid 12x12")
    if width < 8 or width % 8 or layers < 1:
        raise UserError("give --width a multiple of 8 and --layers at least 1")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is not an empty folder; choose another --out")
    tokenizer = _byte_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _model(tokenizer, grid, width, layers)
    side = {"height": grid.rows * PATCH, "width": grid.columns * PATCH}
    processor = CLIPImageProcessor(size=side, crop_size=side)
    save_base(make_base(model, tokenizer, processor, TEMPLATE), folder)


def _model(
    tokenizer: "PreTrainedTokenizerFast", grid: Grid, width: int, layers: int
) -> "LlavaForConditionalGeneration":
    import torch
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
    )

    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = CLIPVisionConfig(
        hidden_size=width // 2,
        intermediate_size=width,
        num_hidden_layers=3,  # LLaVA reads the last but one
        num_attention_heads=2,
        image_size=grid.rows * PATCH,
        patch_size=PATCH,
        projection_dim=width // 2,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        image_seq_length=grid.size,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )
    model = LlavaForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and "embed" not in name:
                parameter.mul_(GAIN)
    return model


def _byte_tokenizer() -> "PreTrainedTokenizerFast":
    """Return a tokenizer without merges: every text has an encoding, one token a byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: index for index, letter in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    fast.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]})
    return fast
