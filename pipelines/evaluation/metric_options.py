"""What `--metrics` and `--model` of a command name."""

from collections.abc import Sequence
from typing import Annotated

import typer

from pipelines.metrics.metric import MODELS, NAMES
from shared.errors import UserError

Metrics = Annotated[
    str | None,
    typer.Option("--metrics", help=f"Some of {', '.join(NAMES)}, comma-separated. Default: all."),
]
Models = Annotated[
    list[str] | None,
    typer.Option(
        "--model",
        help="Where a model is: NAME=FOLDER|FILE|HUB-ID, a hub id being the permission to "
        f"download it. Names: {', '.join(MODELS)}.",
    ),
]


def metric_names(only: str | None) -> list[str]:
    """Return the metrics that `--metrics` names, else all."""
    names = [name.strip() for name in only.split(",")] if only else list(NAMES)
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        raise UserError(f"no metric is called {', '.join(unknown)}; there are {', '.join(NAMES)}")
    return names


def model_places(given: Sequence[str]) -> dict[str, str]:
    """Return the places named by `--model NAME=PLACE`."""
    models = {}
    for one in given:
        key, equals, value = one.partition("=")
        if not (equals and value) or key not in MODELS:
            raise UserError(f"--model {one}: write NAME=PLACE with a name of {', '.join(MODELS)}")
        models[key] = value
    return models
