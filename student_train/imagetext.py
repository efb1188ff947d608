"""What the method, its data and decoding use of a transformers image-text model and its parts.

B rows of a batch, T tokens, N patches of one of P images, d student width, V vocabulary.

`LlavaForConditionalGeneration` and `SmolVLMForConditionalGeneration` are such models; so is one
with LoRA layers inside. transformers ships no types of its own that could be read here.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from student_train.upstream import AttentionConfig

Hook = Callable[..., object]  # torch's hooks: (module, args[, kwargs][, output]) -> changed or None
Inputs = dict[str, object]  # keyword arguments of a forward pass, as hooks see them


@runtime_checkable
class Module(Protocol):
    """A torch module, as far as it is hooked and walked here."""

    training: bool

    def register_forward_pre_hook(
        self, hook: Hook, *, prepend: bool = ..., with_kwargs: bool = ...
    ) -> RemovableHandle:
        """Call `hook` before each forward pass."""
        ...

    def register_forward_hook(
        self, hook: Hook, *, prepend: bool = ..., with_kwargs: bool = ..., always_call: bool = ...
    ) -> RemovableHandle:
        """Call `hook` after each forward pass."""
        ...

    def modules(self) -> Iterator[nn.Module]:
        """Walk over this module and all inside it."""
        ...

    def named_modules(self) -> Iterator[tuple[str, nn.Module]]:
        """Walk over this module and all inside it, with their names."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]:
        """Walk over the parameters."""
        ...

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Walk over the parameters, with their names."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """Return parameters and buffers by name."""
        ...

    def requires_grad_(self, requires_grad: bool = ...) -> Self:
        """Train the parameters, or freeze them."""
        ...

    def train(self, mode: bool = ...) -> Self:
        """Switch dropout on or off."""
        ...

    def eval(self) -> Self:
        """Switch dropout off."""
        ...


@runtime_checkable
class TextConfig(AttentionConfig, Protocol):
    """Configuration of the language model."""

    hidden_size: int
    vocab_size: int


@runtime_checkable
class VisionConfig(Protocol):
    """Configuration of the vision tower."""

    image_size: int
    patch_size: int


@runtime_checkable
class ImageTextConfig(Protocol):
    """Configuration of the whole model."""

    model_type: str
    image_token_id: int
    image_seq_length: int
    text_config: TextConfig
    vision_config: VisionConfig

    def get_text_config(self) -> TextConfig:
        """Return the language model's part."""
        ...


@runtime_checkable
class DecoderLayer(Module, Protocol):
    """One layer of the language model."""

    self_attn: nn.Module


@runtime_checkable
class Decoder(Module, Protocol):
    """The language model without its head."""

    config: TextConfig
    layers: Sequence[DecoderLayer]
    embed_tokens: nn.Embedding
    norm: nn.Module


@runtime_checkable
class ImageFeatures(Protocol):
    """What tower and projector make of P images."""

    pooler_output: Sequence[Tensor]  # P of (N, d)


@runtime_checkable
class Hidden(Protocol):
    """Output of the model without its head."""

    last_hidden_state: Tensor  # (B, T, d)


@runtime_checkable
class Logits(Protocol):
    """Output of the model."""

    logits: Tensor  # (B, T, V), or fewer rows where fewer are asked for


@runtime_checkable
class Multimodal(Module, Protocol):
    """Tower, projector and language model: it puts image features among the embeddings."""

    def __call__(self, **inputs: object) -> Hidden:
        """Return the last hidden states."""
        ...

    def get_image_features(
        self, pixel_values: Tensor, *others: object, **options: object
    ) -> ImageFeatures:
        """Return the features of images (P, 3, S, S)."""
        ...


