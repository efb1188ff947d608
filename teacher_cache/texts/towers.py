"""The registry of text towers: a teacher's name becomes its text encoder, from the same weights.

| teacher                  | text tower                         | vocabulary from             |
|--------------------------|------------------------------------|-----------------------------|
| `unimed-l`, `unimed-b`   | BERT, in the same checkpoint       | `--tokenizer` (BiomedBERT)  |
| `biomedclip`             | BERT, in the same checkpoint       | beside the file, or the hub |
| `bmc-clip`, `open_clip:` | open_clip's own                    | the package open_clip       |
| `medsiglip`, `hf:PLACE`  | transformers' CLIP, SigLIP         | the same folder             |

n prompts, c width of the embeddings.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32

from shared.errors import UserError
from shared.hub import NotFetchedError, snapshot
from shared.targets.maps import normalised
from teacher_cache.teachers.base import TextTower, need_weights
from teacher_cache.teachers.biomedclip import BIOMEDCLIP
from teacher_cache.teachers.bmc_clip import BEGAN_WITH, BMC_CLIP, FILE
from teacher_cache.teachers.checkpoints import find_weights, read_weights, tensors_below
from teacher_cache.teachers.open_clip_models import open_clip_config, published, tag_settings
from teacher_cache.teachers.registry import TEACHERS
from teacher_cache.teachers.trained import NOT_SAID, Trained
from teacher_cache.teachers.transformers_models import MEDSIGLIP
from teacher_cache.teachers.unimed import BASE, LARGE
from teacher_cache.texts.bert import TOKENIZER, bert_tower
from teacher_cache.texts.clip_texts import clip_tower
from teacher_cache.texts.transformers_texts import transformers_tower

BATCH = 64  # prompts of one pass
_FILES = ["vocab.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"]


def load_text_tower(
    name: str,
    weights: str | None = None,
    tokenizer: str | None = None,
    said: Trained = NOT_SAID,
) -> TextTower:
    """Load the text tower of the teacher `name`.

    Parameters
    ----------
    weights
        As for the teacher: one file, folder or hub id holds both towers.
    tokenizer
        A folder or hub id with the vocabulary, where the weights come without it.
    said
        As for the teacher.

    Raises
    ------
    UserError
        A teacher without one, or files that are missing, with where to get them.
    """
    words = None if tokenizer is None else _tokenizer_folder(tokenizer)
    if name in (LARGE.name, BASE.name):
        info = TEACHERS[name]
        file = find_weights(need_weights(info, weights), (info.source.partition(" ")[0],))
        tensors = tensors_below(read_weights(file), "text_encoder.", f"{name}'s text tower")
        return bert_tower(name, tensors, words or _beside(file, name))
    if name == BIOMEDCLIP.name:
        files = ("open_clip_pytorch_model.bin", "open_clip_model.safetensors")
        asked = need_weights(BIOMEDCLIP, weights)
        file = find_weights(asked, files)
        tensors = tensors_below(read_weights(file), "text.", f"{name}'s text tower")
        hub = not Path(asked).expanduser().exists()
        own = _tokenizer_folder(asked) if hub and words is None else None
        return bert_tower(name, tensors, words or own or _beside(file, name))
    if name == BMC_CLIP.name:
        tensors = read_weights(find_weights(need_weights(BMC_CLIP, weights), (FILE,)))
        quick = bool(tag_settings(BMC_CLIP.architecture, BEGAN_WITH).quick_gelu)
        config = open_clip_config(BMC_CLIP.architecture)
        return clip_tower(name, BMC_CLIP.architecture, config, tensors, quick)
    family, _, rest = name.partition(":")
    if family == "open_clip" and rest:
        found = published(name, rest, weights, said)
        quick = bool(found.trained.quick_gelu)
        return clip_tower(name, found.architecture, found.config, found.tensors, quick, words)
    if family == "hf" and rest:
        return transformers_tower(name, weights or rest, words)
    if name == MEDSIGLIP.name:
        return transformers_tower(name, need_weights(MEDSIGLIP, weights), words)
    raise UserError(
        f"teacher {name} has no text tower: `cache query fit` learns words for it from regions, "
        "and `cache teachers` lists those that have one"
    )


def embed(tower: TextTower, texts: Sequence[str]) -> Float32[np.ndarray, "n c"]:
    """Embed prompts in their normal form, as vectors of length 1."""
    said = [normalised(text) for text in texts]
    parts = []
    with torch.inference_mode():
        for start in range(0, len(said), BATCH):
            found = tower.encode(said[start : start + BATCH]).float()
            parts.append(torch.nn.functional.normalize(found, dim=-1).numpy())
    return np.concatenate(parts) if parts else np.zeros((0, tower.width), np.float32)


def _beside(file: Path, name: str) -> Path:
    """Return the folder of a weights file, where its tokenizer lies too."""
    if not any((file.parent / one).is_file() for one in _FILES[:2]):
        raise UserError(
            f"the weights of {name} come without their vocabulary: pass --tokenizer FOLDER, a copy "
            f"of hub {TOKENIZER}, or that hub id"
        )
    return file.parent


def _tokenizer_folder(place: str) -> Path:
    path = Path(place).expanduser()
    if path.is_dir():
        return path
    if path.exists() or place.startswith((".", "/", "~")) or place.count("/") != 1:
        raise UserError(f"no folder at {place}: --tokenizer takes a folder or a hub id")
    try:
        return snapshot(place, _FILES)
    except NotFetchedError as error:
        raise UserError(
            f"the hub did not give {place} ({error}); download its tokenizer's files and pass "
            "their folder as --tokenizer"
        ) from None
