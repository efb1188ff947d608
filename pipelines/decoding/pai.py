"""PAI (Liu et al. 2024, arXiv 2407.21771).

More attention to the image, and guidance away from the text alone.

Before the softmax of layers `start_layer` to `end_layer` - 1 the newest row's logits on image keys
grow by alpha |logit|. With p from that pass and p_text from the prompt without its image tokens
(not boosted): l' = gamma (log p - log p_text) + log p_text over the plausible tokens. The likeliest
token is taken.

B prompts (in 2B rows with those of the text), H heads, T tokens so far.
"""

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.nn import functional

from pipelines.decoding.attention import watching
from pipelines.decoding.contrast import contrasted, plausible, text_alone
from pipelines.decoding.generation import Limits
from pipelines.decoding.prompts import Model, Prompts
from pipelines.decoding.settings import STRICT, Number, Place, Share
from shared.errors import UserError
from student_train.kernel import AttentionCall


@dataclass(frozen=True, config=STRICT)
class Settings:
    """Published values for LLaVA. `end_layer` None is the last; `boost_first`.

    The first token is boosted too.

    The published code leaves the first token alone by a quirk of its flags; its paper does not, and
    an answer of one word would never be boosted.
    """

    alpha: Number = 0.2
    gamma: Number = 1.1
    beta: Share = 0.1
    start_layer: Place = 2
    end_layer: Place | None = None
    boost_first: bool = True


def decode(
    model: Model, prompts: Prompts, limits: Limits, settings: Settings, seed: int
) -> list[list[int]]:
    """Answer every prompt of the batch."""
    depth = len(model.get_decoder().layers)
    end = depth if settings.end_layer is None else settings.end_layer
    if not settings.start_layer <= end <= depth:
        raise UserError(
            f"pai.start_layer={settings.start_layer}, pai.end_layer={end}: this model has layers "
            f"0..{depth - 1}; end_layer is the first that is left alone, at most {depth}"
        )
    image = prompts.image_mask

    def boost(layer: int, call: AttentionCall) -> Tensor | None:
        if call.key.shape[2] == image.shape[1] and not settings.boost_first:
            return None
        logits = call.logits()  # (B or 2B, H, 1, T)
        rows, _, _, seen = logits.shape
        # the text is shorter than the prompt, so that no column moves; its rows have no image
        columns = functional.pad(image, (0, seen - image.shape[1], 0, rows - len(image)))
        columns = columns[:, None, None, :]
        # what a sliding window hides stays hidden
        grown = columns & logits.isfinite()
        return torch.where(grown, logits + settings.alpha * logits.abs(), logits)

    def combine(logits: Tensor, text: Tensor, step: int) -> Tensor:
        main, bare = torch.log_softmax(logits, dim=-1), torch.log_softmax(text, dim=-1)
        return plausible(settings.gamma * (main - bare) + bare, main, settings.beta)

    text = text_alone(model, prompts)
    with watching(model, range(settings.start_layer, end), boost):
        return contrasted(model, prompts, limits, text, combine)
