"""The files of an adapter folder.

- `adapter_config.json`, `adapter_model.safetensors`: PEFT's own files, whose LoRA part bare PEFT
  loads;
- `rotation.safetensors`: W of every distillation layer (`<layer>.weight`, or `<layer>.u` and
  `<layer>.v`), which bare PEFT would drop without a word, so `student_train.load` is the way to use
  the folder;
- `recipe.yaml`: the resolved recipe, which names the base model;
- `provenance.json`: what the run was made from (`student_train.adapter.provenance`).
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from shared.errors import UserError
from shared.files import whole_file
from shared.recipe import Recipe, load_recipe, save_recipe
from student_train.student import Student, trainable_state

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
ROTATION_WEIGHTS, RECIPE = "rotation.safetensors", "recipe.yaml"


def save_adapter(
    student: Student, recipe: Recipe, folder: Path, state: Mapping[str, Tensor] | None = None
) -> None:
    """Write the adapter folder.

    `state` is `trainable_state(student.model)` where it was gathered before.

    Every file appears whole under its name, the LoRA weights last.
    """
    from peft import get_peft_model_state_dict
    from safetensors.torch import save

    state = trainable_state(student.model) if state is None else state
    lora = get_peft_model_state_dict(
        student.model,
        state_dict={k: v for k, v in state.items() if "lora_" in k},
        save_embedding_layers=False,  # "auto" would ask the hub for the base model's config
    )
    config = student.model.peft_config["default"].to_dict()
    config["inference_mode"] = True
    if student.initial is not None:
        lora, config = _as_plain_lora(lora, student.initial, config)
    rotation = {
        name.partition(".rotation.")[2]: tensor
        for name, tensor in state.items()
        if ".rotation." in name
    }
    folder.mkdir(parents=True, exist_ok=True)
    whole_file(folder / RECIPE, lambda path: save_recipe(recipe, path))
    if rotation:
        kind = {"kind": recipe.rotation.kind, "format": "pt"}
        whole_file(
            folder / ROTATION_WEIGHTS, lambda path: path.write_bytes(save(rotation, metadata=kind))
        )
    text = json.dumps(config, indent=2, sort_keys=True, default=_jsonable)
    whole_file(folder / ADAPTER_CONFIG, lambda path: path.write_text(text, encoding="utf-8"))
    whole_file(
        folder / ADAPTER_WEIGHTS,
        lambda path: path.write_bytes(save(lora, metadata={"format": "pt"})),
    )


def is_whole(folder: Path) -> bool:
    """Whether a folder holds all files of an adapter; the LoRA weights are written last."""
    return (folder / RECIPE).is_file() and (folder / ADAPTER_WEIGHTS).is_file()


def adapter_recipe(folder: Path) -> Recipe:
    """Read the recipe that an adapter folder was trained with."""
    if not (folder / RECIPE).is_file():
        raise UserError(f"{folder} holds no {RECIPE}: not the output of `student train`")
    return load_recipe(folder / RECIPE)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file, or raise a `UserError` that names it."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        found: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} cannot be read ({error}); copy it again from where it was made"
        ) from None
    return found


def check_weights(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], path: Path) -> None:
    """Raise a `UserError` unless a file holds the expected weights in their shapes."""
    missing, unexpected = (
        sorted(expected.keys() - found.keys()),
        sorted(found.keys() - expected.keys()),
    )
    if missing or unexpected:
        parts = [
            f"{len(names)} {what}, first {names[0]}"
            for names, what in ((missing, "missing"), (unexpected, "unexpected"))
            if names
        ]
        raise UserError(f"{path} does not fit this base model: weights {'; '.join(parts)}")
    for name in sorted(expected):
        if expected[name].shape != found[name].shape:
            raise UserError(
                f"{path}: {name} is {tuple(found[name].shape)}, but this base model needs "
                f"{tuple(expected[name].shape)}"
            )


def _as_plain_lora(
    lora: Mapping[str, Tensor], initial: Mapping[str, Tensor], config: dict[str, object]
) -> tuple[dict[str, Tensor], dict[str, object]]:
    """Write an adapter that began as a part of the base weights as one on the untouched base.

    It has twice the rank. The base under training was W0 - s B0 A0, so s B A on it is
    s (B A - B0 A0) on W0: A stacked on A0, B beside -B0.
    """
    plain = {}
    for name, tensor in lora.items():
        start = initial[name].to(tensor)
        plain[name] = (
            torch.cat([tensor, start], 0) if "lora_A" in name else torch.cat([tensor, -start], 1)
        )
    scale = 2**0.5 if config.get("use_rslora") else 2
    return plain, {
        **config,
        "r": 2 * cast(int, config["r"]),
        "lora_alpha": scale * cast(float, config["lora_alpha"]),
        "init_lora_weights": True,
    }


def _jsonable(value: object) -> object:
    return sorted(value) if isinstance(value, set) else str(value)
