"""What turns a record or a question into a model's inputs.

B questions of a batch, T tokens, P images among them, S side of an image in pixels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import cast

import torch
from PIL import Image
from torch import Tensor

from shared.imaging.grid import Grid
from shared.imaging.images import ImageReference, parse_reference
from shared.imaging.squares import Fill, ImageReader, image_reader
from shared.records import Turn
from shared.vocabulary import Geometry, Truncation
from student_train.imagetext import ImageProcessor, Tokenizer
from student_train.models.prompts import Encoded, encode_conversation, encode_prompt
from student_train.models.templates import Template

Picture = Image.Image | ImageReference | str | Path  # an open image, a reference or a file


@dataclass(frozen=True, kw_only=True)
class Processor:
    """What a question or a conversation needs to become model inputs.

    Attributes
    ----------
    tokenizer
        The base model's, which has a padding token.
    image_processor
        Its transformers image processor, of which mean and deviation are read.
    template
        How conversations are written for it.
    image_token_id
        The id that stands for one image patch.
    grid
        Patches of one image, (rows, columns); N is their product.
    image_size
        Side of the square that the vision tower sees, in pixels.
    geometry
        How images are made square, as in training: the recipe's `data.geometry`.
    padding
        Colour of the square around an image, as in training: the recipe's `data.padding`.
    """

    tokenizer: Tokenizer
    image_processor: ImageProcessor
    template: Template
    image_token_id: int
    grid: Grid
    image_size: int
    geometry: Geometry = "pad"
    padding: Fill | None = None

    @property
    def image_tokens(self) -> int:
        """N, the tokens of one image."""
        return self.grid.rows * self.grid.columns

    @cached_property
    def reader(self) -> ImageReader:
        """Pads (or crops), resizes and normalises images."""
        return image_reader(self.image_processor, self.image_size, self.geometry, self.padding)

    def encode_conversation(
        self,
        turns: Sequence[Turn],
        max_length: int | None,
        truncation: Truncation,
        *,
        system: str = "",
    ) -> Encoded:
        """Encode a conversation for training; see `prompts.encode_conversation`."""
        return encode_conversation(
            turns,
            self.template,
            self.tokenizer,
            self.image_tokens,
            self.image_token_id,
            max_length,
            truncation,
            system=system,
        )

    def encode(
        self,
        question: str | Sequence[str],
        images: Sequence[Picture] | Sequence[Sequence[Picture]] = (),
        *,
        system: str | Sequence[str] = "",
    ) -> dict[str, Tensor]:
        """Return `input_ids` (B, T), `attention_mask` and `pixel_values` (P, 3, S, S).

        The last is absent without images.

        Parameters
        ----------
        question
            One question, or B of them, which are padded on the left.
        images
            Pictures of the question; with B questions B sequences of them.
        system
            A system message of its own, or one for each of B questions; where empty, the
            template's.
        """
        if isinstance(question, str):
            questions, galleries = [question], [cast(Sequence[Picture], images)]
        else:
            questions = list(question)
            galleries = list(cast(Sequence[Sequence[Picture]], images))
        if len(galleries) != len(questions):
            galleries = galleries or [()] * len(questions)
        systems = [system] * len(questions) if isinstance(system, str) else list(system)
        return self._inputs(questions, galleries, systems)

    def reworded(
        self, asked: str | Sequence[Turn], images: int, *, system: str = ""
    ) -> Callable[[str], Tensor]:
        """Return what writes a prompt under another instruction: from its text to ids (T,).

        The instruction stands in the place of the system message, or before the first question;
        `images` of them are asked about.
        """
        return lambda instruction: self._ids(asked, images, system, instruction)

    def encode_turns(
        self, turns: Sequence[Turn], images: Sequence[Picture] = (), *, system: str = ""
    ) -> dict[str, Tensor]:
        """Return the inputs, as `encode` does, for a conversation that ends with a question.

        `images` are those of all turns, in the order of their `<image>` marks.
        """
        return self._inputs([turns], [images], [system])

    def _inputs(
        self,
        questions: Sequence[str | Sequence[Turn]],
        galleries: Sequence[Sequence[Picture]],
        systems: Sequence[str],
    ) -> dict[str, Tensor]:
        rows, pixels = [], []
        for asked, gallery, system in zip(questions, galleries, systems, strict=True):
            rows.append(self._ids(asked, len(gallery), system))
            pixels += [self._pixels(image) for image in gallery]
        length = max(len(row) for row in rows)
        ids = torch.full((len(rows), length), cast(int, self.tokenizer.pad_token_id))
        mask = torch.zeros_like(ids)
        for number, row in enumerate(rows):
            ids[number, length - len(row) :] = row
            mask[number, length - len(row) :] = 1
        batch = {"input_ids": ids, "attention_mask": mask}
        return batch | {"pixel_values": torch.stack(pixels)} if pixels else batch

    def _ids(
        self,
        asked: str | Sequence[Turn],
        images: int,
        system: str,
        instruction: str | None = None,
    ) -> Tensor:
        """Return the ids (T,) of one prompt."""
        encoded = encode_prompt(
            asked,
            self.template,
            self.tokenizer,
            self.image_tokens,
            self.image_token_id,
            images=images,
            system=system,
            instruction=instruction,
        )
        return torch.tensor(encoded.input_ids)

    def _pixels(self, image: Picture) -> Tensor:
        if isinstance(image, ImageReference):
            return self.reader(image)
        if isinstance(image, (str, Path)):
            return self.reader(parse_reference(str(image)))
        return self.reader.pixels(image)
