"""A teacher of open_clip's shape as a vision tower in transformers' CLIP format.

With it in the student's place of the tower, the paper's Fig. 4B asks what the expert's features do
without distillation.

| open_clip | transformers |
|---|---|
| `conv1.weight` | `embeddings.patch_embedding.weight` |
| `class_embedding`, `positional_embedding` | `embeddings.class_embedding`, `.position_embedding` |
| `ln_pre`, `ln_post` | `pre_layrnorm`, `post_layernorm` |
| `transformer.resblocks.i.ln_1`, `ln_2` | `encoder.layers.i.layer_norm1`, `layer_norm2` |
| `....attn.in_proj_*`, `attn.out_proj` | `self_attn.{q,k,v}_proj`, `self_attn.out_proj` |
| `....mlp.c_fc`, `mlp.c_proj` | `mlp.fc1`, `mlp.fc2` |

Source: the two libraries' modules.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol, cast

from torch import Tensor, nn

from shared.errors import UserError
from shared.files import check_new
from teacher_cache.teachers.base import Teacher

_PREFIX = "vision_model."
_OUTSIDE = {
    "conv1.weight": "embeddings.patch_embedding.weight",
    "class_embedding": "embeddings.class_embedding",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_pre.weight": "pre_layrnorm.weight",
    "ln_pre.bias": "pre_layrnorm.bias",
    "ln_post.weight": "post_layernorm.weight",
    "ln_post.bias": "post_layernorm.bias",
}
_INSIDE = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_BLOCK = re.compile(r"transformer\.resblocks\.(\d+)\.(.+?)[._](weight|bias)")


class _Block(Protocol):
    attn: nn.MultiheadAttention


class _Tower(Protocol):
    conv1: nn.Conv2d
    transformer: nn.Module


def write_tower(teacher: Teacher, to: Path) -> Path:
    """Write the teacher's encoder as a `CLIPVisionModel` folder.

    Raises
    ------
    UserError
        A teacher of another shape, or a folder that is not empty.
    """
    from safetensors.torch import save_file

    check_new(to)
    tensors = {
        _PREFIX + name: tensor.clone().contiguous()
        for key, value in teacher.model.state_dict().items()
        for name, tensor in _renamed(teacher, key, value)
    }
    to.mkdir(parents=True, exist_ok=True)
    preprocessing = teacher.preprocessing
    square = {"height": preprocessing.size, "width": preprocessing.size}
    resample = {"bilinear": 2, "bicubic": 3}[preprocessing.interpolation]
    settings = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": preprocessing.size},
        "crop_size": square,
        "image_mean": preprocessing.mean,
        "image_std": preprocessing.std,
        "resample": resample,
    }
    (to / "preprocessor_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    (to / "config.json").write_text(json.dumps(_config(teacher), indent=2) + "\n")
    save_file(tensors, to / "model.safetensors", metadata={"format": "pt"})  # the last: now whole
    return to


def _renamed(teacher: Teacher, key: str, value: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Return the names and tensors that one of open_clip's becomes; none for the projection."""
    if key in _OUTSIDE:
        yield _OUTSIDE[key], value
        return
    if key == "proj":
        return
    number, part, kind = found.groups() if (found := _BLOCK.fullmatch(key)) else ("", "", "")
    layer = f"encoder.layers.{number}."
    if part == "attn.in_proj":
        for name, third in zip(("q", "k", "v"), value.chunk(3), strict=True):
            yield f"{layer}self_attn.{name}_proj.{kind}", third
    elif part in _INSIDE:
        yield f"{layer}{_INSIDE[part]}.{kind}", value
    else:
        raise UserError(
            f"teacher {teacher.name} is no plain CLIP tower (it has {key}), so that transformers' "
            "CLIP cannot hold it; unimed-l, unimed-b and open_clip's CLIP ViTs are"
        )


def _config(teacher: Teacher) -> dict[str, object]:
    """Return the `CLIPVisionConfig`."""
    tower = cast("_Tower", teacher.model)
    blocks = [block for _, block in tower.transformer.get_submodule("resblocks").named_children()]
    first = cast("_Block", blocks[0])
    return {
        "model_type": "clip_vision_model",
        "architectures": ["CLIPVisionModel"],
        "hidden_size": first.attn.embed_dim,
        "intermediate_size": blocks[0].get_parameter("mlp.c_fc.weight").shape[0],
        "num_hidden_layers": len(blocks),
        "num_attention_heads": first.attn.num_heads,
        "image_size": teacher.preprocessing.size,
        "patch_size": tower.conv1.kernel_size[0],
        "hidden_act": "quick_gelu" if teacher.architecture.endswith("-quickgelu") else "gelu",
        "dtype": "float32",
    }
