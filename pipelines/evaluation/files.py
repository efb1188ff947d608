"""Score and compare predictions in plain files, or in evaluation folders, against references."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypedDict

from pipelines.evaluation.clusters import IMAGE, Clusters, clusters_of
from pipelines.evaluation.groups import by_groups, check_fields
from pipelines.evaluation.items import image_contents
from pipelines.evaluation.joining import join, read_references
from pipelines.evaluation.question_only import question_only
from pipelines.evaluation.result import (
    RESULT,
    Grouping,
    ItemMetrics,
    PairedTests,
    QuestionOnly,
    Score,
    answers_path,
    read_result,
    row_name,
)
from pipelines.evaluation.scores import (
    Scored,
    compare_rows,
    identical_outputs,
    power_note,
    summarise,
)
from pipelines.metrics.ceiling import ceilings
from pipelines.metrics.items import item_scores
from pipelines.metrics.metric import NAMES, MetricScore, Pair
from pipelines.metrics.question_kind import inferred, question_kind
from pipelines.metrics.reports import ReportValues, report_values, summarised
from shared.errors import UserError
from shared.records import Record, image_root_of
from student_train.adapter.provenance import file_digest


@dataclass(frozen=True)
class FileOptions:
    """How predictions are scored.

    Attributes
    ----------
    image_root
        Folder of the references' images, which name the clusters by content; default: the
        references' own. Images that are not there count by name.
    metrics
        Report metrics by name; None: all. Named ones also score open answers.
    models
        Where their models are.
    by
        Fields of the records, for rows per group.
    cluster
        Field of the records whose values stand or fall together.
    train
        Training data of the question-only baseline.
    """

    image_root: Path | None = None
    metrics: Sequence[str] | None = None
    models: Mapping[str, str] = field(default_factory=dict)
    by: Sequence[str] = ()
    cluster: str | None = None
    train: Path | None = None


class FileRow(TypedDict):
    """One file, or one row of an evaluation folder. `joined`: by id, or by place."""

    name: str
    file: str
    joined: str
    scores: dict[str, Score]
    totals: dict[str, MetricScore]  # of the whole set, such as CheXbert's F1


class ReferencesUsed(TypedDict):
    """What predictions were held against."""

    file: str
    sha256: str
    items: int
    clusters: int
    cluster: str
    inferred: dict[str, int]
    ceilings: dict[str, float]


class ScoredFiles(PairedTests):
    """What `medalign score --json` prints, and `medalign compare --references`."""

    data: ReferencesUsed
    rows: list[FileRow]
    by: list[Grouping]
    question_only: QuestionOnly | None
    not_computed: dict[str, str]
    versions: dict[str, str]


class Answered(NamedTuple):
    """The rows of one call, scored, over the records that they answer."""

    records: list[Record]
    clusters: Clusters
    rows: dict[str, Scored]
    described: list[FileRow]
    not_computed: dict[str, str]
    versions: dict[str, str]


def score_files(
    predictions: Sequence[Path], references: Path, options: FileOptions
) -> tuple[ScoredFiles, dict[str, list[ItemMetrics]]]:
    """Score predictions against references.

    Parameters
    ----------
    predictions
        Files (see `predictions.py`) or evaluation folders, whose rows are taken.
    references
        A data set file, or rows of id and reference (see `joining.read_references`).
    options
        How.

    Returns
    -------
    The scores of every row, and those of each item by row.

    Raises
    ------
    UserError
        A file cannot be read, or does not join with the references.
    """
    files = _named_files(predictions)
    answered = _answered(files, references, options)
    result = _result(answered, [], references, options)
    items = {
        name: [
            ItemMetrics(id=record.id, scores=scores)
            for record, scores in zip(answered.records, scored.scores, strict=True)
        ]
        for name, scored in answered.rows.items()
    }
    return result, items


def compare_files(
    a: Path,
    b: Path,
    references: Path,
    options: FileOptions,
    rows: tuple[str | None, str | None] = (None, None),
) -> ScoredFiles:
    """Test predictions `a` against `b`: two files, or a row of an evaluation folder each.

    Parameters
    ----------
    a, b, references, options
        As in `score_files`.
    rows
        Which row of `a` and of `b`, where that is a folder with several.

    Raises
    ------
    UserError
        As `score_files`; or a folder has several rows and none is named.
    """
    first, second = _one_file(a, rows[0], "--row-a"), _one_file(b, rows[1], "--row-b")
    names = f"A: {first[0]}", f"B: {second[0]}"
    answered = _answered({names[0]: first[1], names[1]: second[1]}, references, options)
    return _result(answered, [names], references, options)


def _named_files(paths: Sequence[Path]) -> dict[str, Path]:
    """Return the file of each row: of a folder its rows', else the file's own."""
    found: dict[str, Path] = {}
    for path in paths:
        rows = _rows_of(path)
        for name, file in rows.items():
            short = name if len(paths) == 1 else f"{path}: {name}" if path.is_dir() else str(path)
            if short in found:
                raise UserError(f"{path} was given twice")
            found[short] = file
    return found


def _rows_of(path: Path) -> dict[str, Path]:
    if not path.is_dir():
        return {path.stem: path}
    file = path / RESULT
    if not file.is_file():
        raise UserError(f"{path} holds no {RESULT}; give an evaluation's folder, or a file")
    names = [row_name(row) for row in read_result(file)["rows"]]
    return {name: answers_path(path, name) for name in names}


def _one_file(path: Path, row: str | None, option: str) -> tuple[str, Path]:
    rows = _rows_of(path)
    if row is None and len(rows) == 1:
        return next(iter(rows.items()))
    if row not in rows:
        raise UserError(
            f"{path} has {'no such row' if row else 'several rows'}; name one with {option}: "
            f"{', '.join(rows)}"
        )
    return row, rows[row]


def _answered(files: Mapping[str, Path], references: Path, options: FileOptions) -> Answered:
    records = read_references(references)
    check_fields(records, options.by)
    clusters = _clusters(records, references, options)
    rows: dict[str, Scored] = {}
    described: list[FileRow] = []
    not_computed: dict[str, str] = {}
    versions: dict[str, str] = {}
    for name, file in files.items():
        texts, joined = join(file, references, records)
        scores = [item_scores(record, text) for record, text in zip(records, texts, strict=True)]
        places = _metric_places(records, options)
        totals: dict[str, MetricScore] = {}
        if places:
            pairs = [Pair(records[place].answer, texts[place]) for place in places]
            values = report_values(pairs, options.metrics or NAMES, options.models)
            for place, found in zip(places, values.items(len(places)), strict=True):
                scores[place] = {**scores[place], **found}
            totals = _totals(values, [clusters.names[place] for place in places])
            not_computed |= values.missing
            versions |= values.versions
        rows[name] = Scored(texts, scores, clusters.names)
        described.append(
            {
                "name": name,
                "file": str(file),
                "joined": joined,
                "scores": summarise(rows[name]),
                "totals": totals,
            }
        )
    return Answered(records, clusters, rows, described, not_computed, versions)


def _metric_places(records: Sequence[Record], options: FileOptions) -> list[int]:
    """Where report metrics are computed: reports, and open answers where metrics are named."""
    wanted = ("report",) if options.metrics is None else ("report", "open")
    return [i for i, record in enumerate(records) if question_kind(record).kind in wanted]


def _totals(values: ReportValues, clusters: Sequence[str]) -> dict[str, MetricScore]:
    whole = ReportValues({}, {}, values.totals, {}, {})
    return summarised(whole, clusters)["scores"]


def _clusters(records: Sequence[Record], references: Path, options: FileOptions) -> Clusters:
    root = image_root_of(references, options.image_root)
    there = all(
        reference.path.is_file() for record in records for reference in record.references(root)
    )
    if there:
        return clusters_of(records, image_contents(records, root), options.cluster)
    unit, names = clusters_of(records, [one.images for one in records], options.cluster)
    return Clusters(f"{IMAGE}, by name" if unit == IMAGE else unit, names)


def _result(
    answered: Answered, pairs: Sequence[tuple[str, str]], references: Path, options: FileOptions
) -> ScoredFiles:
    records, clusters, rows, described, not_computed, versions = answered
    comparisons = compare_rows(rows, pairs)
    train = options.train
    return {
        "data": {
            "file": str(references),
            "sha256": file_digest(references),
            "items": len(records),
            "clusters": len(set(clusters.names)),
            "cluster": clusters.unit,
            "inferred": inferred(records),
            "ceilings": ceilings(records),
        },
        "rows": described,
        "comparisons": comparisons,
        "power": power_note(rows, comparisons),
        "identical_outputs": identical_outputs(rows),
        "by": by_groups(rows, pairs, records, options.by),
        "question_only": None if train is None else question_only(train, records, clusters.names),
        "not_computed": not_computed,
        "versions": versions,
    }
