"""What Qwen's image-text models want beside ids and squares, derived inside their forward.

B rows of a batch, T tokens, P images, S side of an image in pixels, N tokens of one image, d
student width, K layers of DeepStack.

- Their tower reads flattened patches with the grid of each image: here it takes (P, 3, S, S), as
  the others do.
- An image token's rotary position has a time, a row and a column. The model computes them from
  `mm_token_type_ids`, and without these gives every token its place in the text, without a word:
  here they follow from the token ids.
- An image of g x g tokens takes the room of g of them, so whatever follows it in the text stands
  nearer than its index. `places_of` says both; decoding hands them to every pass.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from math import isqrt
from pathlib import Path
from typing import Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from shared.errors import UserError
from student_train.imagetext import ImageFeatures, ImageTextModel, Inputs, Multimodal, cached
from student_train.upstream import Positions, prepare_positions, text_positions

PLACES = "places_of"  # of the multimodal model: (ids, mask) -> places, shift
WHOLE = "whole_features"  # of the multimodal model: pixels (P, 3, S, S) -> P of (N, d (1 + K))


@runtime_checkable
class QwenVision(Protocol):
    """Configuration of the tower."""

    patch_size: int
    spatial_merge_size: int
    temporal_patch_size: int


@runtime_checkable
class QwenModel(Protocol):
    """Tower and language model, as transformers has them."""

    rope_deltas: Tensor | None

    def get_rope_index(self, input_ids: Tensor, **options: object) -> tuple[Tensor, Tensor]:
        """Return positions (3, B, T), and by how much the next one is below T, (B, 1)."""
        ...


@runtime_checkable
class Deep(Protocol):
    """What a tower with DeepStack makes of P images."""

    pooler_output: Sequence[Tensor]  # P of (N, d)
    deepstack_features: Sequence[Sequence[Tensor]]  # of each decoder layer P of (N, d)


def square_of(tower: QwenVision, largest: int) -> tuple[int, int]:
    """Return side in pixels and tokens a side of the square that an image is shown as.

    24x24 tokens, as LLaVA's, so that one store serves both; fewer where the model's own processor
    allows no more than `largest` pixels.
    """
    token = tower.patch_size * tower.spatial_merge_size
    side = min(24, isqrt(largest) // token)
    return side * token, side


def largest_square(folder: Path) -> int:
    """Return how many pixels the processor of a folder allows an image; very many if it is silent.

    The published folders write `max_pixels`, those saved by newer software `size.longest_edge`.
    """
    for name in ("preprocessor_config.json", "processor_config.json"):
        file = folder / name
        if not file.is_file():
            continue
        found = json.loads(file.read_text(encoding="utf-8"))
        found = found.get("image_processor", found)
        size = found.get("size") or {}
        largest = found.get("max_pixels") or size.get("longest_edge") or size.get("max_pixels")
        if largest:
            return int(largest)
    return sys.maxsize


def derive_inputs(
    model: ImageTextModel, tower: QwenVision, image_token_id: int, tokens: int
) -> None:
    """Let a Qwen model take ids and squares (P, 3, S, S), and nothing besides.

    Parameters
    ----------
    tokens
        N.
    """
    places = _Places(model, image_token_id, tokens, tower.spatial_merge_size)
    setattr(model.model, PLACES, places)
    model.model.register_forward_pre_hook(_Placed(places), with_kwargs=True)
    prepare_positions(model, _prepared(model, places))
    own = model.model.get_image_features

    def get_image_features(
        pixel_values: Tensor, *others: object, **options: object
    ) -> ImageFeatures:
        if pixel_values.ndim != 4:
            return own(pixel_values, *others, **options)
        grid = places.grids(len(pixel_values)).to(pixel_values.device)
        return own(flat_patches(pixel_values, tower), grid, **options)

    model.model.get_image_features = get_image_features  # type: ignore[method-assign]


def deepen_features(model: Multimodal, width: int) -> None:
    """Let image features carry what DeepStack adds to later layers, beside their own d = `width`.

    `whole_features` of the model returns them (N, d (1 + K)) for K layers, and as
    `mm_encoder_outputs` it takes them so.
    """

    def whole_features(pixels: Tensor) -> tuple[Tensor, ...]:
        found = cast(Deep, model.get_image_features(pixels, return_dict=True))
        layers = zip(found.pooler_output, *found.deepstack_features, strict=True)
        return tuple(torch.cat(list(one), dim=1) for one in layers)

    setattr(model, WHOLE, whole_features)
    model.register_forward_pre_hook(_Parted(width), with_kwargs=True)


class _Parted:
    """Before the multimodal model: part whole features into an image's own and DeepStack's."""

    def __init__(self, width: int) -> None:
        self.width = width

    def __call__(
        self, module: nn.Module, args: tuple[object, ...], kwargs: Inputs
    ) -> tuple[tuple[object, ...], Inputs] | None:
        given = kwargs.get("mm_encoder_outputs")
        if not isinstance(given, dict) or given.get("image") is None:
            return None
        images = cast(Deep, given["image"])
        if getattr(images, "deepstack_features", None) is not None:
            return None
        from transformers.models.qwen3_vl.modeling_qwen3_vl import (
            BaseModelOutputWithDeepstackFeatures,
        )

        parts = [torch.split(one, self.width, dim=1) for one in images.pooler_output]
        own, *deep = zip(*parts, strict=True)
        found = BaseModelOutputWithDeepstackFeatures(
            pooler_output=list(own), deepstack_features=[list(one) for one in deep]
        )
        return args, kwargs | {"mm_encoder_outputs": {**given, "image": found}}


def flat_patches(pixels: Tensor, tower: QwenVision) -> Tensor:
    """Return images (P, 3, S, S) as rows of patches, those of one token together.

    A still image is its own next frame. Source: transformers' `Qwen2VLImageProcessor`.
    """
    size, merge, count = tower.patch_size, tower.spatial_merge_size, len(pixels)
    side = pixels.shape[-1] // (size * merge)
    cut = pixels.reshape(count, 3, side, merge, size, side, merge, size)
    rows = cut.permute(0, 2, 5, 3, 6, 1, 4, 7).unsqueeze(6)
    rows = rows.expand(-1, -1, -1, -1, -1, -1, tower.temporal_patch_size, -1, -1)
    return rows.reshape(count * (side * merge) ** 2, -1)


class _Places:
    """Rotary positions of prompts."""

    def __init__(self, model: ImageTextModel, image_token_id: int, tokens: int, merge: int) -> None:
        # not as an attribute of the module that holds this: a module must not hold itself
        self._rope = cast(QwenModel, model.model).get_rope_index
        self.image_token_id, self.tokens, self.merge = image_token_id, tokens, merge

    def grids(self, images: int) -> Tensor:
        """Return frames, rows and columns of patches of each image, (images, 3)."""
        side = isqrt(self.tokens) * self.merge
        return torch.tensor([[1, side, side]]).expand(images, -1)

    def shown(self, ids: Tensor) -> Tensor:
        """Return 1 for image tokens (B, T)."""
        return (ids == self.image_token_id).int()

    def __call__(self, ids: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return positions (3, B, T), and what later tokens' places in the text move by, (B, 1)."""
        types = self.shown(ids)
        count, rest = divmod(int(types.sum()), self.tokens)
        if rest:
            raise UserError(
                f"this student places whole images of {self.tokens} tokens; a prompt has "
                f"{int(types.sum())} image tokens"
            )
        return self._rope(
            ids,
            mm_token_type_ids=types,
            image_grid_thw=self.grids(count),
            attention_mask=mask,
        )


