"""`medalign score` and `medalign compare`: their flags."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.evaluation.metric_options import Metrics, Models, metric_names, model_places
from shared.console import report
from shared.errors import UserError

if TYPE_CHECKING:
    from pipelines.evaluation.files import FileOptions

References = Annotated[
    Path | None,
    typer.Option(
        help="Test set that the predictions answer: a data set file, or .csv/.jsonl with id and "
        "reference."
    ),
]
ImageRoot = Annotated[
    Path | None,
    typer.Option(help="Folder of its images, which name the clusters. Default: its own."),
]
By = Annotated[
    str,
    typer.Option(help="Rows per group: fields of the records, such as content_type,modality."),
]
Cluster = Annotated[
    str | None,
    typer.Option(help="Field of the records whose values stand or fall together."),
]
Train = Annotated[Path | None, typer.Option(help="Training data, for the question-only baseline.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")]


def score_command(
    *,
    predictions: Annotated[
        list[Path],
        typer.Option(
            help="Predictions: .jsonl, .json or .csv, or an evaluation's folder. Again for more."
        ),
    ],
    references: Annotated[
        Path,
        typer.Option(
            help="Test set that they answer: a data set file, or .csv/.jsonl with id and reference."
        ),
    ],
    image_root: ImageRoot = None,
    metrics: Metrics = None,
    model: Models = None,
    by: By = "",
    cluster: Cluster = None,
    train: Train = None,
    out: Annotated[
        Path | None, typer.Option(help="Write the result here, with the scores of every item.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Score predictions of any tool against a test set, every score with an interval."""
    from pipelines.documents import write_document
    from pipelines.evaluation.file_lines import score_lines
    from pipelines.evaluation.files import score_files

    options = _options(image_root, metrics, model, by, cluster, train)
    result, items = score_files(predictions, references, options)
    if out is not None:
        write_document(out, {**result, "items": items})
    report(result, as_json, score_lines(result))


def compare_command(
    a: Annotated[
        Path, typer.Argument(help="An evaluation's folder, or predictions (with --references).")
    ],
    b: Annotated[Path, typer.Argument(help="Another one, of the same test set.")],
    references: References = None,
    row_a: Annotated[
        str | None, typer.Option(help="Row of A, by name; default: every decoding in both.")
    ] = None,
    row_b: Annotated[str | None, typer.Option(help="Row of B.")] = None,
    image_root: ImageRoot = None,
    metrics: Metrics = None,
    model: Models = None,
    by: By = "",
    cluster: Cluster = None,
    train: Train = None,
    as_json: Json = False,
) -> None:
    """Test two evaluations, or two files of predictions, against each other.

    Paired by the items' ids, whole clusters exchanged, Holm-corrected.
    """
    from pipelines.evaluation.compare import compare
    from pipelines.evaluation.file_lines import group_lines, score_lines
    from pipelines.evaluation.files import compare_files
    from pipelines.evaluation.lines import comparison_lines

    if references is None:
        if metrics or model or cluster or image_root or train:
            raise UserError(
                "--metrics, --model, --cluster, --image-root and --train need --references FILE; "
                "without it the scores of the two folders are compared as they are"
            )
        for path in (a, b):
            if path.is_file() and path.name != "result.json":
                raise UserError(f"{path} is a file of predictions: name its test set, --references")
        result = compare(a, b, row_a, row_b, by=_listed(by))
        report(result, as_json, [*comparison_lines(result), *group_lines(result["by"])])
        return
    options = _options(image_root, metrics, model, by, cluster, train)
    found = compare_files(a, b, references, options, (row_a, row_b))
    report(found, as_json, [*score_lines(found), *comparison_lines(found)])


def _options(
    image_root: Path | None,
    metrics: str | None,
    model: list[str] | None,
    by: str,
    cluster: str | None,
    train: Path | None,
) -> "FileOptions":
    from pipelines.evaluation.files import FileOptions

    return FileOptions(
        image_root=image_root,
        metrics=metric_names(metrics) if metrics else None,
        models=model_places(model or ()),
        by=_listed(by),
        cluster=cluster,
        train=train,
    )


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]
