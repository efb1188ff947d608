"""The `cache` commands that keep a store.

They open it without the data set, and without the teacher.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shared.console import JsonOption, report, size, track, warn
from shared.errors import UserError
from shared.files import refused_as
from shared.vocabulary import Control, ExportForm
from teacher_cache.options import (
    BatchOption,
    DeviceOption,
    FingerprintOption,
    OfTeacherOption,
    RootOption,
    StoreOption,
    WeightsOption,
    WorkersOption,
)

if TYPE_CHECKING:
    from shared.targets.segment.scan import Checked
    from teacher_cache.keeping.info import Description
    from teacher_cache.keeping.resample import Deviation


def register(app: typer.Typer) -> None:
    """Add these commands to `cache`."""
    for name, command in (
        ("info", info_command),
        ("list", list_command),
        ("verify", verify_command),
        ("merge", merge_command),
        ("upgrade", upgrade_command),
        ("gc", gc_command),
        ("export", export_command),
        ("view", view_command),
        ("control", control_command),
    ):
        app.command(name)(command)


def info_command(store: StoreOption, json: JsonOption = False) -> None:
    """Say what is in a store: teachers, records, bytes, age, errors of `factors`, damage."""
    from teacher_cache.keeping.info import info

    found = info(store)
    report(
        {"store": store, "namespaces": found, "unreadable": _unreadable(store)},
        json,
        (line for row in found for line in _described(row)),
    )


def _unreadable(store: str) -> dict[str, str]:
    """Warn of the namespaces that cannot be read; the others are served all the same."""
    from shared.targets.namespace import survey

    unreadable = survey(store).unreadable
    for name, reason in unreadable.items():
        warn(f"{name} is passed over: {reason}")
    return unreadable


def _described(row: "Description") -> Iterator[str]:
    from teacher_cache.keeping.info import asked_line

    identity = row["identity"]
    grid = "x".join(str(side) for side in identity["grid"])
    stored = f"{identity['encoding']} {identity['precision']}"
    kind = f"{stored}, {identity['geometry']}, {identity['dtype']}"
    yield row["namespace"]
    alone = ", S_e alone" if identity.get("attention") == "none" else ""
    yield f"  targets      {grid} patches, {kind}, features {identity['features']}{alone}"
    each = f", {size(row['bytes_per_record'])} each" if row["bytes_per_record"] else ""
    extra = f" (and {row['superseded']} superseded)" if row["superseded"] else ""
    count = f"{row['records']}{extra} in {row['segments']} segments"
    yield f"  records      {count}, {size(row['bytes'])}{each}"
    if row["oldest"]:
        yield f"  written      {row['oldest']} to {row['newest']}"
    yield f"  licence      {row['provenance'].get('licence', 'not recorded')}"
    asked = asked_line(row)
    if asked:
        yield f"  query        {asked}"
    if "error" in row and "rank" in row:
        errors = ", ".join(f"{name} {error['largest']:.4f}" for name, error in row["error"].items())
        rank = row["rank"]
        yield f"  largest error {errors}; rank {rank['smallest']} to {rank['largest']}"
    if row["quarantined"]:
        yield f"  quarantined  {row['quarantined']} images"
    for damage in row["damaged"]:
        yield f"  DAMAGED      {damage}"


def list_command(
    store: StoreOption,
    teacher: OfTeacherOption = None,
    fingerprint: FingerprintOption = None,
    left_out: Annotated[
        bool, typer.Option("--quarantined", help="List the images that were left out, and why.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """List the records of a store by content key, or the images that were left out."""
    from shared.targets.choice import fitting_namespaces
    from shared.targets.namespace import list_namespaces, quarantined
    from teacher_cache.keeping.info import listing

    chosen = teacher is not None or fingerprint is not None
    fitting = fitting_namespaces(store, teacher, fingerprint) if chosen else list_namespaces(store)
    rows: list[dict[str, object]] = []
    for namespace in fitting:
        if left_out:
            found = [
                {"key": one.key.hex(), "reason": one.reason, "time": one.time}
                for one in quarantined(namespace)
            ]
        else:
            found = [row._asdict() for row in listing(namespace)]
        rows += [{"namespace": namespace.name, **row} for row in found]
    report(
        {"store": store, "rows": rows, "unreadable": _unreadable(store)},
        json,
        (_row(row) for row in rows),
    )


def _row(row: dict[str, object]) -> str:
    plain = {**row, "superseded": "superseded" if row.get("superseded") else ""}
    return "  ".join(str(value) for value in plain.values()).rstrip()


def verify_command(
    store: StoreOption,
    count: Annotated[
        int,
        typer.Option("--resample", help="Also run the teacher on this many random records.", min=0),
    ] = 0,
    images: Annotated[
        str | None,
        typer.Option(
            "--images", help="With --resample: where the images are, as for `cache build`."
        ),
    ] = None,
    image_root: RootOption = None,
    weights: WeightsOption = None,
    teacher: OfTeacherOption = None,
    fingerprint: FingerprintOption = None,
    batch_size: BatchOption = 8,
    workers: WorkersOption = 2,
    device: DeviceOption = "auto",
    json: JsonOption = False,
) -> None:
    """Check every byte of a store against its checksums; with --resample, also against the teacher.

    The checksums need neither images nor teacher. Exit code 1 names what is damaged, or which image
    deviates.
    """
    from shared.targets.segment.scan import count_parts, scan

    _check_resampling(count, images)
    checked = list(track(scan(store), count_parts(store), "verifying", "parts"))
    damaged = [one for one in checked if one.damage is not None]
    document, lines = _checksums(store, checked, damaged)
    wrong: list[str] = []
    if damaged:
        wrong.append(f"{len(damaged)} parts of {store} are damaged{_way_out(store, damaged)}")
    if images is not None:
        from teacher_cache.keeping.resample import resample
        from teacher_cache.sources import find_images

        found = resample(
            store,
            find_images(images, image_root),
            count,
            teacher=teacher,
            fingerprint=fingerprint,
            weights=weights,
            batch_size=batch_size,
            workers=workers,
            device=device,
        )
        document["resampled"] = found.as_json()
        lines.append(_compared(found))
        wrong += _deviations(found)
    report(document, json, lines)
    for one in damaged:
        warn(str(one.damage))
    if wrong:
        raise UserError("; ".join(wrong))


def _check_resampling(count: int, images: str | None) -> None:
    """Refuse --resample without --images, and the other way round."""
    if count and images is None:
        raise UserError("--resample runs the teacher on images: say where they are with --images")
    if images is not None and not count:
        raise UserError("--images belongs to --resample N; the checksums need no images")


def _checksums(
    store: str, checked: "list[Checked]", damaged: "list[Checked]"
) -> tuple[dict[str, object], list[str]]:
    """Return the document and the lines of what the checksums say."""
    foreign = [path for one in checked for path in one.foreign]
    total = sum(one.size for one in checked)
    document: dict[str, object] = {
        "store": store,
        "checked": len(checked),
        "bytes": total,
        "damaged": [{"path": one.path, "damage": one.damage} for one in damaged],
        "foreign": foreign,
    }
    lines = [f"{len(checked)} segments and metadata files, {size(total)}: {len(damaged)} damaged"]
    if foreign:
        lines.append(
            f"{len(foreign)} files or folders of others lie there and harm nothing, the first: "
            f"{foreign[0]}"
        )
    return document, lines


def _way_out(store: str, damaged: "list[Checked]") -> str:
    """Say what drops damaged segments; the message of anything else names its own way out."""
    segments = sum("/segments/" in one.path for one in damaged)
    if not segments:
        return ", as told above"
    return (
        f"; `cache gc --damaged --store {store}` drops the {segments} segments among them, and "
        "the same `cache build` makes their records again"
    )


def _compared(found: "Deviation") -> str:
    asked = (
        ""
        if found.query is None
        else f", query by {found.query:.2g} of its largest number ({found.allowed_query:.2g})"
    )
    return (
        f"{found.records} records encoded again: similarity differs by {found.similarity:.2g} "
        f"at most (rounding explains {found.allowed:.2g}), attention by {found.attention:.2g} "
        f"of its largest weight ({found.allowed_attention:.2g}){asked}"
    )


def _deviations(found: "Deviation") -> Iterator[str]:
    if not found.sound:
        yield (
            f"{found.namespace} is not what its teacher says today, most of all for {found.worst}"
        )
    yield from (f"{reference}: {reason}" for reference, reason in found.left_out)


def merge_command(
    sources: Annotated[
        list[str], typer.Argument(help="Stores to copy from: `cache merge A B --store C`.")
    ],
    store: Annotated[str, typer.Option("--store", help="The store to copy into; made if absent.")],
    json: JsonOption = False,
) -> None:
    """Join stores; nothing is encoded again, and the sources stay as they are.

    Records that the target has already are not copied. An interrupted merge is simply run again.
    """
    from teacher_cache.keeping.merge import merge

    merged = merge(sources, store)
    left = {source: found for source in sources if (found := _unreadable(source))}
    report(
        {"store": store, "merged": [one._asdict() for one in merged], "unreadable": left},
        json,
        [
            f"{one.namespace}: {one.records} records in {one.segments} segments copied, "
            f"{one.already_there} were there"
            for one in merged
        ],
    )
    if left:
        raise UserError(
            f"{sum(map(len, left.values()))} namespaces could not be read, for the reasons above; "
            "all others are merged"
        )


def upgrade_command(
    store: StoreOption,
    remove: Annotated[
        bool, typer.Option("--remove", help="Then remove the old form, which holds nothing more.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Write targets of format 1 anew in format 2; neither images nor teacher are needed.

    The new form opens faster and keeps the very same arrays. An interrupted upgrade is simply run
    again.
    """
    from teacher_cache.keeping.upgrade import upgrade

    upgraded = upgrade(store, remove)
    lines = [
        f"{one.old}: {one.records} records in {one.segments} segments written to {one.namespace}, "
        f"{one.already_there} were there" + ("; the old form is removed" * one.removed)
        for one in upgraded
    ]
    document = {"store": store, "upgraded": [one._asdict() for one in upgraded]}
    report(document, json, lines or ["nothing is of an older format"])
    _unreadable(store)
    if remove and (busy := [one.old for one in upgraded if not one.removed]):
        raise UserError(
            f"another command is at work on {', '.join(busy)}, which was kept: run this again when "
            "it has ended"
        )


