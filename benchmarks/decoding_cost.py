"""What each decoding method costs over greedy decoding.

Forward passes and seconds per generated token, side by side.

    python benchmarks/decoding_cost.py [--student FOLDER] [--tokens 16] [--rounds 3]

The demo's student (SmolLM2-135M, 8 x 8 patches; LoRA of rank 16 and W in place, not merged) answers
questions of about 110 tokens. No answer ends early: every method generates the same number of
tokens, so that the ratios compare the methods and not the lengths of what they say. Rounds run
through all methods in turn; a ratio is the median over rounds. One thread and processor seconds:
other load hardly changes them, and on an idle machine they are wall seconds.
"""

import argparse
import os
import platform
import statistics
import textwrap
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

GOALS = {"vcd": 2.2, "avisc": 2.2, "m3id": 2.2, "damro": 2.2, "dola": 1.2, "pai": 2.2, "opera": 8.0}
QUESTIONS = (
    "Is the middle occipital gyrus visible in this slice?",
    "Which structures are visible in this slice?",
    "Which structure fills the marked box?",
    "Is this slice axial?",
    "Is the thalamus visible in this slice?",
    "Which plane is this slice?",
    "Is the hippocampus visible in this slice?",
    "Is the superior frontal gyrus visible in this slice?",
)


def student(folder: Path | None) -> tuple[Any, Any]:
    """Return the demo's student with an adapter on it, and its processor."""
    from pipelines.decoding.prompts import plain_model
    from pipelines.demo.student import assemble, image_processor, language_model
    from shared.recipe import make_recipe
    from student_train.models import load_base
    from student_train.models.base import make_base
    from student_train.student import make_student

    if folder is None:
        language, tokenizer = language_model()
        base = make_base(assemble(language, tokenizer), tokenizer, image_processor(), "chatml")
    else:
        base = load_base(str(folder))
    recipe = make_recipe({"lora": {"r": 16}, "losses": {"layer": 18}})
    made = make_student(base.model, base.image_token_id, recipe)
    return plain_model(made.model).eval(), base.processor()


def measure(
    tokens: int, rounds: int, folder: Path | None
) -> dict[tuple[str, int], dict[str, float]]:
    """Return forward passes per token and the rounds' seconds per token.

    For each (method, batch size).
    """
    import torch
    from PIL import Image

    from pipelines.decoding.generation import Limits
    from pipelines.decoding.methods import NAMES, decoding
    from pipelines.decoding.prefix import prefilled
    from pipelines.decoding.prompts import collate, counted

    torch.set_num_threads(1)
    model, processor = student(folder)
    picture = Image.effect_mandelbrot((200, 220), (-2, -1.5, 1, 1.5), 60).convert("RGB")
    encoded = [processor.encode(question, [picture]) for question in QUESTIONS]
    batches = {
        size: collate(encoded[:size], QUESTIONS[:size], model, processor.tokenizer.pad_token_id)
        for size in (1, 8)
    }
    limits = Limits(tokens, (10**9,))  # an end token that does not exist
    for prompts in batches.values():  # warm-up
        decoding("greedy").decode(
            model, prompts, Limits(2, (10**9,)), decoding("greedy").settings, 0
        )
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for turn in range(rounds):
        for name in NAMES:
            for size, prompts in batches.items():
                method = decoding(name)
                began = time.process_time()
                ready = prefilled(model, prompts)
                with counted(model) as counts:
                    answers = method.decode(model, ready, limits, method.settings, 0)
                seconds = time.process_time() - began
                assert all(len(answer) == tokens for answer in answers)
                entry = found.setdefault(
                    (name, size), {"passes": counts["calls"] / tokens, "seconds": []}
                )
                entry["seconds"].append(seconds / tokens / size)
                print(f"round {turn}: {name}, batch {size}: {seconds:.1f} s", flush=True)
    return found


def table(found: dict[tuple[str, int], Any], tokens: int, rounds: int, command: str) -> str:
    """Return the command, where it was measured and the table, as the page states them."""
    import torch
    import transformers

    greedy = found["greedy", 1]["seconds"]
    where = (
        f"{datetime.now(UTC).date()}, one thread on {platform.machine()} with {os.cpu_count()} "
        f"cores, torch {torch.__version__}, transformers {transformers.__version__}, float32. "
        f"{rounds} rounds of {tokens} new tokens; seconds are processor seconds. Published "
        "settings."
    )
    lines = [
        "```bash skip: takes minutes; the table below is its result",
        command,
        "```",
        "",
        textwrap.fill(where, 100),
        "",
        "| method | passes per token | x greedy | seconds per token | x greedy | goal | batch 8 |",
        "|---|---|---|---|---|---|---|",
    ]
    for (name, size), entry in found.items():
        if size != 1:
            continue
        ratio = statistics.median(
            mine / plain for mine, plain in zip(entry["seconds"], greedy, strict=True)
        )
        passes = entry["passes"] / found["greedy", 1]["passes"]
        goal = (
            f"<= {GOALS[name]}{' ' if ratio <= GOALS[name] else ' (missed)'}".strip()
            if name in GOALS
            else "-"
        )
        together = found.get((name, 8))
        gain = "-"
        if together is not None:
            pairs = zip(entry["seconds"], together["seconds"], strict=True)
            gain = f"{statistics.median(one / eight for one, eight in pairs):.1f}"
        seconds = statistics.median(entry["seconds"])
        lines.append(
            f"| {name} | {entry['passes']:.2f} | {passes:.2f} | {seconds:.4f} | {ratio:.2f} | "
            f"{goal} | {gain} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure and print what docs/performance-decoding.md states."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--student",
        type=Path,
        help="a demo student's folder; default: built from the packaged weights",
    )
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    found = measure(arguments.tokens, arguments.rounds, arguments.student)
    command = (
        f"python benchmarks/decoding_cost.py --tokens {arguments.tokens} --rounds "
        f"{arguments.rounds}"
    )
    print(table(found, arguments.tokens, arguments.rounds, command))


if __name__ == "__main__":
    main()
