"""The command `cache` with `audit`, which scores targets as `medalign alignment` scores a student.

The stage's own commands are those of `teacher_cache.cli`; it cannot import the scores.
"""

from pathlib import Path
from typing import Annotated

import typer

from pipelines.regions.query.commands import EncoderOption
from pipelines.regions.query.commands import app as query_app
from shared.console import report, run
from teacher_cache import cli as stage
from teacher_cache.options import (
    DeviceOption,
    OfTeacherOption,
    StoreOption,
    TokenizerOption,
    WeightsOption,
)

app = typer.Typer(
    name="cache",
    help=stage.app.info.help,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.registered_commands += stage.app.registered_commands
app.add_typer(query_app, name="query")


@app.command("audit")
def audit_command(
    store: StoreOption,
    regions: Annotated[
        Path, typer.Option(help="Boxes (ours, or COCO's form), or a folder of masks.")
    ],
    image_root: Annotated[
        Path | None, typer.Option(help="Folder of the images; default: that of the regions.")
    ] = None,
    teacher: OfTeacherOption = None,
    weights: WeightsOption = None,
    device: DeviceOption = "auto",
    query: Annotated[
        Path | None, typer.Option(help="A file of `cache query fit`, scored on other patients.")
    ] = None,
    encoder: EncoderOption = None,
    maps: Annotated[
        str | None, typer.Option(help="Or a store of maps for the labels (`cache query maps`).")
    ] = None,
    tokenizer: TokenizerOption = None,
    deletion: Annotated[
        int | None,
        typer.Option(min=2, help="Encode so many regions' images again: deletion and insertion."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Score which expert knows the regions, before any training.

    Grounding of E_a beside chance, the positional prior and another patient's map; of a linear
    read-out of E_v; separability of E_v and S_e. Intervals and paired tests over patients. Of a
    query's maps it says whether they may be taught by default.
    """
    from pipelines.regions.audit import audit
    from pipelines.regions.table import audit_lines

    found = audit(
        store,
        regions,
        image_root=image_root,
        teacher=teacher,
        weights=weights,
        device=device,
        query=query,
        encoder=encoder,
        tokenizer=tokenizer,
        deletion=deletion,
        maps=maps,
    )
    report(found, as_json, audit_lines(found))


def main() -> None:
    """Run the console script."""
    run(app, "cache")
