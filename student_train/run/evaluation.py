"""Evaluation during training.

The losses on held-out records, a few generated answers, scores of a callable.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from shared.console import stderr
from shared.errors import UserError
from shared.processes import is_main_process
from shared.recipe import Recipe
from shared.records import Record
from student_train.data.samples import AlignmentData
from student_train.imagetext import ImageTextModel
from student_train.models.processor import Processor
from student_train.run.terms import TERMS, term_sums, trained_terms
from student_train.run.trainer import AlignmentTrainer

Score = Callable[[Sequence[Record], Sequence[str]], Mapping[str, float]]
SAMPLES = "samples.jsonl"


def make_evaluation(
    recipe: Recipe, data: AlignmentData, processor: Processor, score: Score | None
) -> Callable[[AlignmentTrainer], dict[str, float]]:
    """Return what the trainer calls at an evaluation.

    Every rank runs it and gets the same metrics.
    """

    def evaluate(trainer: AlignmentTrainer) -> dict[str, float]:
        metrics = losses(trainer, data, recipe)
        count = len(data) if score is not None else min(recipe.train.sample_answers, len(data))
        if count:
            records = data.records[:count]
            answers = generate(trainer.model, records, data.image_root, processor, recipe)
            if is_main_process():
                _write_samples(trainer, records[: recipe.train.sample_answers], answers)
            if score is not None:
                metrics |= {
                    f"eval_{name}": float(value) for name, value in score(records, answers).items()
                }
        return metrics

    return evaluate


def check_metric(recipe: Recipe, scored: bool) -> None:
    """Raise a `UserError` for a `train.best_metric` that no evaluation of this run will have.

    Parameters
    ----------
    scored
        Whether a callable rates answers: it brings names of its own.
    """
    metric = recipe.train.best_metric
    names = ["eval_loss", *(f"eval_{name}" for name in trained_terms(recipe))]
    if metric is None or scored or f"eval_{metric.removeprefix('eval_')}" in names:
        return
    raise UserError(
        f"train.best_metric={metric} is no loss of this run ({', '.join(names)}); scores of "
        "answers need `medalign student train`"
    )


def losses(trainer: AlignmentTrainer, data: AlignmentData, recipe: Recipe) -> dict[str, float]:
    """Return eval_loss and its terms, with the recipe's full alpha and beta.

    Means over all of `data`, whatever batches and ranks it went through.
    """
    rank, ranks = trainer.args.process_index, trainer.args.world_size
    size = trainer.args.per_device_eval_batch_size
    share = list(range(rank, len(data), ranks))
    share += [-1] * (
        -(-len(data) // ranks) - len(share)
    )  # a filler has no loss; every rank runs as many batches
    loader = torch.utils.data.DataLoader(
        data,
        size,
        sampler=share,
        collate_fn=trainer.data_collator,
        generator=torch.Generator(),
    )
    totals = torch.zeros(2, len(TERMS), device=trainer.args.device)
    model = trainer.model
    was_training = model.training
    model.eval()
    for batch in loader:
        if "error" in batch:
            raise UserError(batch["error"])
        with torch.no_grad(), trainer.autocast_smart_context_manager():
            terms = term_sums(model, trainer.channel, trainer.to_device(batch), recipe)
        totals += torch.stack([terms.sums.float(), terms.counts])
    model.train(was_training)
    if ranks > 1:
        totals = trainer.accelerator.reduce(totals, "sum")
    means = (totals[0] / totals[1].clamp_min(1)).tolist()
    total = sum(weight * mean for weight, mean in zip(trainer.full_weights(), means, strict=True))
    return {"eval_loss": total} | {
        f"eval_{name}": mean
        for name, mean in zip(TERMS, means, strict=True)
        if name in trained_terms(recipe)
    }


def generate(
    model: ImageTextModel,
    records: Sequence[Record],
    image_root: Path,
    processor: Processor,
    recipe: Recipe,
) -> list[str]:
    """Answer the first question of each record, greedily.

    Under ZeRO-3 all ranks generate the same in step.
    """
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    answers = []
    size = recipe.evaluation.batch_size
    for start in range(0, len(records), size):
        chunk = records[start : start + size]
        inputs = processor.encode(
            [record.question for record in chunk],
            [record.references(image_root) for record in chunk],
            system=[record.system for record in chunk],
        )
        moved = {name: tensor.to(device) for name, tensor in inputs.items()}
        if "pixel_values" in moved:
            moved["pixel_values"] = moved["pixel_values"].to(next(model.parameters()).dtype)
        with torch.no_grad():
            tokens = model.generate(
                **moved, max_new_tokens=recipe.evaluation.max_new_tokens, do_sample=False
            )
        new = tokens[:, inputs["input_ids"].shape[1] :]
        answers += [
            text.strip() for text in processor.tokenizer.batch_decode(new, skip_special_tokens=True)
        ]
    model.train(was_training)
    return answers


def _write_samples(
    trainer: AlignmentTrainer, records: Sequence[Record], answers: Sequence[str]
) -> None:
    path = Path(trainer.args.output_dir) / SAMPLES
    with path.open("a", encoding="utf-8") as file:
        for record, answer in zip(records, answers, strict=False):
            row = {
                "step": trainer.state.global_step,
                "id": record.id,
                "question": record.question,
                "reference": record.answer,
                "answer": answer,
            }
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            stderr.print(
                f"  {record.question!r}: {answer!r} (reference {record.answer!r})", markup=False
            )
