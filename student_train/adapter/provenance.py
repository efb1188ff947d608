"""`provenance.json`: what a run was made from, beside every adapter and checkpoint.

    schema    number of this layout
    method    the run's name (`student_train.adapter.method`)
    base      {"name": as the recipe says, "weights": digest of the weights}
    teachers  [{"teacher", "fingerprint"}], one a store namespace that was trained on
    data      {"train": {"file", "sha256"}, "validation": ...}
    software  versions of the packages
    command   the command line

Loading, resuming and repeating compare with it: another base of the same shape, another teacher's
targets or a changed data file would give another model without a word.
"""

import hashlib
import json
import platform
import shlex
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TypedDict, cast

from shared.errors import UserError
from shared.files import whole_file
from shared.recipe import ModelSection, Recipe
from student_train.adapter.method import method_of
from student_train.data.files import training_files

PROVENANCE, SCHEMA_NUMBER = "provenance.json", 1


class Base(TypedDict):
    """The base model."""

    name: str
    weights: str


class Teacher(TypedDict):
    """A namespace that gave targets."""

    teacher: str
    fingerprint: str


class DataFile(TypedDict):
    """A file of records."""

    file: str
    sha256: str


class Provenance(TypedDict):
    """The document."""

    schema: int
    method: str
    base: Base
    teachers: list[Teacher]
    data: dict[str, DataFile]
    software: dict[str, str]
    command: str


def describe(recipe: Recipe, weights: str, teachers: Sequence[Teacher]) -> Provenance:
    """Describe a run that begins now; `weights` is the digest of its base's weights."""
    return {
        "schema": SCHEMA_NUMBER,
        "method": method_of(recipe),
        "base": {"name": recipe.model.path or recipe.model.name, "weights": weights},
        "teachers": list(teachers),
        "data": {
            name: {"file": file, "sha256": file_digest(file)}
            for name, file in data_files(recipe).items()
        },
        "software": software_versions(),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def data_files(recipe: Recipe) -> dict[str, str]:
    """Return the files of records that a run reads, by their key in the recipe's `data`.

    Of several training files the later ones are "train 2" and so on.
    """
    named = [file.path for file in training_files(recipe)]
    files = {"train" if n == 1 else f"train {n}": file for n, file in enumerate(named, 1)}
    if recipe.train.eval_steps and recipe.data.validation is not None:
        files["validation"] = recipe.data.validation
    return files


def file_digest(file: str | Path) -> str:
    """Return the sha256 of a file, in hexadecimal digits."""
    with Path(file).open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def software_versions() -> dict[str, str]:
    """Versions of what the numbers may depend on."""
    names = ("medalign", "torch", "transformers", "peft", "accelerate", "deepspeed", "tokenizers")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def write_provenance(folder: Path, provenance: Provenance) -> None:
    """Write the document into an adapter folder."""
    text = json.dumps(provenance, indent=1, ensure_ascii=False) + "\n"
    whole_file(folder / PROVENANCE, lambda path: path.write_text(text, encoding="utf-8"))


def read_provenance(folder: Path) -> Provenance | None:
    """Read the document of an adapter folder; None where there is none.

    Raises
    ------
    UserError
        The file is damaged, or of another schema.
    """
    path = folder / PROVENANCE
    if not path.is_file():
        return None
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        schema = document["schema"]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path} is damaged; copy it again from where it was made") from None
    if schema != SCHEMA_NUMBER:
        raise UserError(
            f"{path} has schema {schema!r}, this version reads {SCHEMA_NUMBER}; use a matching "
            "version"
        )
    return cast("Provenance", document)


def check_base(folder: Path, model: ModelSection) -> None:
    """Refuse a base model with other weights than the adapter of `folder` was trained on.

    An adapter of before there was a `provenance.json` is taken as it is.
    """
    provenance = read_provenance(folder)
    if provenance is None:
        return
    from student_train.models.digest import base_digest

    found, trained = base_digest(model), provenance["base"]["weights"]
    if found != trained:
        raise UserError(
            f"{model.path or model.name} is not the base model that {folder} was trained on: its "
            f"weights are {found[:12]}, trained on {trained[:12]} ({provenance['base']['name']}); "
            "name that one with --base (`base=` of student_train.load); a model into which the "
            "adapter is merged needs no adapter"
        )


def check_data(provenance: Provenance, recipe: Recipe, run: Path) -> None:
    """Refuse a data file that has changed since the run in `run` began."""
    for name, file in data_files(recipe).items():
        before = provenance["data"].get(name)
        if before is None:
            continue
        found = file_digest(file)
        if found != before["sha256"]:
            raise UserError(
                f"{run} was made with a data.{name} of sha256 {before['sha256'][:12]}, {file} is "
                f"{found[:12]} now; put the old file back, or start a new run from another recipe"
            )
