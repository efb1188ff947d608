"""The three terms of the loss over one micro-batch, as sums with what they are sums of.

B rows, T tokens, V vocabulary, P images, N patches, d student width, I spans, K teachers.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from shared.recipe import Recipe
from student_train.attention import Channel, Request, observing
from student_train.data.batches import Batch, request_of
from student_train.imagetext import ImageTextModel
from student_train.losses import attention_alignment_terms, visual_alignment_terms
from student_train.models.prompts import IGNORED

TERMS = ("loss_lm", "loss_vis", "loss_att")


def trained_terms(recipe: Recipe) -> tuple[str, ...]:
    """Name the terms that a run trains: the others are no losses of 0, they are not there."""
    weights = (1.0, recipe.losses.alpha, recipe.losses.beta or 0.0)
    if recipe.train.tune != "lora":
        return TERMS[:1]
    return tuple(name for name, weight in zip(TERMS, weights, strict=True) if weight)


class Terms(NamedTuple):
    """Sums over a micro-batch and what they are sums of; (3,) each.

    Tokens, images, images with a question.
    """

    sums: Tensor
    counts: Tensor


def step_counts(batch: Batch) -> Tensor:
    """Count what the three terms are means of, (3,).

    Labelled tokens, images with targets, those with question rows.
    """
    tokens = (batch["labels"][:, 1:] != IGNORED).sum()
    request = request_of(batch)
    if request is None:
        return torch.stack([tokens, torch.zeros_like(tokens), torch.zeros_like(tokens)]).float()
    asked = int(torch.unique(request.span_image).numel())
    return torch.stack(
        [tokens, tokens.new_tensor(len(request.image_sample)), tokens.new_tensor(asked)]
    ).float()


def term_sums(
    model: ImageTextModel, channel: Channel | None, batch: Batch, recipe: Recipe
) -> Terms:
    """Run the model on a collated batch and return the sums of the three terms with their counts.

    Logits are computed only where a label is: the vocabulary dominates a small model's step.
    """
    labels, losses = batch["labels"], recipe.losses
    wanted = torch.zeros_like(labels, dtype=torch.bool)
    wanted[:, :-1] = labels[:, 1:] != IGNORED
    request = request_of(batch) if channel is not None and losses.aligned else None
    if request is None or channel is None:
        logits = _logits(model, batch, wanted)
        visual = attentive = logits.new_zeros((), dtype=torch.float32)
    else:
        with observing(channel, request) as seen:
            logits = _logits(model, batch, wanted)
        nothing = logits.new_zeros((), dtype=torch.float32)
        visual = _visual(seen.tokens, batch) if losses.alpha else nothing
        attentive = _attentive(seen.attention, batch, request, recipe) if losses.beta else nothing
    targets = labels[:, 1:][wanted[:, :-1]]
    language = functional.cross_entropy(logits.float(), targets, reduction="sum")
    return Terms(torch.stack([language, visual, attentive]), step_counts(batch).to(labels.device))


def _logits(model: ImageTextModel, batch: Batch, wanted: Tensor) -> Tensor:
    """Return the logits at the places (B, T) that are `wanted`, one row each."""
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    if "pixel_values" in batch:
        inputs["pixel_values"] = batch["pixel_values"]
    return model(**inputs, logits_to_keep=wanted, use_cache=False).logits


def _visual(tokens: Mapping[int, Tensor], batch: Batch) -> Tensor:
    """Sum of L_vis over the images, the mean over layers and teachers of each."""
    coverage = batch.get("coverage")
    terms = [
        visual_alignment_terms(
            found, similarity, None if coverage is None else coverage[teacher]
        ).sum()
        for found in tokens.values()
        for teacher, similarity in enumerate(batch["similarity"])
    ]
    return torch.stack(terms).mean()


def _attentive(
    found: Mapping[int, Tensor], batch: Batch, request: Request, recipe: Recipe
) -> Tensor:
    """Sum of L_att over the images with a question.

    An image's is the mean over its turns, layers and teachers.
    """
    image = request.span_image
    if not len(image):
        return torch.zeros((), device=image.device)
    turns = torch.bincount(image, minlength=len(request.image_sample))[image]
    coverage = batch.get("coverage")
    terms = []
    for attention in found.values():
        for teacher, target in enumerate(batch["attention"]):
            visible = None if coverage is None else coverage[teacher][image]
            wanted = _wanted(target[image], visible, batch, recipe)
            value = attention_alignment_terms(
                attention, wanted, recipe.losses.attention_normalization, visible
            )
            terms.append((value / turns).sum())
    mean: Tensor = torch.stack(terms).mean()
    return mean


def _wanted(own: Tensor, visible: Tensor | None, batch: Batch, recipe: Recipe) -> Tensor:
    """Return what each span is taught, (I, N): E_a, its question's map, or the mean of both.

    In the mean both have the sum 1 over the patches that show image.
    """
    if recipe.losses.attention_target == "image" or "maps" not in batch:
        return own
    maps = batch["maps"].to(own.dtype)
    if recipe.losses.attention_target == "mixed":
        shown = torch.ones_like(own) if visible is None else (visible > 0).to(own.dtype)
        own_share, map_share = (
            values * shown / (values * shown).sum(1, keepdim=True).clamp_min(1e-12)
            for values in (own, maps)
        )
        maps, own = (own_share + map_share) / 2, own_share
    return torch.where(batch["mapped"].unsqueeze(1), maps, own)


def schedule_factor(schedule: str, done: float, ratio: float) -> float:
    """Return what a loss weight is multiplied with when the share `done` of the run is over."""
    if schedule == "warmup":
        return min(1.0, done / ratio) if ratio > 0 else 1.0
    if schedule == "linear":
        return max(0.0, 1.0 - done)
    if schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))
    return 1.0
