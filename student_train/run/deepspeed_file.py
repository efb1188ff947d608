"""DeepSpeed's configuration of a run: a shipped one, or a file of the user's that says no other.

What stands in the recipe too (batch, accumulation, precision, clipping, learning rate, schedule) is
the recipe's to say. `auto` and a key that is left out mean its value; another value is refused,
since either of the two would be ignored without a word.
"""

import json
from pathlib import Path
from typing import Final, Literal, TypedDict

from shared.errors import UserError
from shared.processes import this_process
from shared.recipe import Recipe
from student_train.run.environment import use_cpu


class Offload(TypedDict, total=False):
    """Where something is put that does not stay on the device."""

    device: str


class ZeroOptimization(TypedDict, total=False):
    """The keys of DeepSpeed's `zero_optimization` that are read here."""

    stage: int
    offload_optimizer: Offload
    offload_param: Offload
    zero_quantized_nontrainable_weights: bool


class Switch(TypedDict):
    """Something on or off."""

    enabled: bool | Literal["auto"]


class Optimizer(TypedDict, total=False):
    """DeepSpeed's `optimizer`."""

    type: str
    params: dict[str, object]


class DeepSpeedConfig(TypedDict, total=False):
    """The keys of DeepSpeed's configuration that are read or written here."""

    train_micro_batch_size_per_gpu: object
    gradient_accumulation_steps: object
    train_batch_size: object
    gradient_clipping: object
    zero_allow_untested_optimizer: bool
    zero_force_ds_cpu_optimizer: bool
    zero_optimization: ZeroOptimization
    optimizer: Optimizer
    scheduler: Optimizer
    bf16: Switch
    fp16: Switch
    amp: Switch
    torch_autocast: Switch
    checkpoint: dict[str, bool]


SHIPPED = Path(__file__).with_name("deepspeed")
# Of `torch.optim.AdamW`, which the recipe has no keys for.
_ADAMW: Final = {"betas": [0.9, 0.999], "eps": 1e-8}


def deepspeed_config(recipe: Recipe) -> DeepSpeedConfig | None:
    """Return DeepSpeed's configuration for the recipe's `deepspeed` key; None without DeepSpeed.

    Raises
    ------
    UserError
        Neither a shipped configuration nor a JSON file; one that says something else than the
        recipe; quantised frozen weights without a GPU.
    """
    name = recipe.deepspeed
    if name is None or name == "none":
        return None
    path = SHIPPED / f"{name}.json"
    if not path.is_file():
        path = Path(name)
    if not path.is_file():
        shipped = ", ".join(sorted(file.stem for file in SHIPPED.glob("*.json")))
        raise UserError(f"deepspeed={name} is neither one of {shipped}, none, nor a JSON file")
    try:
        config: DeepSpeedConfig = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from None
    if not isinstance(config, dict):
        raise UserError(f"{path} holds no mapping of DeepSpeed's keys")
    if use_cpu(recipe) and config.get("zero_optimization", {}).get(
        "zero_quantized_nontrainable_weights"
    ):
        raise UserError(
            f"deepspeed={name} quantises frozen weights, which DeepSpeed does on GPUs only; use "
            "zero3"
        )
    _settle_numbers(config, recipe, name)
    _drop_optimizer(config, recipe, name)
    # ZeRO-3 shards the frozen weights too and wants one dtype, so DeepSpeed casts adapter and W and
    # keeps the float32 masters itself; in the other stages they stay float32 parameters under
    # autocast.
    _resolve_precision(config, zero_stage(config), recipe.train.precision, name)
    return config


