"""`cache query`: ask a store in words, by its teacher's own text tower or by a fitted map."""

from pathlib import Path
from typing import Annotated

import typer

from shared.console import JsonOption, report
from teacher_cache.options import (
    FingerprintOption,
    OfTeacherOption,
    StoreOption,
    TokenizerOption,
    WeightsOption,
)

app = typer.Typer(
    help="Ask a store in words, without its images: one built with --query, or one of `patches` by "
    "a fitted map.",
    no_args_is_help=True,
)
EncoderOption = Annotated[
    str | None,
    typer.Option(help="Folder of a sentence encoder (BERT, mean pooling); default: the packaged."),
]


@app.command("fit")
def fit_command(
    store: StoreOption,
    regions: Annotated[
        Path, typer.Option(help="Boxes (ours, or COCO's form), or a folder of masks.")
    ],
    out: Annotated[Path, typer.Option(help="File to write the query to (.safetensors).")],
    data: Annotated[
        Path | None, typer.Option(help="Data set file: only its images are fitted on.")
    ] = None,
    image_root: Annotated[
        Path | None, typer.Option(help="Folder of the images; default: that of the regions.")
    ] = None,
    encoder: EncoderOption = None,
    teacher: OfTeacherOption = None,
    fingerprint: FingerprintOption = None,
    json: JsonOption = False,
) -> None:
    """Learn from regions which patches the words of their labels name.

    A ridge regression, linear in E_v and in the words' embedding. `cache audit --query` scores it
    on other patients.
    """
    from pipelines.regions.query.file import write_query
    from pipelines.regions.query.fitting import fit_query
    from shared.targets import TargetStore

    opened = TargetStore.open(store, teacher, fingerprint)
    query = fit_query(opened, regions, image_root=image_root, data=data, encoder=encoder)
    write_query(query, out)
    report(
        {
            "out": str(out),
            "images": query.images,
            "patients": len(query.patients),
            "labels": list(query.labels),
        },
        json,
        [
            f"{out}: fitted on {query.images} images of {len(query.patients)} patients, "
            f"{len(query.labels)} labels"
        ],
    )


@app.command("map")
def map_command(
    store: StoreOption,
    text: Annotated[str, typer.Option(help="What to look for, in words.")],
    out: Annotated[Path, typer.Option(help="PNG file to write.")],
    query: Annotated[
        Path | None,
        typer.Option(help="A file of `cache query fit`; without it the store itself is asked."),
    ] = None,
    image: Annotated[Path | None, typer.Option(help="The image, which is drawn below.")] = None,
    key: Annotated[str | None, typer.Option(help="Its content key instead (`cache list`).")] = None,
    encoder: EncoderOption = None,
    weights: WeightsOption = None,
    tokenizer: TokenizerOption = None,
    teacher: OfTeacherOption = None,
    fingerprint: FingerprintOption = None,
    json: JsonOption = False,
) -> None:
    """Draw where an image of the store shows what the text names."""
    from pipelines.regions.query.asking import ask, draw_map, key_of
    from pipelines.regions.query.file import read_query
    from pipelines.regions.query.stored import Stored
    from shared.files import refused_as
    from shared.targets import TargetStore

    opened = TargetStore.open(store, teacher, fingerprint)
    asked = Stored(opened, weights, tokenizer) if query is None else read_query(query)
    values = ask(asked, opened, key_of(image, key), text, encoder)
    with refused_as(f"cannot write {out}", "choose another --out"):
        draw_map(values, opened.grid, image, opened).save(out, "PNG")
    rows, columns = opened.grid
    row, column = divmod(int(values.argmax()), columns)
    document = {"out": str(out), "grid": [rows, columns], "map": values.round(6).tolist()}
    line = f"{out}: highest at patch {row},{column} of {rows}x{columns}"
    if isinstance(asked, Stored):
        outside = float(asked.outside([text])[0])
        document["outside"] = round(outside, 6)
        line += f"; {outside:.1%} of the text lies outside of the store's basis"
    report(document, json, [line])


@app.command("maps")
def maps_command(
    store: StoreOption,
    data: Annotated[Path, typer.Option(help="Data set file, whose questions get maps.")],
    to: Annotated[str, typer.Option(help="Store to write the maps into, for targets.maps.")],
    query: Annotated[Path | None, typer.Option(help="A file of `cache query fit`.")] = None,
    regions: Annotated[
        Path | None, typer.Option(help="Or regions, whose labels the questions name.")
    ] = None,
    given: Annotated[
        Path | None, typer.Option(help="Or your own maps: JSON of images, questions, pictures.")
    ] = None,
    image_root: Annotated[Path | None, typer.Option(help="Folder of the images.")] = None,
    encoder: EncoderOption = None,
    weights: WeightsOption = None,
    tokenizer: TokenizerOption = None,
    teacher: OfTeacherOption = None,
    fingerprint: FingerprintOption = None,
    json: JsonOption = False,
) -> None:
    """Write a map for each question, which `losses.attention_target: question` teaches.

    By the store itself, if it was built with --query; by a fitted query for the question's words;
    by the regions that it names; or as given in pictures (gaze, another model's). Questions without
    one are taught E_a.
    """
    from pipelines.regions.query.maps import write_maps
    from shared.targets import TargetStore

    opened = TargetStore.open(store, teacher, fingerprint)
    made = write_maps(
        opened,
        to,
        data,
        image_root=image_root,
        query=query,
        regions=regions,
        given=given,
        encoder=encoder,
        weights=weights,
        tokenizer=tokenizer,
    )
    line = f"{made.namespace} in {to}: {made.maps} of {made.questions} questions have a map"
    report(made._asdict(), json, [line])
