"""VISTA (Li et al. 2025, arXiv 2502.03628).

Steer every layer along what the image brought, and add what earlier layers would say.

The steering vector of a layer is the last prompt token's state behind that layer, with the image
less without. It turns the output x of each MLP, at every token: x' has the length of x and the
direction of x/|x| + strength (1 + max(0, cos(x, -v))) v/|v|. Then l' = (1 - alpha) l + alpha times
the mean of the logits that the head gives for the states behind layers `first_layer` to
`last_layer`, without the final norm. The likeliest token is taken.

B prompts, L layers, d width, T tokens.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn import functional

from pipelines.decoding.attention import undisturbed
from pipelines.decoding.contrast import text_alone
from pipelines.decoding.early import early_logits, layers_of
from pipelines.decoding.generation import Limits, generate
from pipelines.decoding.prefix import prefilled, prefilled_so, prefix_cache
from pipelines.decoding.prompts import Model, Prompts, places
from pipelines.decoding.settings import STRICT, Place, Share, Strength
from shared.errors import UserError
from student_train.imagetext import Hook

LAYERS = (25, 30)  # the code's, of LLaVA-1.5 7B


@dataclass(frozen=True, config=STRICT)
class Settings:
    """Published values, of the code's script for CHAIR with LLaVA-1.5 7B.

    Its scripts have `strength` 0.1 for MMHal and 0.01 for POPE. `first_layer`, `last_layer` None:
    layers 25 to 30 of 32, at the same share of another depth.

    `unit_remainder`: the code takes the principal direction of one difference, which is the
    difference, and with it a unit vector of an empty decomposition: 1 is added to the first number
    of the first layer's vector. False leaves it out, as the paper does.
    """

    strength: Strength = 0.17
    alpha: Share = 0.3
    first_layer: Place | None = None
    last_layer: Place | None = None
    unit_remainder: bool = True


def check(model: Model, settings: Settings) -> range:
    """Return the layers whose states the head reads.

    Raises
    ------
    UserError
        The model has no such layers, or its layers hold no MLP that could be steered.
    """
    if not all(hasattr(block, "mlp") for block in model.get_decoder().layers):
        raise UserError(
            "VISTA steers the output of each layer's MLP, and this model's layers have no module "
            "`mlp`; leave vista out for it"
        )
    given = settings.first_layer, settings.last_layer
    return layers_of(model, "vista", given, LAYERS, but=1)  # behind the last is the final norm


def decode(
    model: Model, prompts: Prompts, limits: Limits, settings: Settings, seed: int
) -> list[list[int]]:
    """Answer every prompt of the batch."""
    behind = check(model, settings)
    vectors = steering_vectors(model, prompts, settings.unit_remainder)
    layers = tuple(layer + 1 for layer in behind)  # what enters the next

    with (
        steered(model, vectors, settings.strength),
        early_logits(model, layers, norm=False) as early,
    ):

        def augmented(ids: Tensor, scores: Tensor) -> Tensor:
            said = early["logits"].float().mean(1)
            mixed = settings.alpha * said + (1 - settings.alpha) * scores
            return mixed.masked_fill(scores.isneginf(), -torch.inf)

        return generate(model, prefilled_so(model, prompts), limits, [augmented])


def steering_vectors(model: Model, prompts: Prompts, unit_remainder: bool) -> Tensor:
    """Return the vectors (L, B, d), float32; zero for a prompt without an image."""
    shown = prompts.image_mask.any(1)
    with_image = last_states(model, prefilled(model, prompts))
    vectors = with_image - last_states(model, text_alone(model, prompts))
    if unit_remainder:
        vectors[0, :, 0] += 1.0
    return torch.where(shown[:, None], vectors, 0.0)


def last_states(model: Model, prompts: Prompts) -> Tensor:
    """States (L, B, d) of the last prompt token behind every layer, float32."""
    states: list[Tensor] = []

    def keep(module: nn.Module, args: object, output: Tensor | tuple[Tensor, ...]) -> None:
        states.append((output if isinstance(output, Tensor) else output[0])[:, -1].float())

    own, _ = places(model, prompts.ids, prompts.mask)
    with ExitStack() as stack:
        for block in model.get_decoder().layers:
            stack.callback(block.register_forward_hook(keep).remove)
        stack.enter_context(torch.no_grad())
        stack.enter_context(undisturbed())
        model.model(
            input_ids=prompts.ids[:, -1:],
            attention_mask=prompts.mask,
            position_ids=own[..., -1:],
            past_key_values=prefix_cache(model, prompts),
            use_cache=True,
        )
    return torch.stack(states)


@contextmanager
def steered(model: Model, vectors: Tensor, strength: float) -> Iterator[None]:
    """Turn the output of every MLP inside the block by its layer's `vectors` (L, B, d)."""
    with ExitStack() as stack:
        for block, vector in zip(model.get_decoder().layers, vectors, strict=True):
            mlp: nn.Module = block.mlp  # type: ignore[attr-defined]
            stack.callback(mlp.register_forward_hook(_turn(vector, strength)).remove)
        yield


def _turn(vector: Tensor, strength: float) -> Hook:
    def hook(module: nn.Module, args: object, output: Tensor) -> Tensor:
        return turned(output, vector, strength)

    return hook


def turned(states: Tensor, vector: Tensor, strength: float) -> Tensor:
    """Turn `states` (B, T, d) towards `vector` (B, d); each keeps its length."""
    own, toward = states.float(), vector[:, None]
    away = functional.cosine_similarity(own, -toward, dim=-1).clamp(min=0.0)[..., None]
    pull = strength * (1.0 + away) * functional.normalize(toward, dim=-1)
    length = own.norm(dim=-1, keepdim=True)
    moved: Tensor = functional.normalize(functional.normalize(own, dim=-1) + pull, dim=-1) * length
    return moved.to(states.dtype)
