"""`medalign recipes`: the shipped recipes, every key of a recipe, and its schema for editors."""

from pathlib import Path
from typing import Annotated

import typer

from shared.console import say
from shared.errors import UserError

FOLDER = Path(__file__).parent
Name = Annotated[str, typer.Argument(help="A name of `medalign recipes list`.")]
Keys = Annotated[bool, typer.Option("--keys", help="Every key, its default and its meaning.")]
Schema = Annotated[bool, typer.Option("--schema", help="The JSON schema of a recipe, for editors.")]

app = typer.Typer(help="Recipes: those that ship, every key, the JSON schema.")


@app.callback(invoke_without_command=True)
def recipes_command(context: typer.Context, keys: Keys = False, schema: Schema = False) -> None:
    """List the shipped recipes; show or copy one."""
    if context.invoked_subcommand is not None:
        return
    from shared.recipe import docs

    if schema:
        say(docs.schema())
    elif keys:
        for line in docs.lines():
            say(line)
    else:
        list_command()


@app.command("list")
def list_command() -> None:
    """Name the shipped recipes, one a line, with what each is."""
    for path in sorted(FOLDER.glob("*.yaml")):
        say(f"{path.stem:26} {_comments(path)[0]}")


@app.command("show")
def show_command(name: Name) -> None:
    """Print a shipped recipe whole: it needs no other file."""
    say(whole_recipe(name))


@app.command("copy")
def copy_command(
    name: Name,
    to: Annotated[
        Path | None, typer.Argument(help="A new file; default: NAME.yaml in this folder.")
    ] = None,
) -> None:
    """Copy a shipped recipe to a file of one's own, whole, ready for `student train FILE`."""
    text = whole_recipe(name)
    to = to or Path(f"{name.removesuffix('.yaml')}.yaml")
    if to.is_dir():
        to /= f"{name.removesuffix('.yaml')}.yaml"
    if to.exists():
        raise UserError(f"{to} exists; name another file: medalign recipes copy {name} FILE")
    if not to.parent.is_dir():
        raise UserError(f"no folder {to.parent}; make it, or name another file")
    to.write_text(text.rstrip("\n") + "\n", encoding="utf-8")
    say(f"{to}: train with `student train {to}`, with key=value for your own files")


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
