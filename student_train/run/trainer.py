"""The transformers Trainer with the three-term loss.

Terms summed over a whole optimiser step, logged one by one.

Each term is a mean over the whole optimiser step: tokens for L_LM, images with targets for L_vis,
images with a question for L_att. A micro-batch therefore contributes its sum divided by the step's
count over all micro-batches and ranks, and 8 micro-batches of 1 give what 1 micro-batch of 8 gives,
in value and in gradient. (The stock Trainer counts tokens only, and once it has that count it no
longer divides by the accumulation steps: a term added to the loss would be 8 times as heavy.)
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import Trainer

from shared.errors import UserError
from shared.recipe import Recipe
from student_train.attention import Channel, Request, observing
from student_train.data.samples import EpochOrder, request_of
from student_train.losses import attention_alignment_terms, visual_alignment_terms
from student_train.models.prompts import IGNORED

TERMS = ("loss_lm", "loss_vis", "loss_att")
STATE = "trainable.safetensors"


class Terms(NamedTuple):
    """Sums over a micro-batch and what they are sums of; (3,) each.

    Tokens, images, images with a question.
    """

    sums: Tensor
    counts: Tensor


def step_counts(batch: Mapping[str, Any]) -> Tensor:
    """Count what the three terms are means of, (3,).

    Labelled tokens, images with targets, those with question rows.
    """
    tokens = (batch["labels"][:, 1:] != IGNORED).sum()
    request = request_of(batch)
    if request is None:
        return torch.stack([tokens, torch.zeros_like(tokens), torch.zeros_like(tokens)]).float()
    asked = int(torch.unique(request.span_image).numel())
    return torch.stack(
        [tokens, tokens.new_tensor(len(request.image_sample)), tokens.new_tensor(asked)]
    ).float()


def term_sums(
    model: Any, channel: Channel | None, batch: Mapping[str, Any], recipe: Recipe
) -> Terms:
    """Run the model on a collated batch and return the sums of the three terms with their counts.

    Logits are computed only where a label is: the vocabulary dominates a small model's step.
    """
    labels = batch["labels"]
    wanted = torch.zeros_like(labels, dtype=torch.bool)
    wanted[:, :-1] = labels[:, 1:] != IGNORED
    request = (
        request_of(batch)
        if channel is not None and (recipe.losses.alpha or recipe.losses.beta)
        else None
    )
    inputs = {
        name: batch[name]
        for name in ("input_ids", "attention_mask", "pixel_values")
        if name in batch
    }
    if request is None or channel is None:
        logits = model(**inputs, logits_to_keep=wanted, use_cache=False).logits
        visual = attentive = logits.new_zeros((), dtype=torch.float32)
    else:
        with observing(channel, request) as seen:
            logits = model(**inputs, logits_to_keep=wanted, use_cache=False).logits
        visual = (
            _visual(seen.tokens, batch)
            if recipe.losses.alpha
            else logits.new_zeros((), dtype=torch.float32)
        )
        attentive = (
            _attentive(seen.attention, batch, request, recipe)
            if recipe.losses.beta
            else logits.new_zeros((), dtype=torch.float32)
        )
    targets = labels[:, 1:][wanted[:, :-1]]
    language = functional.cross_entropy(logits.float(), targets, reduction="sum")
    return Terms(torch.stack([language, visual, attentive]), step_counts(batch).to(labels.device))


def _visual(tokens: Mapping[int, Tensor], batch: Mapping[str, Any]) -> Tensor:
    """Sum of L_vis over the images, the mean over layers and teachers of each."""
    coverage = batch.get("coverage")
    terms = [
        visual_alignment_terms(
            found, similarity, None if coverage is None else coverage[teacher]
        ).sum()
        for found in tokens.values()
        for teacher, similarity in enumerate(batch["similarity"])
    ]
    return torch.stack(terms).mean()


def _attentive(
    found: Mapping[int, Tensor], batch: Mapping[str, Any], request: Request, recipe: Recipe
) -> Tensor:
    """Sum of L_att over the images with a question.

    An image's is the mean over its turns, layers and teachers.
    """
    image = request.span_image
    if not len(image):
        return torch.zeros((), device=image.device)
    turns = torch.bincount(image, minlength=len(request.image_sample))[image]
    coverage = batch.get("coverage")
    terms = []
    for attention in found.values():
        for teacher, target in enumerate(batch["attention"]):
            visible = None if coverage is None else coverage[teacher][image]
            value = attention_alignment_terms(
                attention, target[image], recipe.losses.attention_normalization, visible
            )
            terms.append((value / turns).sum())
    mean: Tensor = torch.stack(terms).mean()
    return mean


def schedule_factor(schedule: str, done: float, ratio: float) -> float:
    """Return what a loss weight is multiplied with when the share `done` of the run is over."""
    if schedule == "warmup":
        return min(1.0, done / ratio) if ratio > 0 else 1.0
    if schedule == "linear":
        return max(0.0, 1.0 - done)
    if schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))
    return 1.0


class AlignmentTrainer(Trainer):  # type: ignore[misc]
    """Trainer of a hooked student, or of the projector alone (`channel=None`).

    Parameters
    ----------
    recipe
        The resolved recipe.
    channel
        Of the student's hooks.
    order
        Sampler of the training set.
    save_model_to
        Writes what a reader loads (adapter or model folder) from the gathered trainable parameters.
    trainable
        Gathers them; all ranks call it together.
    evaluate_with
        Returns the metrics of an evaluation; all ranks call it together.
    """

    loss_is_scaled_for_ga = True

    def __init__(
        self,
        *args: Any,
        recipe: Recipe,
        channel: Channel | None,
        order: EpochOrder | None,
        save_model_to: Callable[[Path, Mapping[str, Tensor]], None],
        trainable: Callable[[], dict[str, Tensor]],
        evaluate_with: "Callable[[AlignmentTrainer], dict[str, float]] | None" = None,
        **kwargs: Any,
    ) -> None:
        self.optimizer: Any
        self.control: Any
        super().__init__(*args, **kwargs)
        self.recipe, self.channel, self.order = recipe, channel, order
        self.save_model_to, self.trainable, self.evaluate_with = (
            save_model_to,
            trainable,
            evaluate_with,
        )
        self._term_totals = torch.zeros(len(TERMS))
        self._unasked = torch.zeros(())
        self._terms_logged_at: int | None = None
        self._counts = torch.ones(len(TERMS))
        self._ids: list[str] = []

    # --- the loss
    # -----------------------------------------------------------------------------------------------

    def _get_num_items_in_batch(
        self, batch_samples: list[Any], device: torch.device
    ) -> Tensor | None:
        for batch in batch_samples:
            if "error" in batch:
                raise UserError(batch["error"])
        if not batch_samples:
            return None
        self._ids = [name for batch in batch_samples for name in batch["ids"]]
        counts = torch.stack([step_counts(batch) for batch in batch_samples]).sum(0).to(device)
        if self.accelerator.num_processes > 1:
            counts = self.accelerator.reduce(counts, "sum")
        self._counts = counts
        return counts[0]

    def loss_weights(self) -> tuple[float, float, float]:
        """Return the weights of the three terms at this step.

        1, alpha and beta after their schedules.
        """
        losses = self.recipe.losses
        done = self.state.global_step / max(1, self.state.max_steps)
        return (
            1.0,
            losses.alpha * schedule_factor(losses.alpha_schedule, done, losses.schedule_ratio),
            (losses.beta or 0.0)
            * schedule_factor(losses.beta_schedule, done, losses.schedule_ratio),
        )

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Return this micro-batch's share of L = L_LM + alpha L_vis + beta L_att over the whole optimiser step.

        Raises
        ------
        UserError
            A loss that is not finite, with the ids of the samples.
        """
        with self.autocast_smart_context_manager():
            terms = term_sums(model, self.channel, inputs, self.recipe)
        # The gradients of all ranks are averaged afterwards, the sums were meant to be added: hence
        # the factor.
        shares = terms.sums / self._counts.clamp_min(1.0) * self.accelerator.num_processes
        loss: Tensor = (shares * shares.new_tensor(self.loss_weights())).sum()
        found = shares.detach()
        if (
            self._terms_logged_at is None
        ):  # the first step of this process: 0, or where a resumed run begins
            self._terms_logged_at = self.state.global_step
        if not torch.isfinite(loss):
            named = ", ".join(
                f"{name} {value:g}" for name, value in zip(TERMS, found.tolist(), strict=True)
            )
            raise UserError(
                f"the loss is not finite at step {self.state.global_step} ({named}), samples "
                f"{', '.join(inputs['ids'])}; lower train.learning_rate or look at these records"
            )
        self._term_totals = self._term_totals.to(found.device) + found
        self._unasked = self._unasked.to(found.device) + (terms.counts[1] - terms.counts[2])
        return loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """Stop at a gradient that is not finite though the loss was.

        What it leaves behind must not be saved.
        """
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if (
            norm is not None and not 0.0 <= float(norm) < math.inf
        ):  # DeepSpeed reports such a norm as -1
            raise UserError(
                f"the gradient is not finite at step {self.state.global_step}, samples "
                f"{', '.join(self._ids)}; "
                "lower train.learning_rate or look at these records"
            )
        return norm

    def autocast_smart_context_manager(self, cache_enabled: bool | None = True) -> Any:
        """Compute in bfloat16 under `train.precision: bf16`.

        Adapter and W stay float32 parameters.
        """
        enabled = self.recipe.train.precision == "bf16"
        return torch.autocast(
            self.args.device.type,
            torch.bfloat16,
            enabled=enabled,
            cache_enabled=bool(cache_enabled),
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the means of the three terms since the last log to the logged losses."""
        steps = self.state.global_step - (self._terms_logged_at or 0)
        if "loss" in logs and steps > 0:
            totals = torch.cat([self._term_totals, self._unasked.reshape(1)])
            if self.accelerator.num_processes > 1:
                totals = self.accelerator.reduce(totals, "mean")
            values = totals.tolist()
            logs |= {name: value / steps for name, value in zip(TERMS, values[:3], strict=True)}
            if self.channel is not None:
                _, logs["alpha"], logs["beta"] = self.loss_weights()
            if values[3]:
                logs["images_without_question"] = values[3] * self.accelerator.num_processes
            self._term_totals, self._unasked = torch.zeros(len(TERMS)), torch.zeros(())
            self._terms_logged_at = self.state.global_step
        super().log(logs, start_time)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Skip the count: it walks all parameters at every micro-batch."""
        return 0

    # --- data and optimiser
    # -------------------------------------------------------------------------------------

    def _get_train_sampler(self, train_dataset: Any = None) -> EpochOrder | None:
        return self.order

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW; W may have a learning rate of its own (`rotation.learning_rate`)."""
        own = self.recipe.rotation.learning_rate
        if own is not None and self.optimizer is None:
            named = [
                (name, parameter)
                for name, parameter in self.model.named_parameters()
                if parameter.requires_grad
            ]
            groups: list[dict[str, Any]] = [
                {"params": [parameter for name, parameter in named if ".rotation." not in name]},
                {
                    "params": [parameter for name, parameter in named if ".rotation." in name],
                    "lr": own,
                },
            ]
            optimizer_class, options = Trainer.get_optimizer_cls_and_kwargs(self.args, self.model)
            self.optimizer = optimizer_class(
                [group for group in groups if group["params"]], **options
            )
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        return optimizer

    # --- saving, loading, evaluating
    # ----------------------------------------------------------------------------

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the adapter (or model) folder, and in a checkpoint the raw trainable parameters beside it."""
        from safetensors.torch import save_file

        state = self.trainable()
        # DeepSpeed's stage 0 tells no gradient norm: the weights themselves are looked at.
        lost = [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]
        if lost:
            raise UserError(
                f"{len(lost)} trained weights are not finite at step {self.state.global_step}, "
                f"first {lost[0]}; "
                "nothing is saved; lower train.learning_rate"
            )
        if self.args.should_save:
            folder = Path(output_dir or self.args.output_dir)
            self.save_model_to(folder, state)
            if _internal_call and not self.is_deepspeed_enabled:
                save_file(state, folder / STATE)

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        from student_train.student import read_tensors

        state = read_tensors(Path(resume_from_checkpoint) / STATE)
        wanted = {
            name: parameter
            for name, parameter in self.model.named_parameters()
            if parameter.requires_grad
        }
        if state.keys() != wanted.keys():
            raise UserError(
                f"{resume_from_checkpoint} holds other trainable weights than this recipe makes"
            )
        with torch.no_grad():
            for name, parameter in wanted.items():
                parameter.copy_(state[name])

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Return and log `eval_loss`, its terms and what `evaluate_with` adds."""
        metrics = self.evaluate_with(self) if self.evaluate_with is not None else {}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics
