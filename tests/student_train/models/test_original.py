"""The two original checkpoint layouts.

Every published key has a place, and small checkpoints load faithfully.
"""

import json
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file, save_file

from shared.errors import UserError
from shared.recipe import ModelSection
from student_train.models import load_base
from student_train.models.original import compare, expected_shapes, llava_config, rename
from student_train.models.prompts import encode_prompt
from tests.fixtures.student_checkpoints import (
    HUATUO,
    LLAVA_MED,
    Shape,
    clip_tower,
    huatuo_original,
    llava_med_original,
    original_config,
    original_keys,
    whole_clip,
)
from tests.fixtures.yi_checkpoint import YI, yi_config

PUBLISHED_TOWER = "openai/clip-vit-large-patch14-336"


@pytest.mark.unit
@pytest.mark.parametrize(
    ("model_type", "shape", "weights", "rows", "theta"),
    [
        ("llava_mistral", LLAVA_MED, 686, 32064, 1e6),
        ("llava_qwen2", HUATUO, 734, 152064, 1e6),
        ("llava_llama", YI, 938, 64064, 5e6),
    ],
    ids=["llava_mistral", "llava_qwen2", "llava_llama"],
)
def test_every_published_weight_has_its_place(
    model_type: str, shape: Shape, weights: int, rows: int, theta: float, tmp_path: Path
) -> None:
    """The full-size model on the meta device against the published key list.

    None missing, none left over.
    """
    import transformers

    name = {"llava_mistral": "Mistral", "llava_qwen2": "Qwen2", "llava_llama": "Llama"}[model_type]
    text_class = getattr(transformers, f"{name}Config")
    original = original_config(shape, model_type, PUBLISHED_TOWER)
    if model_type == "llava_llama":
        original = yi_config(shape, PUBLISHED_TOWER)
    config = llava_config(original, text_class, tmp_path)
    expected = expected_shapes(config)
    published = dict(original_keys(shape))
    renamed = {rename(key): size for key, size in published.items()}
    assert len(renamed) == len(published) == weights
    compare(expected, renamed, tmp_path)  # type: ignore[arg-type]
    assert expected == renamed
    config.text_config.vocab_size = rows
    grown = expected_shapes(config)
    changed = {name for name in expected if expected[name] != grown[name]}
    assert changed == (
        {"model.language_model.embed_tokens.weight", "lm_head.weight"}
        if rows != shape.vocabulary
        else set()
    )
    assert config.image_seq_length == 576
    assert cast("Any", config.text_config).rope_parameters["rope_theta"] == theta


@pytest.mark.unit
def test_buffers_of_older_software_are_left_out() -> None:
    assert rename("model.layers.3.self_attn.rotary_emb.inv_freq") is None
    assert rename("model.vision_tower.vision_tower.vision_model.embeddings.position_ids") is None
    assert rename("model.image_newline") is None
    with pytest.raises(UserError, match=r"'model\.seg_head\.weight' belongs to no part"):
        rename("model.seg_head.weight")


