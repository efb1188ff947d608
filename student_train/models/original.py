"""LLaVA's own checkpoint layout into transformers' `LlavaForConditionalGeneration`.

V vocabulary, d student width. The layout's model types are `llava_mistral`,
`llava_qwen2` and `llava_llama`.

| original key | here |
|---|---|
| `model.vision_tower.vision_tower.vision_model.X` | `model.vision_tower.X` |
| `model.mm_projector.{0,2}.X` | `model.multi_modal_projector.linear_{1,2}.X` |
| `model.{embed_tokens,layers,norm}...` | `model.language_model....` |
| `lm_head.weight` | `lm_head.weight` |

Source: the key lists of the published checkpoints and the conversion table that transformers 4
shipped for Llava.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from shared.errors import UserError
from shared.recipe import ModelSection
from student_train.imagetext import ImageProcessor, ImageTextConfig, TextConfig, Tokenizer
from student_train.models.base import BaseStudent, make_base
from student_train.models.folder import open_weights, read_config, weight_files
from student_train.models.pretrained import Loading, PartClass, from_pretrained, load_part

IMAGE_TOKEN = "<image>"
TOWER = "model.vision_tower."

_RENAMED = {
    "model.vision_tower.vision_tower.vision_model.": TOWER,
    "model.mm_projector.0.": "model.multi_modal_projector.linear_1.",
    "model.mm_projector.2.": "model.multi_modal_projector.linear_2.",
    "model.embed_tokens.": "model.language_model.embed_tokens.",
    "model.layers.": "model.language_model.layers.",
    "model.norm.": "model.language_model.norm.",
    "lm_head.": "lm_head.",
}
# Buffers that older software saved and that are computed here, and LLaVA-1.6's separator, never
# read in this layout.
_LEFT_OUT = ("rotary_emb.inv_freq", "embeddings.position_ids", "model.image_newline")

# openai/clip-vit-large-patch14-336, the tower of both published models.
CLIP_LARGE_336: dict[str, object] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "hidden_act": "quick_gelu",
    "projection_dim": 768,
}

_TEXT_FIELDS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "rms_norm_eps",
    "vocab_size",
    "max_position_embeddings",
    "hidden_act",
    "tie_word_embeddings",
    "bos_token_id",
    "eos_token_id",
    "sliding_window",
    "use_sliding_window",
    "max_window_layers",
)


def rename(key: str) -> str | None:
    """Return the name that an original key has here; None for one that is left out.

    Raises
    ------
    UserError
        A key that this layout does not have.
    """
    if key.endswith(_LEFT_OUT):
        return None
    for old, new in _RENAMED.items():
        if key.startswith(old):
            return new + key.removeprefix(old)
    raise UserError(
        f"weight {key!r} belongs to no part of a LLaVA checkpoint; is this the model its config "
        "names?"
    )


def llava_config(
    original: Mapping[str, object], text_class: Callable[..., TextConfig], folder: Path
) -> ImageTextConfig:
    """Return the `LlavaConfig` of an original `config.json`.

    Image token and resized vocabulary are still unset.

    Parameters
    ----------
    text_class
        transformers' configuration of the language model, such as `MistralConfig`.
    folder
        The checkpoint folder, in which a relative `mm_vision_tower` lies.
    """
    from transformers import CLIPVisionConfig, LlavaConfig

    for key, needed in (
        ("mm_projector_type", "mlp2x_gelu"),
        ("mm_vision_select_feature", "patch"),
        ("mm_use_im_start_end", False),
        ("mm_use_im_patch_token", False),
    ):
        if original.get(key, needed) != needed:
            raise UserError(
                f"{folder}/config.json: {key} is {original[key]!r}; only {needed!r} can be loaded"
            )
    missing = [
        key for key in (*_TEXT_FIELDS[:9], "rope_theta", "mm_vision_tower") if key not in original
    ]
    if missing:
        raise UserError(
            f"{folder}/config.json lacks {', '.join(missing)}; copy it again from the model's own "
            "folder"
        )
    text = text_class(
        **{key: original[key] for key in _TEXT_FIELDS if key in original},
        rope_parameters={"rope_type": "default", "rope_theta": original["rope_theta"]},
    )
    vision = CLIPVisionConfig(**_vision_fields(str(original["mm_vision_tower"]), folder))
    config: ImageTextConfig = LlavaConfig(
        vision_config=vision,
        text_config=text,
        vision_feature_layer=original.get("mm_vision_select_layer", -2),
        vision_feature_select_strategy="default",
        projector_hidden_act="gelu",
        multimodal_projector_bias=True,
        image_seq_length=(vision.image_size // vision.patch_size) ** 2,
        tie_word_embeddings=bool(original.get("tie_word_embeddings", False)),
    )
    return config


def load_original(
    folder: Path,
    section: ModelSection,
    dtype: torch.dtype,
    *,
    template: str,
    text_class: Callable[..., TextConfig],
    tokenizer: Tokenizer,
    padding: str | None,
) -> BaseStudent:
    """Load a checkpoint in LLaVA's own layout, strictly.

    Parameters
    ----------
    padding
        A padding token to add beside `<image>`; None pads with the end-of-text token.
    """
    from transformers import CLIPImageProcessor, GenerationConfig, LlavaForConditionalGeneration

    config = llava_config(read_config(folder), text_class, folder)
    config.image_token_id, config.text_config.vocab_size = add_tokens(
        tokenizer, padding, config.text_config.vocab_size
    )
    with open_weights(weight_files(folder)) as readers:
        state = {
            name: read()
            for name, read in rename_all(readers).items()
            if section.vision_weights == "checkpoint" or not name.startswith(TOWER)
        }
        if section.vision_weights == "openai":
            state |= openai_tower(section.vision_path)
        for name in ("model.language_model.embed_tokens.weight", "lm_head.weight"):
            if name in state:
                state[name] = grow(state[name], config.text_config.vocab_size)
        compare(
            expected_shapes(config),
            {name: tuple(tensor.shape) for name, tensor in state.items()},
            folder,
        )
        model = from_pretrained(
            LlavaForConditionalGeneration, section, dtype, None, config=config, state_dict=state
        )
    if (folder / "generation_config.json").is_file():  # no folder is given to the loader above
        model.generation_config = load_part(GenerationConfig, folder, "generation_config.json")
    size = config.vision_config.image_size
    processor: ImageProcessor = CLIPImageProcessor(
        size={"shortest_edge": size}, crop_size={"height": size, "width": size}
    )
    return make_base(model, tokenizer, processor, template)


def rename_all(readers: Mapping[str, Callable[[], Tensor]]) -> dict[str, Callable[[], Tensor]]:
    """Rename every key; the values are not touched."""
    named = ((rename(key), read) for key, read in readers.items())
    return {name: read for name, read in named if name is not None}


def expected_shapes(config: ImageTextConfig) -> dict[str, tuple[int, ...]]:
    """Return every weight that `LlavaForConditionalGeneration(config)` has, with its shape.

    Allocates nothing.
    """
    from transformers import LlavaForConditionalGeneration

    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def compare(
    expected: Mapping[str, Sequence[int]], found: Mapping[str, Sequence[int]], folder: Path
) -> None:
    """Raise a `UserError` unless the two name the same weights in the same shapes."""
    missing, unexpected = (
        sorted(expected.keys() - found.keys()),
        sorted(found.keys() - expected.keys()),
    )
    if missing:
        hint = "copy the folder again"
        if all(name.startswith(TOWER) for name in missing):
            hint = "the checkpoint brings no vision tower; set model.vision_weights=openai"
        raise UserError(f"{folder}: {len(missing)} weights are missing, first {missing[0]}; {hint}")
    if unexpected:
        raise UserError(
            f"{folder}: {len(unexpected)} weights have no place in this model, first "
            f"{unexpected[0]}"
        )
    for name in sorted(expected):
        if tuple(expected[name]) != tuple(found[name]):
            raise UserError(
                f"{folder}: {name} is {tuple(found[name])}, but its config.json makes it "
                f"{tuple(expected[name])}"
            )


def add_tokens(tokenizer: Tokenizer, padding: str | None, rows: int) -> tuple[int, int]:
    """Add `<image>` and a padding token.

    Return the image token's id and the rows the embedding needs.

    As in transformers' own conversion: an embedding that the new tokens outgrow is padded to a
    multiple of 64, so that LLaVA-Med's 32000 rows become 32064 (`<image>` 32000, `<pad>` 32001);
    HuatuoGPT-Vision's 152064 rows have room for `<image>` at 151646.
    """
    from transformers import AddedToken

    tokenizer.add_tokens(
        [AddedToken(IMAGE_TOKEN, special=True, normalized=False)], special_tokens=True
    )
    if padding is not None:
        tokenizer.add_special_tokens(
            {"pad_token": AddedToken(padding, special=True, normalized=False)}
        )
    elif tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    needed = len(tokenizer)
    grown = rows if needed <= rows else -(-needed // 64) * 64
    return int(tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)), grown


def grow(weight: Tensor, rows: int) -> Tensor:
    """Append rows to an embedding (V, d) or head, each the mean of the old ones.

    None is ever read or learned: the image token's row is replaced by image features, padding is
    masked. A mean row of the head gives the mean logit, which no answer is sampled at.
    """
    if weight.shape[0] >= rows:
        return weight
    mean = weight.float().mean(0, keepdim=True).to(weight.dtype)
    return torch.cat([weight, mean.expand(rows - weight.shape[0], -1)])


@runtime_checkable
class _Tower(Protocol):
    def state_dict(self) -> dict[str, Tensor]: ...


def openai_tower(place: str) -> dict[str, Tensor]:
    """Read the vision tower of OpenAI's CLIP (a folder or hub id) under the names it has here."""
    from transformers import CLIPVisionModel

    from student_train.models.folder import checkpoint_folder

    folder = checkpoint_folder(place)
    weight_files(folder)
    parts: PartClass[tuple[_Tower, Loading]] = CLIPVisionModel
    tower, loading = load_part(parts, folder, "vision tower", output_loading_info=True)
    if loading["missing_keys"]:  # the text half of a whole CLIP is left over, and that is fine
        raise UserError(
            f"{folder} is no CLIP with a vision tower: it lacks "
            f"{sorted(map(str, loading['missing_keys']))[0]}"
        )
    return {TOWER + name: tensor for name, tensor in tower.state_dict().items()}


def _vision_fields(tower: str, folder: Path) -> dict[str, object]:
    """Return the tower's configuration.

    From the sub-folder that the checkpoint ships, or CLIP's published one.
    """
    shipped = folder / tower
    if (shipped / "config.json").is_file():
        fields = read_config(shipped)
        nested = fields.get("vision_config")
        own = nested if isinstance(nested, dict) else fields
        return {**own, "model_type": "clip_vision_model"}
    if tower.rstrip("/").rpartition("/")[2].replace("_", "-") == "clip-vit-large-patch14-336":
        return CLIP_LARGE_336
    raise UserError(
        f"{folder}/config.json: vision tower {tower!r} is neither a sub-folder nor "
        "clip-vit-large-patch14-336"
    )
