"""What a student is, read from its configuration alone: no weights are fetched or loaded.

d student width, L decoder layers, l the distillation layer.
"""

import json
from collections.abc import Callable, Mapping
from math import isqrt
from pathlib import Path
from typing import NamedTuple, cast

from shared.console import note
from shared.imaging.grid import Grid
from shared.recipe import ModelSection
from student_train.imagetext import ImageTextConfig, first_layer
from student_train.models import FAMILIES, layout_of
from student_train.models.qwen_vl import QwenVision, largest_square, square_of

Fields = Mapping[str, object]
Read = tuple[ImageTextConfig, int, int]  # with the square's side in pixels and in tokens
Reader = Callable[[Fields, Path], Read]
# config.json of published models, written down from their repositories; that of
# huatuogpt-vision-34b is derived, see huatuo_yi.py. A run reads the file beside the weights.
PUBLISHED = Path(__file__).parent / "published"


class Outline(NamedTuple):
    """A student's shape.

    Attributes
    ----------
    layout
        Its `model_type`.
    image_size
        Side of the square that it sees, in pixels.
    grid
        Image tokens of one image, (rows, columns).
    layers, width
        L and d of the decoder.
    first
        The lowest distillation layer: above DeepStack's.
    window
        Tokens that a layer with a sliding window sees; None where no layer has one.
    whole
        The layers that see everything, in which a long question may be aligned.
    """

    layout: str
    image_size: int
    grid: Grid
    layers: int
    width: int
    first: int
    window: int | None
    whole: tuple[int, ...]


def outline(section: ModelSection) -> Outline:
    """Return the outline of the model that a recipe's `model` names.

    Where the configuration of a named model cannot be fetched, it is the one written down here.

    Raises
    ------
    UserError
        No such model, or a layout that no loader reads.
    """
    from student_train.models.folder import UnreachedError, read_config

    try:
        folder = layout_of(section)
        fields: Fields = read_config(folder)
    except UnreachedError:
        if section.name not in FAMILIES or section.path or section.revision:
            raise
        note(f"the hub does not give the configuration of {section.name}: as written down here")
        return outlined(published(section.name), PUBLISHED)
    return outlined(fields, folder)


def published(name: str) -> Fields:
    """Return the configuration of a published model, as it is written down in this package."""
    found: Fields = json.loads((PUBLISHED / f"{name}.json").read_text(encoding="utf-8"))
    return found


def outlined(fields: Fields, folder: Path) -> Outline:
    """Return the outline of a configuration.

    Parameters
    ----------
    folder
        Where it lies, with the configuration of the model's image processor.
    """
    layout = str(fields["model_type"])
    config, size, side = _READERS[layout](fields, folder)
    text = config.get_text_config()
    layers = int(_of(text, "num_hidden_layers"))
    kinds = getattr(text, "layer_types", None) or ["full_attention"] * layers
    whole = tuple(layer for layer, kind in enumerate(kinds) if kind == "full_attention")
    return Outline(
        layout,
        size,
        Grid(side, side),
        layers,
        text.hidden_size,
        first_layer(config),
        None if len(whole) == layers else int(_of(text, "sliding_window")),
        whole,
    )


def described(found: Outline) -> dict[str, object]:
    """Say an outline in words, with the line that builds its targets."""
    layers = f"{found.layers}, so losses.layer is in {found.first}..{found.layers - 1}"
    if found.window is not None:
        seen = ", ".join(map(str, found.whole))
        layers += f"; {seen} see everything, the others {found.window} tokens back"
    return {
        "layout": found.layout,
        "images": f"one square of {found.image_size} pixels",
        "grid": f"{found.grid}, {found.grid.size} tokens an image",
        "layers": layers,
        "width": found.width,
        "targets": "cache build --teacher unimed-l --images train.json --store store --grid "
        f"{found.grid}",
    }


def _of(config: object, name: str) -> int:
    return cast(int, getattr(config, name))


def _side(size: object) -> int:
    """Return the side of a square that is given as one number or as two."""
    return int(cast(int, size[0] if isinstance(size, list | tuple) else size))


def _llava(fields: Fields, folder: Path) -> Read:
    from transformers import LlavaConfig

    config: ImageTextConfig = LlavaConfig.from_dict(dict(fields))
    size = config.vision_config.image_size
    return config, size, size // config.vision_config.patch_size


def _original(name: str) -> Reader:
    def read(fields: Fields, folder: Path) -> Read:
        import transformers

        from student_train.models.original import llava_config

        config = llava_config(fields, getattr(transformers, name), folder)
        size = config.vision_config.image_size
        return config, size, size // config.vision_config.patch_size

    return read


def _smolvlm(fields: Fields, folder: Path) -> Read:
    from transformers import SmolVLMConfig

    config: ImageTextConfig = SmolVLMConfig.from_dict(dict(fields))
    pixels = config.vision_config.patch_size * _of(config, "scale_factor")
    return config, config.vision_config.image_size, config.vision_config.image_size // pixels


def _gemma3(fields: Fields, folder: Path) -> Read:
    from transformers import Gemma3Config

    config: ImageTextConfig = Gemma3Config.from_dict(dict(fields))
    return config, config.vision_config.image_size, isqrt(_of(config, "mm_tokens_per_image"))


def _internvl(fields: Fields, folder: Path) -> Read:
    from transformers import InternVLConfig

    config: ImageTextConfig = InternVLConfig.from_dict(dict(fields))
    return config, _side(config.vision_config.image_size), isqrt(config.image_seq_length)


def _qwen2_5_vl(fields: Fields, folder: Path) -> Read:
    from transformers import Qwen2_5_VLConfig

    config: ImageTextConfig = Qwen2_5_VLConfig.from_dict(dict(fields))
    return config, *square_of(cast(QwenVision, config.vision_config), largest_square(folder))


def _qwen3_vl(fields: Fields, folder: Path) -> Read:
    from transformers import Qwen3VLConfig

    config: ImageTextConfig = Qwen3VLConfig.from_dict(dict(fields))
    return config, *square_of(cast(QwenVision, config.vision_config), largest_square(folder))


_READERS: dict[str, Reader] = {
    "llava": _llava,
    "llava_mistral": _original("MistralConfig"),
    "llava_qwen2": _original("Qwen2Config"),
    "llava_llama": _original("LlamaConfig"),
    "smolvlm": _smolvlm,
    "gemma3": _gemma3,
    "internvl": _internvl,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
}
