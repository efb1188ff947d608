"""Evaluate adapters under decoding methods.

Every answer journaled, every score with an interval, every pair tested.
"""

import hashlib
import json
import os
import platform
import random
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipelines.decoding.methods import Decoding, decodings
from pipelines.decoding.presets import family_preset
from pipelines.evaluation.answers import (
    Item,
    Loaded,
    answer_items,
    item_key,
    items_of,
    load_student,
    run_settings,
    wait_for_all,
)
from pipelines.evaluation.journal import Journal
from pipelines.evaluation.observed import save_states
from pipelines.evaluation.scores import (
    Row,
    Scored,
    compare_rows,
    comparison_pairs,
    identical_outputs,
    item_scores,
    power_note,
    summarise,
)
from pipelines.statistics import RESAMPLES
from shared.console import warn
from shared.errors import UserError
from shared.recipe import load_recipe
from shared.records import Record, image_root_of, load_records

RESULT = "result.json"
LORA, MEDALIGN = "LoRA", "MEDALIGN"


def evaluate(
    adapter: Path | Mapping[str, Path],
    data: Path,
    image_root: Path | None = None,
    methods: Sequence[str] = ("greedy",),
    out: Path | None = None,
    *,
    batch_size: int = 8,
    max_new_tokens: int = 128,
    preset: str = "published",
    overrides: Sequence[str] = (),
    seed: int = 0,
    limit: int | None = None,
    resamples: int = RESAMPLES,
    device: str | None = None,
    save_layers: Sequence[int] = (),
    save_items: Sequence[str] = (),
) -> dict[str, Any]:
    """Answer a test set and score the answers.

    Parameters
    ----------
    adapter
        One adapter folder (or run folder with `lora/` and `medalign/`), or several folders by name.
    data, image_root
        A data set file and the folder of its images (default: the file's own).
    methods
        Decoding methods; `all` with the two arms of a run means the ten on LoRA and MEDALIGN under
        beam search.
    out
        Folder of `result.json`, `answers/` and `journal/`; default `evaluation/` in the run or
        adapter folder.
    batch_size
        Questions decoded at once; changes no answer.
    max_new_tokens, preset, overrides, seed
        The decoding settings; overrides are "method.setting=value".
    limit
        Only so many items: a fixed random sample, since the first ones of a file are rarely like
        the others.
    save_layers, save_items
        Decoder layers and item ids whose hidden states and attention maps go to `states/` (for
        figures).

    Returns ------- The result: `rows` with `method`, `adapter`, `decoding` and `scores` {name:
    {value, interval, n}}, `comparisons`, `identical_outputs`, `power`, settings, hashes, versions,
    seconds and forward passes. On ranks above 0, {}.

    Raises
    ------
    UserError
        No adapter, no data, an unknown method or setting, a record without an image file or a
        reference answer.
    """
    arms = dict(adapter) if isinstance(adapter, Mapping) else find_arms(adapter)
    out = (
        out
        or (next(iter(arms.values())) if isinstance(adapter, Mapping) else Path(adapter))
        / "evaluation"
    )
    records = _records(data, image_root, limit)
    root = image_root_of(data, image_root)
    preset = family_preset(preset, _template(next(iter(arms.values()))))
    plan = plan_rows(list(arms), decodings(methods, preset, overrides), everything="all" in methods)
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    rows: list[Row] = []
    scored: dict[str, Scored] = {}
    costs: dict[str, dict[str, float]] = {}
    with Journal(out / "journal", rank) as journal:
        for arm, folder in arms.items():
            todo = [(row, method) for row, method in plan if row.adapter == arm]
            if not todo:
                continue
            student = load_student(folder, device or _own_device())
            items = items_of(records, root, student.processor.template.name)
            if rank == 0 and save_items:
                save_states(
                    _named(items, save_items),
                    student,
                    save_layers,
                    root,
                    out / "states" / arm.lower(),
                )
            answer_items(
                items[rank::world],
                student,
                [method for _, method in todo],
                journal,
                image_root=root,
                max_new_tokens=max_new_tokens,
                seed=seed,
                batch_size=batch_size,
                label=arm,
            )
            for row, method in todo:
                if rank == 0:
                    settings = run_settings(method, max_new_tokens, seed)
                    answers = _collect(items, student, settings, journal)
                    rows.append(row._replace(decoding=settings))
                    texts = [answer["text"] for answer in answers]
                    scores = [
                        item_scores(record, text)
                        for record, text in zip(records, texts, strict=True)
                    ]
                    scored[row.name] = Scored(
                        texts, scores, [item.images[0] if item.images else "" for item in items]
                    )
                    costs[row.name] = _cost(answers)
                    _write_answers(out, row.name, records, answers, scores)
            del student
    if rank:
        return {}
    comparisons = compare_rows(scored, comparison_pairs(rows), resamples)
    identical = identical_outputs(scored)
    for first, second in identical:
        warn(f"{first} and {second} gave byte-identical answers to all {len(records)} items")
    result = {
        "rows": [
            {
                "method": row.name,
                "adapter": row.adapter,
                "decoding": row.decoding,
                "scores": summarise(scored[row.name], resamples),
                **costs[row.name],
            }
            for row in rows
        ],
        "identical_outputs": identical,
        "comparisons": comparisons,
        "power": power_note(scored, comparisons),
        "settings": {
            "preset": preset,
            "overrides": list(overrides),
            "max_new_tokens": max_new_tokens,
            "batch_size": batch_size,
            "seed": seed,
            "limit": limit,
            "resamples": resamples,
            "adapters": {name: str(folder) for name, folder in arms.items()},
        },
        "data": {
            "file": str(data),
            "set": _set_name(data),
            "sha256": hashlib.sha256(Path(data).read_bytes()).hexdigest(),
            "items": len(records),
            "images": len({image for record in records for image in record.images}),
        },
        "software": software_versions(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    _write_whole(out / RESULT, json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    return result


def find_arms(folder: Path) -> dict[str, Path]:
    """Adapters of a run: `lora/` and `medalign/` inside it, or the folder itself."""
    folder = Path(folder)
    arms = {
        name: folder / name.lower()
        for name in (LORA, MEDALIGN)
        if (folder / name.lower() / "adapter_config.json").is_file()
    }
    if arms:
        return arms
    if (folder / "adapter_config.json").is_file():
        return {MEDALIGN if (folder / "rotation.safetensors").is_file() else LORA: folder}
    if (folder / "config.json").is_file():
        return {"base": folder}
    raise UserError(
        f"{folder} holds no adapter (adapter_config.json), neither itself nor in lora/ or "
        "medalign/; "
        "give the output folder of `student train` or of `medalign demo`"
    )


def plan_rows(
    arms: Sequence[str], methods: Sequence[Decoding], everything: bool
) -> list[tuple[Row, Decoding]]:
    """Return which adapter is decoded how.

    The full table is the ten methods on LoRA and MEDALIGN under beam search.
    """
    plan = []
    for arm in arms:
        for method in methods:
            if everything and arm == MEDALIGN and LORA in arms and method.name != "beam":
                continue
            plan.append((Row(f"{arm} + {method.name}", arm, method.described()), method))
    return plan


def software_versions() -> dict[str, str]:
    """Versions of what an answer may depend on."""
    from importlib.metadata import version

    packages = {
        name: version(name)
        for name in ("medalign", "torch", "transformers", "peft", "numpy", "tokenizers")
    }
    return {"python": platform.python_version(), **packages}


def sampled(records: list[Record], limit: int | None) -> list[Record]:
    """Return the `limit` records that an evaluation with that limit answers, in the file's order."""
    if limit is None or limit >= len(records):
        return records
    return [records[place] for place in sorted(random.Random(0).sample(range(len(records)), limit))]


def _records(data: Path, image_root: Path | None, limit: int | None) -> list[Record]:
    records = sampled(load_records(data, image_root_of(data, image_root)), limit)
    talks = [record.id for record in records if len(record.turns) != 2]
    if talks and all(record.answer for record in records):
        raise UserError(
            f"{data}: {len(talks)} records hold several questions, first id {talks[0]}; one record "
            "a question"
        )
    unanswered = [record.id for record in records if not record.answer]
    if unanswered:
        raise UserError(
            f"{data}: {len(unanswered)} records have no reference answer, first id {unanswered[0]}"
        )
    return records


def _set_name(data: Path) -> str | None:
    """Name of the prepared set that a file belongs to (`dataset.json` beside it), or None."""
    description = Path(data).with_name("dataset.json")
    return (
        json.loads(description.read_text(encoding="utf-8")).get("name")
        if description.is_file()
        else None
    )


def _template(folder: Path) -> str:
    """Name of the prompt template that an adapter was trained with, or what its base model's name says of it."""
    file = folder / "recipe.yaml"
    model = load_recipe(file).model if file.is_file() else None
    return "" if model is None else model.template or model.name


def _named(items: Sequence[Item], names: Sequence[str]) -> list[Item]:
    known = {item.record.id: item for item in items}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UserError(
            f"the test set has no item {unknown[0]!r}; its first is {items[0].record.id!r}"
        )
    return [known[name] for name in names]


def _own_device() -> str | None:
    return f"cuda:{os.environ['LOCAL_RANK']}" if "LOCAL_RANK" in os.environ and _has_gpu() else None


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _collect(
    items: Sequence[Item], student: Loaded, settings: dict[str, Any], journal: Journal
) -> list[dict[str, Any]]:
    keys = [item_key(item, student, settings) for item in items]
    wait_for_all(keys, journal)
    return [journal[key] for key in keys]


def _cost(answers: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Mean cost of a generated token.

    Forward passes are a batch's, so they are divided by its steps.
    """
    tokens = sum(answer["tokens"] for answer in answers)
    steps = sum(answer["steps"] for answer in answers)
    return {
        "tokens": tokens,
        "seconds_per_token": sum(answer["seconds"] for answer in answers) / tokens,
        "forward_passes_per_token": sum(answer["passes"] for answer in answers) / steps,
        "sequence_passes_per_token": sum(answer["sequence_passes"] for answer in answers) / steps,
    }


def _write_answers(
    out: Path,
    name: str,
    records: Sequence[Record],
    answers: Sequence[Mapping[str, Any]],
    scores: Sequence[Any],
) -> None:
    lines = [
        json.dumps(
            {
                "id": record.id,
                "images": list(record.images),
                "question": record.question,
                "reference": record.answer,
                "prediction": answer["text"],
                "scores": item_score,
            },
            ensure_ascii=False,
        )
        for record, answer, item_score in zip(records, answers, scores, strict=True)
    ]
    _write_whole(answers_path(out, name), "\n".join(lines) + "\n")


def answers_path(out: Path, row: str) -> Path:
    """Where the answers of a row are: one JSON line an item, in the data file's order."""
    return out / "answers" / (re.sub(r"[^a-z0-9]+", "-", row.lower()).strip("-") + ".jsonl")


def _write_whole(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.part")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
