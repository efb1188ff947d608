"""What one GPU does with both stages; writes `docs/gpu/CARD.json` and the table of docs/gpu.md.

    python -m benchmarks.gpu_card
    python -m benchmarks.gpu_card --small --device cpu --out /tmp/card
    python -m benchmarks.gpu_card --page

- **build**: images per second of `cache build`'s stream, from files to published segments, over the
  encoder's bare forward on batches that are on the card already: a ViT-L/14-336, random weights.
- **student**: a step (forward, backward, AdamW) of the three terms over one of LoRA of rank 32, on
  32 layers of LLaVA-Med's width, 726 tokens a sample, 576 of them an image, without checkpointing.
- **tap**: a forward pass that observes layer l over one that does not.
- **memory**: the peak of a step, each arm alone on the card.

All in bfloat16. The two of a pair take turns, and a ratio is the median over rounds. `--small` runs
the same code at small sizes; its file says so, and the page shows no such file.
"""

import argparse
import gc
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from benchmarks.gpu_page import CARDS, PAGE, write_page
from benchmarks.training_arms import batch_of, build, real, share, step
from pipelines.documents import write_document

TEXT, ANSWER = 150, 30  # with 576 patches the 726 tokens of the goal
LORA = {"r": 32, "alpha": 16, "dropout": 0.05}
ARMS = ("lora", "medalign")

Made = tuple[Any, Any, Any]  # student, recipe, optimiser


class Sizes(NamedTuple):
    """How much is run."""

    architecture: str
    images: int
    image_batch: int
    student: dict[str, int]
    batch: int
    rounds: int


TRUE = Sizes("ViT-L-14-336-quickgelu", 2048, 64, real(32), 4, 10)
SMALL = Sizes(
    "ViT-B-32-quickgelu",
    4,
    2,
    {
        "layers": 3,
        "width": 64,
        "heads": 4,
        "groups": 2,
        "inner": 128,
        "vocabulary": 512,
        "patches": 16,
    },
    2,
    2,
)


def settled(device: str) -> None:
    """Wait for what the card still computes."""
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(work: Callable[[], Any], device: str) -> float:
    """Wall seconds of `work`, with what it left to the card."""
    settled(device)
    begin = time.perf_counter()
    work()
    settled(device)
    return time.perf_counter() - begin