def _settle_numbers(config: DeepSpeedConfig, recipe: Recipe, name: str) -> None:
    """Let the Trainer fill in the recipe's numbers; refuse others.

    A key that is left out too: without `gradient_clipping` DeepSpeed would not clip at all.
    """
    train = recipe.train
    if config.setdefault("train_micro_batch_size_per_gpu", "auto") != "auto":
        micro = config["train_micro_batch_size_per_gpu"]
        _same(name, "train_micro_batch_size_per_gpu", micro, "train.batch_size", train.batch_size)
    if config.setdefault("gradient_accumulation_steps", "auto") != "auto":
        steps = config["gradient_accumulation_steps"]
        _same(name, "gradient_accumulation_steps", steps, "train.accumulation", train.accumulation)
    ranks = this_process().world
    whole = train.batch_size * train.accumulation * ranks
    if config.setdefault("train_batch_size", "auto") != "auto":
        given, of = config["train_batch_size"], f"train.batch_size x train.accumulation x {ranks}"
        _same(name, "train_batch_size", given, of, whole)
    if config.setdefault("gradient_clipping", "auto") != "auto":
        clipping = config["gradient_clipping"]
        _same(name, "gradient_clipping", clipping, "train.max_grad_norm", train.max_grad_norm)
    config["train_micro_batch_size_per_gpu"] = config["gradient_accumulation_steps"] = "auto"
    config["train_batch_size"] = config["gradient_clipping"] = "auto"


def _drop_optimizer(config: DeepSpeedConfig, recipe: Recipe, name: str) -> None:
    """Leave AdamW and its schedule to the recipe, which may give W a learning rate of its own."""
    train = recipe.train
    optimizer = config.pop("optimizer", {})
    kind = optimizer.get("type", "AdamW")
    if kind.lower() != "adamw":
        raise UserError(
            f"deepspeed={name} says optimizer {kind}, recipes train with AdamW; leave optimizer "
            "out of the file"
        )
    known = {"lr": train.learning_rate, "weight_decay": train.weight_decay, **_ADAMW}
    keys = {"lr": "train.learning_rate", "weight_decay": "train.weight_decay"}
    for key, given in optimizer.get("params", {}).items():
        if given != "auto" and key in known:
            _same(name, f"optimizer.params.{key}", given, keys.get(key, "AdamW's own"), known[key])
    if "scheduler" in config:
        kind = config["scheduler"].get("type", "of its own")
        raise UserError(
            f"deepspeed={name} has the scheduler {kind}, the recipe says "
            f"train.schedule={train.schedule}; leave scheduler out of the file"
        )
    # The Trainer's AdamW, under offload too.
    config.setdefault("zero_allow_untested_optimizer", True)
    config.setdefault("zero_force_ds_cpu_optimizer", False)


def _same(name: str, key: str, given: object, of: str, wanted: object) -> None:
    if given != wanted:
        raise UserError(
            f'deepspeed={name} says {key}={given}, but {of} is {wanted}; write "auto" there'
        )


def _resolve_precision(
    config: DeepSpeedConfig, stage: int, precision: str, name: str | None
) -> None:
    """Let the recipe decide what the file leaves to it (`auto`); refuse a contradiction."""
    for key in ("amp", "torch_autocast"):
        if config.pop(key, {}).get("enabled", False) not in (False, "auto"):  # type: ignore[misc]
            raise UserError(
                f"deepspeed={name} switches {key} on, the recipe says train.precision={precision}; "
                f"leave {key} out of the file"
            )
    half = stage == 3 and precision == "bf16"
    given = config.get("bf16", {}).get("enabled", "auto")
    if config.get("fp16", {}).get("enabled", False) not in (False, "auto"):
        raise UserError(
            f"deepspeed={name} computes in fp16, which recipes do not; leave fp16 out of the file"
        )
    config.pop("fp16", None)
    if given is True and precision != "bf16":
        raise UserError(
            f"deepspeed={name} says bf16, the recipe train.precision={precision}; leave bf16 out "
            'of the file, or write {"enabled": "auto"}'
        )
    if given is False and half:
        raise UserError(
            f"deepspeed={name} switches bf16 off, the recipe says train.precision=bf16; leave bf16 "
            'out of the file, or write {"enabled": "auto"}'
        )
    config["bf16"] = {**config.get("bf16", {}), "enabled": half if given == "auto" else given}


def zero_stage(config: DeepSpeedConfig | None) -> int:
    """Return the ZeRO stage of a DeepSpeed configuration, 0 without one."""
    return 0 if config is None else int(config.get("zero_optimization", {}).get("stage", 0))
