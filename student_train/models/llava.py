"""Any folder in transformers' own `LlavaForConditionalGeneration` format."""

from pathlib import Path
from typing import Any

from shared.errors import UserError
from shared.recipe import ModelSection
from student_train.models.base import BaseStudent, make_base
from student_train.models.folder import weight_files

MODEL_TYPE = "llava"


def load_llava(
    folder: Path, section: ModelSection, dtype: Any, template: str | None
) -> BaseStudent:
    """Load a transformers Llava folder, strictly.

    Parameters
    ----------
    dtype
        The torch dtype to hold the weights in.
    template
        Name of the prompt template; None takes the one in the folder's config.
    """
    from transformers import AutoImageProcessor, AutoTokenizer, LlavaForConditionalGeneration

    weight_files(folder)
    if section.vision_weights != "checkpoint":
        raise UserError(
            "model.vision_weights=openai applies to LLaVA-Med's original checkpoint; a "
            "transformers folder has its own"
        )
    model = from_pretrained(LlavaForConditionalGeneration, section, dtype, folder)
    tokenizer = load_part(AutoTokenizer, folder, "tokenizer")
    processor = load_part(AutoImageProcessor, folder, "image processor")
    return make_base(model, tokenizer, processor, template)


def from_pretrained(
    model_class: Any, section: ModelSection, dtype: Any, folder: Path | None, **options: Any
) -> Any:
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
    model.name_or_path = model.config._name_or_path = section.path or section.name
    return model.eval()


def load_part(auto_class: Any, folder: Path, what: str, **options: Any) -> Any:
    """Load a tokenizer, an image processor or a vision tower of a folder."""
    try:
        return auto_class.from_pretrained(folder, trust_remote_code=False, **options)
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{folder} holds no usable {what} ({reason}); copy its files from the model's own "
            "folder"
        ) from None


def quantization(section: ModelSection, dtype: Any) -> Any:
    """Return the 4-bit configuration of QLoRA (NF4, double quantisation), or None."""
    if section.quantization == "none":
        return None
    import importlib.util

    import torch
    from transformers import BitsAndBytesConfig

    if importlib.util.find_spec("bitsandbytes") is None or not torch.cuda.is_available():
        raise UserError(
            "model.quantization=4bit needs a CUDA GPU and `pip install bitsandbytes`; here use "
            "model.quantization=none"
        )
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=["lm_head", "vision_tower", "multi_modal_projector"],
    )