class _Placed:
    """Before the multimodal model: give the tokens their places, where the caller does not."""

    def __init__(self, places: _Places) -> None:
        self.places = places

    def __call__(
        self, module: nn.Module, args: tuple[object, ...], kwargs: Inputs
    ) -> tuple[tuple[object, ...], Inputs] | None:
        ids, given = kwargs.get("input_ids", args[0] if args else None), kwargs.get("position_ids")
        if not isinstance(ids, Tensor) or not bool(self.places.shown(ids).any()):
            return None
        if isinstance(given, Tensor) and given.ndim == 3:
            return None
        mask = kwargs.get("attention_mask")
        if cached(kwargs) or (isinstance(mask, Tensor) and mask.ndim != 2):
            raise UserError(
                "this model places an image by the whole prompt: give image and prompt in one "
                "forward, with a mask of their tokens"
            )
        found, shift = self.places(ids, mask if isinstance(mask, Tensor) else None)
        cast(QwenModel, module).rope_deltas = shift
        return args, kwargs | {"position_ids": found}


def _prepared(model: ImageTextModel, places: _Places) -> Positions:
    """Return what `generate` asks for positions: (4, B, T), the place in the text first."""

    def prepare(inputs: Tensor, given: Mapping[str, object]) -> Tensor:
        text = text_positions(model, inputs, given)
        ids, mask = given.get("input_ids"), given.get("attention_mask")
        ids = ids if isinstance(ids, Tensor) and ids.shape[1] else inputs
        if bool(places.shown(ids).any()):
            found, shift = places(ids, mask if isinstance(mask, Tensor) else None)
        else:
            found = text.unsqueeze(0).expand(3, -1, -1)
            shift = torch.zeros(len(text), 1, dtype=torch.long, device=text.device)
        cast(QwenModel, model.model).rope_deltas = shift
        return torch.cat([text.unsqueeze(0), found])

    return prepare
