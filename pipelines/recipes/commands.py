"""`medalign recipes`: the shipped recipes, every key of a recipe, and its schema for editors."""

from pathlib import Path
from typing import Annotated

import typer

from shared.console import say
from shared.errors import UserError

FOLDER = Path(__file__).parent
Name = Annotated[str | None, typer.Argument(help="One of them; its YAML is printed whole.")]
Keys = Annotated[bool, typer.Option("--keys", help="Every key, its default and its meaning.")]
Schema = Annotated[bool, typer.Option("--schema", help="The JSON schema of a recipe, for editors.")]


def recipes_command(name: Name = None, keys: Keys = False, schema: Schema = False) -> None:
    """List the shipped recipes, or print one: `medalign recipes NAME > recipe.yaml`."""
    if schema:
        from shared.recipe import docs

        say(docs.schema())
    elif keys:
        from shared.recipe import docs

        for line in docs.lines():
            say(line)
    elif name is None:
        for path in sorted(FOLDER.glob("*.yaml")):
            say(f"{path.stem:26} {_comments(path)[0]}")
    else:
        say(whole_recipe(name))


def whole_recipe(name: str) -> str:
    """Return the YAML of a shipped recipe, what it extends included: it needs no other file.

    Raises
    ------
    UserError
        There is no recipe of that name.
    """
    import yaml

    from shared.recipe.reading import read_values

    path = FOLDER / f"{name.removesuffix('.yaml')}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(one.stem for one in FOLDER.glob("*.yaml")))
        raise UserError(f"no recipe {name}; the shipped ones are {known}")
    values = yaml.safe_dump(read_values(path), sort_keys=False, allow_unicode=True, width=100)
    return "\n".join(f"# {line}" for line in _comments(path)) + f"\n\n{values}"


def _comments(path: Path) -> list[str]:
    """Return the lines of the comment that a recipe begins with."""
    lines = []
    for line in path.read_text(encoding="utf-8").split("\n"):
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").removeprefix(" "))
    return lines
