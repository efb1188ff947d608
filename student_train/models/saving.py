"""A model as a folder that transformers, vLLM and `load_base` read: weights, texts, pictures.

N patches of one image. Beside the weights stands a processor that does to a chat message and an
image what `Processor` does: the template as a chat template, the geometry as padding.
"""

import json
from copy import copy
from pathlib import Path
from typing import Protocol, cast, runtime_checkable

from shared.files import follow_umask
from shared.records import IMAGE_MARK
from student_train.models.base import BaseStudent
from student_train.models.templates import Template

# What a message's content may be: a text, or a list of {"type": "image"} and {"type": "text"}.
_MESSAGES = """\
{%- set first = messages[0] -%}
{%- set told = namespace(text='') -%}
{%- if first and first.role == 'system' -%}
{%- set messages = messages[1:] -%}
{%- if first.content is string -%}{%- set told.text = first.content | trim -%}
{%- else -%}{%- for part in first.content -%}
{%- if part.type == 'text' -%}{%- set told.text = told.text + part.text -%}
{%- else -%}{{- raise_exception('a system message holds texts alone') -}}{%- endif -%}
{%- endfor -%}{%- set told.text = told.text | trim -%}{%- endif -%}
{%- if told.text and not HAS_SYSTEM -%}
{{- raise_exception('the model has no place for a system message') -}}
{%- endif -%}
{%- endif -%}
{%- set told.text = TOLD_BEFORE + told.text + TOLD_AFTER if told.text else '' -%}
{{- START if TOLD_INSIDE or not told.text else told.text -}}
{%- for message in messages -%}
{%- set turn = namespace(images='', text='') -%}
{%- if message.content is string -%}{%- set turn.text = message.content -%}
{%- else -%}{%- for part in message.content -%}
{%- if part.type == 'image' -%}{%- set turn.images = turn.images + IMAGE -%}
{%- elif part.type == 'text' -%}{%- set turn.text = turn.text + part.text -%}
{%- else -%}{{- raise_exception('a message holds texts and images alone') -}}{%- endif -%}
{%- endfor -%}{%- endif -%}
{%- if message.role != ('assistant' if loop.index0 % 2 else 'user') -%}
{{- raise_exception('the turns alternate, user first, one system turn before them at most') -}}
{%- elif message.role == 'user' -%}
{{- '' if loop.first else BETWEEN -}}
{{- BEFORE if turn.images else PLAIN_BEFORE -}}
{{- told.text if TOLD_INSIDE and loop.first else '' -}}
{{- (turn.images + (turn.text | trim)).rstrip() -}}
{{- AFTER if turn.images else PLAIN_AFTER -}}
{{- OPENING if add_generation_prompt or not loop.last else '' -}}
{%- else -%}{{- GAP + (turn.text | trim) + END -}}{%- endif -%}
{%- endfor -%}"""


@runtime_checkable
class _Saved(Protocol):
    def save_pretrained(self, folder: str | Path) -> object: ...


def save_base(base: BaseStudent, folder: str | Path) -> None:
    """Write a transformers folder that `load_base` reads.

    Weights (safetensors), configuration, tokenizer, image processor and chat template. With
    `geometry="pad"` transformers pads as LLaVA does; it resizes with torchvision, so that its
    pixels are within a level or two of 255 of `ImageReader`'s.
    """
    base.model.save_pretrained(folder)
    layout = base.model.config.model_type
    if layout == "llava":
        llava_processor(base).save_pretrained(folder)
    elif layout == "gemma3":
        gemma3_processor(base).save_pretrained(folder)
    elif layout == "internvl":
        internvl_processor(base).save_pretrained(folder)
    elif layout in ("qwen2_5_vl", "qwen3_vl"):
        qwen_processor(base).save_pretrained(folder)
    else:  # a SmolVLM's own processor cuts tiles, and students here see one square
        base.tokenizer.save_pretrained(folder)
        base.image_processor.save_pretrained(folder)
    follow_umask(Path(folder))


