"""Evaluate adapters under decoding methods.

Every answer journaled, every score with an interval, every pair tested.
"""

import hashlib
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypedDict, Unpack

from pipelines.datasets.description import set_name, split_line
from pipelines.evaluation.answers import Bounds, answer_items, answer_settings, collected
from pipelines.evaluation.arms import Arm, find_arms, plan_arms, preset_of
from pipelines.evaluation.clusters import clusters_of
from pipelines.evaluation.controls import Control, Questions, make_controls
from pipelines.evaluation.groups import by_groups, check_fields
from pipelines.evaluation.items import image_contents, items_of, named_items, read_test_set
from pipelines.evaluation.journal import Journal
from pipelines.evaluation.loading import load_student
from pipelines.evaluation.observed import save_states, states_folder
from pipelines.evaluation.question_only import question_only, training_file
from pipelines.evaluation.reliance import Controlled, under
from pipelines.evaluation.result import (
    FOLDER,
    Answer,
    AnsweredSet,
    AnswerLine,
    Result,
    RunSettings,
    control_folder,
    write_answers,
    write_result,
)
from pipelines.evaluation.scores import Row, Scored, comparison_pairs
from pipelines.evaluation.sides import names_side
from pipelines.evaluation.table import AnsweredRow, tested
from pipelines.metrics.ceiling import ceilings
from pipelines.metrics.items import item_scores
from pipelines.metrics.question_kind import inferred
from shared.files import check_writable
from shared.processes import this_process
from shared.records import image_root_of
from shared.vocabulary import WeightsDtype


@dataclass(frozen=True)
class Options:
    """How a test set is answered.

    Attributes
    ----------
    batch_size
        Questions decoded at once; changes no answer.
    max_new_tokens, preset, overrides, seed
        The decoding settings; overrides are "method.setting=value".
    limit
        Only so many items: a fixed random sample, since the first ones of a file are rarely like
        the others.
    cluster
        A field of the records: items with one value stand or fall together. Default: the patient's
        where every record has one, else the image's content.
    device
        Such as cuda:1; default: the best one that this process has.
    base
        Where the adapters' base model is now, if not where their recipes say.
    dtype
        Of the base weights; auto: as they are stored.
    save_layers, save_items
        Decoder layers and item ids whose hidden states and attention maps go to `states/` (for
        figures).
    controls, control_limit
        Which controls are asked as well (`controls.NAMES`), and of how many items: None, all that
        show an image.
    by
        Fields of the records, for rows per group.
    train
        Training data of the question-only baseline; default: what the last arm's run recorded.
    """

    batch_size: int = 8
    max_new_tokens: int = 128
    preset: str = "published"
    overrides: Sequence[str] = ()
    seed: int = 0
    limit: int | None = None
    cluster: str | None = None
    device: str | None = None
    base: str | None = None
    dtype: WeightsDtype = "auto"
    save_layers: Sequence[int] = ()
    save_items: Sequence[str] = ()
    controls: Sequence[str] = ()
    control_limit: int | None = None
    by: Sequence[str] = ()
    train: Path | None = None


class OptionNames(TypedDict, total=False):
    """The fields of `Options`, as keywords of `evaluate`."""

    batch_size: int
    max_new_tokens: int
    preset: str
    overrides: Sequence[str]
    seed: int
    limit: int | None
    cluster: str | None
    device: str | None
    base: str | None
    dtype: WeightsDtype
    save_layers: Sequence[int]
    save_items: Sequence[str]
    controls: Sequence[str]
    control_limit: int | None
    by: Sequence[str]
    train: Path | None


def evaluate(
    adapter: Path | Mapping[str, Path],
    data: Path,
    image_root: Path | None = None,
    methods: Sequence[str] = ("greedy",),
    out: Path | None = None,
    **options: Unpack[OptionNames],
) -> Result:
    """Answer a test set and score the answers.

    Parameters
    ----------
    adapter
        One adapter folder (or run folder with `lora/` and `medalign/`), or several folders by name.
    data, image_root
        A data set file and the folder of its images (default: the file's own).
    methods
        Decoding methods; `all` with the two arms of a run means the paper's ten on LoRA and
        MEDALIGN under beam search.
    out
        Folder of `result.json`, `answers/` and `journal/`; default `evaluation/` in the run or
        adapter folder.
    options
        The fields of `Options`.

    Returns
    -------
    The content of `result.json`. On ranks above 0, {}.

    Raises
    ------
    UserError
        No adapter, no data, an unknown method or setting, a record without an image file or a
        reference answer, a control that this test set does not allow.
    """
    chosen = Options(**options)
    folders = dict(adapter) if isinstance(adapter, Mapping) else find_arms(adapter)
    if out is None:
        home = next(iter(folders.values())) if isinstance(adapter, Mapping) else Path(adapter)
        out = home / FOLDER
    check_writable(out, "choose another --out")
    records = read_test_set(data, image_root, chosen.limit)
    root = image_root_of(data, image_root)
    check_fields(records, chosen.by)
    contents = image_contents(records, root)
    clusters = clusters_of(records, contents, chosen.cluster)
    questions = Questions(records, contents, clusters)
    controls = make_controls(chosen.controls, questions, root, chosen.control_limit)
    train = chosen.train or training_file(next(reversed(folders.values())))
    baseline = None if train is None else question_only(train, records, clusters.names)
    preset = preset_of(chosen.preset, folders)
    arms = plan_arms(folders, methods, preset, chosen.overrides)
    rank = this_process().rank
    with Journal(out / "journal", rank) as journal:
        rows = [
            row
            for arm in arms
            if arm.decodings
            for row in _answered(arm, questions, controls, root, journal, out, chosen)
        ]
    if rank:
        return {}
    result = tested(rows)
    result["question_only"] = baseline
    result["by"] = by_groups(
        {one.row.name: one.scored for one in rows},
        comparison_pairs([one.row for one in rows]),
        records,
        chosen.by,
    )
    result["settings"] = _settings(chosen, preset, folders)
    result["data"] = _answered_set(data, root, questions)
    result["software"] = software_versions()
    result["created"] = datetime.now(UTC).isoformat(timespec="seconds")
    write_result(out, result)
    return result


