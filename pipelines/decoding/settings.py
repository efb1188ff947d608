"""What the settings of decoding methods may be: their types, their ranges, one line for an error.

A method's `Settings` is a pydantic dataclass whose fields have these types; it checks itself when
it is made, from the command line and from Python alike.
"""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_type_hints

from pydantic import ConfigDict, Field, ValidationError

from shared.errors import UserError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

S = TypeVar("S", bound="DataclassInstance")

STRICT = ConfigDict(strict=True)  # true is no number, "1" is none, 1.5 is no count

Number = Annotated[float, Field(allow_inf_nan=False)]
Strength = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)]
Part = Annotated[float, Field(gt=0.0, le=1.0, allow_inf_nan=False)]
Temperature = Strength  # 0 takes the likeliest token
Place = Annotated[int, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]


def made(method: str, settings: type[S], values: Mapping[str, Any]) -> S:
    """Make a method's settings.

    Raises
    ------
    UserError
        A value of another type, or outside its range; the line names both.
    """
    try:
        return settings(**values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = str(first["loc"][0])
        raise UserError(
            f"{method}.{name}={_written(values[name])}: it must be {described(settings)[name]}"
        ) from None


def described(settings: "type[DataclassInstance]") -> dict[str, str]:
    """Say in words what each setting may be: "a number from 0 to 1", "drop or zero"."""
    return {
        name: _in_words(hint)
        for name, hint in get_type_hints(settings, include_extras=True).items()
        if name in {field.name for field in dataclasses.fields(settings)}
    }


def table(methods: "Mapping[str, type[DataclassInstance]]") -> list[str]:
    """Write every setting of the methods as lines of a Markdown table."""
    lines = ["| setting | published | may be |", "|---|---|---|"]
    for method, settings in methods.items():
        words = described(settings)
        for field in dataclasses.fields(settings):
            lines.append(
                f"| `{method}.{field.name}` | {_written(field.default)} | {words[field.name]} |"
            )
    return lines


def _in_words(hint: Any) -> str:
    from pydantic import TypeAdapter

    return _of_schema(TypeAdapter(hint).json_schema())


def _of_schema(schema: Mapping[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(_of_schema(one) for one in schema["anyOf"])
    if "enum" in schema:
        return " or ".join(schema["enum"])
    kind = schema["type"]
    if kind == "array":
        return f"a list: {_of_schema(schema['items'])} each"
    if kind in ("null", "boolean"):
        return {"null": "null", "boolean": "true or false"}[kind]
    words = "a number" if kind == "number" else "a whole number"
    if "minimum" in schema:
        words += f" from {schema['minimum']:g}"
    if "exclusiveMinimum" in schema:
        words += f" above {schema['exclusiveMinimum']:g}"
    return words + (f" to {schema['maximum']:g}" if "maximum" in schema else "")


def _written(value: object) -> str:
    """Write a value as the command line reads it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_written, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)
