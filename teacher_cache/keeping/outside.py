"""The `cache` commands that bring targets in from outside, and carry a store elsewhere."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shared.console import JsonOption, report, warn
from shared.errors import UserError
from shared.vocabulary import Notebook, Precision
from teacher_cache.options import (
    FingerprintOption,
    OfTeacherOption,
    StoreOption,
    WorkersOption,
)

if TYPE_CHECKING:
    from teacher_cache.keeping.carrying import Carried


def register(app: typer.Typer) -> None:
    """Add these commands to `cache`."""
    for name, command in (
        ("import", import_command),
        ("push", push_command),
        ("pull", pull_command),
    ):
        app.command(name)(command)


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


def push_command(
    place: Annotated[
        str,
        typer.Argument(help="Where to: a folder, s3://bucket/prefix, or hf://OWNER/NAME."),
    ],
    store: StoreOption,
    teacher: OfTeacherOption = None,
    fingerprint: FingerprintOption = None,
    audit: Annotated[
        Path | None,
        typer.Option("--audit", help="What `cache audit --json` printed, for the card."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Carry a store elsewhere, with a card: teacher, licence, geometry, counts, fingerprint.

    What is there already is not copied again. The hub is asked only for a place that begins with
    hf://; its repository is made private.
    """
    from teacher_cache.keeping.carrying import hub_place, push

    if hub_place(place) is not None:
        warn("targets of patient images are derived data; upload only what their terms allow")
    done = push(store, place, teacher=teacher, fingerprint=fingerprint, audit=audit)
    _tell(done, {"store": store, "place": place}, json)


def pull_command(
    place: Annotated[
        str,
        typer.Argument(help="Where from: a folder, s3://bucket/prefix, or hf://OWNER/NAME[@REV]."),
    ],
    store: Annotated[str, typer.Option("--store", help="The store to fill; made if absent.")],
    teacher: OfTeacherOption = None,
    fingerprint: FingerprintOption = None,
    json: JsonOption = False,
) -> None:
    """Carry a store that was pushed into one of yours; every byte is checked on the way.

    What your store has already is not copied again. An interrupted pull is simply run again.
    """
    from teacher_cache.keeping.carrying import pull

    done = pull(place, store, teacher=teacher, fingerprint=fingerprint)
    _tell(done, {"store": store, "place": place}, json)


def _tell(done: "Carried", about: dict[str, object], json: bool) -> None:
    """Report what was carried; raise UserError where not all could be."""
    lines = [
        f"{one.namespace}: {one.records} records in {one.segments} segments copied, "
        f"{one.already_there} were there"
        for one in done.merged
    ]
    if done.uploaded is not None:
        lines.append(f"uploaded: {done.uploaded} (a data set of the hub)")
    merged = [one._asdict() for one in done.merged]
    report({**about, **done._asdict(), "merged": merged}, json, lines)
    for name, reason in done.unreadable.items():
        warn(f"{name} is passed over: {reason}")
    if done.unreadable:
        raise UserError(
            f"{len(done.unreadable)} namespaces could not be read, for the reasons above; all "
            "others are carried"
        )
