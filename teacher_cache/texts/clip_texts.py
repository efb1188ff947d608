"""The text tower of open_clip's own kind: a causal transformer over 77 tokens, in one file.

The tensors lie bare beside `visual.*` (its CLIP), or below `text.` (its CustomTextCLIP).

n prompts, c width of the embeddings.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import cast

from torch import Tensor, nn

from shared.errors import UserError
from teacher_cache.teachers.base import TextTower
from teacher_cache.teachers.checkpoints import load_strictly, tensors_below
from teacher_cache.teachers.open_clip_models import ModelConfig
from teacher_cache.texts.bert import tower_digest


def clip_tower(
    name: str,
    architecture: str,
    config: ModelConfig,
    tensors: Mapping[str, Tensor],
    quick_gelu: bool,
    tokenizer: Path | None = None,
) -> TextTower:
    """Build the text tower of open_clip's `architecture` and fill it, strictly.

    Raises
    ------
    UserError
        The file holds none, or it is another library's model.
    """
    from open_clip.model import CLIPTextCfg, _build_text_tower

    text = config.get("text_cfg", {})
    if text.get("hf_model_name"):
        raise UserError(
            f"open_clip's {architecture} has the text tower {text['hf_model_name']}, which is not "
            "read here: take open_clip:ViT-B-16, unimed-b or biomedclip"
        )
    model: nn.Module = _build_text_tower(config["embed_dim"], CLIPTextCfg(**text), quick_gelu)
    named = _own(tensors, model, name)
    load_strictly(model, named, f"{name}'s text tower")
    model.eval().requires_grad_(False)
    tokens, vocabulary = _tokenizer(architecture, text, tokenizer)

    def encode(texts: Sequence[str]) -> Tensor:
        embedded: Tensor = model(tokens(list(texts)))
        return embedded

    described = f"{architecture.removesuffix('-quickgelu')}{'-quickgelu' if quick_gelu else ''}"
    digest = tower_digest(named, vocabulary)
    return TextTower(name, f"{described}, text", digest, config["embed_dim"], encode)


def _own(tensors: Mapping[str, Tensor], model: nn.Module, name: str) -> dict[str, Tensor]:
    """Return the text tower's tensors by the names inside it."""
    if any(key.startswith("text.") for key in tensors):
        return tensors_below(tensors, "text.", f"{name}'s text tower")
    expected = set(model.state_dict())
    found = {key: value for key, value in tensors.items() if key in expected}
    if not found:
        raise UserError(
            f"the weights of {name} hold its vision tower alone: a file with both is needed to "
            "embed text"
        )
    return found


def _tokenizer(
    architecture: str, text: Mapping[str, object], folder: Path | None
) -> tuple[Callable[[list[str]], Tensor], Mapping[str, int]]:
    """Return what tokenises prompts, and its vocabulary; nothing is fetched."""
    import open_clip
    from open_clip.tokenizer import HFTokenizer

    if not text.get("hf_tokenizer_name"):
        plain = open_clip.get_tokenizer(architecture)
        return cast("Callable[[list[str]], Tensor]", plain), plain.encoder
    if folder is None:
        raise UserError(
            f"open_clip's {architecture} reads with the tokenizer {text['hf_tokenizer_name']}: "
            "pass its folder as --tokenizer"
        )
    options = cast("Mapping[str, object]", text.get("tokenizer_kwargs") or {})
    length = text.get("context_length", 77)
    found = HFTokenizer(
        str(folder), context_length=length, tokenizer_mode=text.get("tokenizer_mode"), **options
    )
    return found, found.tokenizer.get_vocab()
