"""A study is data: one YAML file that names its arms, its parts, and what is tested.

    name: chest
    title: Does distillation help answers about chest X-rays?
    recipe: demo.yaml            # beside the file, or a shipped one; may hold {part}
    places:                      # what `--set NAME=VALUE` gives; {work} is the sweep's folder
      source: folder with the X-rays
    steps:                       # made once before the runs; {part} makes one for each part
      - makes: "{work}/set"
        command: medalign data prepare nih-rsna --source {source} --out {work}/set
    values:                      # overrides of the recipe in every run; {run} is the run's folder
      data.train: "{work}/set/{part}/train.json"
    parts: [fold0, fold1]        # each arm runs once in each
    arms:                        # further overrides
      LoRA: {losses.alpha: 0, losses.beta: 0, rotation.kind: none}
      full: {losses.alpha: 30}
    after:                       # further commands over each run; their JSON is kept
      alignment: medalign alignment --run {run} --json
    compare: [[full, LoRA]]      # default: each arm against the first
    scores: [closed_accuracy]    # of the tests; default: all
    unit: patient                # a field of the records: the unit of every test
    sets: false                  # true: the parts are data sets, with a table each

Every value may hold {work}, {part}, {arm}, {run} and the study's own places.
"""

import hashlib
import json
import shlex
import string
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from pipelines.metrics.items import SCORES
from pipelines.recipes.commands import FOLDER as RECIPES
from shared.errors import UserError, did_you_mean
from shared.recipe import load_recipe
from shared.recipe.reading import UniqueKeyLoader, read_values

Value = str | int | float | bool | None | list[str] | list[int] | list[float]
STUDIES = Path(__file__).parents[1] / "studies"
NAME = r"^[A-Za-z0-9][A-Za-z0-9._+-]*$"


class Step(BaseModel):
    """A command whose work all runs share, and the file or folder that it makes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    makes: str
    command: str


class Study(BaseModel):
    """What a study file holds; the module's text shows one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=NAME)
    title: str
    recipe: str
    places: dict[str, str] = {}
    steps: list[Step] = []
    values: dict[str, Value] = {}
    parts: list[str] = Field(min_length=1)
    arms: dict[str, dict[str, Value]] = Field(min_length=1)
    after: dict[str, str] = {}
    compare: list[tuple[str, str]] = []
    scores: list[str] = []
    unit: str | None = None
    sets: bool = False

    @field_validator("parts")
    @classmethod
    def _parts_are_names(cls, parts: list[str]) -> list[str]:
        if len(set(parts)) != len(parts):
            raise ValueError("an entry is given twice")
        return parts

    @model_validator(mode="after")
    def _names_fit(self) -> "Study":
        """Refuse names that no file can have, and comparisons of what is not there."""
        import re

        for name in (*self.arms, *self.parts):
            if not re.match(NAME, name):
                raise ValueError(f"`{name}` is no name of letters, digits and . _ + -")
        for name in self.scores:
            if name not in SCORES:
                raise ValueError(f"scores: {name}; {did_you_mean(name, list(SCORES), '')}")
        for name in (arm for pair in self.compare for arm in pair):
            if name not in self.arms:
                raise ValueError(f"compare: {name}; {did_you_mean(name, list(self.arms), '')}")
        return self

    def pairs(self) -> list[tuple[str, str]]:
        """Return the pairs of arms that are tested."""
        first, *others = self.arms
        return self.compare or [(other, first) for other in others]


class Run(NamedTuple):
    """One training of the study.

    Attributes
    ----------
    arm, part
        Which.
    values
        Overrides of the recipe; places are not yet filled in.
    identity
        sha256 of all that decides its result, places unfilled: the same on every machine.
    """

    arm: str
    part: str
    values: dict[str, Value]
    identity: str

    @property
    def name(self) -> str:
        """Name of its files."""
        return f"{self.arm}-{self.part}"


