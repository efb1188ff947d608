"""`medalign report`: one HTML page about a run, with every figure and picture inside it.

It reads what the commands wrote: the arms' losses, the evaluation's rows and answers, the store,
and, where the run is a demo, its stages. What a run never had is left out of the page; what it had
and is gone is named on it.
"""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipelines.documents import write_text
from pipelines.evaluation.arms import find_arms
from pipelines.evaluation.items import sampled
from pipelines.evaluation.lines import survivor_line
from pipelines.evaluation.reading import answered_root, evaluation_of, recipe_of
from pipelines.evaluation.result import (
    FOLDER,
    AnsweredSet,
    Comparison,
    Controls,
    MetricsFile,
    QuestionOnly,
    Result,
    ResultRow,
    read_answers,
    read_metrics,
    row_name,
)
from pipelines.metrics.items import SCORES
from pipelines.report.alignment import AlignmentPart, alignment_part
from pipelines.report.answers import Answered, Example, Flips, examples, flips
from pipelines.report.commandlines import command_lines
from pipelines.report.controls import RelianceLine, reliance_lines, survivors
from pipelines.report.demo_scores import read_demo
from pipelines.report.figures import LOSSES, loss_curves
from pipelines.report.kinds import Kind, distinct_scores, kind_table
from pipelines.report.store_pictures import NO_PICTURES, StorePictures, store_pictures
from pipelines.report.summary import demo_summary, stage_notes
from pipelines.stages import StageEntry
from shared.console import size, warn
from shared.errors import UserError
from shared.recipe import Recipe
from shared.records import Record, load_records

TEMPLATES = Path(__file__).with_name("templates")
NOTICE = (
    "The pictures and answers below come from the data of this run; where those are patients', "
    "this page is patient data too and must be kept as such."
)
DEMO_NOTICE = (
    "Everything here is one averaged brain (the MNI152 template): the scores tell how a model "
    "reads other slices of "
    "this very brain, and nothing about any other. Teacher and student are small general-purpose "
    "models."
)


class Page(StorePictures):
    """What the template is filled with."""

    title: str
    notice: str
    summary: list[str]
    data: AnsweredSet
    rows: list[ResultRow]
    score_names: dict[str, str]
    comparisons: list[Comparison]
    identical: list[list[str]]
    question_only: QuestionOnly | None
    controls: Controls | None
    reliance: list[RelianceLine]
    flags: list[str]
    kinds: list[Kind]
    kind_arms: list[Answered]
    metrics: dict[str, MetricsFile]  # of reports, by row, where they were computed
    flips: Flips | None
    examples: list[Example]
    losses: str | None
    layer: int | None  # None: a model without a recipe
    lacking: str | None  # why there are no pictures, where there should be some
    alignment: AlignmentPart
    stages: list[StageEntry]
    stage_notes: list[str]
    machine: str
    commands: list[str]


def write_report(run: Path, out: Path | None = None, evaluation: Path | None = None) -> Path:
    """Write the page and return its path.

    Parameters
    ----------
    run
        What was evaluated: a folder with `lora/` and `medalign/`, one adapter's, or a model's.
    out
        Default: `report.html` in `run`.
    evaluation
        The folder that `medalign evaluate` wrote; default: `evaluation` in `run`.

    Raises
    ------
    UserError
        The run has no model, no evaluation, or its evaluation's data or images are gone.
    """
    path = out or run / "report.html"
    write_text(path, render(contents(run, evaluation or run / FOLDER)))
    return path


