"""`docs/recipe.md`, written from the recipe's fields.

`python -m shared.recipe.docs > docs/recipe.md`.
"""

import inspect
import re
import sys
from types import UnionType
from typing import Annotated, Literal, Union, cast, get_args, get_origin

from pydantic import BaseModel

from shared.recipe.fields import Recipe

_FIELD = re.compile(r"^    (\w+): (.+?) = (.+?) {2,}# (.+)$", re.MULTILINE)
_KINDS: dict[object, str] = {
    str: "text",
    int: "whole number",
    float: "number",
    bool: "true, false",
    type(None): "null",
}
_HEAD = """# The recipe

One YAML file for the whole pipeline. Every key has a default; a recipe names only what differs. On the command line
`key=value` overrides it (`losses.layer=16`, `losses.layer=[16,20]`, the value being YAML). An unknown or misspelt key
is an error that names the nearest valid one. The resolved recipe, with every key, is written beside every output, so
that the run can be repeated from it. Paths are relative to the working directory.

The paper's runs are in `pipelines/recipes`, one file for each model and data set, with the authors' values.

This page is made from `shared/recipe/fields.py` (`python -m shared.recipe.docs > docs/recipe.md`); a test compares
the two.
"""


def page() -> str:
    """Return the page: a table for the top level and one for each section."""
    sections = {
        name: field.annotation
        for name, field in Recipe.model_fields.items()
        if _is_section(field.annotation)
    }
    parts = [_HEAD, _table("Top level", Recipe, skip=set(sections))]
    parts += [
        _table(f"`{name}`", cast("type[BaseModel]", model)) for name, model in sections.items()
    ]
    return "\n".join(parts)


def _is_section(annotation: object) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _table(title: str, model: type[BaseModel], skip: set[str] | None = None) -> str:
    rows = [
        match
        for match in _FIELD.findall(inspect.getsource(model))
        if match[0] not in (skip or set())
    ]
    if {row[0] for row in rows} != set(model.model_fields) - (skip or set()):
        raise ValueError(f"a field of {model.__name__} has no comment beside it")
    lines = [
        f"## {title}",
        "",
        (model.__doc__ or "").strip(),
        "",
        "| key | default | values | meaning |",
    ]
    lines += ["|---|---|---|---|"]
    for name, _, default, meaning in rows:
        values = _values(model.model_fields[name].annotation)
        lines.append(f"| `{name}` | `{_yaml(default)}` | {values} | {meaning} |")
    return "\n".join(lines) + "\n"


def _yaml(default: str) -> str:
    return {"None": "null", "True": "true", "False": "false"}.get(default, default.replace('"', ""))


def _values(annotation: object) -> str:
    """Say what a field takes: the names of a choice, otherwise the kind of value."""
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(annotation))
    if get_origin(annotation) is Annotated:
        return _values(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return " or ".join(dict.fromkeys(_values(one) for one in get_args(annotation)))
    if get_origin(annotation) is list:
        return f"list of {_values(get_args(annotation)[0])}"
    return _KINDS[annotation]


if __name__ == "__main__":
    sys.stdout.write(page())
