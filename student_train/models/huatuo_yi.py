"""HuatuoGPT-Vision-34B in its own layout (`model_type: llava_llama`).

Published as `FreedomIntelligence/HuatuoGPT-Vision-34B`. A CLIP tower, LLaVA's projector and Yi-1.5,
whose classes are Llama's.

Its files were never at hand. The layout is derived from the authors' loader (cli.py,
llava/model/llava_arch.py and language_model/llava_llama.py of their repository), which reads the
34B with the same code as the 7B but Llama's classes in Qwen2's place. Sizes come from the folder's
own config.json; those of the tests are Yi-34B's (60 layers, 7,168 wide, 64,000 words).

What the loader does not tell is how an answer ends. The authors end it at the tokenizer's own end
of text, so a tokenizer that ends a text otherwise than the template is refused.
"""

from pathlib import Path

import torch

from shared.errors import UserError
from shared.recipe import ModelSection
from student_train.imagetext import Tokenizer
from student_train.models.base import BaseStudent
from student_train.models.original import load_original
from student_train.models.pieces import piece_tokenizer
from student_train.models.pretrained import load_part, own_tower

MODEL_TYPE = "llava_llama"
TEMPLATE = "huatuo_v1"


def load_huatuo_yi(
    folder: Path, section: ModelSection, dtype: torch.dtype, template: str | None
) -> BaseStudent:
    """Load an original folder with Llama's classes.

    The authors' training template `huatuo_v1` unless another is named.
    """
    from transformers import LlamaConfig

    own_tower(section, "HuatuoGPT-Vision")
    base = load_original(
        folder,
        section,
        dtype,
        template=template or TEMPLATE,
        text_class=LlamaConfig,
        tokenizer=_tokenizer(folder),
        padding=None,
    )
    end = getattr(base.tokenizer, "eos_token", None)
    if section.template is None and end != base.template.end_token:
        raise UserError(
            f"{folder}: its tokenizer ends a text with {end}, but template {base.template.name} "
            f"ends an answer with {base.template.end_token}; name the template that this model is "
            f"to be trained with, such as model.template={base.template.name}"
        )
    return base


def _tokenizer(folder: Path) -> Tokenizer:
    """Return the tokenizer of the folder's tokenizer.json, as it stands.

    So the authors' software read it. Llama's class would build the merges and blanks anew, by rules
    that need not be Yi's.
    """
    from transformers import LlamaTokenizer, PreTrainedTokenizerFast

    if not (folder / "tokenizer.json").is_file():
        return piece_tokenizer(LlamaTokenizer, folder)
    tokenizer: Tokenizer = load_part(PreTrainedTokenizerFast, folder, "tokenizer")
    return tokenizer