def gc_command(
    store: StoreOption,
    older_than: Annotated[
        float,
        typer.Option(
            "--older-than", help="Hours after which other hosts' temporary files are strays.", min=0
        ),
    ] = 24.0,
    damaged: Annotated[
        bool, typer.Option("--damaged", help="Also drop damaged segments, to be built again.")
    ] = False,
    compact: Annotated[
        bool, typer.Option("--compact", help="Also write small segments anew as full ones.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    json: JsonOption = False,
) -> None:
    """Sweep what killed builds left behind, and records that are there twice.

    This host's strays go at once unless their writer lives; other hosts' once they are --older-than
    old.
    """
    from teacher_cache.keeping.gc import gc

    swept = gc(store, older_than * 3600, damaged, dry_run, compact)
    verb, become = ("would free", "would become") if dry_run else ("freed", "became")
    report(
        {"store": store, "swept": [one._asdict() for one in swept]},
        json,
        [
            f"{one.namespace}: {len(one.strays)} strays, {len(one.damaged)} damaged segments, "
            f"{one.records} superseded records: {verb} {size(one.bytes)}"
            + f"; {one.compacted} small segments {become} {one.written}"
            * bool(one.compacted)
            for one in swept
            if not one.busy
        ],
    )
    _unreadable(store)
    if busy := [one.namespace for one in swept if one.busy]:
        raise UserError(
            f"another `cache gc` is at work on {', '.join(busy)}, which was left to it: run this "
            "again when it has ended"
        )
    if older := [one.namespace for one in swept if one.older_format]:
        raise UserError(
            f"{', '.join(older)} is of format 1, which is not compacted: `cache upgrade --remove "
            f"--store {store}` makes it format 2"
        )


def export_command(
    store: StoreOption,
    out: Annotated[str, typer.Option("--out", help="Folder to write to, one file per image.")],
    form: Annotated[ExportForm, typer.Option("--format", help="File format.")] = "safetensors",
    teacher: OfTeacherOption = None,
    fingerprint: FingerprintOption = None,
    grid: Annotated[
        str | None, typer.Option("--grid", help="ROWSxCOLUMNS at which to read `factors`.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Write targets to a plain folder, one file per image, named by content key."""
    from shared.imaging.grid import Grid
    from shared.targets import TargetStore
    from teacher_cache.keeping.export import export

    opened = TargetStore.open(store, teacher, fingerprint, Grid.parse(grid) if grid else None)
    written = sum(1 for _ in track(export(opened, out, form), len(opened), "exporting", "files"))
    report({"store": store, "out": out, "files": written}, json, [f"{written} targets in {out}"])


def view_command(
    store: StoreOption,
    image: Annotated[
        str, typer.Option("--image", help="An image of the store, such as scan.nii.gz#axial=90.")
    ],
    out: Annotated[str, typer.Option("--out", help="PNG file to write.")],
    patch: Annotated[
        str | None,
        typer.Option(
            "--patch",
            help="ROW,COLUMN from 0 whose similarities are shown; default the most attended, "
            "or without attention the middle.",
        ),
    ] = None,
    teacher: OfTeacherOption = None,
    fingerprint: FingerprintOption = None,
    grid: Annotated[
        str | None, typer.Option("--grid", help="ROWSxCOLUMNS at which to read `factors`.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Draw one image's target.

    The image, the teacher's attention, and what is similar to one patch.
    """
    from shared.imaging import Grid, parse_reference
    from teacher_cache.keeping.view import draw_view

    row, comma, column = (patch or "").partition(",")
    if patch is not None and not (comma and row.isdecimal() and column.isdecimal()):
        raise UserError(f"--patch is ROW,COLUMN such as 12,7, not {patch!r}")
    place = (int(row), int(column)) if patch is not None else None
    wanted = Grid.parse(grid) if grid else None
    reference = parse_reference(image)
    if not reference.path.is_file():
        raise UserError(f"no image at {image}")
    picture, chosen = draw_view(
        store, reference, place, teacher=teacher, fingerprint=fingerprint, grid=wanted
    )
    with refused_as(f"cannot write {out}", "choose another --out"):
        picture.save(out, "PNG")
    report(
        {"out": out, "patch": chosen},
        json,
        [f"{out}: image, attention if stored, similarity to patch {chosen[0]},{chosen[1]}"],
    )


def control_command(
    store: StoreOption,
    to: Annotated[str, typer.Option(help="Store to write the control into.")],
    kind: Annotated[
        Control, typer.Option(help="shuffled: another image's targets; mean: those of all.")
    ],
    data: Annotated[
        Path | None, typer.Option(help="Data set file: whose patients, whose mean.")
    ] = None,
    image_root: Annotated[Path | None, typer.Option(help="Folder of its images.")] = None,
    teacher: OfTeacherOption = None,
    fingerprint: FingerprintOption = None,
    seed: Annotated[int, typer.Option(help="Of shuffled.")] = 0,
    json: JsonOption = False,
) -> None:
    """Write targets that are wrong on purpose: the control of a claim about the teacher."""
    from teacher_cache.keeping.control import make_control

    made = make_control(
        store,
        to,
        kind,
        data=data,
        image_root=image_root,
        teacher=teacher,
        fingerprint=fingerprint,
        seed=seed,
    )
    line = f"{made.namespace}: {made.images} images of {made.patients} patients"
    report(made._asdict(), json, [line])
