"""Every command of the 7B path once, at true size, on a CPU: seconds and peak memory of each.

    python -m benchmarks.rehearsal llava-med-1.5 --work runs/rehearsal
    python -m benchmarks.rehearsal huatuogpt-vision-7b --work runs/rehearsal

The weights are random, in the published layout, type and size: what a first user would meet, but
for the answers. It takes about half an hour, 24 GiB of memory and 35 GB of disk a model. Results:
docs/gpu.md. `--small` runs the same commands in minutes with small students and the demo's teacher.
"""

import argparse
import json
import math
import multiprocessing
import os
import platform
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import psutil
import torch
from safetensors.torch import save_file

from pipelines.datasets.brain_atlas.sample import write_sample
from tests.fixtures import student_checkpoints as published
from tests.fixtures.teacher_checkpoints import open_clip_visual, write_unimed

SHARDS = 4  # as LLaVA-Med-1.5 is published


class Model(NamedTuple):
    """How a published model is laid out."""

    layout: str
    shape: published.Shape
    recipe: str


MODELS = {
    "llava-med-1.5": Model("llava_mistral", published.LLAVA_MED, "llava-med-vqa-rad"),
    "huatuogpt-vision-7b": Model("llava_qwen2", published.HUATUO, "huatuo-vqa-rad"),
}
SMALL = {
    "llava-med-1.5": published.Shape(),
    "huatuogpt-vision-7b": published.SMALL_HUATUO,
}


class Stage(NamedTuple):
    """One command: what it is for, its words, and the file at whose sight it is killed."""

    name: str
    command: Sequence[str]
    until: Path | None = None


class Cost(NamedTuple):
    """What a stage took. Of the peaks, `resident` counts mapped weight files and `own` does not."""

    stage: str
    seconds: float
    resident_gib: float
    own_gib: float


def prepare(work: Path, name: str, small: bool) -> None:
    """Write images, questions, the model and the expert, as far as they are not there."""
    if not (work / "data" / "test.json").is_file():
        write_sample(work / "data", train=6, test=2)
    if not (work / "base" / "config.json").is_file():
        write_checkpoint(work / "base", MODELS[name], shape_of(name, small))
    if not (small or (work / "unimed-l.pt").is_file()):
        write_unimed(work / "unimed-l.pt", open_clip_visual("ViT-L-14-336-quickgelu"))


def shape_of(name: str, small: bool) -> published.Shape:
    """Return the sizes of a model."""
    return SMALL[name] if small else MODELS[name].shape


def write_checkpoint(folder: Path, model: Model, shape: published.Shape) -> None:
    """Write the model's folder, shard by shard: no more than a shard is in memory."""
    tower = "./vit/clip"
    (folder / tower).mkdir(parents=True, exist_ok=True)
    config = published.original_config(shape, model.layout, tower)
    (folder / tower / "config.json").write_text(json.dumps(published.vision_config(shape)))
    if model.layout == "llava_qwen2":
        published.qwen_tokenizer(folder)
    else:
        published.mistral_tokenizer(folder)
    weight_map = {}
    for number, keys in enumerate(_shards(list(published.original_keys(shape))), start=1):
        file = f"model-{number:05d}-of-{SHARDS:05d}.safetensors"
        weight_map |= dict.fromkeys((key for key, _ in keys), file)
        save_file({key: _drawn(key, size) for key, size in keys}, folder / file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(config))  # the last: now it is whole


Keys = list[tuple[str, tuple[int, ...]]]


