"""Stage one's speed.

`cache build` over the bare forward pass, over the authors' recipe, and two ranks over one.

    python -m benchmarks.cache_build [--images 32] [--rounds 3] [--rank-images 64]

- **bare**: the encoder's forward pass alone, batches of 8 already in memory.
- **build**: from image files to published segments: hash, decode, square, encode, interpolate,
  similarity, compress, flush; without loading the model.
- **recipe**: the authors' notebooks as described: two passes over the files with batch 1, the
  attention weights of every layer kept, the whole float32 matrix, two pickles.

One torch thread each; the three take turns, and a ratio is the median over rounds. Processor
seconds count every thread of the process and hardly depend on other load; wall seconds show what
the overlap gains on top where a core is free. Two ranks against one are wall seconds of `torchrun`
(as the build reports them), so they need two free cores.
"""

import argparse
import json
import os
import pickle
import platform
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

BATCH = 8
SLICES = {"axial": range(40, 140), "coronal": range(40, 200)}  # of MNI152; left equals right
GOALS = {"bare": 0.90, "recipe": 2.0, "ranks": 1.9}


class Seconds(NamedTuple):
    """Wall and processor seconds."""

    wall: float
    processor: float


def timed(work: Callable[[], Any]) -> Seconds:
    wall, processor = time.perf_counter(), time.process_time()
    work()
    return Seconds(time.perf_counter() - wall, time.process_time() - processor)


def write_images(folder: Path, count: int) -> None:
    """Real DICOM images and MNI152 slices as PNG files of at most 640 pixels a side.

    Slices through the brain alone: one of nothing but air is no image.
    """
    from benchmarks.real_features import real_images
    from shared.imaging import open_image, parse_reference

    references = real_images()
    [volume] = {text.partition("#")[0] for text in references if "#" in text}
    references = [text for text in references if "#" not in text]
    references += [f"{volume}#{axis}={place}" for axis in SLICES for place in SLICES[axis]]
    if count > len(references):
        raise SystemExit(f"{count} images are asked for; there are {len(references)}")
    folder.mkdir(parents=True)
    for number, text in enumerate(references[:count]):
        image = open_image(parse_reference(text))
        scale = 640 / max(image.size)
        image.resize((round(image.width * scale), round(image.height * scale))).save(
            folder / f"{number:03}.png"
        )


def random_vit_b(folder: Path) -> tuple[str, str]:
    """Write a ViT-B/16 of UniMed-CLIP's size with random weights: teacher and weights file."""
    import open_clip

    torch.manual_seed(0)
    model = open_clip.create_model("ViT-B-16-quickgelu", pretrained=None)
    tensors = {
        name: value for name, value in model.state_dict().items() if name.startswith("visual.")
    }
    torch.save(tensors, folder / "vit_b16.pt")
    return "open_clip:ViT-B-16-quickgelu", str(folder / "vit_b16.pt")


