"""Every key of a recipe for people and editors, from the descriptions in `shared.recipe.fields`.

`python -m shared.recipe.docs > docs/recipe.md` writes the page of the docs.
"""

import json
import sys
import textwrap
from collections.abc import Iterator
from types import UnionType
from typing import Annotated, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from shared.recipe.fields import Recipe

_KINDS: dict[object, str] = {
    str: "text",
    int: "whole number",
    float: "number",
    bool: "true, false",
    type(None): "null",
}
_HEAD = """# The recipe

One YAML file for the whole pipeline. Every key has a default; a recipe names only what differs.

- **Command line.** `key=value` overrides a key (`losses.layer=16`, `losses.layer=[16,20]`); the
  value is YAML. An unknown or misspelt key is an error that names the nearest valid one.
- **`extends: base.yaml`** begins with another recipe, found beside the file; its keys are
  overridden one by one. A chain is allowed, a circle is an error.
- **Repeat a run.** The resolved recipe, with every key, is written beside every output.
- **Paths** are relative to the working directory.
- **Editors.** `medalign recipes --schema > recipe.schema.json` writes the JSON schema;
  `# yaml-language-server: $schema=recipe.schema.json` in a recipe's first line uses it.
- **Shipped recipes.** `medalign recipes list` names the paper's, one for each model and data set
  with the authors' values, and the demo's. `medalign recipes show NAME` prints one.
  `medalign recipes copy NAME` puts it into this folder, whole.
- `medalign recipes --keys` prints what follows.

`python -m shared.recipe.docs > docs/recipe.md` makes this page from `shared/recipe/fields.py`.
"""


class Key(NamedTuple):
    """One key: dotted name, default as YAML writes it, values it takes, meaning."""

    name: str
    default: str
    values: str
    meaning: str


def sections() -> dict[str, type[BaseModel]]:
    """Return the sections of a recipe by name, in the order of the file."""
    found = {name: field.annotation for name, field in Recipe.model_fields.items()}
    return {
        name: kind
        for name, kind in found.items()
        if isinstance(kind, type) and issubclass(kind, BaseModel)
    }


def keys_of(section: str | None = None) -> list[Key]:
    """List the keys of a section; None: those of the top level."""
    model = Recipe if section is None else sections()[section]
    prefix = "" if section is None else f"{section}."
    return list(_keys(model, prefix))


def _keys(model: type[BaseModel], prefix: str) -> Iterator[Key]:
    for name, field in model.model_fields.items():
        if prefix or name not in sections():
            yield Key(
                f"{prefix}{name}", _default(field), _values(field.annotation), _meaning(field)
            )


def _meaning(field: FieldInfo) -> str:
    if not field.description:
        raise ValueError(f"a field of the recipe has no description: {field}")
    return " ".join(field.description.split())


def _default(field: FieldInfo) -> str:
    return field.default if isinstance(field.default, str) else json.dumps(field.default)


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
    if get_origin(annotation) is tuple:
        inside = get_args(annotation)
        return f"list of {len(inside)} {_values(inside[0])}s"
    return _KINDS[annotation]


def lines() -> list[str]:
    """Return every key with default and meaning, for a terminal."""
    rows = [key for section in (None, *sections()) for key in keys_of(section)]
    return [f"{key.name}={key.default}\n    {key.meaning}" for key in rows]


def schema() -> str:
    """Return the JSON schema of a recipe file, `extends` included, for editors."""
    document = Recipe.model_json_schema()
    document["properties"]["extends"] = {
        "type": "string",
        "description": "Recipe to begin with, beside this file.",
    }
    return json.dumps(document, indent=2)


def page() -> str:
    """Return the page: a list for the top level and one for each section."""
    parts = [_HEAD, _list("Top level", None, Recipe)]
    parts += [_list(f"`{name}`", name, model) for name, model in sections().items()]
    return "\n".join(parts)


def _list(title: str, section: str | None, model: type[BaseModel]) -> str:
    lines = [f"## {title}", "", (model.__doc__ or "").strip(), ""]
    for key in keys_of(section):
        leaf = key.name.rpartition(".")[2]
        item = f"- **`{leaf}: {key.default}`** ({key.values}). {key.meaning}"
        lines += textwrap.wrap(
            item, 100, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(page())
