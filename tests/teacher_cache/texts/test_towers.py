"""Text towers against the libraries' own forward; prompts in a store."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from shared.errors import UserError
from shared.targets import TargetStore
from shared.targets.texts import embeddings, text_key, texts_of
from teacher_cache.cli import app
from teacher_cache.keeping.info import info
from teacher_cache.keeping.merge import merge
from teacher_cache.texts.towers import embed, load_text_tower
from tests.fixtures.teacher_checkpoints import use_tiny_architectures
from tests.fixtures.text_towers import (
    BOTH,
    bert_encoder,
    bert_vocabulary,
    write_biomedclip,
    write_open_clip,
    write_transformers,
    write_unimed_with_text,
)

pytestmark = pytest.mark.integration
PROMPTS = ["opacity in the left lung", "no sign of effusion", "is there a mass in the brain ?"]
# Sums of a few hundred float32 products in another order.
CLOSE: dict[str, Any] = {"atol": 2e-6, "rtol": 0}


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    from open_clip import factory

    use_tiny_architectures(monkeypatch)
    for name in ("ViT-B-16-quickgelu", "ViT-B-16", "ViT-L-14"):
        config = {**BOTH, "quick_gelu": name.endswith("quickgelu")}
        monkeypatch.setitem(factory._MODEL_CONFIGS, name, config)


def unit(tensor: torch.Tensor) -> np.ndarray:
    return torch.nn.functional.normalize(tensor.detach(), dim=-1).numpy()


@pytest.mark.parametrize("name", ["unimed-b", "biomedclip"])
def test_bert_towers_are_open_clips(tiny: None, tmp_path: Path, name: str) -> None:
    """Padded to 256 tokens and masked by the pad token, as UniMed-CLIP's and open_clip's code."""
    from open_clip.tokenizer import HFTokenizer

    words = bert_vocabulary(tmp_path / "words")
    encoder = bert_encoder(words)
    if name == "unimed-b":
        file = write_unimed_with_text(tmp_path / "unimed_clip_vit_b16.pt", encoder)
        tower = load_text_tower(name, str(file), str(words))
    else:
        tower = load_text_tower(name, str(write_biomedclip(tmp_path / "own", encoder)))
    with torch.no_grad():
        expected = encoder(HFTokenizer(str(words), context_length=256)(PROMPTS))
    np.testing.assert_allclose(embed(tower, PROMPTS), unit(expected), **CLOSE)
    assert tower.width == 24


@pytest.mark.parametrize("layout", ["CLIP", "CustomTextCLIP"])
@pytest.mark.parametrize("name", ["ViT-B-16-quickgelu", "ViT-B-16"])
def test_open_clips_towers(tiny: None, tmp_path: Path, name: str, layout: str) -> None:
    import open_clip

    from teacher_cache.teachers.trained import OPEN_CLIP

    file = tmp_path / "model.pt"
    model = write_open_clip(file, name)
    if layout == "CustomTextCLIP":
        inside = {
            k if k.startswith("visual.") or k == "logit_scale" else f"text.{k}": v
            for k, v in model.state_dict().items()
        }
        torch.save(inside, file)
    said = OPEN_CLIP._replace(quick_gelu=name.endswith("quickgelu"))
    tower = load_text_tower(f"open_clip:{name}", str(file), said=said)
    with torch.no_grad():
        expected = model.encode_text(open_clip.get_tokenizer(name)(PROMPTS), normalize=True)
    np.testing.assert_allclose(embed(tower, PROMPTS), expected.numpy(), **CLOSE)


def test_bmc_clips_tower(tiny: None, tmp_path: Path) -> None:
    import open_clip

    model = write_open_clip(tmp_path / "BMC_CLIP_CF.pt", "ViT-L-14")
    tower = load_text_tower("bmc-clip", str(tmp_path))
    with torch.no_grad():
        expected = model.encode_text(open_clip.get_tokenizer("ViT-L-14")(PROMPTS), normalize=True)
    np.testing.assert_allclose(embed(tower, PROMPTS), expected.numpy(), **CLOSE)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_transformers_towers(tmp_path: Path, kind: str) -> None:
    from transformers import AutoTokenizer

    model = write_transformers(tmp_path, kind)
    tower = load_text_tower(f"hf:{tmp_path}")
    padding = {"padding": "max_length", "max_length": 20} if kind == "siglip" else {"padding": True}
    tokens = AutoTokenizer.from_pretrained(tmp_path)(PROMPTS, return_tensors="pt", **padding)
    asked = {"input_ids": tokens["input_ids"]}
    if kind == "clip":
        asked["attention_mask"] = tokens["attention_mask"]
    with torch.no_grad():
        features = model.get_text_features(**asked)
    expected = getattr(features, "pooler_output", features)
    np.testing.assert_allclose(embed(tower, PROMPTS), unit(expected), **CLOSE)
    assert tower.width == expected.shape[1]


def test_another_vocabulary_is_another_tower(tiny: None, tmp_path: Path) -> None:
    words = bert_vocabulary(tmp_path / "words")
    file = write_unimed_with_text(tmp_path / "unimed_clip_vit_b16.pt", bert_encoder(words))
    first = load_text_tower("unimed-b", str(file), str(words))
    turned = (words / "vocab.txt").read_text().replace("left\nright", "right\nleft")
    (words / "vocab.txt").write_text(turned)
    assert load_text_tower("unimed-b", str(file), str(words)).weights != first.weights


def test_what_is_missing_is_said(tiny: None, tmp_path: Path) -> None:
    words = bert_vocabulary(tmp_path / "words")
    folder = tmp_path / "alone"
    folder.mkdir()
    file = write_unimed_with_text(folder / "unimed_clip_vit_b16.pt", bert_encoder(words))
    with pytest.raises(UserError, match="without their vocabulary: pass --tokenizer"):
        load_text_tower("unimed-b", str(file))
    with pytest.raises(UserError, match="has no text tower: `cache query fit`"):
        load_text_tower("dinov2-small")
    with pytest.raises(UserError, match="no folder at"):
        load_text_tower("unimed-b", str(file), str(tmp_path / "none"))
    checkpoint = torch.load(file, weights_only=True)
    checkpoint["state_dict"].pop("module.text_encoder.proj.2.weight")
    torch.save(checkpoint, file)
    with pytest.raises(UserError, match="no whole text tower: 'proj"):
        load_text_tower("unimed-b", str(file), str(words))


def test_prompts_are_embedded_once(tiny: None, tmp_path: Path) -> None:
    """The key is the sha256 of lower case with single blanks; a store is read and merged."""
    words = bert_vocabulary(tmp_path / "words")
    file = write_unimed_with_text(tmp_path / "unimed_clip_vit_b16.pt", bert_encoder(words))
    turns = [
        {"from": "human", "value": "<image>\nOpacity in the  LEFT lung"},
        {"from": "gpt", "value": "yes"},
        {"from": "human", "value": "no sign of effusion"},
        {"from": "gpt", "value": "no"},
    ]
    data = tmp_path / "train.json"
    data.write_text(json.dumps([{"id": "1", "image": "x.png", "conversations": turns}]))
    store = tmp_path / "store"
    line = ["text", "--teacher", "unimed-b", "--weights", str(file), "--tokenizer", str(words)]
    line += ["--store", str(store), "--data", str(data), "--json"]
    first = CliRunner().invoke(app, line)
    assert first.exit_code == 0, first.output
    assert json.loads(first.output)["new"] == 2
    again = CliRunner().invoke(app, [*line, "--prompt", "opacity in the left lung"])
    assert json.loads(again.output) | {"namespace": ""} == {
        "namespace": "", "prompts": 2, "new": 0, "width": 24,
    }  # fmt: skip
    tower = load_text_tower("unimed-b", str(file), str(words))
    assert text_key(" Opacity in\tthe LEFT lung") == hashlib.sha256(PROMPTS[0].encode()).digest()
    opened = texts_of(store, tower.weights)
    assert opened is not None
    found = embeddings(opened, ["opacity IN the left lung"])
    np.testing.assert_allclose(found, embed(tower, PROMPTS[:1]), **CLOSE)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-6)
    with pytest.raises(UserError, match="1 of 1 prompts are not in unimed-b-"):
        embeddings(opened, ["another"])
    with pytest.raises(UserError, match="holds no targets: `cache build` makes them"):
        TargetStore.open(store)

    merge([store], tmp_path / "second")
    second = texts_of(tmp_path / "second", tower.weights)
    assert second is not None
    assert len(second) == 2
    assert info(store)[0]["records"] == 2
