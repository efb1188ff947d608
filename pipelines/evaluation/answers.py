"""Answer every item of a data set with one adapter and several decoding methods, through the journal."""

import hashlib
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pipelines.decoding.methods import Decoding
from pipelines.evaluation.journal import Journal, answer_key
from shared.console import track, warn
from shared.records import Record


class Item(NamedTuple):
    """A question with its images; `prompt` is everything the model is shown, by content."""

    record: Record
    images: tuple[str, ...]  # content keys, hex
    prompt: str

    @property
    def name(self) -> str:
        """Seed of the item's random numbers and its name in the journal."""
        return f"{self.record.id}\x00{self.prompt}"


class Loaded(NamedTuple):
    """A student ready to decode.

    The image-text model with adapter layers and hooks inside, and its processor.
    """

    model: Any
    processor: Any
    weights: str  # digest of every parameter
    adapter: str  # digest of the adapter folder's weights


def load_student(folder: Path, device: str | None = None) -> Loaded:
    """Load an adapter folder (or a plain model folder) for decoding, on `device` or the best one there is."""
    import torch

    import student_train
    from pipelines.decoding.prompts import plain_model

    if not torch.cuda.is_available():
        os.environ.setdefault(
            "DS_ACCELERATOR", "cpu"
        )  # else DeepSpeed, which `generate` looks for, warns on stdout
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    model, processor = student_train.load(
        folder, dtype=torch.float32 if device.startswith("cpu") else torch.bfloat16
    )
    adapted, model = model, plain_model(model)
    model.to(device)
    model.eval()
    weights = weights_digest(model)
    if device.startswith("cpu") and hasattr(adapted, "merge_adapter"):
        # Two small products a layer cost time there; in float32 adding them to the weights loses
        # nothing that counts.
        adapted.merge_adapter()
    return Loaded(model, processor, weights, adapter_digest(folder))


def items_of(records: Sequence[Record], image_root: Path, template: str) -> list[Item]:
    """Read each image's content key once and name every question by what it shows and asks."""
    from shared.imaging.keys import content_key

    keys: dict[str, str] = {}
    items = []
    for record in records:
        for image, reference in zip(record.images, record.references(image_root), strict=True):
            if image not in keys:
                keys[image] = content_key(reference.path, reference.part).hex()
        images = tuple(keys[image] for image in record.images)
        prompt = json.dumps(
            {"template": template, "question": record.question, "images": images},
            ensure_ascii=False,
        )
        items.append(Item(record, images, prompt))
    return items


def item_key(item: Item, student: Loaded, settings: dict[str, Any]) -> str:
    """Journal key of one answer."""
    return answer_key(
        model=student.weights,
        adapter=student.adapter,
        decoding=settings,
        item=item.record.id,
        prompt=item.prompt,
    )


def run_settings(method: Decoding, max_new_tokens: int, seed: int) -> dict[str, Any]:
    """Everything about the decoding that an answer depends on."""
    return {**method.described(), "max_new_tokens": max_new_tokens, "seed": seed}


def answer_items(
    items: Sequence[Item],
    student: Loaded,
    methods: Sequence[Decoding],
    journal: Journal,
    *,
    image_root: Path,
    max_new_tokens: int,
    seed: int,
    batch_size: int,
    label: str,
) -> None:
    """Answer the items that the journal lacks.

    Each method's answers to a batch are on disk before the next begin.

    All methods of a batch start from the same prefill, which is computed once.
    """
    settings = {method.name: run_settings(method, max_new_tokens, seed) for method in methods}

    def lacking(item: Item) -> list[Decoding]:
        return [
            method
            for method in methods
            if item_key(item, student, settings[method.name]) not in journal
        ]

    missing = [item for item in items if lacking(item)]
    # Neighbours of one length need no padding; the order changes no answer.
    missing.sort(key=lambda item: (len(item.images), len(item.record.question), item.name))
    batches = [missing[start : start + batch_size] for start in range(0, len(missing), batch_size)]
    for batch in track(batches, len(batches), label, "batches") if batches else ():
        began = time.perf_counter()
        prompts = encoded_prompts(batch, student, image_root)
        shared_seconds = (time.perf_counter() - began) / len(batch)
        for method in methods:
            rows = [row for row, item in enumerate(batch) if method in lacking(item)]
            if not rows:
                continue
            answers = _decode(
                prompts.select(rows),
                student,
                method,
                max_new_tokens=max_new_tokens,
                seed=seed,
                seconds=shared_seconds,
            )
            keys = [item_key(batch[row], student, settings[method.name]) for row in rows]
            named = [
                {"item": batch[row].record.id} | answer
                for row, answer in zip(rows, answers, strict=True)
            ]
            journal.append(zip(keys, named, strict=True))


