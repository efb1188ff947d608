"""Loading a trained student, and encoding questions for it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shared.imaging.images import ImageReference, parse_reference
from shared.imaging.squares import ImageReader, image_reader
from student_train.models import load_base
from student_train.models.base import BaseStudent
from student_train.models.prompts import Template, encode_prompt


@dataclass(frozen=True)
class Processor:
    """What a question needs to become model inputs.

    Attributes
    ----------
    tokenizer, image_processor, template, image_token_id
        Of the base model.
    patches
        N, image tokens of one image.
    reader
        Pads (or crops), resizes and normalises images as in training.
    """

    tokenizer: Any
    image_processor: Any
    template: Template
    image_token_id: int
    patches: int
    reader: ImageReader

    @classmethod
    def of(cls, base: BaseStudent, geometry: Any = "pad") -> "Processor":
        """Take everything from a loaded base model; `geometry` is the recipe's `data.geometry`."""
        reader = image_reader(base.image_processor, base.image_size, geometry)
        return cls(
            base.tokenizer,
            base.image_processor,
            base.template,
            base.image_token_id,
            base.image_tokens,
            reader,
        )

    def encode(
        self, question: str | Sequence[str], images: Sequence[Any] = ()
    ) -> dict[str, Tensor]:
        """Return `input_ids` (B, T), `attention_mask` and `pixel_values` (P, 3, S, S; absent without images).

        Parameters
        ----------
        question
            One question, or B of them, which are padded on the left.
        images
            Pictures of the question: PIL images, references or files; with B questions B sequences
            of them.
        """
        questions, galleries = (
            ([question], [images]) if isinstance(question, str) else (list(question), list(images))
        )
        if len(galleries) != len(questions):
            galleries = galleries or [()] * len(questions)
        rows, pixels = [], []
        for text, gallery in zip(questions, galleries, strict=True):
            encoded = encode_prompt(
                text,
                self.template,
                self.tokenizer,
                self.patches,
                self.image_token_id,
                images=len(gallery),
            )
            rows.append(torch.tensor(encoded.input_ids))
            pixels += [self._pixels(image) for image in gallery]
        length = max(len(row) for row in rows)
        ids = torch.full((len(rows), length), int(self.tokenizer.pad_token_id))
        mask = torch.zeros_like(ids)
        for number, row in enumerate(rows):
            ids[number, length - len(row) :] = row
            mask[number, length - len(row) :] = 1
        batch = {"input_ids": ids, "attention_mask": mask}
        return batch | {"pixel_values": torch.stack(pixels)} if pixels else batch

    def _pixels(self, image: Any) -> Tensor:
        if isinstance(image, ImageReference):
            return self.reader(image)
        return (
            self.reader(parse_reference(str(image)))
            if isinstance(image, (str, Path))
            else self.reader.pixels(image)
        )


def load(
    path: str | Path, *, base: str | None = None, dtype: torch.dtype = torch.float32
) -> tuple[Any, Processor]:
    """Load what `student train` or `student export` wrote, strictly, ready to answer.

    Parameters
    ----------
    path
        An adapter folder, a folder of `student export`, or a plain model folder (which has no
        adapter to load).
    base
        Where the base model is now, if not where the recipe in the folder says.
    dtype
        Of the base weights; adapter and W are kept in float32 beside them.

    Returns
    -------
    model, processor
        The model in evaluation mode on the CPU, W acting in every forward and in the prefill of
        `generate`.

    Raises
    ------
    UserError
        A missing, unexpected or misshapen weight; a base model that is not there.
    """
    from student_train.student import (
        ADAPTER_CONFIG,
        RECIPE,
        ROTATION_WEIGHTS,
        adapter_recipe,
        load_adapter,
        load_rotation,
    )

    folder = Path(path)
    if (folder / "config.json").is_file() and not (folder / ADAPTER_CONFIG).is_file():
        loaded = load_base(str(folder), dtype)
        merged = adapter_recipe(folder) if (folder / RECIPE).is_file() else None
        rotated = (
            merged is not None and merged.train.tune == "lora" and merged.rotation.kind != "none"
        )
        if rotated or (folder / ROTATION_WEIGHTS).is_file():
            load_rotation(
                loaded.model, loaded.image_token_id, folder, merged or adapter_recipe(folder)
            )
        return loaded.model, Processor.of(loaded, "pad" if merged is None else merged.data.geometry)
    recipe = adapter_recipe(folder)
    section = recipe.model
    if base is not None:
        section = section.model_copy(
            update={"path": base} if section.path is not None else {"name": base, "path": None}
        )
    loaded = load_base(section, dtype)
    student = load_adapter(loaded.model, loaded.image_token_id, folder, recipe)
    return student.model, Processor.of(loaded, recipe.data.geometry)
