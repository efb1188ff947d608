"""The arms of a run: which adapters there are, and under which decodings each one answers.

The one place where `--run` and `--decode` become a list.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from pipelines.decoding.methods import Decoding, decodings
from pipelines.decoding.presets import family_preset
from shared.errors import UserError
from shared.recipe import load_recipe
from student_train.adapter.method import LORA, MEDALIGN, method_of
from student_train.models import FAMILIES

EVERYTHING = "all"  # the full table, among methods


class Arm(NamedTuple):
    """One adapter (or plain model) with the decodings that answer by it, none or more."""

    name: str
    folder: Path
    decodings: tuple[Decoding, ...]

    def row_name(self, decoding: Decoding) -> str:
        """Name of the row of one decoding."""
        return f"{self.name} + {decoding.label}"


def find_arms(folder: Path) -> dict[str, Path]:
    """Adapters of a run: `lora/` and `medalign/` inside it, or the folder itself.

    Each has the name of the method that its recipe trained, whatever its folder is called.
    """
    folder = Path(folder)
    inside = [
        folder / name.lower()
        for name in (LORA, MEDALIGN)
        if (folder / name.lower() / "adapter_config.json").is_file()
    ]
    arms = {_name(one): one for one in inside}
    if len(arms) < len(inside):
        raise UserError(
            f"both adapters in {folder} are {next(iter(arms))} by their recipes; give one of "
            f"{inside[0]} and {inside[1]}"
        )
    if arms:
        return arms
    if (folder / "adapter_config.json").is_file():
        return {_name(folder): folder}
    if (folder / "config.json").is_file():
        return {"base": folder}
    raise UserError(
        f"{folder} holds no adapter (adapter_config.json), neither itself nor in lora/ or "
        "medalign/; "
        "give the output folder of `student train` or of `medalign demo`"
    )


def _name(folder: Path) -> str:
    """Name an adapter by its recipe; one that lost it, by its W or its folder."""
    if (folder / "recipe.yaml").is_file():
        return method_of(load_recipe(folder / "recipe.yaml"))
    rotated = (folder / "rotation.safetensors").is_file() or folder.name == MEDALIGN.lower()
    return MEDALIGN if rotated else LORA


def last_arm(folder: Path) -> Path:
    """Folder of the arm that speaks for a run: MEDALIGN's where it has both."""
    return next(reversed(find_arms(folder).values()))


def preset_of(preset: str, folders: Mapping[str, Path]) -> str:
    """Return the preset that `authors` stands for with these adapters; any other is itself."""
    if preset != "authors":
        return preset
    return family_preset(preset, _template(next(iter(folders.values()))))


def plan_arms(
    folders: Mapping[str, Path], methods: Sequence[str], preset: str, overrides: Sequence[str]
) -> list[Arm]:
    """Return which adapter is decoded how.

    The full table is the paper's ten methods on LoRA and MEDALIGN under beam search.
    """
    asked = decodings(methods, preset, overrides)
    full = EVERYTHING in methods and {LORA, MEDALIGN} <= set(folders)
    return [
        Arm(
            name,
            folder,
            tuple(one for one in asked if not (full and name == MEDALIGN) or one.name == "beam"),
        )
        for name, folder in folders.items()
    ]


def _template(folder: Path) -> str:
    """Name of the prompt template that an adapter or a plain model was trained with.

    As it is told when the model is loaded: by the recipe, else by the model's own config. A hub id
    says it by its name.
    """
    file = folder / "recipe.yaml"
    model = load_recipe(file).model if file.is_file() else None
    if model is not None and (model.template or model.name in FAMILIES):
        return model.template or model.name
    home = folder if model is None else Path(model.name).expanduser()
    config = home / "config.json"
    if not config.is_file():
        return "huatuo" if "huatuo" in home.name.lower() else home.name
    try:
        said = json.loads(config.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{config} is no JSON: {error}") from None
    if said.get("model_type") in ("llava_qwen2", "llava_llama"):  # HuatuoGPT-Vision's own layout
        return "huatuo_v1"
    return str(said.get("prompt_template") or "")
