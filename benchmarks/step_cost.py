"""What distillation costs on top of plain LoRA: step time, peak memory, data wait, batch gain, time to the first step.

    python benchmarks/step_cost.py step --layers 3 --pairs 3       # the real width: d 4096, 32/8 heads, 576 patches
    python benchmarks/step_cost.py memory --layers 3
    python benchmarks/step_cost.py data
    python benchmarks/step_cost.py batch
    python benchmarks/step_cost.py start

Weights are random: the cost does not depend on their values. The vision tower is a token one (width 64), since a real
one costs all arms the same and would only make the ratios look better. Results: docs/performance-train.md.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shared.recipe import Recipe, make_recipe

PATCHES, TEXT, ANSWER = 576, 124, 30
ARMS = ("lora", "medalign", "authors")


def recipe_of(arm: str, layer: int) -> Recipe:
    on = arm != "lora"
    return make_recipe(
        {
            "losses": {"layer": layer, "alpha": 1.0 if on else 0.0, "beta": 0.00125 if on else 0.0},
            "rotation": {"kind": "full" if on else "none"},
            "lora": {"r": 32, "alpha": 16, "dropout": 0.05},
            "train": {"precision": "fp32"},
        }
    )


def build(arm: str, layers: int, width: int, heads: int, groups: int, inner: int, vocabulary: int, patches: int) -> Any:
    """Make a student on random weights, its recipe and its optimiser."""
    from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration, MistralConfig

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
    model = LlavaForConditionalGeneration(config)
    if arm == "authors":
        model.set_attn_implementation({"text_config": "eager"})
    model.requires_grad_(False)
    recipe = recipe_of(arm, max(1, layers - 1) if layers < 20 else 20)
    student = make_student(model, vocabulary - 1, recipe)
    student.model.train()
    trained = [one for one in student.model.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)  # as in training
    return student, recipe, optimizer


def batch_of(size: int, vocabulary: int, patches: int, text: int = TEXT, answer: int = ANSWER) -> dict[str, Any]:
    """Make a batch of `patches` image tokens and `text` others, the last `answer` of which are labelled."""
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


def step(student: Any, recipe: Recipe, optimizer: Any, batch: dict[str, Any], arm: str) -> None:
    if arm == "authors":
        loss = authors_loss(student, batch, recipe)
    else:
        from student_train.trainer import term_sums

        terms = term_sums(student.model, student.channel if arm == "medalign" else None, batch, recipe)
        weights = torch.tensor([1.0, recipe.losses.alpha, recipe.losses.beta or 0.0])
        loss = (terms.sums / terms.counts.clamp_min(1) * weights).sum()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def authors_loss(student: Any, batch: dict[str, Any], recipe: Recipe) -> torch.Tensor:
    """Eager attention in every layer, all weights kept, float32 squares as targets, logits everywhere."""
    layer = recipe.losses.layers[0]
    keep = {name: batch[name] for name in ("input_ids", "attention_mask", "labels", "pixel_values")}
    out = student.model(**keep, output_attentions=True, output_hidden_states=True, use_cache=False)
    loss = out.loss
    for image in range(len(batch["image_sample"])):
        sample, columns = int(batch["image_sample"][image]), batch["image_columns"][image]
        tokens = student.model.get_base_model().rotation[str(layer)](out.hidden_states[layer][sample, columns])
        unit = torch.nn.functional.normalize(tokens, dim=-1)
        square = torch.eye(len(columns))
        rows, others = torch.triu_indices(len(columns), len(columns), 1)
        square[rows, others] = square[others, rows] = batch["similarity"][0, image].float()
        loss = loss + torch.nn.functional.mse_loss(unit @ unit.T, square)
        weights = out.attentions[layer][sample].mean(0)[batch["span_rows"][image]].mean(0)[columns]
        p, q = weights / weights.norm(), batch["attention"][0, image] / batch["attention"][0, image].norm()
        loss = loss + 0.03 * (q * (q.log() - p.log())).sum() / len(columns)
    return loss


def real(layers: int) -> dict[str, int]:
    return {
        "layers": layers,
        "width": 4096,
        "heads": 32,
        "groups": 8,
        "inner": 14336,
        "vocabulary": 32064,
        "patches": PATCHES,
    }


def small(layers: int = 30) -> dict[str, int]:
    return {"layers": layers, "width": 576, "heads": 9, "groups": 3, "inner": 1536, "vocabulary": 49152, "patches": 144}


def measure_steps(sizes: dict[str, int], arms: list[str], pairs: int) -> dict[str, Any]:
    """Interleave steps of all arms; medians and the median of the pairwise ratios to LoRA alone."""
    batch = batch_of(1, sizes["vocabulary"], sizes["patches"])
    # The arms share the frozen base, so that three of them fit into memory together.
    students = {}
    for arm in arms:
        student, recipe, optimizer = build(arm, **sizes)
        first = next(iter(students.values()), None)
        if first is not None:
            share(first[0].model, student.model)
        students[arm] = (student, recipe, optimizer)
    times: dict[str, list[float]] = {arm: [] for arm in arms}
    for round_ in range(pairs + 1):
        order = arms if round_ % 2 else arms[::-1]
        for arm in order:
            begin = time.perf_counter()
            step(*students[arm], batch, arm)
            if round_:  # the first round warms up
                times[arm].append(time.perf_counter() - begin)
        print(json.dumps({arm: round(values[-1], 2) for arm, values in times.items() if values}), file=sys.stderr)
    found: dict[str, Any] = {f"{arm} s": statistics.median(values) for arm, values in times.items()}
    for arm in arms[1:]:
        found[f"{arm} / {arms[0]}"] = statistics.median(a / b for a, b in zip(times[arm], times[arms[0]], strict=True))
    return found


def share(source: Any, target: Any) -> None:
    own = dict(source.named_parameters())
    for name, parameter in target.named_parameters():
        if not parameter.requires_grad and name in own:
            parameter.data = own[name].data


def measure_memory(layers: int) -> dict[str, Any]:
    """Peak resident memory of each arm after two steps, each in a process of its own."""
    found: dict[str, Any] = {}
    for arm in ARMS:
        command = [sys.executable, __file__, "one", "--arm", arm, "--layers", str(layers)]
        found[f"{arm} GB"] = float(
            subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1]
        )
    found["medalign / lora"] = found["medalign GB"] / found["lora GB"]
    found["medalign / authors"] = found["medalign GB"] / found["authors GB"]
    return found


def peak_of(arm: str, layers: int) -> float:
    sizes = real(layers)
    student, recipe, optimizer = build(arm, **sizes)
    batch = batch_of(1, sizes["vocabulary"], sizes["patches"])
    for _ in range(2):
        step(student, recipe, optimizer, batch, arm)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def measure_data(records: int = 256) -> dict[str, Any]:
    """Milliseconds to get one image's targets (24x24, float16) from the store and from RAM."""
    import hashlib

    from shared.targets import Identity, Preprocessing, TargetStore, TargetWriter

    random = np.random.default_rng(0)
    pairs = PATCHES * (PATCHES - 1) // 2
    identity = Identity(
        teacher="bench",
        architecture="none",
        weights="ab" * 32,
        preprocessing=Preprocessing(size=336, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
        grid=(24, 24),
    )
    keys = [hashlib.sha256(str(number).encode()).digest() for number in range(records)]
    with tempfile.TemporaryDirectory() as folder:
        with TargetWriter(folder, identity) as writer:
            for key in keys:
                record = {
                    "similarity": random.uniform(-1, 1, pairs).astype(np.float16),
                    "attention": random.uniform(0, 1, PATCHES).astype(np.float32),
                    "coverage": np.full(PATCHES, 255, np.uint8),
                }
                writer.add(key, record)
        store = TargetStore.open(folder)
        order = random.permutation(records)
        begin = time.perf_counter()
        kept = {keys[index]: store[keys[index]] for index in order}
        from_store = (time.perf_counter() - begin) / records
        begin = time.perf_counter()
        for index in order:
            kept[keys[index]].similarity.sum()
        from_memory = (time.perf_counter() - begin) / records
    return {"store ms per image": 1e3 * from_store, "RAM ms per image": 1e3 * from_memory}


def measure_batch(rounds: int) -> dict[str, Any]:
    """Measure samples per second of the demo-size student at batch 1 and 8, three-term loss, rounds interleaved."""
    sizes = small()
    student, recipe, optimizer = build("medalign", **sizes)
    batches = {size: batch_of(size, sizes["vocabulary"], sizes["patches"], text=60, answer=8) for size in (1, 8)}
    rates: dict[int, list[float]] = {1: [], 8: []}
    for round_ in range(rounds + 1):
        for size, batch in batches.items():
            begin = time.perf_counter()
            for _ in range(8 // size):
                step(student, recipe, optimizer, batch, "medalign")
            if round_:
                rates[size].append(8 / (time.perf_counter() - begin))
    found: dict[str, Any] = {f"batch {size}: samples/s": statistics.median(values) for size, values in rates.items()}
    found["batch 8 / batch 1"] = statistics.median(a / b for a, b in zip(rates[8], rates[1], strict=True))
    return found


FIRST_STEP = """
import json, os, sys, time
marks = [("", time.perf_counter())]
def mark(name):
    marks.append((name, time.perf_counter()))
import torch
mark("import torch")
import peft, transformers.trainer
mark("import transformers and peft")
os.environ["DS_ACCELERATOR"] = "cpu"
import deepspeed
mark("import deepspeed")
from shared.recipe import load_recipe
from student_train.train import train
train(load_recipe(sys.argv[1]))
mark("everything else")
print(json.dumps({name: marks[number + 1][1] - marks[number][1] for number, (name, _) in enumerate(marks[1:])}))
"""


def measure_start() -> dict[str, Any]:
    """Measure `student train` of one step on a tiny student under ZeRO-2: what there is to wait for besides weights."""
    import yaml

    from tests.fixtures.student_runs import changed, write_run

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        path.write_text(yaml.safe_dump(changed(write_run(Path(folder)), deepspeed="zero2", train__max_steps=1)))
        command = [sys.executable, "-c", FIRST_STEP, str(path)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["step", "memory", "data", "batch", "start", "one"])
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--arm", default="lora")
    parser.add_argument("--arms", default="lora,medalign,authors")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.what == "one":
        print(peak_of(options.arm, options.layers))
        return
    found = {
        "step": lambda: measure_steps(real(options.layers), options.arms.split(","), options.pairs),
        "memory": lambda: measure_memory(options.layers),
        "data": measure_data,
        "batch": lambda: measure_batch(options.pairs),
        "start": measure_start,
    }[options.what]()
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
