"""`medalign generate` and `medalign evaluate`: their flags."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.decoding.methods import NAMES, TABLE
from shared.console import report, resumable, say
from shared.errors import UserError
from shared.vocabulary import WeightsDtype

if TYPE_CHECKING:
    from shared.recipe.fields import EvaluationSection

Run = Annotated[
    Path,
    typer.Option(
        help="A run with lora/ and medalign/ inside, one adapter folder, or a model folder."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")]
Override = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="One setting: method.setting=value, e.g. vcd.alpha=0.5. docs/evaluation.md lists all, "
        "with their ranges.",
    ),
]
Base = Annotated[
    str | None,
    typer.Option("--base", help="Where the base model is now, if it is not where the run says."),
]
Weights = Annotated[
    WeightsDtype,
    typer.Option(
        "--dtype",
        help="Of the base model's weights; auto: as they are stored. Adapter and W stay fp32.",
    ),
]
Decode = Annotated[str, typer.Option(help=f"One of {', '.join(NAMES)}.")]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Where an answer is cut.")]
Seed = Annotated[int, typer.Option(help="Of the methods that draw.")]
System = Annotated[
    str, typer.Option(help="A system message of its own; where empty, the template's stands.")
]
ChosenDevice = Annotated[
    str | None, typer.Option(help="cpu, cuda, cuda:1; default: a GPU where there is one.")
]
Preset = Annotated[
    str,
    typer.Option(
        help="published: each method's own values; equal: the likeliest token wherever a method "
        "leaves the choice; authors: the values of MEDALIGN's scripts for this model (or "
        "authors-llava-med, authors-huatuo)."
    ),
]


def generate_command(
    *,
    run: Run,
    image: Annotated[
        list[str] | None,
        typer.Option(
            help="Image file, or a part of one: scan.nii.gz#axial=90. Give it again for a second "
            "image, or leave it out to ask without one."
        ),
    ] = None,
    question: Annotated[str, typer.Option(help="What to ask about it.")],
    system: System = "",
    decode: Decode = "beam",
    preset: Preset = "published",
    override: Override = None,
    max_new_tokens: MaxNewTokens = 128,
    seed: Seed = 0,
    device: ChosenDevice = None,
    base: Base = None,
    dtype: Weights = "auto",
) -> None:
    """Answer one question about one image, several or none."""
    from pipelines.evaluation.generate import generate_answer

    answer = generate_answer(
        run,
        image or [],
        question,
        system=system,
        method=decode,
        preset=preset,
        overrides=tuple(override or ()),
        max_new_tokens=max_new_tokens,
        seed=seed,
        device=device,
        base=base,
        dtype=dtype,
    )
    say(answer)


def evaluate_command(
    *,
    run: Run,
    decode: Annotated[
        str | None,
        typer.Option(
            help=f"`all` ({', '.join(TABLE)}), or some of these and of "
            f"{', '.join(NAMES[len(TABLE) :])}, comma-separated; one of them again with "
            "settings of its own as in vcd,vcd@alpha=0.5. Default: the recipe's "
            "evaluation.methods."
        ),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Test set; default: the recipe's evaluation.data.")
    ] = None,
    image_root: Annotated[
        Path | None, typer.Option(help="Folder of its images; default: its own.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Default: RUN/evaluation.")] = None,
    preset: Preset = "published",
    override: Override = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=1, help="Questions decoded at once; changes no answer. Default: the recipe's."
        ),
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Default: the recipe's.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of the methods that draw. Default: the recipe's.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Only so many items, a fixed random sample.")
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            help="Field of the records whose values stand or fall together. Default: the "
            "patient's where every record has one, else the image's content."
        ),
    ] = None,
    controls: Annotated[
        str,
        typer.Option(
            help="Ask again with images that say nothing: some of blank, shuffled (another "
            "patient's), mirrored (sides exchanged). How much of the score needs the image?"
        ),
    ] = "",
    control_limit: Annotated[
        int | None, typer.Option(min=1, help="Controls of so many items, a fixed random sample.")
    ] = None,
    by: Annotated[
        str,
        typer.Option(help="Rows per group: fields of the records, such as content_type,modality."),
    ] = "",
    train: Annotated[
        Path | None,
        typer.Option(
            help="Training data of the question-only baseline. Default: what the run recorded."
        ),
    ] = None,
    device: ChosenDevice = None,
    base: Base = None,
    dtype: Weights = "auto",
    save_layers: Annotated[
        str, typer.Option(help="Layers whose states to save for figures: 0,12,20.")
    ] = "",
    save_items: Annotated[str, typer.Option(help="Ids of the items to save them for.")] = "",
    as_json: Json = False,
) -> None:
    """Score adapters on a test set.

    Intervals on every score, a paired test for every pair, a journal of answers.

    `--decode all` on a run with both adapters is the full table: the paper's ten methods on LoRA,
    and MEDALIGN under beam search. Start it again after a kill and it continues.
    """
    from pipelines.evaluation.arms import last_arm
    from pipelines.evaluation.file_lines import group_lines
    from pipelines.evaluation.lines import table_lines
    from pipelines.evaluation.run import evaluate

    recipe = _evaluation_section(last_arm(run))
    data, image_root = _test_set(data, image_root, recipe)
    methods = _listed(decode) if decode else recipe.methods
    beams = (
        [f"beam.num_beams={recipe.num_beams}"]
        if {"beam", "all"} & {name.partition("@")[0] for name in methods}
        else []
    )
    with resumable():
        result = evaluate(
            run,
            data,
            image_root,
            methods=methods,
            out=out,
            batch_size=batch_size or recipe.batch_size,
            max_new_tokens=max_new_tokens or recipe.max_new_tokens,
            preset=preset,
            overrides=[*beams, *(override or ())],
            seed=recipe.seed if seed is None else seed,
            limit=limit,
            cluster=cluster,
            device=device,
            base=base,
            dtype=dtype,
            save_layers=_layers(save_layers),
            save_items=_listed(save_items),
            controls=_listed(controls),
            control_limit=control_limit,
            by=_listed(by),
            train=train,
        )
    if result:  # ranks above 0 have nothing to print
        report(result, as_json, [*table_lines(result), *group_lines(result["by"])])


def _evaluation_section(folder: Path) -> "EvaluationSection":
    from shared.recipe import Recipe, load_recipe

    file = folder / "recipe.yaml"
    return (load_recipe(file) if file.is_file() else Recipe()).evaluation


def _test_set(
    data: Path | None, image_root: Path | None, recipe: "EvaluationSection"
) -> tuple[Path, Path | None]:
    """Return the test set asked for, else the recipe's, and the folder of its images."""
    data = data or (Path(recipe.data) if recipe.data else None)
    if data is None:
        raise UserError("no test set: give --data FILE, or name evaluation.data in the recipe")
    if image_root is None and recipe.image_root and str(data) == recipe.data:
        image_root = Path(recipe.image_root)
    return data, image_root


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _layers(text: str) -> list[int]:
    parts = _listed(text)
    if not all(part.isdigit() for part in parts):
        raise UserError(f"--save-layers {text!r}: write layer numbers, as in 0,12,20")
    return [int(part) for part in parts]
