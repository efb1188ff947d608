"""The `cache` commands that bring targets in from outside, and carry a store elsewhere."""

from pathlib import Path
from typing import Annotated

import typer

from shared.console import JsonOption, report, warn
from shared.errors import UserError
from shared.vocabulary import Notebook, Precision
from teacher_cache.options import StoreOption, WorkersOption


def register(app: typer.Typer) -> None:
    """Add these commands to `cache`."""
    app.command("import")(import_command)


def import_command(
    authors: Annotated[
        tuple[Path, Path],
        typer.Option(
            "--authors", help="The authors' cosine_matrix_dict.pkl and attn_map_dict.pkl."
        ),
    ],
    images: Annotated[
        Path, typer.Option("--images", help="Folder that the names in the pickles start from.")
    ],
    store: StoreOption,
    teacher: Annotated[
        Notebook, typer.Option("--teacher", help="The expert whose notebook made them.")
    ],
    precision: Annotated[
        Precision, typer.Option("--precision", help="Of the similarities.")
    ] = "f16",
    workers: WorkersOption = 2,
    allow_skips: Annotated[
        int, typer.Option(help="How many images may be left out without failure.", min=0)
    ] = 0,
    json: JsonOption = False,
) -> None:
    """Write the authors' pickled targets into a store, under the content keys of their images.

    The pickles are opened without the power to run code. The namespace's teacher is called
    authors-unimed-l and the like, its geometry is crop, and its weights are the digest of both
    files. Nothing is encoded.
    """
    from teacher_cache.keeping.authors import import_authors

    cosine, attention = authors
    done = import_authors(
        cosine,
        attention,
        images,
        store,
        teacher=teacher,
        precision=precision,
        workers=workers,
    )
    line = (
        f"{done.images} images: {done.found} were in the store, {done.written} written, "
        f"{done.repeated} repeated, {len(done.left_out)} left out"
    )
    report(done.as_json(), json, [line, f"namespace {done.namespace} in {store}"])
    for name, reason in done.left_out:
        warn(f"{name}: {reason}")
    if len(done.left_out) > allow_skips:
        raise UserError(
            f"{len(done.left_out)} images could not be imported, for the reasons above; every "
            f"other image is in the store. Accept that with --allow-skips {len(done.left_out)}"
        )
