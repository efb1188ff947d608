"""The text tower of a CLIP or SigLIP in transformers' format (`hf:PLACE`, MedSigLIP).

n prompts, c width of the embeddings.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from shared.errors import UserError
from teacher_cache.teachers.base import TextTower
from teacher_cache.teachers.transformers_models import folder_of
from teacher_cache.texts.bert import Tokenizer, tower_digest

CLASSES = {"clip": "CLIPTextModelWithProjection", "siglip": "SiglipTextModel"}
_WANTED = ["*.json", "*.safetensors", "*.txt", "*.model"]


def transformers_tower(name: str, place: str, tokenizer: Path | None = None) -> TextTower:
    """Load the text tower of a folder or hub id with its tokenizer.

    Raises
    ------
    UserError
        A model of another kind, or files that are missing.
    """
    import transformers
    from transformers.utils import logging

    folder = folder_of(place, _WANTED)
    try:
        kind = str(json.loads((folder / "config.json").read_text("utf-8")).get("model_type"))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / 'config.json'} cannot be read: {error}") from None
    if kind not in CLASSES:
        raise UserError(
            f"{folder} is a {kind}, which has no text tower; {' and '.join(CLASSES)} have one, and "
            "`cache query fit` learns words for the others"
        )
    said = logging.get_verbosity()
    logging.set_verbosity_error()  # it lists the tensors of the other tower
    try:
        model, loading = getattr(transformers, CLASSES[kind]).from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
        words = transformers.AutoTokenizer.from_pretrained(
            str(tokenizer or folder), local_files_only=True
        )
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{folder} holds no usable text tower ({reason})") from None
    finally:
        logging.set_verbosity(said)
    faults = [*loading["missing_keys"], *loading["mismatched_keys"]]
    if faults:
        raise UserError(f"{folder}: {len(faults)} weights of its text tower are missing")
    model.eval().requires_grad_(False)
    length = int(model.config.max_position_embeddings)
    encode = _Encode(model, cast("Tokenizer", words), length, kind)
    digest = tower_digest(model.state_dict(), words.get_vocab())
    with torch.inference_mode():
        width = encode(["x"]).shape[1]
    return TextTower(name, CLASSES[kind], digest, width, encode)


class _Encode:
    """Tokenises and embeds: SigLIP is trained on prompts padded to their full length."""

    def __init__(self, model: nn.Module, words: Tokenizer, length: int, kind: str) -> None:
        self._model, self._words, self._length, self._kind = model, words, length, kind

    def __call__(self, texts: Sequence[str]) -> Tensor:
        padded = "max_length" if self._kind == "siglip" else True
        found = self._words(
            list(texts),
            padding=padded,
            truncation=True,
            max_length=self._length,
            return_tensors="pt",
        )
        if self._kind == "siglip":
            pooled: Tensor = self._model(input_ids=found["input_ids"]).pooler_output
            return pooled
        embedded: Tensor = self._model(
            input_ids=found["input_ids"], attention_mask=found["attention_mask"]
        ).text_embeds
        return embedded
