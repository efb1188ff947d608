"""What the head says of earlier layers, and which layers a method published for 32 means elsewhere.

B rows of a batch, C layers, V vocabulary.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from pipelines.decoding.prompts import Model
from shared.errors import UserError
from student_train.imagetext import Hook, Inputs, entering

PUBLISHED_DEPTH = 32  # of LLaVA-1.5 7B, whose layers the papers name


def layers_of(
    model: Model,
    method: str,
    given: tuple[int | None, int | None],
    published: tuple[int, int],
    *,
    but: int = 0,
) -> range:
    """Return the layers `first_layer` to `last_layer` of a method, both among them.

    Where one is None it is the published one, which counts in a model of 32 layers; another model
    has it at the same share of its depth, which is ours: the papers name no layers for it. `but`
    layers at the end are none of the method's.

    Raises
    ------
    UserError
        The model has no such layers, or the last stands before the first.
    """
    depth = len(model.get_decoder().layers)
    usable = depth - but
    first, last = (
        min(usable - 1, round(one * depth / PUBLISHED_DEPTH)) if own is None else own
        for own, one in zip(given, published, strict=True)
    )
    if None in given:  # what is left open follows what is given
        first, last = (min(first, last), last) if given[0] is None else (first, max(first, last))
    if not 0 <= first <= last < usable:
        raise UserError(
            f"{method}.first_layer={first}, {method}.last_layer={last}: name layers within "
            f"0..{usable - 1} of this model's {depth}, the last not before the first"
        )
    return range(first, last + 1)


@contextmanager
def early_logits(model: Model, layers: tuple[int, ...], norm: bool) -> Iterator[dict[str, Tensor]]:
    """Yield a place that holds the newest token's logits (B, C, V) at `layers` after each forward.

    The candidates pass through the head together with the last layer, so that its weights are read
    once.
    """
    decoder = model.get_decoder()
    states: dict[int, Tensor] = {}
    early: dict[str, Tensor] = {}

    def keep(layer: int) -> Hook:
        def hook(module: nn.Module, args: tuple[object, ...], kwargs: Inputs) -> None:
            states[layer] = entering(args, kwargs)[:, -1]

        return hook

    def widen(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        candidates = torch.stack([states[layer] for layer in layers], dim=1)
        return (torch.cat([args[0], decoder.norm(candidates) if norm else candidates], dim=1),)

    def narrow(module: nn.Module, args: object, output: Tensor) -> Tensor:
        early["logits"] = output[:, -len(layers) :]
        return output[:, : -len(layers)]

    handles = [
        decoder.layers[layer].register_forward_pre_hook(
            keep(layer), with_kwargs=True, prepend=False
        )
        for layer in layers
    ]
    handles += [
        model.lm_head.register_forward_pre_hook(widen),
        model.lm_head.register_forward_hook(narrow),
    ]
    try:
        yield early
    finally:
        for handle in handles:
            handle.remove()
