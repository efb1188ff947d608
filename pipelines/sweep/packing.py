"""`medalign sweep --pack`: what a study's runs need, for a machine without a network.

A pack is `pack.json` (a `Pack`, written last) and the files in pieces (`pieces`), named as they
will lie in the work folder: what the study's steps have made where it is, and below `pack/`

- `study.yaml` and `recipes/PART.yaml`, the study and its recipes with what they extend;
- `places/NAME/`, what `--set` names and a run reads;
- `hub/models--OWNER--NAME/`, base models of the hub, as its cache has them;
- `results/ARM-PART.json`, the finished runs.
"""

import os
import string
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypedDict

import yaml

from pipelines.documents import write_document
from pipelines.sweep.ledger import read_run, result_file
from pipelines.sweep.pieces import LARGEST, Packed, Piece, write_pieces
from pipelines.sweep.running import Sweep
from pipelines.sweep.study import Run, Study, command_of, read_study, runs_of
from shared.console import size
from shared.errors import UserError
from shared.files import check_new
from shared.recipe import Recipe, load_recipe
from shared.recipe.reading import read_values
from shared.records import image_root_of, load_records
from student_train.data.files import training_files, validation_root

SCHEMA_NUMBER = 1
PACK = "pack.json"
INSIDE = "pack"  # the folder of the work folder that holds what no step makes
STUDY, RECIPES, PLACES = f"{INSIDE}/study.yaml", f"{INSIDE}/recipes", f"{INSIDE}/places"
HUB, RESULTS = f"{INSIDE}/hub", f"{INSIDE}/results"
COMMAND = "medalign sweep --unpack {pack} --work WORK"


class Pack(TypedDict):
    """What `pack.json` holds.

    `places` lie below the work folder; `words` are places that name no file. A place that no run
    reads is in neither.
    """

    schema: int
    study: str
    parts: list[str]
    runs: list[str]
    finished: list[str]  # runs whose results come along
    places: dict[str, str]
    words: dict[str, str]
    pieces: list[Piece]
    command: str  # unpacks and goes on


def pack(sweep: Sweep, runs: Sequence[Run], out: Path, largest: int = LARGEST) -> Pack:
    """Write what `runs` need into the new folder `out`; the steps must have been made.

    Parameters
    ----------
    largest
        Bytes of a piece at most.

    Raises
    ------
    UserError
        `out` holds something, a run needs a file that lies in no place of the study, or something
        is missing.
    """
    check_new(out)
    parts = list(dict.fromkeys(run.part for run in runs))
    places, words = _places(sweep, runs)
    roots = [*_made(sweep, parts), *places.values()]
    models = _checked(sweep, runs, roots)
    if any(_within(out, [root]) for root in roots):
        raise UserError(f"--pack {out} lies in what is packed; choose another folder")
    finished = [run for run in runs if read_run(sweep.results, run) is not None]
    with tempfile.TemporaryDirectory() as folder:
        own = [_write_study(sweep, runs, Path(folder))]
        for run in finished:
            own.append(Packed(result_file(sweep.results, run), f"{RESULTS}/{run.name}.json"))
        pieces = write_pieces([*roots, *models, *own], out, largest)
    found: Pack = {
        "schema": SCHEMA_NUMBER,
        "study": sweep.study.name,
        "parts": parts,
        "runs": [run.name for run in runs],
        "finished": [run.name for run in finished],
        "places": {name: placed.name for name, placed in places.items()},
        "words": words,
        "pieces": pieces,
        "command": COMMAND.format(pack=out.name),
    }
    write_document(out / PACK, found)
    return found


def pack_lines(found: Pack, out: Path) -> Iterator[str]:
    """Return what was packed as text."""
    total = sum(piece["bytes"] for piece in found["pieces"])
    yield (
        f"{out}: {len(found['runs'])} runs, {len(found['finished'])} of them finished, in "
        f"{len(found['pieces'])} pieces of {size(total)} together"
    )
    yield f"on the other machine: {found['command']}"


def _made(sweep: Sweep, parts: Sequence[str]) -> list[Packed]:
    """Return what the steps have made."""
    found = []
    for made in sweep.made(parts):
        if not made.is_relative_to(sweep.work):
            raise UserError(f"a step makes {made}; only what is made below {{work}} can be packed")
        if not made.exists():
            raise UserError(f"{made} is gone; remove {sweep.work / 'steps'} to make it again")
        found.append(Packed(made, made.relative_to(sweep.work).as_posix()))
    return found


