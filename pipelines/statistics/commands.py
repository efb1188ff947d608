"""`medalign plan-test`: how many items a claim needs."""

from collections.abc import Iterator
from typing import Annotated

import typer

from shared.console import report
from shared.errors import UserError


def plan_test_command(
    *,
    difference: Annotated[float, typer.Option(help="In points, such as 3.")],
    disagreement: Annotated[
        float, typer.Option(help="Share of items on which exactly one method is right, as 0.2.")
    ],
    per_image: Annotated[
        int, typer.Option(min=1, help="Questions of one image, taken to stand or fall together.")
    ] = 1,
    tests: Annotated[int, typer.Option(min=1, help="Of the table, under Holm's correction.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Say how many items a paired test needs to find a difference (80%, level 0.05)."""
    from pipelines.statistics.power import items_needed

    try:
        items = items_needed(difference / 100, disagreement, per_cluster=per_image, tests=tests)
    except ValueError as error:
        raise UserError(
            f"--difference {difference:g} points, --disagreement {disagreement:g}: {error}"
        ) from None
    found = {
        "difference": difference / 100,
        "disagreement": disagreement,
        "per_image": per_image,
        "tests": tests,
        "items": items,
        "images": items // per_image,
    }
    report(found, as_json, _lines(items, per_image))


def _lines(items: int, per_image: int) -> Iterator[str]:
    yield f"{items} items of {items // per_image} images (found in 80% of such sets, level 0.05)"