def _answered(
    arm: Arm,
    questions: Questions,
    controls: Sequence[Control],
    root: Path,
    journal: Journal,
    out: Path,
    options: Options,
) -> Iterator[AnsweredRow]:
    """Answer this rank's share of the items by one arm; rank 0 collects, scores and writes all."""
    process = this_process()
    student = load_student(arm.folder, options.device, options.base, options.dtype)
    template = student.processor.template.name
    items = items_of(questions.records, questions.contents, template)
    if process.rank == 0 and options.save_items:
        saved = named_items(items, options.save_items)
        folder = states_folder(out, arm.name)
        save_states(saved, student, options.save_layers, root, folder)
    bounds = Bounds(options.max_new_tokens, options.seed)
    decodings = [decoding.settled(student.model) for decoding in arm.decodings]
    asked = {control.name: control.items(items, template) for control in controls}
    groups = [(arm.name, items)]
    groups += [(under(arm.name, name), group) for name, group in asked.items()]
    for label, group in groups:
        answer_items(
            group[process.rank :: process.world],
            student,
            decodings,
            journal,
            bounds,
            image_root=root,
            batch_size=options.batch_size,
            label=label,
        )
    if process.rank:
        return
    for decoding in decodings:
        settings = answer_settings(decoding, bounds)
        answers = collected(items, student, settings, journal)
        row = Row(arm.row_name(decoding), arm.name, settings)
        scored = _scored(out, row, questions, answers)
        controlled = {}
        for control in controls:
            found = collected(asked[control.name], student, settings, journal)
            folder = control_folder(out, control.name)
            sided = [names_side(record.answer) for record in control.questions.records]
            controlled[control.name] = Controlled(
                control.places, _scored(folder, row, control.questions, found), sided
            )
        dtype = str(student.model.dtype).removeprefix("torch.")
        yield AnsweredRow(row, scored, answers, dtype, controlled)


def _scored(out: Path, row: Row, questions: Questions, answers: Sequence[Answer]) -> Scored:
    """Score the answers of a row and write them below `out`."""
    records, _, clusters = questions
    texts = [answer["text"] for answer in answers]
    scores = [item_scores(record, text) for record, text in zip(records, texts, strict=True)]
    _write_row(out, row, questions, texts, scores)
    return Scored(texts, scores, clusters.names)


def _write_row(
    out: Path,
    row: Row,
    questions: Questions,
    texts: Sequence[str],
    scores: Sequence[dict[str, float]],
) -> None:
    lines: list[AnswerLine] = []
    for record, cluster, text, item in zip(
        questions.records, questions.clusters.names, texts, scores, strict=True
    ):
        line: AnswerLine = {
            "id": record.id,
            "images": list(record.images),
            "cluster": cluster,
            "question": record.question,
            "reference": record.answer,
            "prediction": text,
            "scores": item,
        }
        if record.system:
            line["system"] = record.system
        lines.append(line)
    write_answers(out, row.name, lines)


def _settings(options: Options, preset: str, folders: Mapping[str, Path]) -> RunSettings:
    return {
        "preset": preset,
        "overrides": list(options.overrides),
        "max_new_tokens": options.max_new_tokens,
        "batch_size": options.batch_size,
        "seed": options.seed,
        "limit": options.limit,
        "adapters": {name: str(folder) for name, folder in folders.items()},
        "base": options.base,
    }


def _answered_set(data: Path, root: Path, questions: Questions) -> AnsweredSet:
    unit, clusters = questions.clusters
    return {
        "file": str(data),
        "image_root": str(root),
        "set": set_name(Path(data)),
        "split": split_line(Path(data)),
        "sha256": hashlib.sha256(Path(data).read_bytes()).hexdigest(),
        "items": len(questions.records),
        "images": len({content for shown in questions.contents for content in shown}),
        "clusters": len(set(clusters)),
        "cluster": unit,
        "without_image": sum(not shown for shown in questions.contents),
        "inferred": inferred(questions.records),
        "ceilings": ceilings(questions.records),
    }


def software_versions() -> dict[str, str]:
    """Versions of what an answer may depend on."""
    from importlib.metadata import version

    packages = {
        name: version(name)
        for name in ("medalign", "torch", "transformers", "peft", "numpy", "tokenizers")
    }
    return {"python": platform.python_version(), **packages}
