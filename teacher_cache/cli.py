"""The command `cache`: stage one."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shared.console import JsonOption, report, resumable, run, size, warn
from shared.errors import UserError
from teacher_cache.keeping import commands as store_commands
from teacher_cache.keeping import outside
from teacher_cache.options import (
    QUERY_RANK,
    AttentionOption,
    BatchOption,
    DeviceOption,
    DtypeOption,
    EncodingOption,
    EngineOption,
    FeaturesOption,
    GeometryOption,
    GridOption,
    ImagesOption,
    InterpolationOption,
    LimitOption,
    MeanOption,
    PrecisionOption,
    QueryHeadsOption,
    QueryOption,
    QueryRankOption,
    QuickGeluOption,
    RootOption,
    StdOption,
    StoreOption,
    TeacherOption,
    TokenizerOption,
    ToleranceOption,
    WeightsOption,
    WorkersOption,
)
from teacher_cache.texts import commands as text_commands

if TYPE_CHECKING:
    from teacher_cache.plan import Plan

app = typer.Typer(
    name="cache",
    help=(
        "Stage one: run the teacher once per image and keep its targets in a store that every run "
        "shares.\n\n"
        "Start with `teachers`, then `plan`, `build` and `verify`. Exit code 0: done; 1: an error, "
        "in one line that "
        "names the way out (add --debug for the traceback); 2: a mistyped command."
    ),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.command("teachers")
def teachers_command(json: JsonOption = False) -> None:
    """List the built-in teachers: grid, width, text tower, licence, and where the weights are."""
    from teacher_cache.teachers.listing import lines
    from teacher_cache.teachers.registry import OPEN_FAMILIES, TEACHERS

    known = [*TEACHERS.values(), *OPEN_FAMILIES]
    report({"teachers": [info._asdict() for info in known]}, json, lines())


@app.command("tower")
def tower_command(
    teacher: TeacherOption,
    out: Annotated[Path, typer.Option("--out", help="New folder for the tower.")],
    weights: WeightsOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    interpolation: InterpolationOption = None,
    quick_gelu: QuickGeluOption = None,
) -> None:
    """Write a teacher as a vision tower in transformers' CLIP format.

    A recipe takes it as the student's own tower: model.vision_weights=openai and
    model.vision_path=FOLDER.
    """
    from shared.console import say
    from teacher_cache.teachers.clip_format import write_tower
    from teacher_cache.teachers.registry import load_teacher
    from teacher_cache.teachers.trained import stated

    trained = stated(mean, std, interpolation, quick_gelu)
    write_tower(load_teacher(teacher, weights, said=trained), out)
    say(f"tower: {out}; model.vision_weights=openai model.vision_path={out}")


@app.command("plan")
def plan_command(
    teacher: TeacherOption,
    images: ImagesOption,
    store: Annotated[
        str | None, typer.Option("--store", help="The store that the build is meant for.")
    ] = None,
    image_root: RootOption = None,
    limit: LimitOption = None,
    weights: WeightsOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    interpolation: InterpolationOption = None,
    quick_gelu: QuickGeluOption = None,
    geometry: GeometryOption = "pad",
    grid: GridOption = "24x24",
    encoding: EncodingOption = "matrix",
    precision: PrecisionOption = None,
    features: FeaturesOption = "block",
    attention: AttentionOption = "pooled",
    tolerance: ToleranceOption = 0.01,
    dtype: DtypeOption = "fp32",
    query: QueryOption = None,
    query_rank: QueryRankOption = QUERY_RANK,
    query_heads: QueryHeadsOption = "published",
    tokenizer: TokenizerOption = None,
    batch_size: BatchOption = 8,
    workers: WorkersOption = 2,
    device: DeviceOption = "auto",
    json: JsonOption = False,
) -> None:
    """Say what a build would do: records, duplicates, bytes, hours. Writes nothing.

    Bytes and hours come from a short probe: some of the images are encoded into a temporary folder,
    once the pipeline runs steadily. Hours include loading the teacher and naming the images.
    Options are those of `cache build`; with --store, images that the store has already are counted
    apart.
    """
    from shared.imaging.grid import Grid
    from teacher_cache.plan import plan
    from teacher_cache.settings import Asked, Settings
    from teacher_cache.sources import find_images
    from teacher_cache.teachers.trained import stated

    trained = stated(mean, std, interpolation, quick_gelu)
    settings = Settings(
        geometry,
        Grid.parse(grid),
        encoding,
        precision,
        features,
        tolerance,
        dtype,
        trained,
        attention,
        None if query is None else Asked(query, query_rank, query_heads, tokenizer),
    )
    found = plan(
        teacher,
        find_images(images, image_root, limit),
        store,
        weights=weights,
        settings=settings,
        batch_size=batch_size,
        workers=workers,
        device=device,
    )
    lines = [
        f"{found.images} images, {found.distinct} distinct; {found.found} are in the store, "
        f"{found.missing} to encode",
        *_tried_again(found.quarantined),
        *(f"  {repeated} is {first}" for repeated, first in found.duplicates[:10]),
    ]
    if len(found.duplicates) > 10:
        lines.append(f"  and {len(found.duplicates) - 10} more duplicates")
    if found.bytes is not None and found.bytes_per_record is not None:
        lines.append(f"about {size(found.bytes)} on disk, {size(found.bytes_per_record)} a record")
    lines += _time_of(found)
    lines.append(f"namespace {found.namespace}")
    report(found.as_json(), json, lines)
    for reference, reason in found.left_out:
        warn(f"{reference}: {reason}")
    if found.free is not None and found.bytes is not None and found.bytes > found.free:
        warn(
            f"{size(found.bytes)} do not fit: {size(found.free)} are free at {store}; "
            "--precision u8 or --encoding factors take less"
        )


@app.command("build")
def build_command(
    teacher: TeacherOption,
    images: ImagesOption,
    store: StoreOption,
    image_root: RootOption = None,
    limit: LimitOption = None,
    weights: WeightsOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    interpolation: InterpolationOption = None,
    quick_gelu: QuickGeluOption = None,
    geometry: GeometryOption = "pad",
    grid: GridOption = "24x24",
    encoding: EncodingOption = "matrix",
    precision: PrecisionOption = None,
    features: FeaturesOption = "block",
    attention: AttentionOption = "pooled",
    tolerance: ToleranceOption = 0.01,
    dtype: DtypeOption = "fp32",
    query: QueryOption = None,
    query_rank: QueryRankOption = QUERY_RANK,
    query_heads: QueryHeadsOption = "published",
    tokenizer: TokenizerOption = None,
    batch_size: BatchOption = 8,
    workers: WorkersOption = 2,
    device: DeviceOption = "auto",
    engine: EngineOption = "ranks",
    data: Annotated[
        Path | None,
        typer.Option(
            "--data", help="With --query: data set file, whose questions are embedded as well."
        ),
    ] = None,
    segment_records: Annotated[
        int, typer.Option(help="Images per segment: what a kill can lose at most.", min=1)
    ] = 256,
    allow_skips: Annotated[
        int, typer.Option(help="How many images may be left out without failure.", min=0)
    ] = 0,
    json: JsonOption = False,
) -> None:
    """Encode the images that the store lacks; the same command continues an interrupted build.

    An image that cannot be read is named, quarantined by its content key and left out, and the rest
    is built. The exit code is then 1, unless --allow-skips accepts that many. Options that change
    the numbers (teacher, weights, grid, encoding, ...) make another namespace in the store.
    """
    from shared.imaging.grid import Grid
    from teacher_cache.building import build
    from teacher_cache.ranks import Ranks
    from teacher_cache.settings import Asked, Settings
    from teacher_cache.sources import find_images
    from teacher_cache.teachers.trained import stated
    from teacher_cache.texts.prompts import prompts_of

    if data is not None and query is None:
        raise UserError("--data names the questions of --query: add it, or use `cache text` alone")
    trained = stated(mean, std, interpolation, quick_gelu)
    settings = Settings(
        geometry,
        Grid.parse(grid),
        encoding,
        precision,
        features,
        tolerance,
        dtype,
        trained,
        attention,
        None if query is None else Asked(query, query_rank, query_heads, tokenizer),
    )
    with resumable():
        result = build(
            teacher,
            find_images(images, image_root, limit),
            store,
            weights=weights,
            settings=settings,
            batch_size=batch_size,
            workers=workers,
            device=device,
            segment_records=segment_records,
            engine=engine,
            prompts=() if data is None else prompts_of(data),
        )
    for reference, reason in result.left_out:
        warn(f"{reference}: {reason}")
    speaks = Ranks.of_environment().speaks
    if speaks:
        rate = f" at {result.images_per_second:.2f} images/s" if result.images_per_second else ""
        lines = [
            f"{result.images} images, {result.distinct} distinct: {result.found} were in the "
            "store, "
            f"{result.encoded} encoded{rate}, {result.failed} left out; {result.seconds:.1f} s in "
            "all",
            *([f"{result.prompts} prompts of {data} embedded"] if data is not None else []),
            f"namespace {result.namespace} in {store}",
        ]
        report(result.as_json(), json, lines)
    if result.elsewhere:
        raise UserError(
            f"{result.elsewhere} images are the share of other ranks and not in the store yet: "
            "this was one rank of several, by RANK and WORLD_SIZE of the environment. Run the "
            "others, or unset both and run the same build again"
        )
    if speaks and result.failed > allow_skips:
        raise UserError(
            f"{result.failed} images could not be cached, for the reasons above; every other image "
            "is in the store. "
            f"Mend or remove them, or accept that with --allow-skips {result.failed}"
        )


def _tried_again(quarantined: int) -> list[str]:
    if not quarantined:
        return []
    return [f"{quarantined} more were left out by an earlier build, which a build tries again"]


def _time_of(found: "Plan") -> Iterator[str]:
    """Say how long the build would take, and of what that consists."""
    if found.hours is None or found.hours_interval is None or found.rate_interval is None:
        return
    low, high = (duration(hours) for hours in found.hours_interval)
    slow, fast = found.rate_interval
    between = f" ({low} to {high})" if low != high else ""
    rates = f" ({slow:.2f} to {fast:.2f}, 95% interval)" if slow != fast else ""
    yield f"about {duration(found.hours)}{between} in one process like this one:"
    yield (
        f"  {duration(found.loading_seconds / 3600)} to load the teacher, "
        f"{duration(found.naming_seconds / 3600)} to name the images, "
        f"the rest at {found.images_per_second:.2f} images/s{rates} over {found.probed} images"
    )


def duration(hours: float) -> str:
    """Write hours for a person: seconds, minutes, hours or days."""
    for unit, length in (("days", 24.0), ("hours", 1.0), ("minutes", 1 / 60)):
        if hours >= 2 * length:
            return f"{hours / length:.1f} {unit}"
    return f"{hours * 3600:.0f} seconds"


store_commands.register(app)
outside.register(app)
text_commands.register(app)


def main() -> None:
    """Run the console script."""
    run(app, "cache")
