"""The student under training: a base model with LoRA (PEFT), rotations and the attention tap.

No module of the base model is renamed: the authors' loader loses 11 LoRA pairs around layer l,
whose modules were renamed after the adapter was made. How an adapter lies on disk is in
`student_train.adapter`.
"""

import warnings
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from shared.errors import UserError
from shared.recipe import LoraSection, Recipe
from student_train.attention import Channel, install
from student_train.imagetext import (
    AdaptedModel,
    AdapterConfig,
    HookedModel,
    ImageTextModel,
    Module,
    first_layer,
)
from student_train.rotation import Rotation
from student_train.upstream import has_master, is_sharded


@dataclass
class Student:
    """A hooked model and what its losses need to know of it."""

    model: AdaptedModel
    channel: Channel
    layers: tuple[int, ...]
    # PiSSA and OLoRA move a part of the base weights into A and B: the pairs they began with undo
    # that on saving.
    initial: dict[str, Tensor] | None = None


def make_student(model: ImageTextModel, image_token_id: int, recipe: Recipe) -> Student:
    """Put LoRA, rotations and hooks on a base model (in place); everything else is frozen.

    Parameters
    ----------
    model
        A transformers image-text model such as `LlavaForConditionalGeneration`.
    image_token_id
        Id of the image placeholder in its token ids.
    recipe
        Its `lora`, `rotation` and `losses.layer` are read.

    Raises
    ------
    UserError
        A distillation layer outside 1..L-1, or LoRA targets that name no linear layer.
    """
    from peft import LoraConfig

    layers = recipe.losses.layers
    check_layers(model, layers)
    lora = recipe.lora
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora_targets(model, lora),
        use_rslora=lora.rslora,
        use_dora=lora.dora,
        init_lora_weights=True if lora.init == "default" else lora.init,
        bias="none",
        task_type="CAUSAL_LM",
    )
    peft_model = with_adapter(model, config)
    student = Student(peft_model, add_hooks(model, image_token_id, recipe), layers)
    if lora.init in ("pissa", "olora"):
        student.initial = {
            name: tensor.detach().clone() for name, tensor in lora_state(student.model).items()
        }
    return student


def with_adapter(model: ImageTextModel, config: AdapterConfig) -> AdaptedModel:
    """Put PEFT's adapter layers on a base model, in place."""
    from peft import get_peft_model

    with warnings.catch_warnings():
        # PEFT 0.21 asks the model by a name that transformers 5.23 has renamed.
        warnings.filterwarnings(
            "ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning
        )
        adapted: AdaptedModel = get_peft_model(model, config)
    return adapted


def add_hooks(model: ImageTextModel, image_token_id: int, recipe: Recipe) -> Channel:
    """Register the rotations at the model's top and install the hooks; no other name changes."""
    layers = recipe.losses.layers
    rotations = nn.ModuleDict()
    if recipe.rotation.kind != "none":
        width = model.get_decoder().config.hidden_size
        for layer in layers:
            rotations[str(layer)] = Rotation(width, recipe.rotation.kind, recipe.rotation.rank)
        rotations.to(model.device)
    hooked = cast(HookedModel, model)
    hooked.rotation = rotations
    channel = install(model, rotations, layers, image_token_id)
    hooked.alignment = channel
    return channel


def check_layers(model: ImageTextModel, layers: tuple[int, ...]) -> None:
    """Raise a `UserError` for a distillation layer that this model does not have."""
    count = len(model.get_decoder().layers)
    deep = first_layer(model.config)
    for layer in layers:
        if 1 <= layer < deep:
            raise UserError(
                f"losses.layer={layer}: behind layers 0..{deep - 1} this model adds image features "
                f"that W would not rotate (DeepStack); take l in {deep}..{count - 1}"
            )
        if not 1 <= layer < count:
            raise UserError(
                f"losses.layer={layer}: this model has {count} decoder layers, so l must be in "
                f"1..{count - 1}"
            )


def lora_targets(model: ImageTextModel, lora: LoraSection) -> str:
    """Return PEFT's pattern of the wanted linear layers.

    They are the decoder's, never of the head, projector or tower.
    """
    decoder = model.get_decoder()
    prefix = next(name for name, module in model.named_modules() if id(module) == id(decoder))
    modules = decoder.layers[0].named_modules()
    linear = [name for name, module in modules if isinstance(module, nn.Linear)]
    if lora.targets != "all-linear":
        linear = _named(linear, set(lora.targets))
    alternatives = "|".join(name.replace(".", r"\.") for name in linear)
    return rf"{prefix.replace('.', chr(92) + '.')}\.layers\.\d+\.({alternatives})"


def _named(linear: list[str], wanted: set[str]) -> list[str]:
    """Return the linear layers whose own names are wanted; a `UserError` for a name of none."""
    own = [name.rpartition(".")[2] for name in linear]
    unknown = sorted(wanted - set(own))
    if unknown:
        raise UserError(
            f"lora.targets: the decoder has no linear layer {', '.join(unknown)}; it has "
            f"{', '.join(own)}"
        )
    return [name for name, last in zip(linear, own, strict=True) if last in wanted]


def trainable_state(model: Module) -> dict[str, Tensor]:
    """Return every trainable parameter by name, whole and on the CPU.

    Under ZeRO-3 all ranks must call it together.

    Where DeepSpeed holds a float32 master of a 16-bit parameter, the master is returned.
    """
    state = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            state[name] = _whole(parameter).detach().to("cpu", copy=True).contiguous()
    return state


def _whole(parameter: nn.Parameter) -> Tensor:
    """Return a parameter with the shards of all ranks, in float32 where DeepSpeed has it so."""
    if parameter.dtype != torch.float32 and has_master(parameter):
        from deepspeed.utils import safe_get_full_fp32_param

        master: Tensor | None = safe_get_full_fp32_param(parameter)
        if master is not None:
            return master
    if is_sharded(parameter):
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter]):
            return parameter.data.clone()
    return parameter.data


def lora_state(model: AdaptedModel) -> dict[str, Tensor]:
    """Return the LoRA pairs under the names that PEFT's files have."""
    from peft import get_peft_model_state_dict

    # "auto" would ask the hub for the base model's config
    state: dict[str, Tensor] = get_peft_model_state_dict(model, save_embedding_layers=False)
    return state
