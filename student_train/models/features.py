"""Image features that were made before: as the list that decoding keeps, or as one tensor.

P images, N patches, d student width.
"""

from typing import cast

import torch
from torch import nn

from student_train.imagetext import ImageFeatures, Inputs, Multimodal


def accept_lists(model: Multimodal) -> None:
    """Let a model's `mm_encoder_outputs` hold a list of P features (N, d), as Llava's may.

    The images of a list may have different numbers of tokens.
    """
    model.register_forward_pre_hook(_joined, with_kwargs=True)


def _joined(
    module: nn.Module, args: tuple[object, ...], kwargs: Inputs
) -> tuple[tuple[object, ...], Inputs] | None:
    given = kwargs.get("mm_encoder_outputs")
    if not isinstance(given, dict) or given.get("image") is None:
        return None
    found: object = cast(ImageFeatures, given["image"]).pooler_output
    if not isinstance(found, list | tuple):
        return None
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    whole = BaseModelOutputWithPooling(pooler_output=torch.cat(found).unsqueeze(0))
    return args, kwargs | {"mm_encoder_outputs": {**given, "image": whole}}
