"""SID (Huo et al. 2025, arXiv 2408.02032).

Contrast with the image tokens that the model itself deems least worth a look.

In the contrast rows the newest token's attention in layer `layer` - 1, the mean of its heads, ranks
the image tokens; from `layer` on only the `keep` least of them are seen. The prompt is ranked by
its last token and its hidden tokens are hidden from all of it; every new token ranks anew. l' =
(1 + alpha) l - alpha l_hidden.

B prompts (in 2B rows with their contrast rows), L tokens of the longest, R newest rows of T tokens
so far.
"""

import dataclasses

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.nn import functional

from pipelines.decoding.attention import seeing, watching
from pipelines.decoding.contrast import amplified, contrasted
from pipelines.decoding.generation import Limits, sampler
from pipelines.decoding.prefix import prefilled
from pipelines.decoding.prompts import Model, Prompts
from pipelines.decoding.settings import STRICT, Count, Number, Share, Temperature
from shared.errors import UserError
from student_train.kernel import AttentionCall

KEPT, OF = 100, 576  # the code's, of LLaVA-1.5's image tokens
BETA = 0.1  # of the code, where it draws


@dataclass(frozen=True, config=STRICT)
class Settings:
    """Published values, of the code's script for POPE with LLaVA-1.5 7B.

    `keep` None: 100 of 576, and that share of another number of image tokens. `beta` None: 0.1
    where it draws, 0 where the likeliest token is taken, as in the code.
    """

    layer: Count = 2
    keep: Count | None = None
    alpha: Number = 0.5
    beta: Share | None = None
    sample: bool = False
    temperature: Temperature = 1.0


def check(model: Model, settings: Settings) -> None:
    """Raise a `UserError` where the model has no layer that could look at fewer image tokens."""
    depth = len(model.get_decoder().layers)
    if settings.layer >= depth:
        raise UserError(
            f"sid.layer={settings.layer}: it must be within 1..{depth - 1}, this model's layers "
            "behind the one that ranks the image tokens"
        )


def decode(
    model: Model, prompts: Prompts, limits: Limits, settings: Settings, seed: int
) -> list[list[int]]:
    """Answer every prompt of the batch."""
    check(model, settings)
    image = prompts.image_mask
    counts = kept_counts(image, settings.keep)
    hidden = torch.zeros_like(image)  # of the contrast rows, as the layer before has just ranked

    def contrast_rows(call: AttentionCall) -> slice | None:
        queries, rows = call.query.shape[2], call.query.shape[0]
        if queries > 1:
            return slice(None)  # their prefill: the main rows come with theirs
        return slice(len(image), None) if rows == 2 * len(image) else None

    def look(layer: int, call: AttentionCall) -> Tensor | None:
        rows = contrast_rows(call)
        if rows is None:
            return None
        if layer == settings.layer - 1:
            if call.window is not None and call.key.shape[2] > call.window:
                raise UserError(
                    f"SID ranks all image tokens in layer {layer}, which sees {call.window} tokens "
                    "in this model; ask less, or leave sid out for it"
                )
            weights = call.weights(call.logits())[rows, :, 0, : image.shape[1]].mean(1)
            hidden.copy_(image & ~least(weights, image, counts))
            return None
        count = call.query.shape[2]
        logits = call.logits(count)  # (B or 2B, H, R, T)
        columns = functional.pad(hidden, (0, logits.shape[3] - hidden.shape[1]))[:, None, None]
        logits[rows] = logits[rows].masked_fill(columns, -torch.inf)
        return seeing(logits)

    main = prefilled(model, prompts)
    draw = sampler(prompts, seed, temperature=settings.temperature) if settings.sample else None
    beta = settings.beta
    if beta is None:
        beta = BETA if settings.sample else 0.0
    layers = range(settings.layer - 1, len(model.get_decoder().layers))
    with watching(model, layers, look, views=True):
        view = dataclasses.replace(prompts, prefix=None)
        return contrasted(model, main, limits, view, amplified(settings.alpha, beta), draw)


def kept_counts(image: Tensor, keep: int | None) -> Tensor:
    """Return how many image tokens the contrast rows keep, (B,), of the mask `image` (B, L).

    Raises
    ------
    UserError
        That is all of them: nothing would be contrasted.
    """
    tokens = image.sum(1)
    if keep is None:
        return (tokens * KEPT / OF).round().long().clamp(min=1)
    least_tokens = int(tokens[tokens > 0].min()) if bool((tokens > 0).any()) else keep + 1
    if keep >= least_tokens:
        raise UserError(
            f"sid.keep={keep}: a prompt has {least_tokens} image tokens, and none would be hidden; "
            f"keep fewer, or leave it at null, {KEPT} of {OF}"
        )
    return tokens.clamp(max=keep)


def least(weights: Tensor, image: Tensor, counts: Tensor) -> Tensor:
    """Mask (B, L) of the `counts` (B,) image tokens with the least of `weights` (B, L)."""
    order = weights.masked_fill(~image, torch.inf).argsort(dim=1)
    among = torch.arange(image.shape[1], device=image.device) < counts[:, None]
    return torch.zeros_like(image).scatter(1, order, among) & image
