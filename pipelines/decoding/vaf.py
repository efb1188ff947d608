"""VAF, the method of ClearSight (Yin et al. 2025, arXiv 2503.13107).

More attention to the image, less to the system message, in the middle layers, in one pass.

Before the softmax of these layers the logits of all rows behind the image are multiplied: by
`enhance` on image keys, by `suppress` on keys before the image. So are those of every new token.
The likeliest token is taken.

B prompts, L tokens of the longest, H heads, R newest rows of T tokens so far.
"""

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.nn import functional

from pipelines.decoding.attention import seeing, watching
from pipelines.decoding.early import layers_of
from pipelines.decoding.generation import Limits, generate
from pipelines.decoding.prefix import prefilled_so
from pipelines.decoding.prompts import Model, Prompts
from pipelines.decoding.settings import STRICT, Number, Place
from student_train.kernel import AttentionCall

LAYERS = (9, 14)  # the code's, of LLaVA-1.5 7B


@dataclass(frozen=True, config=STRICT)
class Settings:
    """Published values, of the code's script for LLaVA-1.5 7B.

    `first_layer`, `last_layer` None: layers 9 to 14 of 32, at the same share of another depth.
    """

    enhance: Number = 1.15
    suppress: Number = 0.95
    first_layer: Place | None = None
    last_layer: Place | None = None


def check(model: Model, settings: Settings) -> range:
    """Return the layers; a UserError where the model has no such ones."""
    return layers_of(model, "vaf", (settings.first_layer, settings.last_layer), LAYERS)


def decode(
    model: Model, prompts: Prompts, limits: Limits, settings: Settings, seed: int
) -> list[list[int]]:
    """Answer every prompt of the batch."""
    layers = check(model, settings)
    image = prompts.image_mask
    if not bool(image.any()):
        return generate(model, prompts, limits)
    factors = torch.ones(image.shape, device=image.device)
    factors[image] = settings.enhance
    ahead = (image.cumsum(1) == 0) & prompts.mask.bool() & image.any(1, keepdim=True)
    factors[ahead] = settings.suppress
    behind = image.shape[1] - (image.flip(1).cumsum(1) == 0).sum(1)  # (B,) first row that changes

    def amplify(layer: int, call: AttentionCall) -> Tensor | None:
        seen, queries = call.key.shape[2], call.query.shape[2]
        count = min(queries, seen - int(behind.min()))
        if count < 1:
            return None
        columns = functional.pad(factors, (0, max(0, seen - factors.shape[1])), value=1.0)
        columns = columns[:, None, None, :seen]
        rows = torch.arange(seen - count, seen, device=image.device)
        changed = (rows >= behind[:, None])[:, None, :, None]
        logits = seeing(call.logits(count))  # (B, H, R, T)
        return torch.where(changed & logits.isfinite(), logits * columns, logits)

    with watching(model, layers, amplify):
        return generate(model, prefilled_so(model, prompts), limits)
