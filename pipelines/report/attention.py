"""What a student looks at.

The question's attention over the image patches at layer l, as the loss L_att sees it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import nn

from shared.imaging.images import ImageReference
from student_train.attention import Request, install, observing
from student_train.models.processor import Processor, load

Maps = Float[np.ndarray[Any, np.dtype[np.float32]], "n patches"]


def attention_maps(
    folder: Path, questions: Sequence[str], images: Sequence[ImageReference], layer: int
) -> Float[np.ndarray[Any, np.dtype[np.float32]], "n patches"]:
    """Attention of each question's text over its image's patches, mean over heads and rows.

    Not normalised.

    Parameters
    ----------
    folder
        An adapter folder of `student train`, or the model folder that it started from.
    questions, images
        One image a question.
    layer
        The distillation layer l. An adapter that was trained with another one is observed at that
        one.
    """
    model, processor = load(folder)
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    channel = getattr(plain, "alignment", None) or install(
        plain, nn.ModuleDict(), (layer,), processor.image_token_id
    )
    maps = []
    with torch.no_grad():
        for question, image in zip(questions, images, strict=True):
            inputs = processor.encode(question, [image])
            with observing(channel, request_of(inputs["input_ids"], processor)) as observed:
                model(**inputs)
            found = observed.attention.get(layer, next(iter(observed.attention.values())))
            maps.append(found[0].numpy())
    return np.stack(maps)


def request_of(ids: torch.Tensor, processor: Processor) -> Request:
    """Ask for one prompt (1, T): its image's columns, and every row of text after the image."""
    columns = (ids[0] == processor.image_token_id).nonzero()[:, 0]
    rows = torch.arange(int(columns[-1]) + 1, ids.shape[1])
    return Request(
        image_sample=torch.tensor([0]),
        image_columns=columns[None],
        span_image=torch.tensor([0]),
        span_rows=rows[None],
        span_lengths=torch.tensor([len(rows)]),
    )