@runtime_checkable
class ImageTextModel(Module, Protocol):
    """A model that answers questions about images; a PEFT model behaves as the one inside it."""

    config: ImageTextConfig
    model: Multimodal
    lm_head: nn.Module
    generation_config: object

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Of the parameters."""
        ...

    def __call__(self, **inputs: object) -> Logits:
        """Return the logits."""
        ...

    def generate(self, **inputs: object) -> Tensor:
        """Return token ids (B, T), the prompt's and the answer's."""
        ...

    def get_decoder(self) -> Decoder:
        """Return the language model."""
        ...

    def to(self, where: torch.device | torch.dtype | str) -> Self:
        """Move or convert the parameters."""
        ...

    def save_pretrained(self, folder: str | Path) -> object:
        """Write configuration and weights."""
        ...


@runtime_checkable
class HookedModel(ImageTextModel, Protocol):
    """A model on which `student_train.student` has put rotations and hooks."""

    rotation: nn.ModuleDict  # W by layer
    alignment: object  # the channel of the hooks


@runtime_checkable
class AdaptedModel(ImageTextModel, Protocol):
    """PEFT's wrapper of a model with adapter layers."""

    @property
    def peft_config(self) -> "Mapping[str, AdapterConfig]":
        """Configurations by adapter name; there is one, `default`."""
        ...

    def get_base_model(self) -> ImageTextModel:
        """Return the model inside, its adapter layers and hooks in place."""
        ...

    def merge_and_unload(self) -> ImageTextModel:
        """Add the adapters to the weights and return the plain model."""
        ...


@runtime_checkable
class AdapterConfig(Protocol):
    """PEFT's configuration of an adapter."""

    def to_dict(self) -> dict[str, object]:
        """Return its fields."""
        ...


@runtime_checkable
class TokenIds(Protocol):
    """What a tokenizer makes of one text."""

    input_ids: list[int]


@runtime_checkable
class Tokenizer(Protocol):
    """A transformers tokenizer."""

    bos_token_id: int | None
    eos_token_id: int
    pad_token_id: int | None
    eos_token: str
    pad_token: str | None
    all_special_tokens: list[str]

    def __call__(self, text: str, *, add_special_tokens: bool = ...) -> TokenIds:
        """Encode one text."""
        ...

    def __len__(self) -> int:
        """Count the tokens, added ones included."""
        ...

    def convert_tokens_to_ids(self, tokens: str) -> int:
        """Return a token's id."""
        ...

    def convert_ids_to_tokens(self, ids: int) -> str | None:
        """Return an id's token."""
        ...

    def get_added_vocab(self) -> Mapping[str, int]:
        """Return the tokens that stand beside the vocabulary."""
        ...

    def add_tokens(self, new_tokens: Sequence[object], special_tokens: bool = ...) -> int:
        """Add tokens."""
        ...

    def add_special_tokens(self, special_tokens_dict: Mapping[str, object]) -> int:
        """Add tokens that have a role."""
        ...

    def decode(self, token_ids: Sequence[int] | Tensor, *, skip_special_tokens: bool = ...) -> str:
        """Return the text of ids."""
        ...

    def batch_decode(self, sequences: Tensor, *, skip_special_tokens: bool = ...) -> list[str]:
        """Return the text of each row of ids."""
        ...

    def save_pretrained(self, folder: str | Path) -> object:
        """Write the tokenizer's files."""
        ...


@runtime_checkable
class ImageProcessor(Protocol):
    """A transformers image processor: mean, deviation and size are read from it."""

    size: Mapping[str, int | None]
    image_mean: list[float]
    image_std: list[float]

    def save_pretrained(self, folder: str | Path) -> object:
        """Write the processor's configuration."""
        ...


def entering(args: tuple[object, ...], kwargs: Mapping[str, object]) -> Tensor:
    """Return the hidden states (B, T, d) that enter a decoder layer, from its pre-hook's inputs."""
    hidden = args[0] if args else kwargs["hidden_states"]
    if not isinstance(hidden, Tensor):
        raise TypeError(f"a decoder layer was given {type(hidden).__name__} as hidden states")
    return hidden


def first_layer(config: ImageTextConfig) -> int:
    """Return the lowest distillation layer of a model.

    Layer 1, or above the layers behind which DeepStack adds image features that W would not rotate.
    """
    return max(1, len(getattr(config.vision_config, "deepstack_visual_indexes", ())))


def cached(kwargs: Inputs) -> bool:
    """Whether keys of earlier tokens come with a forward of these inputs."""
    from transformers import Cache

    past = kwargs.get("past_key_values")
    return isinstance(past, Cache) and past.get_seq_length() > 0