def reference_logits(
    state: dict[str, torch.Tensor],
    original: dict[str, Any],
    tower: dict[str, torch.Tensor] | None,
    before: list[int],
    after: list[int],
    pixels: torch.Tensor,
) -> torch.Tensor:
    """Run the model once, made of its three published parts without transformers' Llava class."""
    from transformers import (
        CLIPVisionConfig,
        CLIPVisionModel,
        MistralConfig,
        MistralForCausalLM,
        Qwen2Config,
        Qwen2ForCausalLM,
    )

    vision = CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=3,
            num_attention_heads=2,
            image_size=56,
            patch_size=14,
            hidden_act="quick_gelu",
        )
    )
    prefix = "model.vision_tower.vision_tower.vision_model."
    own = {
        key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)
    }
    vision.load_state_dict(
        own if tower is None else {k.removeprefix("vision_model."): v for k, v in tower.items()}
    )
    mistral = original["model_type"] == "llava_mistral"
    text_config = (MistralConfig if mistral else Qwen2Config)(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        rms_norm_eps=original["rms_norm_eps"],
        vocab_size=original["vocab_size"],
        sliding_window=None,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        max_position_embeddings=32768,
        bos_token_id=1,
        eos_token_id=2,
    )
    text = (MistralForCausalLM if mistral else Qwen2ForCausalLM)(text_config)
    text.load_state_dict(
        {
            key: tensor
            for key, tensor in state.items()
            if "vision_tower" not in key and "mm_" not in key
        }
    )
    vision.eval(), text.eval()
    with torch.no_grad():
        features = vision(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
        hidden = torch.nn.functional.linear(
            features, state["model.mm_projector.0.weight"], state["model.mm_projector.0.bias"]
        )
        image = torch.nn.functional.linear(
            torch.nn.functional.gelu(hidden),
            state["model.mm_projector.2.weight"],
            state["model.mm_projector.2.bias"],
        )
        embed = text.get_input_embeddings()
        embeddings = torch.cat(
            [embed(torch.tensor([before])), image, embed(torch.tensor([after]))], dim=1
        )
        return text(inputs_embeds=embeddings).logits  # type: ignore[no-any-return]


def ours(
    section: ModelSection, pixels: torch.Tensor
) -> tuple[torch.Tensor, list[int], list[int], Any]:
    base = load_base(section)
    encoded = encode_prompt(
        "Is it a lung?",
        base.template,
        base.tokenizer,
        base.image_tokens,
        base.image_token_id,
        images=1,
    )
    ids = torch.tensor([encoded.input_ids])
    with torch.no_grad():
        logits = base.model(
            input_ids=ids, pixel_values=pixels, attention_mask=torch.ones_like(ids)
        ).logits
    start, end = encoded.images[0]
    return logits, encoded.input_ids[:start], encoded.input_ids[end:], base


@pytest.mark.integration
@pytest.mark.parametrize("name", ["llava-med-1.5", "huatuogpt-vision-7b"])
@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_small_checkpoint_equals_an_independent_assembly(
    name: str, form: str, tmp_path: Path
) -> None:
    folder = tmp_path / "checkpoint"
    state = (llava_med_original if name == "llava-med-1.5" else huatuo_original)(folder, form)
    pixels = torch.randn(1, 3, 56, 56, generator=torch.Generator().manual_seed(5))
    logits, before, after, base = ours(ModelSection(name=name, path=str(folder)), pixels)
    original = json.loads((folder / "config.json").read_text())
    expected = reference_logits(state, original, None, before, after, pixels)
    torch.testing.assert_close(
        logits[..., : original["vocab_size"]], expected, atol=2e-5, rtol=2e-4
    )
    assert len(before) == (34 if name == "llava-med-1.5" else 33)
    assert base.image_token_id == (32000 if name == "llava-med-1.5" else 568)
    assert base.tokenizer.convert_tokens_to_ids("<image>") == base.image_token_id
    assert (base.image_size, base.image_tokens) == (56, 16)
    # The same folder by its path alone is the same model.
    assert torch.equal(ours(ModelSection(name=str(folder)), pixels)[0], logits)


@pytest.mark.integration
@pytest.mark.parametrize("form", [clip_tower, whole_clip], ids=["tower", "whole"])
def test_openai_vision_weights(form: Any, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    state = llava_med_original(folder)
    tower = form(tmp_path / "clip")
    pixels = torch.randn(1, 3, 56, 56, generator=torch.Generator().manual_seed(5))
    section = ModelSection(
        name="llava-med-1.5",
        path=str(folder),
        vision_weights="openai",
        vision_path=str(tmp_path / "clip"),
    )
    logits, before, after, _ = ours(section, pixels)
    original = json.loads((folder / "config.json").read_text())
    expected = reference_logits(state, original, tower, before, after, pixels)
    torch.testing.assert_close(logits[..., :32000], expected, atol=2e-5, rtol=2e-4)
    own = ours(ModelSection(name="llava-med-1.5", path=str(folder)), pixels)[0]
    assert not torch.allclose(own, logits)
    name = "vision_model.encoder.layers.0.mlp.fc1.weight"
    for file in (tmp_path / "clip").glob("*model.*"):
        file.unlink()
    save_file(
        {key: value for key, value in tower.items() if key != name},
        tmp_path / "clip" / "model.safetensors",
    )
    with pytest.raises(
        UserError, match=r"no CLIP with a vision tower: it lacks .*layers\.0\.mlp\.fc1\.weight"
    ):
        load_base(section)


@pytest.mark.integration
def test_new_rows_and_tokens_of_llava_med(tmp_path: Path) -> None:
    state = llava_med_original(tmp_path / "a")
    base = load_base(ModelSection(name="llava-med-1.5", path=str(tmp_path / "a")), torch.bfloat16)
    model: Any = base.model
    head = model.lm_head.weight
    assert head.shape == (32064, 32)
    assert head.dtype == torch.bfloat16
    assert torch.equal(head[:32000], state["lm_head.weight"].bfloat16())
    torch.testing.assert_close(
        head[32000:].float(), state["lm_head.weight"].mean(0).expand(64, -1), atol=1e-2, rtol=1e-2
    )
    assert cast("Any", base.tokenizer).convert_tokens_to_ids(["<image>", "<pad>"]) == [32000, 32001]
    assert base.tokenizer.pad_token_id == 32001
    assert model.generation_config.eos_token_id == 2


@pytest.mark.integration
@pytest.mark.parametrize(
    ("name", "write"),
    [("huatuogpt-vision-7b", huatuo_original), ("llava-med-1.5", llava_med_original)],
)
def test_the_checkpoints_own_temperature_is_kept(tmp_path: Path, name: str, write: Any) -> None:
    """For the authors' nucleus sampling; also where the checkpoint is in its own layout."""
    write(tmp_path / "a")
    given = {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "repetition_penalty": 1.05}
    (tmp_path / "a" / "generation_config.json").write_text(json.dumps(given))
    model: Any = load_base(ModelSection(name=name, path=str(tmp_path / "a"))).model
    assert model.config.checkpoint_temperature == 0.7
    own = model.generation_config
    assert not own.do_sample
    assert own.repetition_penalty in (None, 1.0)


@pytest.mark.integration
def test_saved_base_loads_as_a_transformers_folder(tmp_path: Path) -> None:
    from student_train.models.saving import save_base

    huatuo_original(tmp_path / "a")
    base = load_base(ModelSection(name="huatuogpt-vision-7b", path=str(tmp_path / "a")))
    save_base(base, tmp_path / "b")
    again = load_base(str(tmp_path / "b"))
    assert again.template == base.template
    assert (again.image_token_id, again.grid, again.image_size) == (
        base.image_token_id,
        base.grid,
        base.image_size,
    )
    for (name, tensor), (other, value) in zip(
        base.model.state_dict().items(), again.model.state_dict().items(), strict=True
    ):
        assert name == other
        assert torch.equal(tensor, value)
    text = "What is shown in this image? A brain."
    assert base.tokenizer(text).input_ids == again.tokenizer(text).input_ids


def break_shard(folder: Path, number: int, keep: float) -> Path:
    shard = sorted(folder.glob("*-of-*"))[number]
    content = shard.read_bytes()
    shard.write_bytes(content[: int(len(content) * keep)])
    return shard


@pytest.mark.integration
@pytest.mark.parametrize("form", ["safetensors", "bin"])
@pytest.mark.parametrize("keep", [0.0, 0.00001, 0.6])
def test_truncated_shard(form: str, keep: float, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    huatuo_original(folder, form)
    shard = break_shard(folder, 1, keep)
    with pytest.raises(UserError, match=r"not whole|damaged") as caught:
        load_base(str(folder))
    assert shard.name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.integration
@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_missing_shard(form: str, tmp_path: Path) -> None:
    huatuo_original(tmp_path / "a", form)
    shard = sorted((tmp_path / "a").glob("*-of-*"))[0]
    shard.unlink()
    with pytest.raises(UserError, match=f"1 of 2 weight shards are missing, first {shard.name}"):
        load_base(str(tmp_path / "a"))


@pytest.mark.integration
def test_bin_with_code_inside_is_refused(tmp_path: Path) -> None:
    huatuo_original(tmp_path / "a", "bin")
    shard = sorted((tmp_path / "a").glob("*-of-*"))[0]
    torch.save({"lm_head.weight": Path("/")}, shard)
    with pytest.raises(UserError, match="damaged or no plain weights file"):
        load_base(str(tmp_path / "a"))


@pytest.mark.integration
def test_bin_of_an_old_torch(tmp_path: Path) -> None:
    """Before torch 1.6 files were no zip archives; they are read, and still `weights_only`."""
    state = huatuo_original(tmp_path / "a", "bin")
    for shard in (tmp_path / "a").glob("*-of-*"):
        weights = torch.load(shard, weights_only=True)
        torch.save(weights, shard, _use_new_zipfile_serialization=False)
    base = load_base(str(tmp_path / "a"))
    assert torch.equal(cast("Any", base.model).lm_head.weight, state["lm_head.weight"])


def edit_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    config = {key: value for key, value in (config | changes).items() if value != "remove"}
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.integration
@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"mm_projector_type": "linear"}, "mm_projector_type is 'linear'; only 'mlp2x_gelu'"),
        ({"mm_use_im_start_end": True}, "mm_use_im_start_end is True"),
        ({"mm_vision_tower": "someone/siglip"}, "vision tower 'someone/siglip' is neither"),
        ({"hidden_size": "remove"}, "lacks hidden_size"),
        (
            {"num_hidden_layers": 5},
            r"12 weights are missing, first model\.language_model\.layers\.4",
        ),
        ({"num_hidden_layers": 3}, r"12 weights have no place in this model"),
        (
            {"intermediate_size": 64},
            r"down_proj\.weight is \(32, 48\), but its config\.json makes it \(32, 64\)",
        ),
        ({"model_type": "llava_phi"}, "no loader for model_type 'llava_phi'"),
        ({"model_type": "remove"}, "names no model_type"),
    ],
)
def test_config_that_does_not_fit(changes: dict[str, Any], line: str, tmp_path: Path) -> None:
    huatuo_original(tmp_path / "a")
    edit_config(tmp_path / "a", **changes)
    with pytest.raises(UserError, match=line):
        load_base(str(tmp_path / "a"))


@pytest.mark.integration
def test_checkpoint_without_a_tower(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    llava_med_original(folder)
    weights = {}
    for shard in folder.glob("*-of-*"):
        weights |= {
            key: value for key, value in load_file(shard).items() if "vision_tower" not in key
        }
        shard.unlink()
    (folder / "model.safetensors.index.json").unlink()
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(
        UserError, match=r"brings no vision tower; set model\.vision_weights=openai"
    ):
        load_base(str(folder))
    clip_tower(tmp_path / "clip")
    load_base(
        ModelSection(name=str(folder), vision_weights="openai", vision_path=str(tmp_path / "clip"))
    )


@pytest.mark.unit
def test_huatuo_has_no_other_tower(tmp_path: Path) -> None:
    huatuo_original(tmp_path / "a")
    with pytest.raises(UserError, match="applies to LLaVA-Med only"):
        load_base(
            ModelSection(
                name="huatuogpt-vision-7b", path=str(tmp_path / "a"), vision_weights="openai"
            )
        )
