"""transformers' `from_pretrained`: strict, no remote code, errors of one line."""

import importlib.util
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

import torch

from shared.errors import UserError
from shared.recipe import ModelSection
from student_train.imagetext import ImageTextModel
from student_train.upstream import name_source

Part_co = TypeVar("Part_co", covariant=True)
Loading = Mapping[str, Collection[object]]  # what did not fit, by kind
# What QLoRA leaves as it is: head, tower and connector. Whole names, because transformers reads one
# from the start of a module's: "vision_tower" alone would hold nothing back.
UNQUANTIZED = (
    "lm_head",
    "model.vision_tower",
    "model.vision_model",
    "model.visual",
    "model.multi_modal_projector",
    "model.connector",
)


@runtime_checkable
class ModelClass(Protocol):
    """A transformers class of image-text models."""

    def from_pretrained(
        self, folder: Path | None, **options: object
    ) -> tuple[ImageTextModel, Loading]:
        """Load a model; the second is what `output_loading_info=True` adds."""
        ...


@runtime_checkable
class PartClass(Protocol[Part_co]):
    """A transformers class of tokenizers, image processors or towers."""

    def from_pretrained(self, folder: Path, **options: object) -> Part_co:
        """Load the part."""
        ...


def from_pretrained(
    model_class: ModelClass,
    section: ModelSection,
    dtype: torch.dtype,
    folder: Path | None,
    **options: object,
) -> ImageTextModel:
    """Call a transformers class's `from_pretrained` without remote code.

    Weights that do not fit are an error.
    """
    try:
        model, loading = model_class.from_pretrained(
            folder,
            dtype=dtype,
            attn_implementation=section.attention,
            quantization_config=quantization(section, dtype),
            trust_remote_code=False,
            weights_only=True,
            output_loading_info=True,
            **options,
        )
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"the model cannot be loaded from {folder or section.name}: {reason}"
        ) from None
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        faults = loading.get(what) or ()
        if faults:
            first = sorted(map(str, faults))[0]
            raise UserError(
                f"{folder or section.name}: {len(faults)} weights are {what.partition('_')[0]}, "
                f"first {first}; "
                "is the checkpoint whole?"
            )
    # What adapters will name as their base: as the user gave it, not where the hub library keeps
    # it.
    name_source(model, section.path or section.name)
    return model.eval()


def own_tower(section: ModelSection, model: str) -> None:
    """Raise a `UserError` where a recipe wants OpenAI's vision tower for a model with its own."""
    if section.vision_weights != "checkpoint":
        raise UserError(
            f"model.vision_weights=openai applies to LLaVA-Med only; {model} brings its own tower"
        )


def load_part(
    auto_class: PartClass[Part_co], folder: Path, what: str, **options: object
) -> Part_co:
    """Load a tokenizer, an image processor or a vision tower of a folder."""
    from transformers.utils import logging

    # It warns of an exported model's own architecture name, which is there on purpose.
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        return auto_class.from_pretrained(folder, trust_remote_code=False, **options)
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{folder} holds no usable {what} ({reason}); copy its files from the model's own "
            "folder"
        ) from None
    finally:
        logging.set_verbosity(level)


def quantization(section: ModelSection, dtype: torch.dtype) -> object | None:
    """Return the 4-bit configuration of QLoRA (NF4, double quantisation), or None."""
    if section.quantization == "none":
        return None
    from transformers import BitsAndBytesConfig

    if importlib.util.find_spec("bitsandbytes") is None or not torch.cuda.is_available():
        raise UserError(
            "model.quantization=4bit needs a CUDA GPU and `pip install bitsandbytes`; here use "
            "model.quantization=none"
        )
    config: object = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=list(UNQUANTIZED),
    )
    return config
