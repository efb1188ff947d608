"""Answer every item of a data set with one adapter and several decodings, through the journal."""

import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pipelines.decoding.methods import DEFINITION, Decoding, watch_of
from pipelines.evaluation.controls import pictures
from pipelines.evaluation.items import Item
from pipelines.evaluation.journal import Journal, answer_key
from pipelines.evaluation.loading import Loaded, end_ids, pad_id
from pipelines.evaluation.result import Answer
from shared.console import track, warn
from shared.targets.identity import DEFINITION as IMAGES_DEFINITION

if TYPE_CHECKING:
    from pipelines.decoding.prompts import Prompts, Watch


class Bounds(NamedTuple):
    """What holds for the answers of every method."""

    max_new_tokens: int
    seed: int


def item_key(item: Item, student: Loaded, settings: dict[str, object]) -> str:
    """Journal key of one answer."""
    controlled = [item.control, item.drawn_as] if item.control else []
    return answer_key(
        model=student.weights,
        adapter=student.adapter,
        decoding=settings,
        item=item.record.id,
        prompt="\x00".join([item.prompt, *controlled]),
        code=computed_by(student),
    )


def computed_by(student: Loaded) -> dict[str, object]:
    """Say by what an answer is computed: other code, another reading of images, another type.

    Answers of before are then not taken for answers of now.
    """
    processor = student.processor
    images = processor.image_processor
    # only where it is another than the mean colour: older answers stay valid
    padded = {} if processor.padding is None else {"padding": list(processor.padding)}
    return padded | {
        "medalign": version("medalign"),
        "decoding": DEFINITION,
        "torch": version("torch").partition("+")[0],
        "transformers": version("transformers"),
        "geometry": processor.geometry,
        "image_size": processor.image_size,
        "image_mean": [float(one) for one in images.image_mean],
        "image_std": [float(one) for one in images.image_std],
        "resample": int(getattr(images, "resample", None) or 0),
        "images": IMAGES_DEFINITION,
        "dtype": str(student.model.dtype).removeprefix("torch."),
        "attention": str(getattr(student.model.config, "_attn_implementation", "")),
        "temperature": getattr(student.model.config, "checkpoint_temperature", None),
        "pad": pad_id(processor),
        "end": list(end_ids(processor)),
    }


def answer_settings(decoding: Decoding, bounds: Bounds) -> dict[str, object]:
    """Everything about the decoding that an answer depends on."""
    return {**decoding.described(), **bounds._asdict()}


def answer_items(
    items: Sequence[Item],
    student: Loaded,
    decodings: Sequence[Decoding],
    journal: Journal,
    bounds: Bounds,
    *,
    image_root: Path,
    batch_size: int,
    label: str,
) -> None:
    """Answer the items that the journal lacks.

    Each decoding's answers to a batch are on disk before the next begin.

    All decodings of a batch start from the same prefill, which is computed once.
    """
    keys = {
        (decoding.label, item.name): item_key(item, student, answer_settings(decoding, bounds))
        for decoding in decodings
        for item in items
    }

    def lacks(decoding: Decoding, item: Item) -> bool:
        return keys[decoding.label, item.name] not in journal

    missing = [item for item in items if any(lacks(decoding, item) for decoding in decodings)]
    # Neighbours of one length need no padding; the order changes no answer.
    missing.sort(key=lambda item: (len(item.images), len(item.record.question), item.name))
    if missing:
        _check_positions(missing[-1], student, bounds, image_root)
    batches = [missing[start : start + batch_size] for start in range(0, len(missing), batch_size)]
    for batch in track(batches, len(batches), label, "batches") if batches else ():
        began = time.perf_counter()
        prompts = encoded_prompts(batch, student, image_root, watch_of(decodings))
        shared_seconds = (time.perf_counter() - began) / len(batch)
        for decoding in decodings:
            rows = [row for row, item in enumerate(batch) if lacks(decoding, item)]
            if rows:
                asked = [batch[row] for row in rows]
                answers = _decode(
                    asked, prompts.select(rows), student, decoding, bounds, shared_seconds
                )
                named = [keys[decoding.label, item.name] for item in asked]
                journal.append(zip(named, answers, strict=True))


def _check_positions(item: Item, student: Loaded, bounds: Bounds, image_root: Path) -> None:
    """Refuse before the first answer what the longest question would end with."""
    from pipelines.decoding.generation import check_positions

    encoded = student.processor.encode(
        item.record.question,
        pictures(item, student.processor, image_root),
        system=item.record.system,
    )
    length = encoded["input_ids"].shape[1]
    check_positions(student.model, length, bounds.max_new_tokens, item.record.id)


def _decode(
    items: Sequence[Item],
    prompts: "Prompts",
    student: Loaded,
    decoding: Decoding,
    bounds: Bounds,
    seconds: float,
) -> list[Answer]:
    """Decode the prefilled prompts of some items.

    `seconds` an item went into the prefill and are counted as if this decoding had made it.
    """
    from pipelines.decoding.generation import Limits
    from pipelines.decoding.prompts import counted

    limits = Limits(bounds.max_new_tokens, end_ids(student.processor))
    count = len(prompts.items)
    began = time.perf_counter()
    with counted(student.model) as counts:
        tokens = decoding.decode(student.model, prompts, limits, decoding.settings, bounds.seed)
    own = (time.perf_counter() - began) / count
    # the end token is generated too
    lengths = [min(len(row) + 1, bounds.max_new_tokens) for row in tokens]
    tokenizer = student.processor.tokenizer
    return [
        {
            "item": item.record.id,
            "text": tokenizer.decode(row, skip_special_tokens=True).strip(),
            "tokens": length,
            "seconds": seconds + own,
            "passes": counts["calls"],
            "sequence_passes": counts["rows"] / count,
            "steps": max(lengths),
        }
        for item, row, length in zip(items, tokens, lengths, strict=True)
    ]


def encoded_prompts(
    batch: Sequence[Item], student: Loaded, image_root: Path, watch: "Watch | None" = None
) -> "Prompts":
    """Return the batch as left-padded prompts with encoded images, prefilled."""
    from pipelines.decoding.prefix import prefilled
    from pipelines.decoding.prompts import collate

    processor = student.processor
    encoded = [
        processor.encode(
            item.record.question,
            pictures(item, processor, image_root),
            system=item.record.system,
        )
        for item in batch
    ]
    reworded = [
        processor.reworded(item.record.question, len(item.images), system=item.record.system)
        for item in batch
    ]
    names = [item.seed for item in batch]
    pad = pad_id(processor)
    return prefilled(student.model, collate(encoded, names, student.model, pad, watch, reworded))


def collected(
    items: Sequence[Item], student: Loaded, settings: dict[str, object], journal: Journal
) -> list[Answer]:
    """Return the answers of all ranks, in the items' order, once they are there."""
    keys = [item_key(item, student, settings) for item in items]
    wait_for_all(keys, journal)
    return [journal[key] for key in keys]


def wait_for_all(keys: Sequence[str], journal: Journal, poll_seconds: float = 1.0) -> None:
    """Rank 0: wait until the other ranks have written every answer.

    The launcher ends this one where another fails.
    """
    announced = False
    while True:
        journal.refresh()
        missing = sum(key not in journal for key in keys)
        if not missing:
            return
        if not announced:
            warn(f"waiting for {missing} answers of the other ranks")
            announced = True
        time.sleep(poll_seconds)