def recipe_pass(model: Any, pixels: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """One eager pass that keeps every layer's attention weights: (last block's tokens, weights)."""
    kept = []
    if hasattr(model, "blocks"):
        x = model.norm_pre(model._pos_embed(model.patch_embed(pixels)))
        for block in model.blocks:
            attention, h = block.attn, block.norm1(x)
            b, t, _ = h.shape
            q, k, v = (
                attention.qkv(h).reshape(b, t, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
            )
            weights = ((q * attention.scale) @ k.transpose(-2, -1)).softmax(-1)
            kept.append(weights)
            x = x + block.ls1(attention.proj((weights @ v).transpose(1, 2).reshape(b, t, -1)))
            x = x + block.ls2(block.mlp(block.norm2(x)))
        return x, kept
    x = (
        embedded(model, pixels).transpose(0, 1).contiguous()
    )  # tokens first, as in the authors' fork
    for block in model.transformer.resblocks:
        h = block.ln_1(x)
        attended, weights = block.attn(h, h, h, need_weights=True, average_attn_weights=True)
        kept.append(weights)
        x = x + attended
        x = x + block.mlp(block.ln_2(x))
    return x.transpose(0, 1), kept


def embedded(model: Any, pixels: torch.Tensor) -> torch.Tensor:
    x = model.conv1(pixels).flatten(2).transpose(1, 2)
    first = model.class_embedding + torch.zeros(len(x), 1, x.shape[-1])
    return model.ln_pre(torch.cat([first, x], 1) + model.positional_embedding)


def compare(
    teacher_name: str, weights: str | None, images: int, rounds: int
) -> dict[str, list[Seconds]]:
    """Run bare, build and recipe in turn; seconds of each round."""
    from shared.imaging import Grid
    from shared.targets import TargetWriter
    from teacher_cache.distinct import distinct_images
    from teacher_cache.settings import Settings, load_for
    from teacher_cache.sources import find_images
    from teacher_cache.stream import prepare, stream

    torch.set_num_threads(1)
    settings = Settings(grid=Grid(24, 24))
    teacher, identity = load_for(teacher_name, weights, settings, "cpu")
    found: dict[str, list[Seconds]] = {"bare": [], "build": [], "recipe": []}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_images(folder / "images", images)
        references = find_images(str(folder / "images"))
        ready = [prepare(reference, teacher.preprocessing, "pad")[0] for reference in references]
        batches = [torch.stack(ready[start : start + BATCH]) for start in range(0, images, BATCH)]

        @torch.inference_mode()
        def bare() -> None:
            for batch in batches:
                teacher.model(batch)

        def build(store: Path) -> None:
            by_key = distinct_images(references, 2).by_key
            with TargetWriter(store, identity) as writer:
                flow = stream(
                    teacher,
                    identity,
                    list(by_key),
                    by_key,
                    writer.add,
                    batch_size=BATCH,
                    workers=2,
                    device="cpu",
                )
                with closing(flow):
                    assert all(error is None for _, error in flow)

        @torch.inference_mode()
        def recipe(out: Path) -> None:
            matrices, attentions = {}, {}
            side = teacher.grid.rows
            for reference in references:
                x, _ = recipe_pass(
                    teacher.model, prepare(reference, teacher.preprocessing, "crop")[0][None]
                )
                tokens = x[:, -teacher.grid.size :].transpose(1, 2).reshape(1, -1, side, side)
                if side != 24:
                    tokens = torch.nn.functional.interpolate(tokens, (24, 24), mode="bilinear")
                unit = torch.nn.functional.normalize(tokens.flatten(2)[0].T, dim=-1)
                matrices[str(reference)] = (unit @ unit.T).numpy()
            for reference in references:
                _, kept = recipe_pass(
                    teacher.model, prepare(reference, teacher.preprocessing, "crop")[0][None]
                )
                last = kept[-1].mean(1) if kept[-1].ndim == 4 else kept[-1]
                row = last[:, 0, -teacher.grid.size :].reshape(1, 1, side, side)
                row = torch.nn.functional.interpolate(row / row.max(), (24, 24), mode="bilinear")
                attentions[str(reference)] = row.flatten().numpy()
            out.with_suffix(".cos.pkl").write_bytes(pickle.dumps(matrices))
            out.with_suffix(".attn.pkl").write_bytes(pickle.dumps(attentions))

        bare()
        for number in range(rounds):
            found["bare"].append(timed(bare))
            found["build"].append(timed(partial(build, folder / f"store{number}")))
            found["recipe"].append(timed(partial(recipe, folder / f"recipe{number}")))
            latest = ", ".join(
                f"{kind} {rounds[-1].processor:.1f} s" for kind, rounds in found.items()
            )
            print(
                f"{teacher_name}, round {number + 1}: {latest} of processor time",
                file=sys.stderr,
                flush=True,
            )
    return found


def ranks(images: int, rounds: int) -> dict[int, list[float]]:
    """Images per second under `torchrun`: one rank and two, dinov2-small, one thread each."""
    rates: dict[int, list[float]] = {1: [], 2: []}
    root = Path(__file__).resolve().parents[1]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    with tempfile.TemporaryDirectory() as scratch:
        write_images(Path(scratch) / "images", images)
        for number in range(rounds):
            for count, found in rates.items():
                store = Path(scratch) / f"store{count}-{number}"
                command = [
                    sys.executable,
                    "-m",
                    "torch.distributed.run",
                    "--standalone",
                    "--nproc-per-node",
                    str(count),
                ]
                command += ["-m", "teacher_cache", "build", "--teacher", "dinov2-small", "--json"]
                command += ["--images", f"{scratch}/images", "--store", str(store)]
                result = subprocess.run(
                    command, env=environment, capture_output=True, text=True, check=True
                )
                found.append(json.loads(result.stdout)["images_per_second"])
    return rates


def table(
    measured: dict[str, dict[str, list[Seconds]]], images: int, rates: dict[int, list[float]]
) -> str:
    """Write what was measured as Markdown."""
    lines = [
        "| encoder | images/s: bare | build | recipe | figure | processor time | wall time | goal "
        "|",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, found in measured.items():
        speeds = [
            f"{images / statistics.median(s.wall for s in found[kind]):.2f}"
            for kind in ("bare", "build", "recipe")
        ]
        for other, label in (("bare", "build over bare"), ("recipe", "build over recipe")):
            ratios = [
                [
                    getattr(o, clock) / getattr(b, clock)
                    for o, b in zip(found[other], found["build"], strict=True)
                ]
                for clock in ("processor", "wall")
            ]
            cells = [f"{statistics.median(r):.2f} ({min(r):.2f} to {max(r):.2f})" for r in ratios]
            goal = f">= {GOALS[other]:.2f}"
            lines.append(
                f"| {name} | {' | '.join(speeds)} | {label} | {' | '.join(cells)} | {goal} |"
            )
    if rates[1]:
        gains = [two / one for one, two in zip(rates[1], rates[2], strict=True)]
        one, two = (statistics.median(rates[count]) for count in (1, 2))
        spread = f"{statistics.median(gains):.2f} ({min(gains):.2f} to {max(gains):.2f})"
        lines += [
            "",
            "| ranks (dinov2-small, one thread each) | one | two | two over one | goal |",
            "|---|---|---|---|---|",
            f"| images/s | {one:.2f} | {two:.2f} | {spread} | >= {GOALS['ranks']} |",
        ]
    return "\n".join(lines) + "\n"


def processor_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().split("\n"):
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rank-images", type=int, default=64)
    parser.add_argument("--rank-rounds", type=int, default=3)
    options = parser.parse_args()
    before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as scratch:
        large, weights = random_vit_b(Path(scratch))
        measured = {
            "ViT-B/16, 224, random weights": compare(
                large, weights, options.images, options.rounds
            ),
            "dinov2-small, 336": compare("dinov2-small", None, options.images, options.rounds),
        }
    rates = (
        ranks(options.rank_images, options.rank_rounds) if options.rank_rounds else {1: [], 2: []}
    )
    head = (
        f"{datetime.now(UTC):%Y-%m-%d}, {processor_name()}, {os.cpu_count()} cores, torch "
        f"{torch.__version__}, fp32; load average before {before:.1f}. {options.images} images, "
        f"{options.rounds} rounds in turn, median (smallest to largest)."
    )
    print(
        "```bash skip: takes minutes; the tables below are its result",
        f"python -m benchmarks.cache_build {' '.join(sys.argv[1:])}",
        f"```\n\n{textwrap.fill(head, 100)}\n",
        table(measured, options.images, rates),
        sep="\n",
    )


if __name__ == "__main__":
    main()