def _decode(
    prompts: Any,
    student: Loaded,
    method: Decoding,
    *,
    max_new_tokens: int,
    seed: int,
    seconds: float,
) -> list[dict[str, Any]]:
    """Decode prefilled prompts.

    `seconds` an item went into the prefill and are counted as if this method had made it.

    `passes` counts the language model's forward passes of the batch after the shared prefill,
    `steps` the tokens of its longest answer.
    """
    from pipelines.decoding.generation import Limits
    from pipelines.decoding.prompts import counted

    limits = Limits(max_new_tokens, end_ids(student.processor))
    count = len(prompts.items)
    began = time.perf_counter()
    with counted(student.model) as counts:
        tokens = method.decode(student.model, prompts, limits, method.settings, seed)
    own = (time.perf_counter() - began) / count
    lengths = [
        min(len(row) + 1, max_new_tokens) for row in tokens
    ]  # the end token is generated too
    return [
        {
            "text": student.processor.tokenizer.decode(row, skip_special_tokens=True).strip(),
            "tokens": length,
            "seconds": seconds + own,
            "passes": counts["calls"],
            "sequence_passes": counts["rows"] / count,
            "steps": max(lengths),
        }
        for row, length in zip(tokens, lengths, strict=True)
    ]


def encoded_prompts(batch: Sequence[Item], student: Loaded, image_root: Path) -> Any:
    """Return the batch as left-padded prompts with encoded images, prefilled."""
    from pipelines.decoding.prefix import prefilled
    from pipelines.decoding.prompts import collate

    encoded = [
        student.processor.encode(item.record.question, item.record.references(image_root))
        for item in batch
    ]
    tokenizer = student.processor.tokenizer
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return prefilled(
        student.model, collate(encoded, [item.name for item in batch], student.model, pad)
    )


def end_ids(processor: Any) -> tuple[int, ...]:
    """Tokens that end an answer: the template's and the tokenizer's."""
    tokenizer = processor.tokenizer
    ids = [tokenizer.convert_tokens_to_ids(processor.template.end_token), tokenizer.eos_token_id]
    return tuple(dict.fromkeys(int(one) for one in ids if one is not None))


def weights_digest(model: Any) -> str:
    """Hex digest of every parameter and buffer, the same on every device.

    Names, shapes, types and sums of the bits.

    Two sums a tensor, plain and weighted by position, both exact in 64-bit integers.
    """
    import torch

    digest = hashlib.sha256()
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    for name, tensor in sorted(model.state_dict().items()):
        bits = tensor.detach().contiguous().view(-1).view(kinds[tensor.element_size()])
        plain = weighted = 0
        for start in range(0, bits.numel(), 1 << 24):
            part = bits[start : start + (1 << 24)].to(torch.int64)
            place = torch.arange(start, start + part.numel(), device=part.device) % 65521 + 1
            plain += int(part.sum())
            weighted += int((part * place).sum())
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} {plain} {weighted}\n".encode())
    return digest.hexdigest()


def adapter_digest(folder: Path) -> str:
    """Hex sha256 over the adapter folder's safetensors and its PEFT configuration.

    Empty for a plain model folder.
    """
    if not (folder / "adapter_config.json").is_file():
        return ""
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("*.safetensors"), folder / "adapter_config.json"]):
        digest.update(path.name.encode() + b"\x00" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


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
