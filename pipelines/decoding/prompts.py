"""A batch of prompts, left-padded, its images encoded once for the main and every contrast pass.

B prompts, L tokens of the longest, P images, N patches, d student width, S side of
an image in pixels.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from student_train.imagetext import ImageTextModel

Model = ImageTextModel  # adapter layers and hooks inside
# reads the vision tower inside its block; what it has seen is whole at the block's end
Watch = Callable[[Model], AbstractContextManager[Mapping[str, Tensor]]]
Reworded = Callable[[str], Tensor]  # (instruction) -> ids (L',) of one prompt under it


@dataclass(frozen=True)
class Prompts:
    """B prompts of L tokens at most, P images among them.

    Attributes
    ----------
    ids, mask
        (B, L) token ids and 1 where real, padded on the left; an image is its run of
        `image_token_id`.
    pixels
        (P, 3, S, S), the images in order of appearance; None without images.
    features
        P projected images (N, d); all the image tokens of a row stand in its images' order.
    items
        B names; an item's random numbers follow from its name, so that batches and shards do not
        matter.
    prefix
        For each layer keys and values (B, H_k, L - 1, c) of all tokens but the last, where
        `prefilled` was called.
    """

    ids: Tensor
    mask: Tensor
    pixels: Tensor | None
    features: tuple[Tensor, ...]
    items: tuple[str, ...]
    image_token_id: int
    pad_token_id: int
    prefix: tuple[tuple[Tensor, Tensor], ...] | None = None
    # (P, 1 + patches) of each kind, what CLS attends to, where `collate` was told to watch
    tower: Mapping[str, Tensor] | None = None
    # each row's prompt under another instruction, where `collate` was given them
    reworded: tuple[Reworded, ...] | None = None
    # sees (ids (B, T), scores (B, V)) of every step of a method that goes token by token, and
    # returns the scores that count
    heard: Callable[[Tensor, Tensor], Tensor] | None = None
    # what several methods need of these very prompts; a changed copy begins with nothing
    shared: dict[str, "Prompts"] = field(init=False, default_factory=dict, compare=False)

    @property
    def image_mask(self) -> Tensor:
        """(B, L), True on image tokens."""
        return self.ids == self.image_token_id

    def image_rows(self) -> list[int]:
        """Row of the batch that each image belongs to."""
        counts = self.image_mask.sum(1).tolist()
        rows = [row for row, count in enumerate(counts) for _ in range(count)]
        starts = [0]
        for image in self.features[:-1]:
            starts.append(starts[-1] + len(image))
        return [rows[start] for start in starts[: len(self.features)]]

    def model_inputs(self) -> dict[str, object]:
        """Keyword arguments of the model's forward, or of `generate`."""
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        inputs: dict[str, object] = {"input_ids": self.ids, "attention_mask": self.mask}
        if self.features:
            inputs["mm_encoder_outputs"] = {
                "image": BaseModelOutputWithPooling(pooler_output=list(self.features))
            }
        return inputs

    def select(self, rows: Sequence[int]) -> "Prompts":
        """Return some of the prompts, without padding that none of them needs."""
        start = int(self.mask[list(rows)].argmax(1).min())
        if start == 0 and list(rows) == list(range(len(self.ids))):
            return self
        images: list[int] = []
        owners = self.image_rows()
        for row in rows:
            images += [place for place, owner in enumerate(owners) if owner == row]
        prefix = self.prefix
        if prefix is not None:
            prefix = tuple(
                (keys[list(rows), :, start:], values[list(rows), :, start:])
                for keys, values in prefix
            )
        return replace(
            self,
            ids=self.ids[list(rows), start:],
            mask=self.mask[list(rows), start:],
            pixels=None if self.pixels is None or not images else self.pixels[images],
            features=tuple(self.features[place] for place in images),
            items=tuple(self.items[row] for row in rows),
            prefix=prefix,
            tower=self.tower and {kind: one[images] for kind, one in self.tower.items()},
            reworded=self.reworded and tuple(self.reworded[row] for row in rows),
        )

    def with_features(self, features: Sequence[Tensor]) -> "Prompts":
        """Return the same prompts over other image features, one token each as before."""
        return replace(self, features=tuple(features), prefix=None)

    def with_text(self, rows: Sequence[Tensor]) -> "Prompts":
        """Return prompts of other ids (L',) about the same images."""
        ids, mask = _left_padded([row.to(self.ids.device) for row in rows], self.pad_token_id)
        return replace(self, ids=ids, mask=mask, prefix=None)

    def keeping(self, kept: Sequence[Tensor]) -> "Prompts":
        """Return shorter prompts with only the image tokens that `kept` shows.

        It holds a mask (N,) of each image.
        """
        flat = torch.cat([*kept, torch.zeros(0, dtype=torch.bool, device=self.ids.device)])
        stay = self.mask.bool().clone()
        stay[self.image_mask] = flat.to(stay.device)
        ids, mask = _left_padded(
            [row[keep] for row, keep in zip(self.ids, stay, strict=True)], self.pad_token_id
        )
        features = tuple(
            image[keep] for image, keep in zip(self.features, kept, strict=True) if keep.any()
        )
        return replace(self, ids=ids, mask=mask, features=features, prefix=None)

    def in_order(self, places: Sequence[Tensor]) -> "Prompts":
        """Return shorter prompts whose image tokens are the `places` (k,) of each image, in order.

        `places` holds distinct token numbers of each image.
        """
        kept = [
            torch.zeros(len(image), dtype=torch.bool, device=self.ids.device).index_fill(
                0, at, True
            )
            for image, at in zip(self.features, places, strict=True)
        ]
        return replace(
            self.keeping(kept),
            features=tuple(
                image[at] for image, at in zip(self.features, places, strict=True) if len(at)
            ),
        )

    def without_images(self) -> "Prompts":
        """Return the text alone: the same prompts with the image tokens left out."""
        kept = [
            torch.zeros(len(image), dtype=torch.bool, device=image.device)
            for image in self.features
        ]
        return replace(self.keeping(kept), pixels=None)