def write_pictures(folder: Path, count: int, side: int) -> None:
    """Distinct smooth grey pictures as PNG files, no square ones: an image is padded as always."""
    random = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for number in range(count):
        levels = random.integers(0, 256, (9, 9), dtype=np.uint8)
        picture = Image.fromarray(levels).resize((side, side * 3 // 4), Image.Resampling.BICUBIC)
        picture.save(folder / f"{number:05}.png")


def measure_build(sizes: Sizes, device: str, workers: int) -> dict[str, float]:
    """Images per second of the stream and of the bare forward, in turns."""
    from shared.imaging import Grid
    from shared.targets import TargetWriter
    from teacher_cache.distinct import distinct_images
    from teacher_cache.settings import Settings, load_for
    from teacher_cache.sources import find_images
    from teacher_cache.stream import prepare, stream
    from tests.fixtures.teacher_checkpoints import open_clip_visual

    rates: dict[str, list[float]] = {"bare": [], "build": []}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        torch.save(open_clip_visual(sizes.architecture), folder / "teacher.pt")
        settings = Settings(grid=Grid(24, 24), dtype="bf16")
        name = f"open_clip:{sizes.architecture}"
        teacher, identity = load_for(name, str(folder / "teacher.pt"), settings, device)
        write_pictures(folder / "images", sizes.images, 336)
        references = find_images(str(folder / "images"))
        by_key = distinct_images(references, workers).by_key
        first = references[: sizes.image_batch]
        pixels = torch.stack([prepare(one, teacher.preprocessing, "pad")[0] for one in first])
        pixels = pixels.to(device, next(teacher.model.parameters()).dtype)
        passes = max(1, sizes.images // sizes.image_batch)

        @torch.inference_mode()
        def bare() -> None:
            for _ in range(passes):
                teacher.model(pixels)

        def whole(store: Path) -> None:
            with TargetWriter(store, identity) as writer:
                flow = stream(
                    teacher,
                    identity,
                    list(by_key),
                    by_key,
                    writer.add,
                    batch_size=sizes.image_batch,
                    workers=workers,
                    device=device,
                )
                with closing(flow):
                    assert all(error is None for _, error in flow)

        bare()
        for number in range(3):
            rates["bare"].append(passes * len(pixels) / seconds(bare, device))
            store = folder / f"store{number}"
            rates["build"].append(len(by_key) / seconds(partial(whole, store), device))
    ratio = statistics.median(a / b for a, b in zip(rates["build"], rates["bare"], strict=True))
    return {
        "build_images_per_second": statistics.median(rates["build"]),
        "bare_images_per_second": statistics.median(rates["bare"]),
        "build_over_bare": ratio,
    }


def made(arm: str, sizes: Sizes, device: str) -> Made:
    """Make an arm's student on the card, its base in bfloat16, with recipe and optimiser."""
    found: Made = build(
        arm, **sizes.student, precision="bf16", attention="sdpa", lora=LORA, device=device
    )
    return found


def inputs(sizes: Sizes, device: str) -> Any:
    """Make a batch on the card."""
    chosen = sizes.student
    batch = batch_of(sizes.batch, chosen["vocabulary"], chosen["patches"], TEXT, ANSWER)
    return {
        name: one.to(device) if isinstance(one, torch.Tensor) else one
        for name, one in batch.items()
    }


def measure_memory(sizes: Sizes) -> dict[str, float]:
    """Peak bytes on the card of a step, each arm alone on it."""
    found = {}
    batch = inputs(sizes, "cuda")
    for arm in ARMS:
        student = made(arm, sizes, "cuda")
        step(*student, batch=batch, arm=arm)  # AdamW's moments are made by the first
        torch.cuda.reset_peak_memory_stats()
        step(*student, batch=batch, arm=arm)
        found[f"{arm}_peak_bytes"] = float(torch.cuda.max_memory_allocated())
        del student
        gc.collect()
        torch.cuda.empty_cache()
    found["memory_over_lora"] = found["medalign_peak_bytes"] / found["lora_peak_bytes"]
    return found


def measure_steps(sizes: Sizes, device: str) -> dict[str, float]:
    """Seconds of a step of both arms in turns, and what observing adds to a forward pass."""
    from student_train.run.terms import term_sums

    batch = inputs(sizes, device)
    students = {arm: made(arm, sizes, device) for arm in ARMS}
    share(students["lora"][0].model, students["medalign"][0].model)
    gc.collect()
    times: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for round_ in range(sizes.rounds + 1):
        for arm in ARMS if round_ % 2 else ARMS[::-1]:
            taken = seconds(partial(step, *students[arm], batch=batch, arm=arm), device)
            if round_:  # the first round warms up
                times[arm].append(taken)
    student, recipe, _ = students["medalign"]

    @torch.inference_mode()
    def forward(channel: Any) -> None:
        with torch.autocast(device, torch.bfloat16):
            term_sums(student.model, channel, batch, recipe)

    taps = []
    for round_ in range(sizes.rounds + 1):
        observed = seconds(lambda: forward(student.channel), device)
        plain = seconds(lambda: forward(None), device)
        if round_:
            taps.append(observed / plain)
    pairs = zip(times["medalign"], times["lora"], strict=True)
    return {
        "lora_step_seconds": statistics.median(times["lora"]),
        "medalign_step_seconds": statistics.median(times["medalign"]),
        "step_over_lora": statistics.median(a / b for a, b in pairs),
        "lora_samples_per_second": sizes.batch / statistics.median(times["lora"]),
        "samples_per_second": sizes.batch / statistics.median(times["medalign"]),
        "tap_over_forward": statistics.median(taps),
    }


def measure(sizes: Sizes, device: str, workers: int) -> dict[str, Any]:
    """Return a card's document."""
    import transformers

    figures: dict[str, float] = {}
    for name, work in (
        ("build", lambda: measure_build(sizes, device, workers)),
        ("memory", lambda: measure_memory(sizes) if device == "cuda" else {}),
        ("student", lambda: measure_steps(sizes, device)),
    ):
        print(f"{name} ...", file=sys.stderr, flush=True)
        figures |= work()
    return {
        "card": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "small": sizes is not TRUE,
        "date": datetime.now(UTC).date().isoformat(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "sizes": sizes._asdict(),
        "figures": figures,
    }


def main() -> None:
    """Measure and write the card's file, then the page; with `--page` the page alone."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--workers", type=int, default=14)
    parser.add_argument("--out", type=Path, default=CARDS)
    parser.add_argument("--page", action="store_true")
    chosen = parser.parse_args()
    if not chosen.page:
        if chosen.device == "cuda" and not torch.cuda.is_available():
            raise SystemExit("torch sees no GPU; --small --device cpu runs the same code small")
        if chosen.device == "cpu" and not chosen.small:
            raise SystemExit("a CPU does not run the true sizes; add --small")
        if chosen.small and chosen.out == CARDS:
            raise SystemExit("small figures are none of the page's; name a folder with --out")
        sizes = SMALL if chosen.small else TRUE
        document = measure(sizes, chosen.device, chosen.workers)
        name = re.sub(r"[^a-z0-9]+", "-", document["card"].lower()).strip("-")
        chosen.out.mkdir(parents=True, exist_ok=True)
        write_document(chosen.out / f"{name}.json", document)
        print(chosen.out / f"{name}.json")
    if chosen.out == CARDS:
        write_page(PAGE, CARDS)


if __name__ == "__main__":
    main()