def _places(sweep: Sweep, runs: Sequence[Run]) -> tuple[dict[str, Packed], dict[str, str]]:
    """Return the places that runs read: those that are files or folders, and plain words."""
    texts = [*sweep.study.after.values(), *(value for run in runs for value in run.values.values())]
    named = {
        name
        for text in texts
        if isinstance(text, str)
        for _, name, _, _ in string.Formatter().parse(text)
    }
    places, words = {}, {}
    for name, value in sweep.given.items():
        path = Path(value).expanduser()
        if name in named and path.exists():
            end = "" if path.is_dir() else f"/{path.name}"
            places[name] = Packed(path, f"{PLACES}/{name}{end}")
        elif name in named:
            words[name] = value
    return places, words


def _checked(sweep: Sweep, runs: Sequence[Run], roots: Sequence[Packed]) -> list[Packed]:
    """Check that all files of all runs come along, and return their models of the hub."""
    models: dict[str, Packed] = {}
    seen: set[Path] = set()
    for run in runs:
        recipe = load_recipe(sweep.recipes[run.part], sweep.overrides(run))
        for key, path in _files(recipe):
            if path not in seen:
                _check(path, f"{run.name}: {key}", roots)
            seen.add(path)
        models |= {one.name: one for one in _models(recipe, run.name, roots)}
        places = sweep.places(run.arm, run.part)
        for name, text in sweep.study.after.items():
            for word in command_of(text, places, f"after: {name}"):
                path = Path(word)
                run_own = path.is_relative_to(sweep.work / "runs")
                if path.is_absolute() and path.exists() and not run_own:
                    _check(path, f"after: {name}", roots)
    return list(models.values())


def _check(path: Path, what: str, roots: Sequence[Packed]) -> None:
    if not path.exists():
        raise UserError(f"{what}: there is no {path}")
    if not _within(path, roots):
        raise UserError(
            f"{what}: {path} lies neither in a place of the study nor in what its steps make; name "
            "its folder as one of the study's places"
        )


def _within(path: Path, roots: Sequence[Packed]) -> bool:
    whole = Path(os.path.abspath(path))  # noqa: PTH100 - links are packed as what they lead to
    return any(whole.is_relative_to(os.path.abspath(root.source)) for root in roots)  # noqa: PTH100


def _files(recipe: Recipe) -> Iterator[tuple[str, Path]]:
    """Yield the files and folders that a recipe names, models aside, and the images of its data."""
    data, evaluation = recipe.data, recipe.evaluation
    read = [("data.train", file.path, file.root) for file in training_files(recipe)]
    if data.validation is not None:
        read.append(("data.validation", data.validation, validation_root(recipe)))
    if evaluation.data is not None:
        folder = image_root_of(evaluation.data, evaluation.image_root)
        read.append(("evaluation.data", evaluation.data, folder))
    for key, file, folder in read:
        yield key, Path(file)
        if Path(file).is_file():
            for record in load_records(file):
                for reference in record.references(folder):
                    yield f"{key}, record {record.id}", reference.path
    if recipe.losses.aligned and recipe.targets.store is not None:
        yield "targets.store", Path(recipe.targets.store)
    if recipe.targets.maps is not None:
        yield "targets.maps", Path(recipe.targets.maps)
    if recipe.deepspeed is not None and recipe.deepspeed.endswith(".json"):
        yield "deepspeed", Path(recipe.deepspeed)


def _models(recipe: Recipe, name: str, roots: Sequence[Packed]) -> Iterator[Packed]:
    """Yield the hub's models of a recipe, fetched where need be; check those that are folders."""
    from student_train.models import checkpoint_of
    from student_train.models.folder import checkpoint_folder

    folders = {"model.name": checkpoint_of(recipe.model)}
    if recipe.model.vision_weights == "openai":
        folders["model.vision_path"] = checkpoint_folder(recipe.model.vision_path)
    for key, folder in folders.items():
        if folder.parent.name != "snapshots":
            _check(folder, f"{name}: {key}", roots)
            continue
        cached = folder.parents[1]
        yield Packed(folder, f"{HUB}/{cached.name}/snapshots/{folder.name}")
        if (cached / "refs").is_dir():
            yield Packed(cached / "refs", f"{HUB}/{cached.name}/refs")


def _write_study(sweep: Sweep, runs: Sequence[Run], folder: Path) -> Packed:
    """Write the study with recipes that extend nothing; its runs must be the same ones."""
    study: Study = sweep.study
    values = study.model_dump(mode="json") | {"recipe": "recipes/{part}.yaml"}
    file = folder / Path(STUDY).name
    file.write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True), encoding="utf-8")
    (folder / Path(RECIPES).name).mkdir()
    for part, recipe in sweep.recipes.items():
        text = yaml.safe_dump(read_values(recipe), sort_keys=False, allow_unicode=True)
        (folder / Path(RECIPES).name / f"{part}.yaml").write_text(text, encoding="utf-8")
    again = {run.name: run.identity for run in runs_of(read_study(file), file)}
    other = [run.name for run in runs if again[run.name] != run.identity]
    if other:
        raise UserError(f"{other[0]}: its settings are not the same once written as YAML")
    return Packed(folder, INSIDE)
