"""What distillation costs on top of plain LoRA.

Step time, peak memory, data wait, batch gain, time to the first step.

    python -m benchmarks.step_cost step --layers 3 --pairs 3
    python -m benchmarks.step_cost memory
    python -m benchmarks.step_cost data
    python -m benchmarks.step_cost batch
    python -m benchmarks.step_cost start

`step` has the real width: d 4096, 32/8 heads, 576 patches. What runs is in
`benchmarks.training_arms`. Results: docs/performance-train.md.
"""

import argparse
import json
import os
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

from benchmarks.training_arms import ARMS, PATCHES, batch_of, build, real, share, small, step


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
        print(
            json.dumps({arm: round(values[-1], 2) for arm, values in times.items() if values}),
            file=sys.stderr,
        )
    found: dict[str, Any] = {f"{arm} s": statistics.median(values) for arm, values in times.items()}
    for arm in arms[1:]:
        found[f"{arm} / {arms[0]}"] = statistics.median(
            a / b for a, b in zip(times[arm], times[arms[0]], strict=True)
        )
    return found


def measure_memory(whole: int = 32) -> dict[str, Any]:
    """Peak resident memory of each arm (GiB) after two steps at 2 and 3 layers.

    It is carried to `whole` layers by its slope.

    What is compared is memory in use. glibc by itself keeps pieces below 32 MiB that were freed, as
    many as the order of sizes happens to leave, so it is told to give back all above 64 KiB; the
    pair is measured without that as well.
    """
    found: dict[str, Any] = {}
    carried = {}
    for arm in ARMS:
        two, three = (_peak_and_frozen(arm, layers, exact=True) for layers in (2, 3))
        peak, frozen = three + (whole - 3) * (three - two)
        found[arm] = {
            "2 layers": two[0],
            "3 layers": three[0],
            "frozen weights of a layer": three[1] - two[1],
        }
        carried[arm] = {
            "all float32": peak,
            "frozen weights in bfloat16 (computed)": peak - frozen / 2,
            "without the frozen weights": peak - frozen,
        }
        found[arm][f"carried to {whole} layers"] = carried[arm]
    found["medalign / lora"] = found["medalign"]["3 layers"] / found["lora"]["3 layers"]
    kept = {arm: _peak_and_frozen(arm, 3, exact=False)[0] for arm in ("lora", "medalign")}
    found["with what glibc keeps"] = kept | {"medalign / lora": kept["medalign"] / kept["lora"]}
    for arm in ("medalign", "checkpointed"):
        ratios = {name: value / carried["authors"][name] for name, value in carried[arm].items()}
        found[f"{arm} / authors"] = {
            "3 layers": found[arm]["3 layers"] / found["authors"]["3 layers"]
        } | ratios
    return found


def _peak_and_frozen(arm: str, layers: int, exact: bool) -> Any:
    """Run `peak` in a process of its own."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.step_cost",
        "one",
        "--arm",
        arm,
        "--layers",
        str(layers),
    ]
    command += ["--threads", str(torch.get_num_threads())]
    environment = os.environ | ({"MALLOC_MMAP_THRESHOLD_": "65536"} if exact else {})
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    found = np.array([float(word) for word in done.stdout.split()[-2:]])
    print(arm, layers, exact, found, file=sys.stderr, flush=True)
    return found


def peak(arm: str, layers: int) -> tuple[float, float]:
    """Return the peak resident memory of two steps and the frozen weights in it, GiB."""
    sizes = real(layers)
    student, recipe, optimizer = build(arm, **sizes)
    batch = batch_of(1, sizes["vocabulary"], sizes["patches"])
    for _ in range(2):  # AdamW's moments are made by the first
        step(student, recipe, optimizer, batch, arm)
    frozen = sum(
        one.numel() * one.element_size()
        for one in student.model.parameters()
        if not one.requires_grad
    )
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, frozen / 2**30


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
    """Measure samples per second at batch 1 and 8, three-term loss, rounds interleaved.

    The demo's student and LoRA.

    Tokens of a sample: 64 patches and the text of one question of the demo, or of a conversation of
    eight.
    """
    found: dict[str, Any] = {}
    sizes = small()
    for precision, attention in (("bf16", "sdpa"), ("bf16", "eager"), ("fp32", "sdpa")):
        lora = {"r": 16, "alpha": 16, "dropout": 0.0}
        student, recipe, optimizer = build(
            "medalign", **sizes, precision=precision, attention=attention, lora=lora
        )
        for text, answer in ((46, 5), (140, 40)):
            batches = {
                size: batch_of(size, sizes["vocabulary"], sizes["patches"], text, answer)
                for size in (1, 8)
            }
            rates: dict[int, list[float]] = {1: [], 8: []}
            for round_ in range(rounds + 1):
                for size, batch in batches.items():
                    begin = time.perf_counter()
                    for _ in range(8 // size):
                        step(student, recipe, optimizer, batch, "medalign")
                    if round_:
                        rates[size].append(8 / (time.perf_counter() - begin))
            row = {
                f"batch {size}: samples/s": statistics.median(values)
                for size, values in rates.items()
            }
            row["batch 8 / batch 1"] = statistics.median(
                a / b for a, b in zip(rates[8], rates[1], strict=True)
            )
            found[f"{precision}, {attention}, {sizes['patches'] + text} tokens"] = row
            print(json.dumps(row), file=sys.stderr, flush=True)
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
from student_train.run.train import train
train(load_recipe(sys.argv[1]))
mark("everything else")
steps = zip(marks, marks[1:])
print(json.dumps({name: end - begin for (_, begin), (name, end) in steps}))
"""


def measure_start() -> dict[str, Any]:
    """Measure `student train` of one step on a tiny student under ZeRO-2.

    What there is to wait for besides weights.
    """
    import yaml

    from tests.fixtures.student_runs import changed, write_run

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        path.write_text(
            yaml.safe_dump(changed(write_run(Path(folder)), deepspeed="zero2", train__max_steps=1))
        )
        command = [sys.executable, "-c", FIRST_STEP, str(path)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout.strip().split("\n")[-1]))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["step", "memory", "data", "batch", "start", "one"])
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--arm", default="lora")
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.what == "one":
        print(*peak(options.arm, options.layers))
        return
    found = {
        "step": lambda: measure_steps(real(options.layers), options.arms.split(","), options.pairs),
        "memory": measure_memory,
        "data": measure_data,
        "batch": lambda: measure_batch(options.pairs),
        "start": measure_start,
    }[options.what]()
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