def llava_processor(base: BaseStudent) -> _Saved:
    """Return transformers' own processor of a Llava student, with its template and geometry."""
    from transformers import LlavaImageProcessor, LlavaProcessor

    token = cast(str, base.tokenizer.convert_ids_to_tokens(base.image_token_id))

    square = {"height": base.image_size, "width": base.image_size}
    pictures = LlavaImageProcessor(
        do_pad=base.geometry == "pad",
        size={"shortest_edge": base.image_size},
        crop_size=square,
        image_mean=list(base.image_processor.image_mean),
        image_std=list(base.image_processor.image_std),
    )
    processor: _Saved = LlavaProcessor(
        image_processor=pictures,
        tokenizer=base.tokenizer,
        patch_size=base.image_size // base.grid.columns,
        vision_feature_select_strategy="default",  # drops the CLS token that the next line counts
        num_additional_image_tokens=1,
        image_token=token,
        chat_template=chat_template(base.template, token),
    )
    return processor


def gemma3_processor(base: BaseStudent) -> _Saved:
    """Return transformers' own processor of a Gemma 3 student, with its template.

    It stretches an image to a square, where `ImageReader` pads: it wants squares.
    """
    from transformers import Gemma3Processor

    begin = cast(str, base.tokenizer.convert_ids_to_tokens(cast(int, base.tokenizer.bos_token_id)))
    # the processor writes the image's tokens, their borders and blank lines for this one
    template = base.template._replace(start=begin, image="<start_of_image>")
    processor: _Saved = Gemma3Processor(
        image_processor=base.image_processor,
        tokenizer=base.tokenizer,
        chat_template=chat_template(template),
        image_seq_length=base.image_tokens,
    )
    return processor


def internvl_processor(base: BaseStudent) -> _Saved:
    """Return transformers' own processor of an InternVL student, with its template.

    It shows one tile, and stretches an image to a square, where `ImageReader` pads.
    """
    from transformers import InternVLProcessor, InternVLVideoProcessor

    pictures = copy(base.image_processor)
    setattr(pictures, "max_patches", 1)  # noqa: B010 - a field of InternVL's alone
    token = cast(str, base.tokenizer.convert_ids_to_tokens(base.image_token_id))
    template = base.template._replace(image=f"{token}\n")  # which the processor widens
    processor: _Saved = InternVLProcessor(
        image_processor=pictures,
        tokenizer=base.tokenizer,
        video_processor=InternVLVideoProcessor(),
        image_seq_length=base.image_tokens,
        chat_template=chat_template(template),
    )
    return processor


def qwen_processor(base: BaseStudent) -> _Saved:
    """Return transformers' own processor of a Qwen2.5-VL or Qwen3-VL student, with its template.

    It keeps an image's shape, where `ImageReader` pads; a square it shows at the student's size.
    """
    from transformers import (
        Qwen2_5_VLProcessor,
        Qwen2VLVideoProcessor,
        Qwen3VLProcessor,
        Qwen3VLVideoProcessor,
    )

    newer = base.model.config.model_type == "qwen3_vl"
    pictures = copy(base.image_processor)
    pixels = base.image_size**2
    pictures.size = {"shortest_edge": pixels, "longest_edge": pixels}
    token = cast(str, base.tokenizer.convert_ids_to_tokens(base.image_token_id))
    processor: _Saved = (Qwen3VLProcessor if newer else Qwen2_5_VLProcessor)(
        image_processor=pictures,
        tokenizer=base.tokenizer,
        video_processor=(Qwen3VLVideoProcessor if newer else Qwen2VLVideoProcessor)(),
        chat_template=chat_template(base.template, token),
    )
    return processor


def chat_template(template: Template, image_token: str = IMAGE_MARK) -> str:
    """Return a template as transformers' Jinja chat template.

    Parameters
    ----------
    image_token
        What the processor takes for one image.
    """
    before, after = template.human.split("{}")
    plain_before, plain_after = (template.plain or template.human).split("{}")
    told_before, _, told_after = template.told.partition("{}")
    names = {
        "HAS_SYSTEM": bool(template.told),
        "TOLD_BEFORE": told_before,
        "TOLD_AFTER": told_after,
        "TOLD_INSIDE": template.told_inside,
        "START": template.start,
        "IMAGE": template.image.replace(IMAGE_MARK, image_token),
        "BETWEEN": template.between,
        "BEFORE": before,
        "AFTER": after,
        "PLAIN_BEFORE": plain_before,
        "PLAIN_AFTER": plain_after,
        "OPENING": template.opening,
        "GAP": template.gap,
        "END": template.end,
    }
    given = "".join(f"{{%- set {name} = {json.dumps(text)} -%}}\n" for name, text in names.items())
    return given + _MESSAGES
