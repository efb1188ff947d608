"""Loading a trained student, strictly.

A weight that is missing, unexpected or of another shape is an error.
"""

import os
from pathlib import Path
from typing import cast

import torch
from torch import nn

from shared.errors import UserError
from shared.recipe import ModelSection, Recipe
from student_train.adapter.files import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    RECIPE,
    ROTATION_WEIGHTS,
    adapter_recipe,
    check_weights,
    read_tensors,
)
from student_train.adapter.provenance import check_base
from student_train.attention import Channel
from student_train.imagetext import HookedModel, ImageTextModel
from student_train.models import load_base
from student_train.models.folder import is_rotated
from student_train.models.processor import Processor
from student_train.student import Student, add_hooks, check_layers, lora_state, with_adapter


def load(
    path: str | Path, *, base: str | None = None, dtype: torch.dtype | None = None
) -> tuple[ImageTextModel, Processor]:
    """Load what `student train` or `student export` wrote, strictly, ready to answer.

    Parameters
    ----------
    path
        An adapter folder, a folder of `student export`, or a plain model folder (which has no
        adapter to load).
    base
        Where the base model is now, if not where the recipe in the folder says.
    dtype
        Of the base weights, by default the one that they are stored in; adapter and W are kept in
        float32 beside them.

    Returns
    -------
    model, processor
        The model in evaluation mode on the CPU, W acting in every forward and in the prefill of
        `generate`.

    Raises
    ------
    UserError
        A missing, unexpected or misshapen weight; a base model that is not there, or not the one
        that the adapter was trained on.
    """
    folder = Path(path)
    if (folder / "config.json").is_file() and not (folder / ADAPTER_CONFIG).is_file():
        return _load_model_folder(folder, dtype)
    recipe = adapter_recipe(folder)
    section = base_section(folder, recipe, base)
    check_base(folder, section)
    loaded = load_base(section, dtype)
    student = load_adapter(loaded.model, loaded.image_token_id, folder, recipe)
    return student.model, loaded.processor(recipe.data.geometry, recipe.data.padding)


def _load_model_folder(folder: Path, dtype: torch.dtype | None) -> tuple[ImageTextModel, Processor]:
    """Load a folder of `student export`, or a plain model folder."""
    loaded = load_base(str(folder), dtype, with_rotation=True)
    merged = adapter_recipe(folder) if (folder / RECIPE).is_file() else None
    rotated = merged is not None and merged.train.tune == "lora" and merged.rotation.kind != "none"
    if rotated or is_rotated(folder) or (folder / ROTATION_WEIGHTS).is_file():
        load_rotation(loaded.model, loaded.image_token_id, folder, merged or adapter_recipe(folder))
    data = None if merged is None else merged.data
    return loaded.model, loaded.processor() if data is None else loaded.processor(
        data.geometry, data.padding
    )


def base_section(folder: Path, recipe: Recipe, base: str | None = None) -> ModelSection:
    """Return the `model` section of an adapter's recipe, with the place where the base is now.

    Parameters
    ----------
    folder
        The adapter folder, or a checkpoint in it.
    recipe
        Its recipe. A base that is not where it says is looked for beside the adapter: where it lay
        from the run's output.
    base
        Where the base model is, if it is known.
    """
    section = recipe.model
    if base is None:
        name = Path(section.path or section.name).expanduser()
        if name.exists():
            return section
        way = os.path.relpath(name, recipe.output)
        near = [one.resolve() / way for one in (folder, folder.resolve().parent)]
        found = next((one for one in near if (one / "config.json").is_file()), None)
        if found is None:
            return section
        base = str(found.resolve())
    return section.model_copy(
        update={"path": base} if section.path is not None else {"name": base, "path": None}
    )


def load_adapter(
    model: ImageTextModel, image_token_id: int, folder: Path, recipe: Recipe
) -> Student:
    """Put the adapter of `folder` on a base model (in place), strictly.

    Raises
    ------
    UserError
        A file that is missing or damaged, a weight that is missing, unexpected or of another shape.
    """
    from peft import LoraConfig, set_peft_model_state_dict

    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        if not (folder / name).is_file():
            raise UserError(
                f"{folder} holds no {name}: not an adapter folder, or its run was stopped before "
                "the end"
            )
    layers = recipe.losses.layers
    check_layers(model, layers)
    config = LoraConfig.from_pretrained(str(folder))
    config.inference_mode = True
    # The recipe says where the base is; PEFT would warn of a folder that has moved.
    config.base_model_name_or_path = None
    # The file brings the values; nothing is drawn or decomposed for them.
    config.init_lora_weights = True
    peft_model = with_adapter(model, config)
    student = Student(peft_model, add_hooks(model, image_token_id, recipe), layers)
    found = read_tensors(folder / ADAPTER_WEIGHTS)
    check_weights(lora_state(student.model), found, folder / ADAPTER_WEIGHTS)
    set_peft_model_state_dict(student.model, found)
    _fill_rotations(_rotations(model), folder)
    for parameter in student.model.parameters():
        parameter.requires_grad_(False)
    student.model.eval()
    return student


def load_rotation(
    model: ImageTextModel, image_token_id: int, folder: Path, recipe: Recipe
) -> Channel:
    """Put only the rotation of `folder` on a model whose LoRA is merged, in place and strictly."""
    check_layers(model, recipe.losses.layers)
    channel = add_hooks(model, image_token_id, recipe)
    _fill_rotations(_rotations(model), folder)
    _rotations(model).requires_grad_(False)
    return channel


def _rotations(model: ImageTextModel) -> nn.ModuleDict:
    return cast(HookedModel, model).rotation


def _fill_rotations(rotations: nn.ModuleDict, folder: Path) -> None:
    path = folder / ROTATION_WEIGHTS
    if not len(rotations):
        if path.is_file():
            raise UserError(
                f"{path} is there, but the recipe beside it says rotation.kind=none; they are not "
                "of one run"
            )
        return
    if not path.is_file():
        raise UserError(
            f"{folder} holds no {ROTATION_WEIGHTS}, but its recipe trains W; copy the whole folder"
        )
    found = read_tensors(path)
    check_weights(rotations.state_dict(), found, path)
    rotations.load_state_dict(found)