def contents(run: Path, folder: Path) -> Page:
    """Compute all that the page shows; `folder` is the evaluation's."""
    result = _result(run, folder)
    arms = find_arms(run)
    recipe = recipe_of(arms)
    data = Path(result["data"]["file"])
    root = answered_root(result, recipe)
    records = sampled(load_records(data, root), result["settings"]["limit"])
    answered = [_answers(folder, row, records) for row in result["rows"]]
    pictures, lacking = _pictures(result, recipe, arms, records, root)
    kinds = kind_table(records, answered)
    names = distinct_scores(result["rows"])
    comparisons = [one for one in result["comparisons"] if one["score"] in names]
    page: Page = {
        "title": f"MedAlign: {run.name}",
        "notice": NOTICE,
        "summary": [],
        "data": result["data"],
        "rows": result["rows"],
        "score_names": {name: SCORES[name] for name in names},
        "comparisons": comparisons,
        "identical": result["identical_outputs"],
        "question_only": result["question_only"],
        "controls": result["controls"],
        "reliance": reliance_lines(result["controls"], names),
        "flags": [survivor_line(one) for one in survivors(result["controls"])],
        "kinds": kinds,
        "kind_arms": answered,
        "metrics": _metrics(folder, result["rows"]),
        "flips": flips(records, result["rows"], answered, root),
        "examples": examples(records, answered, root),
        "losses": _losses(arms),
        "layer": None if recipe is None else recipe.losses.layers[0],
        "lacking": lacking,
        "alignment": alignment_part(run),
        "stages": [],
        "stage_notes": [],
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "commands": command_lines(run, folder, arms, result),
        **pictures,
    }
    demo = read_demo(run)
    if demo is not None:
        page["title"], page["notice"] = "MedAlign demo", DEMO_NOTICE
        page["summary"] = demo_summary(demo, comparisons, kinds)
        page["stages"], page["stage_notes"] = demo["stages"], stage_notes(demo)
    return page


def render(page: Mapping[str, object]) -> str:
    """Fill the template; text is escaped, figures are our own SVG."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    words = {
        "percent": lambda share: f"{100 * share:.1f}",
        "signed": lambda share: f"{100 * share:+.1f}",
        "size": size,
    }
    return environment.get_template("report.html").render(**page, **words)


def _result(run: Path, folder: Path) -> Result:
    result = evaluation_of(run, folder)
    if not Path(result["data"]["file"]).is_file():
        raise UserError(
            f"the evaluation's data file {result['data']['file']} is not there; start from the "
            "same folder"
        )
    return result


def _answers(folder: Path, row: ResultRow, records: Sequence[Record]) -> Answered:
    lines = read_answers(folder, row_name(row))
    if [line["id"] for line in lines] != [record.id for record in records]:
        raise UserError(f"{folder}: the answers are not those of the data file; evaluate again")
    return Answered.of(row, lines)


def _metrics(folder: Path, rows: Sequence[ResultRow]) -> dict[str, MetricsFile]:
    found = {row_name(row): read_metrics(folder, row_name(row)) for row in rows}
    return {name: one for name, one in found.items() if one is not None}


def _pictures(
    result: Result,
    recipe: Recipe | None,
    arms: Mapping[str, Path],
    records: Sequence[Record],
    root: Path,
) -> tuple[StorePictures, str | None]:
    """Return the pictures, or none and why: scores and answers are worth a page without them."""
    if recipe is None:
        return NO_PICTURES, None
    try:
        began = result["settings"].get("base")
        return store_pictures(recipe, arms, records, root, began), None
    except UserError as error:
        warn(f"the page shows no attention and no similarity: {error}")
        return NO_PICTURES, str(error)


def _losses(arms: Mapping[str, Path]) -> str | None:
    """Draw the arms' losses, where any arm's training left a record of them."""
    histories = {
        name: _history(folder / "trainer_state.json")
        for name, folder in arms.items()
        if (folder / "trainer_state.json").is_file()
    }
    return loss_curves(histories) if any(histories.values()) else None


def _history(state: Path) -> list[dict[str, float]]:
    """Return the loss terms at each logged step."""
    history = [one for one in json.loads(state.read_text())["log_history"] if "loss_lm" in one]
    # A term that this arm does not train is logged as 0 throughout.
    terms = [term for term in LOSSES if any(one.get(term) for one in history)]
    return [{"step": one["step"]} | {term: one[term] for term in terms} for one in history]
