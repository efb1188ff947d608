"""`medalign report`: one HTML page about a run, with every figure and picture inside it.

It reads what the commands wrote: the two arms' losses, the evaluation's rows and answers, the
store, and, where the run is a demo, its stages. Whatever a run lacks is left out of the page.
"""

import base64
import io
import json
import os
import pickle
import platform
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipelines.evaluation.run import RESULT, answers_path, find_arms, sampled
from pipelines.evaluation.scores import SCORES
from pipelines.report.figures import (
    LOSSES,
    AttentionRow,
    attention_figure,
    loss_curves,
    similarity_figure,
)
from pipelines.report.words import KINDS, demo_summary, stage_notes
from pipelines.statistics import bootstrap_interval
from shared.console import warn
from shared.errors import UserError
from shared.recipe import Recipe, load_recipe
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
SHOWN_SLICES, SHOWN_EXAMPLES = 3, 8


class Answered(NamedTuple):
    """One row's answers, in the data file's order."""

    method: str
    adapter: str
    texts: list[str]
    scores: list[dict[str, float]]


def write_report(run: Path, out: Path | None = None) -> Path:
    """Write the page and return its path.

    Parameters
    ----------
    run
        A folder with `lora/` and `medalign/` (or one adapter's) and `evaluation/result.json`.
    out
        Default: `report.html` in `run`.

    Raises
    ------
    UserError
        The run has no adapter, no evaluation, or its evaluation's data file is gone.
    """
    result = _result(run)
    arms = find_arms(run)
    recipe = load_recipe(next(reversed(arms.values())) / "recipe.yaml")
    data = Path(result["data"]["file"])
    records = sampled(load_records(data), result["settings"]["limit"])
    root = _image_root(recipe, data)
    answered = [_answers(run, row, records) for row in result["rows"]]
    kinds = kind_table(records, answered)
    scores = run / "scores.json"
    demo = json.loads(scores.read_text()).get("demo") if scores.is_file() else None
    names = distinct_scores(result["rows"])
    comparisons = [one for one in result["comparisons"] if one["score"] in names]
    page: dict[str, Any] = {
        "title": "MedAlign demo" if demo else f"MedAlign: {run.name}",
        "notice": DEMO_NOTICE if demo else NOTICE,
        "summary": demo_summary(demo, comparisons, kinds) if demo else [],
        "data": result["data"],
        "rows": result["rows"],
        "score_names": {name: SCORES[name] for name in names},
        "comparisons": comparisons,
        "identical": result["identical_outputs"],
        "kinds": kinds,
        "kind_arms": answered,
        "examples": examples(records, answered, root),
        "losses": _losses(arms),
        "layer": recipe.losses.layers[0],
        "stages": demo["stages"] if demo else [],
        "stage_notes": stage_notes(demo) if demo else [],
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        **_targets(run, recipe, arms, records, root),
    }
    path = out or run / "report.html"
    path.write_text(render(page), encoding="utf-8")
    return path


def render(page: Mapping[str, Any]) -> str:
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
        "megabytes": lambda size: f"{size / 1e6:.1f}",
    }
    return environment.get_template("report.html").render(**page, **words)


