"""`medalign alignment` and `medalign oracle`: what distillation did; a perfect expert."""

from pathlib import Path
from typing import Annotated

import typer

from shared.console import report


def alignment_command(
    run: Annotated[Path, typer.Option(help="A run: an adapter folder, or a demo's.")],
    data: Annotated[
        Path | None, typer.Option(help="Held-out questions; default: the run's evaluation.data.")
    ] = None,
    image_root: Annotated[Path | None, typer.Option(help="Folder of their images.")] = None,
    store: Annotated[
        str | None, typer.Option(help="The teacher's targets; default: the run's targets.store.")
    ] = None,
    regions: Annotated[
        Path | None, typer.Option(help="Boxes of labelled regions (ours, or COCO's form).")
    ] = None,
    teacher: Annotated[str | None, typer.Option(help="Where the store holds several.")] = None,
    limit: Annotated[int | None, typer.Option(min=2, help="Only so many images.")] = None,
    layers: Annotated[
        str | None, typer.Option(help="Further decoder layers of separability, such as 4,8,12.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Measure what was distilled, on held-out images, before and after, with paired tests.

    Losses against the store, correlation of S_x with S_e and, with regions, grounding of the
    attention and separability of the features; questions that name a side are asked with left and
    right exchanged too. Written to RUN/alignment.json.
    """
    from pipelines.regions.layers import parse_layers
    from pipelines.regions.measuring import measure
    from pipelines.regions.table import lines_of

    found = measure(
        run,
        data=data,
        image_root=image_root,
        store=store,
        regions=regions,
        teacher=teacher,
        limit=limit,
        layers=parse_layers(layers) or (),
    )
    report(found, as_json, lines_of(found))


def oracle_command(
    store: Annotated[str, typer.Option(help="The teacher's targets, whose images get others.")],
    to: Annotated[str, typer.Option(help="Store to write them into.")],
    regions: Annotated[list[Path], typer.Option(help="Boxes of regions; may be repeated.")],
    image_root: Annotated[Path, typer.Option(help="Folder of the images that they name.")],
    teacher: Annotated[str | None, typer.Option(help="Where the store holds several.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Write targets that know the regions: if they do not help, no expert can."""
    from pipelines.regions.oracle import write_oracle

    made = write_oracle(store, to, regions, image_root, teacher=teacher)
    line = f"{made.namespace}: {made.images} images, {made.with_regions} of them with regions"
    report(made._asdict(), as_json, [line])
