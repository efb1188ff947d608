"""The methods by name, their settings, and the presets that compare them."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple, cast

from pipelines.decoding.presets import PRESETS
from pipelines.decoding.settings import made
from shared.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from pipelines.decoding.prompts import Model, Watch

# Number of what the methods compute: one more with every change that may change an answer.
DEFINITION = 3

# The ten of the paper's tables, which `all` stands for; others are asked for by name.
TABLE = ("greedy", "beam", "nucleus", "vcd", "dola", "opera", "avisc", "m3id", "damro", "pai")
NAMES = (*TABLE, "sid", "icd", "deco", "vista", "vaf")
_SEARCHES = ("beam", "opera")
_OF_LAYERS = ("sid", "deco", "vista", "vaf")  # whose settings name layers


class Decoding(NamedTuple):
    """A method with its settings, ready to answer.

    `decode(model, prompts, limits, settings, seed)`.
    """

    name: str
    settings: "DataclassInstance"
    decode: Callable[..., list[list[int]]]
    variant: str = ""  # settings of its own, where one evaluation has the method several times

    @property
    def label(self) -> str:
        """Name among the decodings of an evaluation: the method's, or "vcd@alpha=0.5"."""
        return f"{self.name}@{self.variant}" if self.variant else self.name

    @property
    def searches(self) -> bool:
        """Whether it chooses among whole answers: none of its words is certain before the end."""
        return self.name in _SEARCHES

    @property
    def draws(self) -> bool:
        """Whether its answers depend on the seed."""
        return self.name == "nucleus" or bool(getattr(self.settings, "sample", False))

    def settled(self, model: "Model") -> "Decoding":
        """Return the method with what its settings leave to the model's checkpoint.

        Raises
        ------
        UserError
            The method cannot decode with this model.
        """
        if self.name == "damro":
            from pipelines.decoding import damro

            damro.check(model)
        if self.name in _OF_LAYERS:
            import_module(f"pipelines.decoding.{self.name}").check(model, self.settings)
        if self.name != "nucleus":
            return self
        from pipelines.decoding import nucleus

        return self._replace(
            settings=nucleus.settled(cast("nucleus.Settings", self.settings), model)
        )

    def described(self) -> dict[str, object]:
        """Return name and settings as plain data, for journals and tables."""
        return {"method": self.label, **dataclasses.asdict(self.settings)}


def decoding(
    name: str, preset: str = "published", overrides: Mapping[str, object] | None = None
) -> Decoding:
    """Return the method `name` under a preset, single settings overridden.

    Raises
    ------
    UserError
        An unknown method, preset or setting, with the nearest known one; a value of another type
        or outside its range.
    """
    _known(name, NAMES, "decoding method")
    _known(preset, tuple(PRESETS), "preset")
    module = import_module(f"pipelines.decoding.{name}")
    fields = {field.name for field in dataclasses.fields(module.Settings)}
    values = dict(PRESETS[preset].get(name, {}))
    for key, value in (overrides or {}).items():
        _known(key, tuple(sorted(fields)), f"setting of {name}")
        values[key] = value
    return Decoding(name, made(name, module.Settings, values), module.decode)


def watch_of(decodings: Sequence[Decoding]) -> "Watch | None":
    """Return what one of the decodings wants to see of the vision tower's one pass."""
    if all(one.name != "damro" for one in decodings):
        return None
    from pipelines.decoding import damro

    return damro.watched


def decodings(
    names: Sequence[str], preset: str = "published", overrides: Sequence[str] = ()
) -> list[Decoding]:
    """Return several methods; `all` stands for `TABLE`, `overrides` are "method.setting=value".

    A method is there several times with settings of its own: "vcd@alpha=0.5", more than one
    divided by ";". They come after `overrides`.
    """
    asked = [name for given in names for name in (TABLE if given == "all" else (given,))]
    wanted = [name.partition("@")[0] for name in asked]
    values: dict[str, dict[str, object]] = {}
    for override in overrides:
        target, equals, text = override.partition("=")
        method, dot, key = target.partition(".")
        if not (equals and dot):
            raise UserError(f"{override!r}: write method.setting=value, as in vcd.alpha=0.5")
        _known(method, NAMES, "decoding method")
        if method not in wanted:
            raise UserError(f"{override!r} sets {method}, which is not among the methods asked for")
        values.setdefault(method, {})[key] = _parsed(text, override)
    return [_variant(one, preset, values) for one in dict.fromkeys(asked)]


def _variant(asked: str, preset: str, values: Mapping[str, Mapping[str, object]]) -> Decoding:
    name, at, variant = asked.partition("@")
    own: dict[str, object] = {}
    for part in variant.split(";") if at else ():
        key, equals, text = part.partition("=")
        if not (equals and key):
            raise UserError(f"{asked!r}: write method@setting=value, as in vcd@alpha=0.5")
        own[key.strip()] = _parsed(text, asked)
    return decoding(name, preset, {**values.get(name, {}), **own})._replace(variant=variant)


def _parsed(text: str, override: str) -> object:
    import yaml

    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise UserError(f"{override!r}: the value is not YAML") from None
    return tuple(value) if isinstance(value, list) else value


def _known(name: str, names: Sequence[str], what: str) -> None:
    if name not in names:
        hint = did_you_mean(name, names, f"there are {', '.join(names) or 'none'}")
        raise UserError(f"no {what} is called {name!r}; {hint}")