def distinct_scores(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names of the scores, less those that equal an earlier one in every row."""
    columns: dict[str, list[Any]] = {}
    for name in SCORES:
        column = [row["scores"].get(name) for row in rows]
        if any(column) and column not in columns.values():
            columns[name] = column
    return list(columns)


def kind_table(records: Sequence[Record], answered: Sequence[Answered]) -> list[dict[str, Any]]:
    """Scores by the records' field `kind`, where they have one, with the score of the best constant answer."""
    table = []
    for kind in dict.fromkeys(record.extra.get("kind") for record in records):
        if kind is None:
            continue
        places = [i for i, record in enumerate(records) if record.extra.get("kind") == kind]
        images = [records[i].images[0] for i in places]
        values = [
            bootstrap_interval([_strict(row.scores[i]) for i in places], images) for row in answered
        ]
        constant = best_constant([records[i] for i in places])
        entry = {
            "kind": kind,
            "text": KINDS.get(kind, kind),
            "n": len(places),
            "constant": constant,
        }
        table.append(entry | {"values": [value._asdict() for value in values]})
    return table


def best_constant(records: Sequence[Record]) -> float:
    """Return the mean score of the one reference answer that scores best on all these records."""
    from pipelines.evaluation.scores import item_scores

    candidates = {record.answer for record in records}
    return max(
        float(np.mean([_strict(item_scores(one, answer)) for one in records]))
        for answer in candidates
    )


def examples(
    records: Sequence[Record], answered: Sequence[Answered], root: Path
) -> list[dict[str, Any]]:
    """Return the first record of each kind, then the first others, with each row's answer and a small picture."""
    first = {record.extra.get("kind"): i for i, record in reversed(list(enumerate(records)))}
    order = sorted(first.values()) + [i for i in range(len(records)) if i not in first.values()]
    return [
        {
            "question": records[i].question,
            "reference": records[i].answer,
            "image": _thumbnail(records[i], root),
            "answers": [
                {"text": row.texts[i], "score": _strict(row.scores[i])} for row in answered
            ],
        }
        for i in order[:SHOWN_EXAMPLES]
        if records[i].images
    ]


def _strict(scores: Mapping[str, float]) -> float:
    """Return the whole-word score of an item, whichever it takes part in."""
    return next(value for name, value in scores.items() if name.endswith("_strict"))


def _result(run: Path) -> dict[str, Any]:
    path = run / "evaluation" / RESULT
    if not path.is_file():
        raise UserError(
            f"no evaluation at {path}; run `medalign evaluate --run {run} --data FILE` first"
        )
    result: dict[str, Any] = json.loads(path.read_text())
    if not Path(result["data"]["file"]).is_file():
        raise UserError(
            f"the evaluation's data file {result['data']['file']} is not there; start from the "
            "same folder"
        )
    return result


def _answers(run: Path, row: Mapping[str, Any], records: Sequence[Record]) -> Answered:
    lines = answers_path(run / "evaluation", row["method"]).read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    if [one["id"] for one in rows] != [record.id for record in records]:
        raise UserError(
            f"{run / 'evaluation'}: the answers are not those of the data file; evaluate again"
        )
    return Answered(
        row["method"], row["adapter"], [o["prediction"] for o in rows], [o["scores"] for o in rows]
    )


def _image_root(recipe: Recipe, data: Path) -> Path:
    evaluation = recipe.evaluation
    same = evaluation.data is not None and Path(evaluation.data) == data
    return Path(evaluation.image_root) if same and evaluation.image_root else data.parent


def _losses(arms: Mapping[str, Path]) -> str | None:
    histories = {}
    for name, folder in arms.items():
        state = folder / "trainer_state.json"
        if state.is_file():
            history = [
                one for one in json.loads(state.read_text())["log_history"] if "loss_lm" in one
            ]
            # A term that this arm does not train is logged as 0 throughout.
            terms = [term for term in LOSSES if any(one.get(term) for one in history)]
            histories[name] = [
                {"step": one["step"]} | {term: one[term] for term in terms} for one in history
            ]
    return loss_curves(histories) if any(histories.values()) else None


def _targets(
    run: Path, recipe: Recipe, arms: Mapping[str, Path], records: Sequence[Record], root: Path
) -> dict[str, Any]:
    """Everything that needs the store: attention, one similarity matrix, sizes."""
    from shared.imaging.keys import content_key
    from shared.targets import TargetStore
    from student_train.models import load_base

    nothing: dict[str, Any] = {"attention": None, "similarity": None, "store": None}
    if recipe.targets.store is None:
        return nothing
    teacher, fingerprint = (
        value if isinstance(value, str) else None
        for value in (recipe.targets.teacher, recipe.targets.fingerprint)
    )
    base = load_base(recipe.model)
    store = TargetStore.open(recipe.targets.store, teacher, fingerprint, base.grid)
    shown = []
    for record in _one_per_plane(records):
        reference = record.references(root)[0]
        key = content_key(reference.path, reference.part)
        if key in store:
            shown.append((record, reference, key))
    if not shown:
        warn(
            "no held-out image is in the store; the report shows no attention and no similarity "
            "matrix"
        )
        return nothing | {"store": store_sizes(Path(recipe.targets.store), store)}
    grid = (base.grid.rows, base.grid.columns)
    square_of = partial(_square, size=base.image_size * 2)
    targets = store.batch([key for *_, key in shown])
    return {
        "attention": _attention(recipe, arms, shown, targets, grid, square_of),
        "similarity": _similarity(shown, targets, grid, square_of),
        "store": store_sizes(Path(recipe.targets.store), store),
    }


def _one_per_plane(records: Sequence[Record]) -> list[Record]:
    """Return records to show.

    One of each `plane`, or just the first ones, each with its own image.
    """
    chosen: dict[Any, Record] = {}
    for record in records:
        if record.images and record.extra.get("kind") != "box":
            chosen.setdefault(record.extra.get("plane", record.images[0]), record)
    return list(chosen.values())[:SHOWN_SLICES]


def _attention(
    recipe: Recipe,
    arms: Mapping[str, Path],
    shown: Sequence[Any],
    targets: Any,
    grid: tuple[int, int],
    square_of: Any,
) -> str:
    from pipelines.report.attention import attention_maps

    questions = [record.question for record, *_ in shown]
    references = [reference for _, reference, _ in shown]
    folders = {"start": Path(recipe.model.path or recipe.model.name), **arms}
    layer = recipe.losses.layers[0]
    found = {
        name: attention_maps(folder, questions, references, layer)
        for name, folder in folders.items()
    }
    rows = []
    for i, (record, reference, _) in enumerate(shown):
        visible = np.asarray(targets.coverage[i]) > 0
        teacher = renormalized(np.asarray(targets.attention[i], dtype=np.float64), visible)
        students = {
            name: renormalized(maps[i].astype(np.float64), visible) for name, maps in found.items()
        }
        rows.append(
            AttentionRow(
                record.extra.get("slice", Path(record.images[0]).stem),
                square_of(reference),
                {"teacher": teacher.reshape(grid)}
                | {name: one.reshape(grid) for name, one in students.items()},
                {name: divergence(teacher, one) for name, one in students.items()},
            )
        )
    return attention_figure(rows)


def _similarity(shown: Sequence[Any], targets: Any, grid: tuple[int, int], square_of: Any) -> str:
    patches = grid[0] * grid[1]
    matrix = full_matrix(np.asarray(targets.similarity[0], dtype=np.float64), patches)
    visible = np.asarray(targets.coverage[0]) > 0
    patch = int(np.argmax(np.where(visible, targets.attention[0], -1)))
    return similarity_figure(square_of(shown[0][1]), matrix, grid, patch, visible)


def renormalized(weights: NDArray[np.float64], visible: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return `weights` as a distribution over the visible patches."""
    kept = np.where(visible, weights, 0.0)
    return np.asarray(kept / kept.sum())


def divergence(teacher: NDArray[np.float64], student: NDArray[np.float64]) -> float:
    """KL(teacher || student) in nats."""
    on = teacher > 0
    return float(np.sum(teacher[on] * np.log(teacher[on] / np.maximum(student[on], 1e-12))))


def full_matrix(triangle: NDArray[np.float64], patches: int) -> NDArray[np.float64]:
    """Return the (N, N) matrix of a stored strict upper triangle; the diagonal is 1."""
    matrix = np.eye(patches)
    rows, columns = np.triu_indices(patches, 1)
    matrix[rows, columns] = matrix[columns, rows] = triangle
    return matrix


def store_sizes(folder: Path, store: Any) -> dict[str, Any]:
    """Bytes of the store's namespace beside those of the pickles it replaces.

    A float32 matrix and vector an image.
    """
    namespaces = [
        path
        for path in folder.iterdir()
        if path.is_dir() and store.identity.namespace() == path.name
    ]
    size = sum(
        file.stat().st_size for path in namespaces for file in path.rglob("*") if file.is_file()
    )
    patches = store[next(iter(store.keys()))].attention.shape[-1]
    one = {
        "similarity": np.zeros((patches, patches), np.float32),
        "attention": np.zeros(patches, np.float32),
    }
    return {
        "images": len(store),
        "bytes": size,
        "per_image": round(size / len(store)),
        "pickle_per_image": len(pickle.dumps(one, protocol=pickle.HIGHEST_PROTOCOL)),
        "grid": "x".join(str(side) for side in store.identity.grid),
        "namespace": store.identity.namespace(),
    }


def _square(reference: Any, size: int) -> NDArray[np.uint8]:
    from shared.imaging.images import open_image
    from shared.imaging.squares import square

    return np.asarray(square(open_image(reference), size, "pad", (0, 0, 0)))


def _thumbnail(record: Record, root: Path) -> str:
    from shared.imaging.images import open_image

    picture = open_image(record.references(root)[0])
    picture.thumbnail((168, 168))
    stream = io.BytesIO()
    picture.save(stream, format="PNG", optimize=True)
    return base64.b64encode(stream.getvalue()).decode()
