"""`student inspect`: what an adapter folder holds, or what a model is, from files alone."""

import json
from pathlib import Path

from shared.errors import UserError
from student_train.adapter.files import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    ROTATION_WEIGHTS,
    adapter_recipe,
    read_tensors,
)
from student_train.run.outputs import TRAINER_STATE, last_checkpoint


def inspect_model(name: str) -> dict[str, object]:
    """Describe a model: a named one, a hub id or a folder.

    Returns
    -------
    dict
        Its image's size and grid, the decoder's layers and width, and the `cache build` line of its
        targets. No weights are read.

    Raises
    ------
    UserError
        No such model, or a layout that no loader reads.
    """
    from shared.recipe import ModelSection
    from student_train.models.outline import described, outline

    return {"model": name} | described(outline(ModelSection(name=name)))


def is_model(name: str) -> bool:
    """Whether `name` is a model for `inspect_model`, and no adapter folder or checkpoint."""
    from student_train.models import FAMILIES

    folder = Path(name)
    if folder.is_dir():
        return (folder / "config.json").is_file() and not (folder / ADAPTER_CONFIG).is_file()
    return name in FAMILIES or (name.count("/") == 1 and not folder.parent.is_dir())


def inspect(folder: Path) -> dict[str, object]:
    """Describe an adapter folder or a checkpoint.

    Returns
    -------
    dict
        Base model, LoRA pairs and parameters, bytes, W's kind and norm by layer, the last logged
        losses, how far the run came.

    Raises
    ------
    UserError
        A folder without an adapter.
    """
    _check_adapter(folder)
    recipe = adapter_recipe(folder)
    lora = read_tensors(folder / ADAPTER_WEIGHTS)
    config = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    size = sum(one.numel() for one in lora.values())
    found: dict[str, object] = {
        "base model": recipe.model.path or recipe.model.name,
        "lora": f"{len(lora) // 2} pairs of rank {config['r']}, {size:,} parameters",
        "adapter bytes": (folder / ADAPTER_WEIGHTS).stat().st_size,
        "rotation": recipe.rotation.kind,
    }
    if (folder / ROTATION_WEIGHTS).is_file():
        for name, tensor in sorted(read_tensors(folder / ROTATION_WEIGHTS).items()):
            shape = "x".join(map(str, tensor.shape))
            found[f"W {name}"] = f"{shape}, Frobenius norm {float(tensor.float().norm()):.4g}"
    losses = recipe.losses
    found["losses"] = (
        f"alpha {losses.alpha}, beta {losses.beta} ({losses.attention_normalization}), "
        f"layer {', '.join(map(str, losses.layers))}"
    )
    return found | _progress(folder)


def _check_adapter(folder: Path) -> None:
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        if not (folder / name).is_file():
            unfinished = last_checkpoint(folder)
            hint = f"; its run is not finished, see {unfinished}" if unfinished else ""
            raise UserError(f"{folder} holds no {name}{hint}")


def _progress(folder: Path) -> dict[str, object]:
    """Return how far the run came and its losses."""
    path = folder / TRAINER_STATE
    if not path.is_file():
        return {}
    state = json.loads(path.read_text(encoding="utf-8"))
    found: dict[str, object] = {"steps": f"{state['global_step']} of {state['max_steps']}"}
    rows = [row for row in state["log_history"] if "loss_lm" in row]
    if rows:
        found |= {"first losses": _losses(rows[0]), "last losses": _losses(rows[-1])}
    return found


def _losses(row: dict[str, float]) -> str:
    names = ("loss", "loss_lm", "loss_vis", "loss_att")
    return ", ".join(f"{name} {row[name]:.4g}" for name in names if name in row)