def read_study(file: Path) -> Study:
    """Read a study file.

    Raises
    ------
    UserError
        It is not there, no YAML, or a key is unknown, missing or wrong.
    """
    try:
        with file.open(encoding="utf-8") as opened:
            values = yaml.load(opened, UniqueKeyLoader)
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror or error}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UserError(f"{file}: a study is a mapping, see docs/sweep.md")
    try:
        return Study.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "study"
        known = list(Study.model_fields)
        hint = f"; {did_you_mean(where, known, '')}" if first["type"] == "extra_forbidden" else ""
        raise UserError(f"{file}: {where}: {first['msg']}{hint}") from None


def study_file(name: Path) -> Path:
    """Return the study file: `name` itself, or the shipped one that is called so.

    Raises
    ------
    UserError
        There is neither.
    """
    if name.is_file():
        return name
    shipped = {file.stem: file for file in STUDIES.glob("*.yaml")}
    if str(name) in shipped:
        return shipped[str(name)]
    hint = did_you_mean(str(name), sorted(shipped), f"shipped are {', '.join(sorted(shipped))}")
    raise UserError(f"no study file at {name}; {hint}")


def recipe_file(study: Study, file: Path, part: str) -> Path:
    """Return the recipe of a part: a file beside the study, or a shipped one."""
    name = str(fill(study.recipe, {"part": part}, f"{file}: recipe"))
    for folder in (file.parent, RECIPES):
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"{file}: recipe {name} is neither beside it nor a shipped one")


def used_steps(study: Study, values: Mapping[str, Value]) -> list[Step]:
    """Return the steps whose work a run of these values uses, itself or through other steps.

    A step counts as used where what it makes is named. So two studies share a run that they both
    have, whatever else their other arms need.
    """
    named = json.dumps([dict(values), study.after], ensure_ascii=False)
    used: set[int] = set()
    while found := {
        number
        for number, step in enumerate(study.steps)
        if number not in used and step.makes in named
    }:
        used |= found
        named += "".join(study.steps[number].command for number in found)
    return [step for number, step in enumerate(study.steps) if number in used]


def runs_of(study: Study, file: Path) -> list[Run]:
    """Return every run, part by part, so that each pair of arms is compared early."""
    runs = []
    for part in study.parts:
        recipe = read_values(recipe_file(study, file, part))
        load_recipe(recipe_file(study, file, part))  # its faults show before anything runs
        for arm, own in study.arms.items():
            values = {**study.values, **own}
            steps = [step.model_dump() for step in used_steps(study, values)]
            decides = [recipe, steps, values, study.unit, part]
            text = json.dumps(decides, sort_keys=True)
            identity = hashlib.sha256(text.encode()).hexdigest()
            runs.append(Run(arm, part, values, identity))
    return runs


def fill(text: Value, places: Mapping[str, str], where: str) -> Value:
    """Put the places into a value.

    Raises
    ------
    UserError
        A place is not given.
    """
    if not isinstance(text, str):
        return text
    try:
        fields = [name for _, name, _, _ in string.Formatter().parse(text) if name is not None]
        for name in fields:
            if not name.isidentifier():
                raise UserError(
                    f"{where}: {{{name}}} names no place; places are words, as {{work}}"
                )
        return string.Formatter().vformat(text, (), places)
    except KeyError as error:
        name = str(error.args[0])
        raise UserError(f"{where}: {{{name}}} is not given; --set {name}=VALUE gives it") from None
    except ValueError as error:
        raise UserError(f"{where}: {text!r}: {error}; write {{{{ and }}}} for braces") from None


def command_of(text: str, places: Mapping[str, str], where: str) -> list[str]:
    """Split a command line and put the places into its words: a place may hold blanks.

    Raises
    ------
    UserError
        A quotation mark without its other one, or a place that is not given.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UserError(f"{where}: {text!r} is no command: {error}; close the quotation") from None
    return [str(fill(word, places, where)) for word in words]
