"""Full sizes of the layouts that have no file of their own, without memory: every key has a place.

LLaVA in transformers' format: the keys of llava-hf/llava-1.5-7b-hf, of before transformers 5.
SmolVLM: SmolLM2-135M behind siglip-base-patch16-512, four by four patches to one token, as the card
of SmolVLM-256M says; its head is a weight of its own.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from student_train.models import load_base
from student_train.run.inspect import inspect_model
from tests.fixtures.student_checkpoints import Shape, llava_hf, original_keys, smolvlm, vision_keys

LLAVA = Shape(4096, 11008, 32, 32, 32, 32064, False, 1024, 4096, 24, 16, 336, 14)
SMOLVLM: dict[str, Any] = {
    "model_type": "smolvlm",
    "image_token_id": 49190,
    "scale_factor": 4,
    "tie_word_embeddings": False,
    "text_config": {
        "model_type": "llama",
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49280,
        "tie_word_embeddings": False,
    },
    "vision_config": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "image_size": 512,
        "patch_size": 16,
    },
}


def hf_keys(shape: Shape) -> dict[str, tuple[int, ...]]:
    """Return the keys of transformers' published Llava folders, from LLaVA's own."""
    named = (
        ("model.vision_tower.vision_tower.", "vision_tower."),
        ("model.mm_projector.0.", "multi_modal_projector.linear_1."),
        ("model.mm_projector.2.", "multi_modal_projector.linear_2."),
        ("lm_head.", "language_model.lm_head."),
        ("model.", "language_model.model."),
    )
    found = {}
    for key, size in original_keys(shape):
        old, new = next(pair for pair in named if key.startswith(pair[0]))
        found[new + key.removeprefix(old)] = size
    return found


def own_name(key: str) -> str:
    """Return the name that transformers 5's class gives a published key."""
    for old, new in (
        ("language_model.lm_head.", "lm_head."),
        ("language_model.model.", "model.language_model."),
        ("vision_tower.vision_model.", "model.vision_tower."),
        ("multi_modal_projector.", "model.multi_modal_projector."),
    ):
        if key.startswith(old):
            return new + key.removeprefix(old)
    raise KeyError(key)


def smolvlm_keys(config: dict[str, Any]) -> Iterator[str]:
    """Every key of a published SmolVLM."""
    yield "lm_head.weight"
    yield "model.connector.modality_projection.proj.weight"
    yield "model.text_model.embed_tokens.weight"
    yield "model.text_model.norm.weight"
    for layer in range(config["text_config"]["num_hidden_layers"]):
        name = f"model.text_model.layers.{layer}."
        for part in ("q_proj", "k_proj", "v_proj", "o_proj"):
            yield f"{name}self_attn.{part}.weight"
        for part in ("gate_proj", "up_proj", "down_proj"):
            yield f"{name}mlp.{part}.weight"
        yield f"{name}input_layernorm.weight"
        yield f"{name}post_attention_layernorm.weight"
    tower = "model.vision_model."
    shape = Shape(vision_layers=config["vision_config"]["num_hidden_layers"])
    for key, _ in vision_keys(shape, tower):  # CLIP's, but without its CLS token and first norm
        if "class_embedding" not in key and "pre_layrnorm" not in key:
            yield key
    yield f"{tower}embeddings.patch_embedding.bias"


def test_every_published_key_of_llava_1_5_has_its_place(tmp_path: Path) -> None:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig
    from transformers import LlavaForConditionalGeneration as Llava

    from student_train.models.original import CLIP_LARGE_336

    text = LlamaConfig(hidden_size=4096, intermediate_size=11008, vocab_size=32064)
    config = LlavaConfig(vision_config=CLIPVisionConfig(**CLIP_LARGE_336), text_config=text)
    with torch.device("meta"):
        model = Llava(config)
    expected = {name: tuple(one.shape) for name, one in model.state_dict().items()}
    published = hf_keys(LLAVA)
    assert {own_name(key): size for key, size in published.items()} == expected
    assert len(published) == 686
    # and a small folder with keys of that layout is the one that transformers 5 writes
    llava_hf(tmp_path)
    file = tmp_path / "model.safetensors"
    before = load_base(str(tmp_path)).model.state_dict()
    place = {own_name(key): key for key in hf_keys(Shape(vocabulary=640))}
    save_file({place[name]: one.contiguous() for name, one in before.items()}, file)
    assert "vision_tower.vision_model.post_layernorm.bias" in load_file(file)
    after = load_base(str(tmp_path)).model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(one, after[name]) for name, one in before.items())


def test_every_published_key_of_smolvlm_has_its_place(tmp_path: Path) -> None:
    from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration

    with torch.device("meta"):
        model = SmolVLMForConditionalGeneration(SmolVLMConfig.from_dict(SMOLVLM))
    assert set(smolvlm_keys(SMOLVLM)) == set(model.state_dict())
    assert sum(one.numel() for one in model.parameters()) == 256_484_928
    (tmp_path / "config.json").write_text(json.dumps(SMOLVLM))
    found = inspect_model(str(tmp_path))
    assert found["images"] == "one square of 512 pixels"
    assert found["grid"] == "8x8, 64 tokens an image"
    assert found["layers"] == "30, so losses.layer is in 1..29"
    # the small folder of the other tests has the same keys
    smolvlm(tmp_path / "small")
    small = json.loads((tmp_path / "small" / "config.json").read_text())
    written = load_file(tmp_path / "small" / "model.safetensors")
    assert set(written) == set(smolvlm_keys(small))