def places(model: Model, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return the positions of a batch's tokens, and what later tokens' places move by, (B, 1).

    (B, L), a token's place in the text; (3, B, L) for a model whose images have rows and columns,
    and then what follows an image stands nearer than its place in the text.
    """
    own = getattr(model.model, "places_of", None)
    if own is not None and bool((ids == model.config.image_token_id).any()):
        found: tuple[Tensor, Tensor] = own(ids, mask)
        return found
    return (mask.cumsum(1) - 1).clamp(min=0), mask.new_zeros(len(mask), 1)


def collate(
    encoded: Sequence[Mapping[str, Tensor]],
    items: Sequence[str],
    model: Model,
    pad_token_id: int,
    watch: Watch | None = None,
    reworded: Sequence[Reworded] | None = None,
) -> Prompts:
    """Left-pad encoded prompts and encode their images.

    Each has `input_ids` (1, L) and perhaps `pixel_values` (p, 3, S, S). `items` names them; equal
    names would share their random numbers. What `watch` sees of the vision tower's one pass is kept
    as `tower`. `reworded` writes each prompt under another instruction, which ICD needs.
    """
    device = next(model.parameters()).device
    ids, mask = _left_padded(
        [one["input_ids"].reshape(-1).to(device) for one in encoded], pad_token_id
    )
    pixels = [one["pixel_values"] for one in encoded if one.get("pixel_values") is not None]
    images = torch.cat(pixels).to(device, model.dtype) if pixels else None
    features: tuple[Tensor, ...] = ()
    tower: Mapping[str, Tensor] | None = None
    if images is not None:
        with watch(model) if watch else nullcontext() as tower:
            features = encode_images(model, images)
    return Prompts(
        ids,
        mask,
        images,
        features,
        tuple(items),
        int(model.config.image_token_id),
        pad_token_id,
        tower=tower,
        reworded=None if reworded is None else tuple(reworded),
    )


def encode_images(model: Model, pixels: Tensor) -> tuple[Tensor, ...]:
    """Projected features (N, d) of every image in `pixels` (P, 3, S, S).

    Of a model with DeepStack those that it adds to later layers stand beside them, in one row.
    """
    whole = getattr(model.model, "whole_features", None)
    with torch.no_grad():
        if whole is not None:
            found: tuple[Tensor, ...] = whole(pixels)
            return found
        return tuple(model.model.get_image_features(pixels, return_dict=True).pooler_output)


def plain_model(model: Model) -> Model:
    """Return the image-text model inside a PEFT wrapper.

    Its adapter layers and hooks stay in place.
    """
    inside: Model = model.get_base_model() if hasattr(model, "get_base_model") else model
    return inside


def _left_padded(rows: Sequence[Tensor], pad: int) -> tuple[Tensor, Tensor]:
    length = max(len(row) for row in rows)
    ids = rows[0].new_full((len(rows), length), pad)
    mask = rows[0].new_zeros((len(rows), length))
    for number, row in enumerate(rows):
        ids[number, length - len(row) :] = row
        mask[number, length - len(row) :] = 1
    return ids, mask


@contextmanager
def counted(model: Model) -> Iterator[dict[str, int]]:
    """Count the language model's forward passes inside the block.

    `calls`, `rows` and `tokens` (row positions).
    """
    counts = {"calls": 0, "rows": 0, "tokens": 0}

    def count(module: object, args: object, kwargs: Mapping[str, Tensor]) -> None:
        shape = kwargs["inputs_embeds"].shape
        counts["calls"] += 1
        counts["rows"] += shape[0]
        counts["tokens"] += shape[0] * shape[1]

    handle = model.get_decoder().register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield counts
    finally:
        handle.remove()