def _shards(keys: Keys) -> Iterator[Keys]:
    """Cut the keys into parts of about one size."""
    whole = sum(math.prod(size) for _, size in keys)
    parts: list[Keys] = [[] for _ in range(SHARDS)]
    before = 0
    for key, size in keys:
        parts[before * SHARDS // whole].append((key, size))
        before += math.prod(size)
    yield from parts


def _drawn(key: str, size: tuple[int, ...]) -> torch.Tensor:
    """Draw random bfloat16 weights at which activations keep their scale.

    A block of numbers over and over: drawing 7 billion would take longer than the rehearsal.
    """
    count = math.prod(size)
    block = torch.randn(min(count, 1 << 22), generator=torch.Generator().manual_seed(len(key)))
    if "norm" in key and key.endswith("weight"):
        block = 1 + 0.1 * block
    elif len(size) > 1 and "embed" not in key:
        block = block / math.sqrt(math.prod(size[1:]))
    else:
        block = 0.1 * block
    return block.bfloat16().repeat(-(-count // len(block)))[:count].reshape(size)


def stages(name: str, work: Path, small: bool) -> list[Stage]:
    """Return the commands, in the order in which a user needs them."""
    shape = shape_of(name, small)
    side = shape.image // shape.patch
    data, store, run, merged = (work / one for one in ("data", "store", "run", "merged"))
    expert = (
        ["--teacher", "dinov2-small"]
        if small
        else ["--teacher", "unimed-l", "--weights", str(work / "unimed-l.pt")]
    )
    build = ["cache", "build", *expert, "--images", str(data / "images"), "--store", str(store)]
    values = {
        "output": run,
        "model.path": work / "base",
        "model.vision_weights": "checkpoint",
        "data.train": data / "train.json",
        "data.image_root": data,
        "data.workers": 0,
        "targets.store": store,
        "targets.teacher": "dinov2-small" if small else "unimed-l",
        "losses.layer": 2 if small else 20,
        "train.gradient_checkpointing": "true",
        "train.accumulation": 1,
        "train.max_steps": 2,
        "train.save_steps": 1,
        "evaluation.data": data / "test.json",
        "evaluation.image_root": data,
    }
    if MODELS[name].layout == "llava_qwen2":
        del values["model.vision_weights"]  # it always brings its own
    recipe = Path("pipelines") / "recipes" / f"{MODELS[name].recipe}.yaml"
    train = ["student", "train", str(recipe), *(f"{key}={one}" for key, one in values.items())]
    image = str(next(iter(sorted((data / "images").iterdir()))))
    few = ["--max-new-tokens", "4", "--decode", "greedy"]
    ask = ["--image", image, "--question", "Which plane is this slice?", *few]
    score = [*few, "--limit", "2", "--batch-size", "1"]
    return [
        Stage("cache build", [*build, "--grid", f"{side}x{side}", "--batch-size", "2"]),
        Stage("student train --dry-run", [*train, "--dry-run"]),
        Stage("student train, one step", train, run / "checkpoint-1" / "trainer_state.json"),
        Stage("student train --resume, one step", [*train, "--resume"]),
        Stage("medalign generate, 4 tokens", ["medalign", "generate", "--run", str(run), *ask]),
        Stage(
            "medalign evaluate, 2 questions", ["medalign", "evaluate", "--run", str(run), *score]
        ),
        Stage("student export", ["student", "export", str(run), "--to", str(merged)]),
        Stage("generate from the export", ["medalign", "generate", "--run", str(merged), *ask]),
    ]


def measured(stage: Stage) -> Cost:
    """Run a command; return its seconds and the peak memory of its processes together."""
    print("$", " ".join(stage.command), file=sys.stderr, flush=True)
    began = time.perf_counter()
    process = psutil.Popen(stage.command)
    peaks = [0, 0]
    while process.poll() is None:
        if stage.until is not None and stage.until.is_file():
            process.kill()
        now = _memory(process)
        peaks = [max(pair) for pair in zip(peaks, now, strict=True)]
        time.sleep(0.1)
    seconds = time.perf_counter() - began
    if process.returncode != (-signal.SIGKILL if stage.until else 0):
        raise SystemExit(f"{stage.name}: exit status {process.returncode}")
    return Cost(stage.name, round(seconds, 1), *(round(one / 2**30, 2) for one in peaks))


def _memory(process: psutil.Process) -> tuple[int, int]:
    """Return the resident bytes of a process and its children, and those no file is mapped to."""
    resident = own = 0
    try:
        for one in [process, *process.children(recursive=True)]:
            memory = one.memory_info()
            resident += memory.rss
            own += memory.rss - memory.shared
    except psutil.NoSuchProcess:  # just ended
        pass
    return resident, own


def main() -> None:
    """Run what is not done yet; a finished stage's cost is kept in WORK/MODEL/costs.json."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--small", action="store_true")
    chosen = parser.parse_args()
    work = chosen.work.resolve() / chosen.model
    os.chdir(Path(__file__).parents[1])
    # In a process of its own, whose memory the stages then have.
    preparation = multiprocessing.get_context("spawn").Process(
        target=prepare, args=(work, chosen.model, chosen.small)
    )
    preparation.start()
    preparation.join()
    if preparation.exitcode:
        raise SystemExit("the preparation failed")
    kept = work / "costs.json"
    costs = [Cost(*one) for one in json.loads(kept.read_text())] if kept.is_file() else []
    for stage in stages(chosen.model, work, chosen.small)[len(costs) :]:
        costs.append(measured(stage))
        kept.write_text(json.dumps(costs))
    found = {
        "model": chosen.model,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "torch": torch.__version__,
        "costs": [one._asdict() for one in costs],
    }
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
