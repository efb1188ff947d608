"""The text tower of UniMed-CLIP and BiomedCLIP: a BERT, its CLS token through two matrices.

Both files hold it as open_clip names it: `transformer.*` (a BERT without its pooling layer) and
`proj.0`, `proj.2` (linear without bias, GELU between). The vocabulary is not in them: it is that of
BiomedBERT, as a tokenizer's folder.

n prompts, T tokens, c width of the embeddings.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, cast, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn

from shared.errors import UserError
from teacher_cache.teachers.base import TextTower
from teacher_cache.teachers.checkpoints import load_strictly, weights_hash

TOKENIZER = "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract"
CONTEXT = 256  # tokens of a prompt, as both were trained
_HEAD = 64  # channels of a head, in every size of BERT
_LAYER = "transformer.encoder.layer."


class BertText(nn.Module):
    """A BERT and the projection of its CLS token."""

    def __init__(self, transformer: nn.Module, width: int, hidden: int, out: int) -> None:
        super().__init__()
        self.transformer = transformer
        self.proj = nn.Sequential(
            nn.Linear(width, hidden, bias=False), nn.GELU(), nn.Linear(hidden, out, bias=False)
        )

    def forward(self, ids: Tensor, mask: Tensor) -> Float[Tensor, "n c"]:
        """Embed tokens (n, T); `mask` is 1 where they are no padding."""
        hidden = self.transformer(input_ids=ids, attention_mask=mask).last_hidden_state
        projected: Tensor = self.proj(hidden[:, 0])
        return projected


def bert_tower(name: str, tensors: Mapping[str, Tensor], tokenizer: Path) -> TextTower:
    """Build the tower of a checkpoint's `tensors`, named from `transformer.` and `proj.` on.

    Parameters
    ----------
    tokenizer
        A folder with `vocab.txt` or `tokenizer.json`.

    Raises
    ------
    UserError
        Tensors of another shape of model, or no tokenizer there.
    """
    named = {key: value for key, value in tensors.items() if not key.endswith("position_ids")}
    model = _empty(name, named)
    load_strictly(model, named, f"{name}'s text tower")
    model.eval().requires_grad_(False)
    words = read_bert_tokenizer(tokenizer)

    def encode(texts: Sequence[str]) -> Tensor:
        found = words(
            list(texts), padding=True, truncation=True, max_length=CONTEXT, return_tensors="pt"
        )
        embedded: Tensor = model(found["input_ids"], found["attention_mask"])
        return embedded

    digest = tower_digest(named, words.get_vocab())
    width = len(named["proj.2.weight"])
    return TextTower(name, "BERT, mlp", digest, width, encode)


@runtime_checkable
class Tokenizer(Protocol):
    """What is asked of a tokenizer of transformers."""

    def __call__(self, texts: list[str], **options: object) -> Mapping[str, Tensor]:
        """Tokenise prompts."""

    def get_vocab(self) -> Mapping[str, int]:
        """Return its vocabulary."""


def read_bert_tokenizer(folder: Path) -> Tokenizer:
    """Read a BERT's tokenizer, lower case."""
    from transformers import BertTokenizer

    if not any((folder / file).is_file() for file in ("vocab.txt", "tokenizer.json")):
        raise UserError(
            f"{folder} holds no vocab.txt or tokenizer.json: pass --tokenizer FOLDER, a copy of "
            f"hub {TOKENIZER}"
        )
    try:
        found = BertTokenizer.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{folder} holds no tokenizer of a BERT ({reason})") from None
    return cast("Tokenizer", found)


def tower_digest(tensors: Mapping[str, Tensor], vocabulary: Mapping[str, int]) -> str:
    """Return the sha256 over a tower's tensors and its tokenizer's vocabulary."""
    words = json.dumps(sorted(vocabulary.items()), ensure_ascii=True).encode()
    both = weights_hash(tensors).encode() + hashlib.sha256(words).hexdigest().encode()
    return hashlib.sha256(both).hexdigest()


def _empty(name: str, tensors: Mapping[str, Tensor]) -> BertText:
    """Make the model that the shapes of `tensors` describe."""
    from transformers import BertConfig, BertModel

    embedded = "transformer.embeddings."
    try:
        vocabulary, width = tensors[f"{embedded}word_embeddings.weight"].shape
        positions = len(tensors[f"{embedded}position_embeddings.weight"])
        kinds = len(tensors[f"{embedded}token_type_embeddings.weight"])
        inner = len(tensors[f"{_LAYER}0.intermediate.dense.weight"])
        hidden, out = len(tensors["proj.0.weight"]), len(tensors["proj.2.weight"])
    except KeyError as error:
        raise UserError(
            f"the weights of {name} hold no whole text tower: {error} is missing; take the "
            "published file"
        ) from None
    numbers = {int(key.split(".")[3]) for key in tensors if key.startswith(_LAYER)}
    if width % _HEAD:
        raise UserError(f"the text tower of {name} is {width} wide, which no BERT is")
    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=len(numbers),
        num_attention_heads=width // _HEAD,
        intermediate_size=inner,
        max_position_embeddings=positions,
        type_vocab_size=kinds,
    )
    return BertText(BertModel(config, add_pooling_layer=False), width, hidden, out)
