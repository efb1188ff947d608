"""What every model family is loaded into."""

from dataclasses import dataclass, fields
from typing import cast

from torch import nn

from shared.errors import UserError
from shared.imaging.grid import Grid
from shared.imaging.squares import Fill
from shared.vocabulary import Geometry
from student_train.imagetext import ImageProcessor, ImageTextModel, Tokenizer
from student_train.models.processor import Processor
from student_train.models.templates import Template, check_tokenizer, template_named

TEMPERATURE_KEY = "checkpoint_temperature"  # in config.json: of its own generation settings
TEMPLATE_KEY = "prompt_template"  # in config.json: which template the model was trained with


@dataclass(frozen=True, kw_only=True)
class BaseStudent(Processor):
    """A loaded model, with all that is needed to ask it something.

    Attributes
    ----------
    model
        transformers' `LlavaForConditionalGeneration`, or another image-text class with the same
        call.
    """

    model: ImageTextModel

    def processor(self, geometry: Geometry = "pad", padding: Fill | None = None) -> Processor:
        """Return what turns questions into this model's inputs.

        Parameters
        ----------
        geometry, padding
            As in training: the recipe's `data.geometry` and `data.padding`.
        """
        own = {field.name: getattr(self, field.name) for field in fields(Processor)}
        return Processor(**{**own, "geometry": geometry, "padding": padding})


def assemble(
    model: ImageTextModel,
    tokenizer: Tokenizer,
    image_processor: ImageProcessor,
    template: str | None,
    *,
    image_size: int,
    token_pixels: int,
) -> BaseStudent:
    """Join the parts of a model and check that they fit each other.

    Parameters
    ----------
    template
        A template's name; None takes the one that the model's config names.
    image_size
        Side of the square that the vision tower sees, in pixels.
    token_pixels
        Side of the square that one image token stands for, in pixels.

    Raises
    ------
    UserError
        No template is known; the tokenizer lacks the image token or the template's end token.
    """
    config = model.config
    name = template or getattr(config, TEMPLATE_KEY, None)
    if name is None:
        raise UserError(
            "this model does not say which prompt template it was trained with; set model.template"
        )
    chosen = template_named(name)
    check_tokenizer(tokenizer, chosen)
    check_image_token(tokenizer, config.image_token_id)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = chosen.end_token  # padding is masked by length, never by id
    side = image_size // token_pixels
    setattr(config, TEMPLATE_KEY, chosen.name)
    set_generation(model, tokenizer, chosen)
    grid = Grid(side, side)
    return BaseStudent(
        model=model,
        tokenizer=tokenizer,
        image_processor=image_processor,
        template=chosen,
        image_token_id=config.image_token_id,
        grid=grid,
        image_size=image_size,
    )


def make_base(
    model: ImageTextModel,
    tokenizer: Tokenizer,
    image_processor: ImageProcessor,
    template: str | None,
) -> BaseStudent:
    """Join the parts of a `LlavaForConditionalGeneration`.

    Its image processor says how large images are.

    Raises
    ------
    UserError
        What `assemble` refuses, and a size that does not give as many patches as the config has
        image tokens.
    """
    size, patch = processor_size(image_processor), model.config.vision_config.patch_size
    side, wanted = size // patch, model.config.image_seq_length
    if side * side != wanted:
        raise UserError(
            f"images of {size} pixels give {side}x{side} patches of {patch} pixels, but "
            "config.json says "
            f"image_seq_length={wanted}; one of the two files is wrong"
        )
    return assemble(
        model, tokenizer, image_processor, template, image_size=size, token_pixels=patch
    )


def connector(model: ImageTextModel) -> nn.Module:
    """Return the module between vision tower and language model.

    LLaVA's projector, SmolVLM's connector, the merger in Qwen's tower.
    """
    tower = getattr(model.model, "visual", None)
    if hasattr(tower, "merger"):
        return cast(nn.Module, getattr(tower, "merger"))  # noqa: B009
    for name in ("multi_modal_projector", "connector"):
        if hasattr(model.model, name):
            return cast(nn.Module, getattr(model.model, name))
    raise UserError(
        f"train.tune=projector: {type(model).__name__} has no projector to train; use "
        "train.tune=lora"
    )


def check_image_token(tokenizer: Tokenizer, image_token_id: int) -> None:
    """Raise a `UserError` where `image_token_id` is no special token of its own in `tokenizer`."""
    known = image_token_id < len(tokenizer)
    token = tokenizer.convert_ids_to_tokens(image_token_id) if known else None
    if token is None or token not in tokenizer.get_added_vocab():
        found = (
            f"there it is the ordinary token {token!r}"
            if known
            else f"it ends at {len(tokenizer) - 1}"
        )
        raise UserError(
            f"the tokenizer lacks the image token: the model's config says id {image_token_id}, "
            f"but {found}; "
            "take tokenizer and weights from the same folder"
        )


def processor_size(image_processor: ImageProcessor) -> int:
    """Return the side of the square that an image processor produces, in pixels."""
    size = getattr(image_processor, "crop_size", None) or image_processor.size
    given = [size.get(key) for key in ("height", "width", "shortest_edge")]
    sides = {int(side) for side in given if side is not None}
    if len(sides) != 1:
        raise UserError(
            f"the image processor's size {dict(size)} is no square; students here see squares"
        )
    return sides.pop()


def set_generation(model: ImageTextModel, tokenizer: Tokenizer, template: Template) -> None:
    """End answers at the template's end token.

    Whatever sampling the checkpoint's own defaults ask for is dropped. Its temperature is kept in
    the model's config, for the presets of decoding that ask for it.
    """
    from transformers import GenerationConfig

    temperature = getattr(model.generation_config, "temperature", None)
    if temperature is not None and float(temperature) != 1.0:
        setattr(model.config, TEMPERATURE_KEY, float(temperature))
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.convert_tokens_to_ids(template.end_token),
        pad_token_id=tokenizer.pad_token_id,
    )
