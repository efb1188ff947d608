"""Med-LVLMs by name, folder or hub id, one file a family; `load_base` is the way in."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from shared.console import stderr
from shared.errors import UserError, did_you_mean
from shared.processes import is_main_process
from shared.recipe import ModelSection

if TYPE_CHECKING:
    import torch

    from student_train.models.base import BaseStudent

    Loader = Callable[[Path, ModelSection, torch.dtype, str | None], BaseStudent]


class Family(NamedTuple):
    """A published model that has a name of its own here."""

    hub_id: str
    template: str


FAMILIES = {
    "llava-med-1.5": Family("microsoft/llava-med-v1.5-mistral-7b", "vicuna_v1"),
    "huatuogpt-vision-7b": Family("FreedomIntelligence/HuatuoGPT-Vision-7B", "huatuo_v1"),
    "huatuogpt-vision-34b": Family("FreedomIntelligence/HuatuoGPT-Vision-34B", "huatuo_v1"),
    "medgemma-1.5-4b": Family("google/medgemma-1.5-4b-it", "gemma3"),
    "lingshu-7b": Family("lingshu-medical-mllm/Lingshu-7B", "qwen2_5_vl"),
}

# The `model_type` of a config, and the file with its function `load_<file>`.
LAYOUTS = {
    "llava": "llava",
    "llava_mistral": "llava_med",
    "llava_qwen2": "huatuo",
    "llava_llama": "huatuo_yi",
    "smolvlm": "smolvlm",
    "gemma3": "gemma3",
    "internvl": "internvl",
    "qwen2_5_vl": "qwen2_5_vl",
    "qwen3_vl": "qwen3_vl",
}


def load_base(
    model: ModelSection | str, dtype: "torch.dtype | None" = None, *, with_rotation: bool = False
) -> "BaseStudent":
    """Load a student by family name, folder or hub id; never runs code from a checkpoint.

    Parameters
    ----------
    model
        A recipe's `model` section, or its `name` alone.
    dtype
        torch dtype of the weights; by default the one that the checkpoint is stored in.
    with_rotation
        The caller puts W on the model; an exported model that needs one is refused otherwise.

    Returns
    -------
    BaseStudent
        Model (evaluation mode, on the CPU), tokenizer, image processor, template, image token,
        grid, image size.

    Raises
    ------
    UserError
        Anything that is missing or does not fit, in one line.
    """
    from transformers.utils import logging

    from student_train.models.dtype import own_dtype
    from student_train.models.folder import is_rotated, read_config

    if not stderr.is_terminal or not is_main_process():
        # a log file would keep every state of the bar, and ranks would mix theirs
        logging.disable_progress_bar()
    section = ModelSection(name=model) if isinstance(model, str) else model
    family = _family(section)
    folder = checkpoint_of(section)
    if is_rotated(folder) and not with_rotation:
        raise UserError(
            f"{folder} is an exported model with a rotation W, and as a base it would lose W; take "
            "the base that its adapter was trained on, or `student_train.load` to ask it"
        )
    layout = read_config(folder)["model_type"]
    template = section.template or (family.template if family else None)
    return _loader(layout, folder)(folder, section, dtype or own_dtype(folder), template)


def checkpoint_of(section: ModelSection) -> Path:
    """Return the folder of the checkpoint that a recipe's `model` names, fetched where need be.

    Raises
    ------
    UserError
        Neither a named model, a folder nor a hub id that can be reached.
    """
    from student_train.models.folder import checkpoint_folder

    family = _family(section)
    place = section.path or (family.hub_id if family else section.name)
    return checkpoint_folder(place, section.revision)


def layout_of(section: ModelSection) -> Path:
    """Return the folder of a model's configuration, of a layout that a loader reads.

    Of a hub id nothing but the configuration is fetched.

    Raises
    ------
    UserError
        Neither a named model, a folder nor a hub id that can be reached; a layout without loader.
    """
    from student_train.models.folder import checkpoint_folder, read_config

    family = _family(section)
    place = section.path or (family.hub_id if family else section.name)
    folder = checkpoint_folder(place, section.revision, ("*config.json",))
    _loader(read_config(folder)["model_type"], folder)
    return folder


def check_place(section: ModelSection) -> None:
    """Raise a `UserError` where a recipe's `model` cannot be loaded; fetch and load nothing.

    No named model, folder or hub id; a folder without a checkpoint, or of a layout that no loader
    reads.
    """
    from student_train.models.folder import local_folder, read_config

    family = _family(section)
    place = section.path or (family.hub_id if family else section.name)
    folder = local_folder(place, section.revision)
    if folder is not None:
        _loader(read_config(folder)["model_type"], folder)


def _family(section: ModelSection) -> Family | None:
    """Return the named model that is asked for; None for a folder or a hub id."""
    family = FAMILIES.get(section.name)
    if family is None and section.path is not None:
        raise UserError(
            f"model.path goes with a named model ({', '.join(FAMILIES)}); put the folder into "
            "model.name instead"
        )
    if family is None and "/" not in section.name and not Path(section.name).exists():
        hint = did_you_mean(section.name, FAMILIES, f"named models are {', '.join(FAMILIES)}")
        raise UserError(f"model.name={section.name} is no named model, folder or hub id; {hint}")
    return family


def _loader(layout: object, folder: Path) -> "Loader":
    """Return the loader of a config's `model_type`."""
    if layout not in LAYOUTS:
        raise UserError(
            f"{folder}: no loader for model_type {layout!r}; there are {', '.join(LAYOUTS)}, each "
            "one file in student_train/models"
        )
    module = LAYOUTS[str(layout)]
    loader: Loader = getattr(import_module(f"student_train.models.{module}"), f"load_{module}")
    return loader
