"""The command `cache`: stage one."""

from typing import Annotated, Literal

import typer

from shared.console import UserError, report, run, warn

app = typer.Typer(
    name="cache",
    help="Stage one: run the teacher once per image and keep its targets in a store that every run shares.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

TeacherOption = Annotated[str, typer.Option("--teacher", help="A name of `cache teachers`.")]
ImagesOption = Annotated[
    str, typer.Option("--images", help="A folder, file, glob, or data set file (.json .jsonl .parquet).")
]
StoreOption = Annotated[str, typer.Option("--store", help="The store: a folder, or s3://bucket/prefix.")]
RootOption = Annotated[str | None, typer.Option("--image-root", help="Folder that a data set file's paths start from.")]
WeightsOption = Annotated[
    str | None, typer.Option("--weights", help="The teacher's weights: a file, folder or hub id.")
]
GeometryOption = Annotated[
    Literal["pad", "crop"],
    typer.Option("--geometry", help="pad: the student's square; crop: the authors' centre crop."),
]
GridOption = Annotated[str, typer.Option("--grid", help="The student's patch grid, rows x columns.")]
EncodingOption = Annotated[
    Literal["matrix", "factors"], typer.Option("--encoding", help="matrix: S at this grid; factors: any grid, smaller.")
]
PrecisionOption = Annotated[Literal["f16", "u8"], typer.Option("--precision", help="u8 halves the size; see the docs.")]
FeaturesOption = Annotated[
    Literal["block", "projected"], typer.Option("--features", help="block: the last block's tokens, as in the paper.")
]
ToleranceOption = Annotated[
    float, typer.Option("--tolerance", help="factors: the largest error of a similarity.", min=0)
]
DtypeOption = Annotated[Literal["fp32", "bf16", "fp16"], typer.Option("--dtype", help="Compute type of the teacher.")]
DeviceOption = Annotated[Literal["auto", "cpu", "cuda"], typer.Option("--device", help="Where the teacher runs.")]
BatchOption = Annotated[int, typer.Option("--batch-size", help="Images a forward pass.", min=1)]
WorkersOption = Annotated[int, typer.Option("--workers", help="Threads that read images.", min=1)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


@app.command()
def teachers(json: JsonOption = False) -> None:
    """List the built-in teachers and where their weights come from."""
    from teacher_cache.teachers import OPEN_FAMILIES, TEACHERS

    known = [*TEACHERS.values(), *OPEN_FAMILIES]
    rows = [info._asdict() for info in known]
    report({"teachers": rows}, json, [f"{i.name:22} {i.architecture:32} {i.licence:16} {i.source}" for i in known])


@app.command("build")
def build_command(
    teacher: TeacherOption,
    images: ImagesOption,
    store: StoreOption,
    image_root: RootOption = None,
    weights: WeightsOption = None,
    geometry: GeometryOption = "pad",
    grid: GridOption = "24x24",
    encoding: EncodingOption = "matrix",
    precision: PrecisionOption = "f16",
    features: FeaturesOption = "block",
    tolerance: ToleranceOption = 0.01,
    dtype: DtypeOption = "fp32",
    batch_size: BatchOption = 8,
    workers: WorkersOption = 2,
    device: DeviceOption = "auto",
    segment_records: Annotated[int, typer.Option(help="Images a segment: what a kill can lose at most.", min=1)] = 256,
    allow_skips: Annotated[int, typer.Option(help="Unreadable images that are no failure.", min=0)] = 0,
    json: JsonOption = False,
) -> None:
    """Encode the images that the store lacks; the same command continues an interrupted build."""
    from shared.imaging.grid import Grid
    from teacher_cache.build import Settings, build
    from teacher_cache.sources import find_images

    settings = Settings(geometry, Grid.parse(grid), encoding, precision, features, tolerance, dtype)
    result = build(
        teacher,
        find_images(images, image_root),
        store,
        weights=weights,
        settings=settings,
        batch_size=batch_size,
        workers=workers,
        device=device,
        segment_records=segment_records,
    )
    rate = f" at {result.encoded / result.seconds:.2f} images/s" if result.encoded else ""
    lines = [
        f"{result.images} images, {result.distinct} distinct: {result.found} were in the store, "
        f"{result.encoded} encoded in {result.seconds:.1f} s{rate}, {len(result.unreadable)} unreadable",
        f"namespace {result.namespace} in {store}",
    ]
    report(result.as_json(), json, lines)
    for reference, reason in result.unreadable:
        warn(f"{reference}: {reason}")
    if len(result.unreadable) > allow_skips:
        raise UserError(
            f"{len(result.unreadable)} images could not be read and are in the quarantine list; every other image "
            f"is in the store. Mend or remove them, or accept them with --allow-skips {len(result.unreadable)}"
        )


def main() -> None:
    """Run the console script."""
    run(app, "cache")
