"""What `benchmarks.step_cost` compares: plain LoRA, the three terms, the authors' way.

And their inputs.

Weights are random: the cost does not depend on their values. The vision tower is a token one (width
64), since a real one costs all arms the same and would only make the ratios look better.
"""

from typing import Any

import numpy as np
import torch

from shared.recipe import Recipe, make_recipe

PATCHES, TEXT, ANSWER = 576, 124, 30
AUTHORS_LORA = {"r": 32, "alpha": 16, "dropout": 0.05}
# LoRA alone; the three terms; the same with train.gradient_checkpointing; eager attention with all
# weights kept.
ARMS = ("lora", "medalign", "checkpointed", "authors")


def recipe_of(arm: str, layer: int, precision: str, lora: dict[str, Any]) -> Recipe:
    on = arm != "lora"
    return make_recipe(
        {
            "losses": {"layer": layer, "alpha": 1.0 if on else 0.0, "beta": 0.00125 if on else 0.0},
            "rotation": {"kind": "full" if on else "none"},
            "lora": lora,
            "train": {"precision": precision},
        }
    )


def build(
    arm: str,
    layers: int,
    width: int,
    heads: int,
    groups: int,
    inner: int,
    vocabulary: int,
    patches: int,
    precision: str = "fp32",
    attention: str = "sdpa",
    lora: dict[str, Any] | None = None,
    device: str = "cpu",
) -> Any:
    """Make a student on random weights, its recipe and its optimiser; `arm` is one of `ARMS`."""
    from transformers import (
        CLIPVisionConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        MistralConfig,
    )

    from student_train.student import make_student

    side = int(patches**0.5)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=64,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=1,
            image_size=14 * side,
            patch_size=14,
        ),
        text_config=MistralConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=inner,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=groups,
            sliding_window=None,
        ),
        image_token_id=vocabulary - 1,
        image_seq_length=patches,
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = LlavaForConditionalGeneration(config)
    model.set_attn_implementation({"text_config": "eager" if arm == "authors" else attention})
    model.requires_grad_(False)
    if precision == "bf16":
        model.to(torch.bfloat16)
    recipe = recipe_of(arm, layers - 1 if layers < 20 else 20, precision, lora or AUTHORS_LORA)
    student = make_student(model, vocabulary - 1, recipe)
    if arm == "checkpointed":
        adapted: Any = student.model
        adapted.activation_checkpointing_enable(
            activation_checkpointing_kwargs={"use_reentrant": False}
        )
    student.model.to(device)
    student.model.train()
    trained = [one for one in student.model.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)  # as in training
    return student, recipe, optimizer


def batch_of(
    size: int, vocabulary: int, patches: int, text: int = TEXT, answer: int = ANSWER
) -> dict[str, Any]:
    """Make a batch of `patches` image tokens and `text` others, the last `answer` labelled."""
    random = np.random.default_rng(0)
    length, start = patches + text, 34
    ids = torch.from_numpy(random.integers(5, vocabulary - 2, (size, length)))
    ids[:, start : start + patches] = vocabulary - 1
    labels = torch.full_like(ids, -100)
    labels[:, -answer:] = ids[:, -answer:]
    rows = torch.arange(start + patches, length - answer).repeat(size, 1)
    pairs = patches * (patches - 1) // 2
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "labels": labels,
        "pixel_values": torch.randn(size, 3, 14 * int(patches**0.5), 14 * int(patches**0.5)),
        "image_sample": torch.arange(size),
        "image_columns": torch.arange(start, start + patches).repeat(size, 1),
        "span_image": torch.arange(size),
        "span_rows": rows,
        "span_lengths": torch.full((size,), rows.shape[1]),
        "similarity": torch.rand(1, size, pairs).half(),
        "attention": torch.rand(1, size, patches),
        "coverage": torch.full((1, size, patches), 255, dtype=torch.uint8),
        "ids": ["x"] * size,
    }


def step(student: Any, recipe: Recipe, optimizer: Any, batch: Any, arm: str) -> None:
    """Forward, backward and AdamW of one batch."""
    if arm == "authors":
        loss = authors_loss(student, batch, recipe)
    else:
        from student_train.run.terms import term_sums

        device = batch["input_ids"].device
        with torch.autocast(device.type, torch.bfloat16, enabled=recipe.train.precision == "bf16"):
            terms = term_sums(
                student.model, None if arm == "lora" else student.channel, batch, recipe
            )
        weights = torch.tensor([1.0, recipe.losses.alpha, recipe.losses.beta or 0.0]).to(device)
        loss = (terms.sums / terms.counts.clamp_min(1) * weights).sum()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def authors_loss(student: Any, batch: dict[str, Any], recipe: Recipe) -> torch.Tensor:
    """Eager attention, all weights kept, float32 squares as targets, logits everywhere."""
    layer = recipe.losses.layers[0]
    keep = {name: batch[name] for name in ("input_ids", "attention_mask", "labels", "pixel_values")}
    out = student.model(**keep, output_attentions=True, output_hidden_states=True, use_cache=False)
    loss = out.loss
    for image in range(len(batch["image_sample"])):
        sample, columns = int(batch["image_sample"][image]), batch["image_columns"][image]
        tokens = student.model.get_base_model().rotation[str(layer)](
            out.hidden_states[layer][sample, columns]
        )
        unit = torch.nn.functional.normalize(tokens, dim=-1)
        square = torch.eye(len(columns))
        rows, others = torch.triu_indices(len(columns), len(columns), 1)
        square[rows, others] = square[others, rows] = batch["similarity"][0, image].float()
        loss = loss + torch.nn.functional.mse_loss(unit @ unit.T, square)
        weights = out.attentions[layer][sample].mean(0)[batch["span_rows"][image]].mean(0)[columns]
        p, q = (
            weights / weights.norm(),
            batch["attention"][0, image] / batch["attention"][0, image].norm(),
        )
        loss = loss + 0.03 * (q * (q.log() - p.log())).sum() / len(columns)
    return loss


def real(layers: int) -> dict[str, int]:
    """LLaVA-Med's decoder, of `layers` layers."""
    return {
        "layers": layers,
        "width": 4096,
        "heads": 32,
        "groups": 8,
        "inner": 14336,
        "vocabulary": 32064,
        "patches": PATCHES,
    }


def small() -> dict[str, int]:
    """SmolLM2-135M with 8 x 8 patches, as in the demo."""
    return {
        "layers": 30,
        "width": 576,
        "heads": 9,
        "groups": 3,
        "inner": 1536,
        "vocabulary": 49152,
        "patches": 64,
    }


def share(source: Any, target: Any) -> None:
    """Let `target` use the frozen weights of `source`."""
    own = dict(source.named_parameters())
    for name, parameter in target.named_parameters():
        if not parameter.requires_grad and name in own:
            parameter.data = own[name].data
