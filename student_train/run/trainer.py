"""The transformers Trainer with the three-term loss.

Terms summed over a whole optimiser step, logged one by one.

Each term is a mean over the whole optimiser step: tokens for L_LM, images with targets for L_vis,
images with a question for L_att. A micro-batch therefore contributes its sum divided by the step's
count over all micro-batches and ranks, and 8 micro-batches of 1 give what 1 micro-batch of 8 gives,
in value and in gradient. (The stock Trainer counts tokens only, and once it has that count it no
longer divides by the accumulation steps: a term added to the loss would be 8 times as heavy.)
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import Trainer

from shared.errors import UserError
from shared.recipe import Recipe
from student_train.adapter.files import read_tensors
from student_train.attention import Channel
from student_train.data.batches import Batch
from student_train.data.order import EpochOrder
from student_train.data.samples import Failure
from student_train.imagetext import ImageTextModel
from student_train.run.outputs import TRAINABLE_WEIGHTS
from student_train.run.parts import RunControl
from student_train.run.terms import (
    TERMS,
    Terms,
    schedule_factor,
    step_counts,
    term_sums,
    trained_terms,
)
from student_train.upstream import TrainerSeams

# What a run's Trainer calls: writes what a reader loads, gathers the trainable parameters.
SaveModel = Callable[[Path, Mapping[str, Tensor]], None]
Gather = Callable[[], dict[str, Tensor]]


class AlignmentTrainer(TrainerSeams[Batch | Failure], Trainer):  # type: ignore[misc]
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
    options
        Of the stock Trainer.
    """

    loss_is_scaled_for_ga = True

    def __init__(
        self,
        *,
        recipe: Recipe,
        channel: Channel | None,
        order: EpochOrder | None,
        save_model_to: SaveModel,
        trainable: Gather,
        evaluate_with: "Callable[[AlignmentTrainer], dict[str, float]] | None" = None,
        **options: object,
    ) -> None:
        self.optimizer: torch.optim.Optimizer | None
        self.control: RunControl
        super().__init__(**options)
        self.recipe, self.channel, self.order = recipe, channel, order
        self.save_model_to, self.trainable = save_model_to, trainable
        self.evaluate_with = evaluate_with
        self._term_totals = torch.zeros(len(TERMS))
        self._unasked = torch.zeros(())
        self._terms_logged_at: int | None = None
        self._counts = torch.ones(len(TERMS))
        self._ids: list[str] = []

    # --- the loss

    def count_step(self, batches: Sequence[Batch | Failure], device: torch.device) -> Tensor | None:
        """Count what the terms of this step are means of, over micro-batches and ranks."""
        whole: list[Batch] = []
        for batch in batches:
            if "error" in batch:
                raise UserError(batch["error"])
            whole.append(batch)
        if not whole:
            return None
        self._ids = [name for batch in whole for name in batch["ids"]]
        counts = torch.stack([step_counts(batch) for batch in whole]).sum(0).to(device)
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

    def full_weights(self) -> tuple[float, float, float]:
        """Return the recipe's weights of the three terms, whatever the schedules say now."""
        return 1.0, self.recipe.losses.alpha, self.recipe.losses.beta or 0.0

    def compute_loss(
        self,
        model: ImageTextModel,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Return this micro-batch's share of L = L_LM + alpha L_vis + beta L_att over the step.

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
        if self._terms_logged_at is None:
            # The first step of this process: 0, or where a resumed run begins.
            self._terms_logged_at = self.state.global_step
        if not torch.isfinite(loss):
            named = ", ".join(
                f"{name} {value:g}" for name, value in zip(TERMS, shares.tolist(), strict=True)
            )
            raise UserError(
                f"the loss is not finite at step {self.state.global_step} ({named}), samples "
                f"{', '.join(inputs['ids'])}; lower train.learning_rate or look at these records"
            )
        self._note(shares.detach(), terms)
        return loss

    def _note(self, shares: Tensor, terms: Terms) -> None:
        """Add a micro-batch to what the next log shows."""
        self._term_totals = self._term_totals.to(shares.device) + shares
        self._unasked = self._unasked.to(shares.device) + (terms.counts[1] - terms.counts[2])

    def check_norm(self, norm: Tensor | float | None) -> None:
        """Stop at a gradient that is not finite though the loss was.

        What it leaves behind must not be saved.
        """
        # DeepSpeed reports such a norm as -1.
        if norm is not None and not 0.0 <= float(norm) < math.inf:
            raise UserError(
                f"the gradient is not finite at step {self.state.global_step}, samples "
                f"{', '.join(self._ids)}; "
                "lower train.learning_rate or look at these records"
            )

    def autocast_smart_context_manager(
        self, cache_enabled: bool | None = True
    ) -> AbstractContextManager[object]:
        """Compute in bfloat16 under `train.precision: bf16`.

        Adapter and W stay float32 parameters.
        """
        return torch.autocast(
            self.args.device.type,
            torch.bfloat16,
            enabled=self.recipe.train.precision == "bf16",
            cache_enabled=bool(cache_enabled),
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the means of the trained terms since the last log to the logged losses."""
        steps = self.state.global_step - (self._terms_logged_at or 0)
        if "loss" in logs and steps > 0:
            totals = torch.cat([self._term_totals, self._unasked.reshape(1)])
            if self.accelerator.num_processes > 1:
                totals = self.accelerator.reduce(totals, "mean")
            values = totals.tolist()
            trained, weights = trained_terms(self.recipe), self.loss_weights()
            logs |= {
                name: value / steps
                for name, value in zip(TERMS, values[:3], strict=True)
                if name in trained
            }
            logs |= {
                name: weight
                for name, term, weight in zip(
                    ("alpha", "beta"), TERMS[1:], weights[1:], strict=True
                )
                if term in trained
            }
            if values[3] and len(trained) > 1:
                logs["images_without_question"] = values[3] * self.accelerator.num_processes
            self._term_totals, self._unasked = torch.zeros(len(TERMS)), torch.zeros(())
            self._terms_logged_at = self.state.global_step
        super().log(logs, start_time)

    def floating_point_ops(self, inputs: Batch) -> int:
        """Skip the count: it walks all parameters at every micro-batch."""
        return 0

    # --- data and optimiser

    def sampler(self) -> EpochOrder | None:
        """Return the order of the training set."""
        return self.order

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW; W may have a learning rate of its own (`rotation.learning_rate`)."""
        own = self.recipe.rotation.learning_rate
        if own is not None and self.optimizer is None:
            optimizer_class, options = Trainer.get_optimizer_cls_and_kwargs(self.args, self.model)
            self.optimizer = optimizer_class(self._groups(own), **options)
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        return optimizer

    def _groups(self, own: float) -> list[dict[str, object]]:
        """Return the trained parameters but W, then W with its own learning rate, where any are."""
        named = [pair for pair in self.model.named_parameters() if pair[1].requires_grad]
        others = [parameter for name, parameter in named if ".rotation." not in name]
        rotation = [parameter for name, parameter in named if ".rotation." in name]
        groups: list[dict[str, object]] = [{"params": others}, {"params": rotation, "lr": own}]
        decay = self.recipe.train.weight_decay
        return [{**group, "weight_decay": decay} for group in groups if group["params"]]

    # --- saving, loading, evaluating

    def write_model(self, folder: Path, in_checkpoint: bool) -> None:
        """Write the adapter (or model) folder.

        A checkpoint has the raw trainable parameters beside it.
        """
        from safetensors.torch import save

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
            if in_checkpoint and self._is_last and self.recipe.train.best_metric is None:
                # Before the last checkpoint, which may find the disk full.
                self.save_model_to(Path(self.args.output_dir), state)
            self.save_model_to(folder, state)
            if in_checkpoint and not self.is_deepspeed_enabled:
                (folder / TRAINABLE_WEIGHTS).write_bytes(save(state))

    @property
    def _is_last(self) -> bool:
        """Whether the last step is done, and nothing but what it made is left to save."""
        return self.recipe.train.tune == "lora" and self.state.global_step >= self.state.max_steps

    def read_model(self, folder: Path) -> None:
        """Take the trainable parameters from a checkpoint."""
        state = read_tensors(folder / TRAINABLE_WEIGHTS)
        wanted = {
            name: parameter
            for name, parameter in self.model.named_parameters()
            if parameter.requires_grad
        }
        if state.keys() != wanted.keys():
            raise UserError(f"{folder} holds other trainable weights than this recipe makes")
        with torch.no_grad():
            for name, parameter in wanted.items():
                parameter.copy_(state[name])

    def evaluate(self, *args: object, **options: object) -> dict[str, float]:
        """Return and log `eval_loss`, its terms and what `evaluate_with` adds."""
        metrics = self.evaluate_with(self) if self.evaluate_with is not None else {}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics
