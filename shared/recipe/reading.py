"""Reading a recipe: one YAML file for the whole pipeline, checked key by key, with overrides.

    load_recipe("recipe.yaml", ["data.train=train.json", "losses.layer=16"])

The keys are in `shared.recipe.fields`. `extends: base.yaml` begins with another recipe, which is
found beside the file. Other paths are relative to the working directory, as on the command line.
"""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from shared.errors import UserError, nearest
from shared.recipe.fields import Recipe
from shared.recipe.other_names import OTHER_NAMES


def load_recipe(path: str | Path | None, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply `key=value` overrides.

    Each value is YAML, such as the list in `losses.layer=[16, 20]`.

    Parameters
    ----------
    path
        The YAML file, or None for the defaults alone.
    overrides
        Such as `train.learning_rate=1e-4`; the last one of a key wins.

    Raises
    ------
    UserError
        A file that is missing or no YAML mapping, a key given twice, an unknown key (with the
        nearest valid one), a value of the wrong kind or out of range.
    """
    values: dict[str, Any] = {}
    source = "the recipe"
    if path is not None:
        source = str(path)
        values = read_values(Path(path))
    for override in overrides:
        _apply(values, override)
    given = {override.partition("=")[0].strip(): override for override in overrides}
    return make_recipe(values, source, given)


def make_recipe(
    values: dict[str, Any],
    source: str = "the recipe",
    overrides: Mapping[str, str] | None = None,
) -> Recipe:
    """Validate nested `values` (as a YAML file would hold them).

    Errors name `source`, or the override (by its key in `overrides`) that the faulty value is of.
    """
    values = {
        key: value
        for key, value in values.items()
        if not (value is None and _section(key) is not None)
    }
    if isinstance(values.get("evaluation"), dict):
        # Saved recipes of earlier versions hold it; no number depends on it any more.
        values["evaluation"] = {
            key: value for key, value in values["evaluation"].items() if key != "bootstrap"
        }
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise UserError(_explain(error, source, overrides or {})) from None


def save_recipe(recipe: Recipe, path: str | Path) -> None:
    """Write every key of `recipe`, defaults included: the run can be repeated from the file."""
    text = yaml.safe_dump(
        recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120
    )
    Path(path).write_text(text, encoding="utf-8")


def recipe_keys(model: type[BaseModel] = Recipe, prefix: str = "") -> list[str]:
    """All valid keys as dotted paths, in the order of the file."""
    keys = []
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            keys += recipe_keys(field.annotation, f"{prefix}{name}.")
        else:
            keys.append(f"{prefix}{name}")
    return keys


class UniqueKeyLoader(yaml.SafeLoader):
    """YAML's safe loader, but a key given twice is an error.

    YAML itself keeps the last without a word.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Refuse a key that is there already."""
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str) and key in seen:
                raise UserError(
                    f"{key_node.start_mark.name}: key `{key}` is given twice; keep one of them"
                )
            seen.add(key if isinstance(key, str) else repr(key))
        return super().construct_mapping(node, deep)


def read_values(path: Path, chain: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Read the nested values of a recipe file, over those of the file that its `extends` names.

    `chain` holds the files that extend this one. Raises UserError as `load_recipe`.
    """
    values = _read_yaml(path)
    base = values.pop("extends", None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise UserError(f"{path}: `extends` names one recipe file, such as base.yaml, not {base!r}")
    below, here = path.parent / base, path.resolve()
    if below.resolve() in (*chain, here):
        raise UserError(f"{path}: `extends: {base}` leads back to a recipe that extends this one")
    if not below.is_file():
        raise UserError(f"{path}: `extends: {base}` names no file; {below} is not there")
    return _merged(read_values(below, (*chain, here)), values)


def _merged(base: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """Lay `values` over `base`, sections key by key; everything else is replaced whole."""
    merged = dict(base)
    for key, value in values.items():
        below = base.get(key)
        if isinstance(below, dict) and isinstance(value, dict):
            merged[key] = _merged(below, value)
        else:
            merged[key] = value
    return merged


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        with path.open(encoding="utf-8") as file:
            values = yaml.load(file, UniqueKeyLoader)
    except FileNotFoundError:
        raise UserError(f"no recipe at {path}; `medalign recipes` lists the shipped ones") from None
    except (yaml.YAMLError, UnicodeDecodeError, IsADirectoryError) as error:
        raise UserError(f"{path} is not a YAML file: {' '.join(str(error).split())}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(
            f"{path}: a recipe is a mapping of keys such as `model:` and `train:`, not a "
            f"{type(values).__name__}"
        )
    return values


def _apply(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        raise UserError(
            f"override `{override}` is not of the form key=value, such as train.epochs=3"
        )
    try:
        value = yaml.load(text, UniqueKeyLoader)
    except yaml.YAMLError:
        value = text  # such as a path with a colon
    *parents, leaf = key.strip().split(".")
    for parent in parents:
        inner = values.get(parent)
        if inner is None:
            inner = values[parent] = {}
        elif not isinstance(inner, dict):
            raise UserError(f"override `{override}`: {parent} holds a plain value, not keys")
        values = inner
    values[leaf] = value


def _section(key: object) -> type[BaseModel] | None:
    field = Recipe.model_fields.get(str(key))
    if (
        field is not None
        and isinstance(field.annotation, type)
        and issubclass(field.annotation, BaseModel)
    ):
        return field.annotation
    return None


def _explain(error: ValidationError, source: str, overrides: Mapping[str, str]) -> str:
    """Say the first fault in one line.

    An unknown key comes first, since it often explains the rest.
    """
    faults = sorted(error.errors(), key=lambda fault: fault["type"] != "extra_forbidden")
    fault = faults[0]
    if fault["type"] == "extra_forbidden":
        key = ".".join(str(part) for part in fault["loc"])
        source = _blamed(key, source, overrides)
        return f"{source}: unknown key `{key}`; {_suggest(fault['loc'])}"
    if not fault["loc"]:  # keys that do not go together
        return f"{source}: {fault['msg'].removeprefix('Value error, ')}"
    # Past the key itself, pydantic's location names the branch of a union: no help to a reader.
    depth = 2 if _section(fault["loc"][0]) is not None else 1
    key = ".".join(str(part) for part in fault["loc"][:depth])
    source = _blamed(key, source, overrides)
    same_key = [other for other in faults if other["loc"][:depth] == fault["loc"][:depth]]
    texts = [other["msg"].removeprefix("Value error, ") for other in same_key]
    messages = list(dict.fromkeys(text[:1].lower() + text[1:] for text in texts))
    return f"{source}: `{key}` is {fault['input']!r}: {', or '.join(messages)}"


def _blamed(key: str, source: str, overrides: Mapping[str, str]) -> str:
    """Return the override that set a key, or the file."""
    return f"override `{overrides[key]}`" if key in overrides else source


def _suggest(location: tuple[int | str, ...]) -> str:
    name = str(location[-1])
    parent = ".".join(str(part) for part in location[:-1])
    keys = recipe_keys()
    prefix = f"{parent}." if parent else ""
    neighbours = (
        [key.removeprefix(prefix) for key in keys if key.startswith(prefix)]
        if prefix
        else list(Recipe.model_fields)
    )
    known = OTHER_NAMES.get(name.lower())
    if known is not None:
        return f"did you mean `{known}`?"
    near = nearest(name, neighbours)
    if near is not None:
        return f"did you mean `{prefix}{near}`?"
    leaves = {key.rpartition(".")[2]: key for key in reversed(keys)}
    near = nearest(name, leaves)
    if near is not None:
        return f"did you mean `{leaves[near]}`?"
    closest = max(neighbours, key=lambda key: difflib.SequenceMatcher(None, name, key).ratio())
    return f"nearest is `{prefix}{closest}`; valid here: {', '.join(neighbours)}"
