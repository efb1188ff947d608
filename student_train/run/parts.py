"""What is used of the transformers Trainer's state, control and arguments."""

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import torch


@runtime_checkable
class RunState(Protocol):
    """Where a run is."""

    global_step: int
    max_steps: int
    best_global_step: int | None
    best_metric: float | None
    best_model_checkpoint: str | None
    log_history: list[dict[str, float]]

    def save_to_json(self, json_path: str) -> None:
        """Write the state."""
        ...


@runtime_checkable
class RunControl(Protocol):
    """What the loop does after this step."""

    should_log: bool
    should_save: bool
    should_training_stop: bool


@runtime_checkable
class RunArguments(Protocol):
    """The Trainer's arguments."""

    output_dir: str
    device: torch.device
    world_size: int
    process_index: int
    n_gpu: int
    train_batch_size: int
    per_device_eval_batch_size: int
    gradient_accumulation_steps: int


Logs = Mapping[str, float]
