"""What each decoding method costs over greedy decoding.

Per token after the prefill, and for whole answers, side by side.

    python benchmarks/decoding_cost.py [--student FOLDER] [--tokens 128] [--rounds 3]

The demo's student (SmolLM2-135M, 8 x 8 patches; LoRA of rank 16 and W in place, not merged) answers
questions of about 110 tokens. No answer ends early: every method generates the same number of
tokens, so that the ratios compare the methods and not the lengths of what they say. Rounds run
through all methods in turn; a ratio is the median over rounds. One thread and processor seconds:
other load hardly changes them, and on an idle machine they are wall seconds.

A token after the prefill is the difference of answers of `--tokens` and of 4 tokens, over the
number of tokens between them. Whole answers hold the prompt's prefill, which an evaluation makes
once for all methods, and all that a method runs beside it.
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

SIZES = (1, 8)
SHORT = 4
# Per token after the prefill, over greedy: at batch 1 and at batch 8.
CONTRASTIVE = ("vcd", "avisc", "m3id", "damro", "pai")
GOALS = {name: {1: 1.7, 8: 1.25} for name in CONTRASTIVE} | {"dola": {1: 1.2}, "opera": {1: 8.0}}
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
    tokens: int, rounds: int, folder: Path | None, names: list[str]
) -> dict[tuple[str, int], dict[str, Any]]:
    """Return the rounds' seconds of a whole batch by answer length, and passes per token.

    For each (method, batch size).
    """
    import torch
    from PIL import Image

    from pipelines.decoding import damro
    from pipelines.decoding.generation import Limits
    from pipelines.decoding.methods import decoding
    from pipelines.decoding.prefix import prefilled
    from pipelines.decoding.prompts import collate, counted

    torch.set_num_threads(1)
    model, processor = student(folder)
    picture = Image.effect_mandelbrot((200, 220), (-2, -1.5, 1, 1.5), 60).convert("RGB")
    encoded = [processor.encode(question, [picture]) for question in QUESTIONS]
    pad = processor.tokenizer.pad_token_id
    batches = {
        size: collate(encoded[:size], QUESTIONS[:size], model, pad, damro.watched) for size in SIZES
    }
    never = (10**9,)  # an end token that does not exist
    for prompts in batches.values():  # warm-up
        decoding("greedy").decode(model, prompts, Limits(2, never), decoding("greedy").settings, 0)
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for turn in range(rounds):
        for name in names:
            for size, prompts in batches.items():
                method = decoding(name)
                entry = found.setdefault((name, size), {SHORT: [], tokens: []})
                for length in (SHORT, tokens):
                    began = time.process_time()
                    ready = prefilled(model, prompts)
                    with counted(model) as counts:
                        answers = method.decode(
                            model, ready, Limits(length, never), method.settings, 0
                        )
                    entry[length].append(time.process_time() - began)
                    assert all(len(answer) == length for answer in answers)
                entry["rows"] = counts["rows"] / size / tokens
                print(f"round {turn}: {name}, batch {size}: {entry[tokens][-1]:.1f} s", flush=True)
    return found


def over_greedy(
    found: dict[tuple[str, int], Any], name: str, size: int, tokens: int
) -> dict[str, float]:
    """Return the medians of a method's ratios to greedy decoding of the same batch and round."""
    mine, plain = found[name, size], found["greedy", size]
    ratios: dict[str, list[float]] = {"token": [], "short": [], "whole": []}
    for short, whole, plain_short, plain_whole in zip(
        mine[SHORT], mine[tokens], plain[SHORT], plain[tokens], strict=True
    ):
        ratios["token"].append((whole - short) / (plain_whole - plain_short))
        ratios["short"].append(short / plain_short)
        ratios["whole"].append(whole / plain_whole)
    return {kind: statistics.median(values) for kind, values in ratios.items()}


def table(found: dict[tuple[str, int], Any], tokens: int, rounds: int, command: str) -> str:
    """Return the command, where it was measured and the table, as the page states them."""
    import torch
    import transformers

    where = (
        f"{datetime.now(UTC).date()}, one thread on {platform.machine()} with {os.cpu_count()} "
        f"cores, torch {torch.__version__}, transformers {transformers.__version__}, float32. "
        f"{rounds} rounds of answers of {SHORT} and of {tokens} tokens; processor seconds. "
        "Published settings."
    )
    head = ("rows per token", "ms per token", "x greedy", "goal", "4 tokens", f"{tokens} tokens")
    lines = ["```bash skip: takes minutes; the tables below are its result", command, "```", ""]
    lines += [textwrap.fill(where, 100)]
    for size in SIZES:
        lines += ["", f"Batch {size}:", "", f"| method | {' | '.join(head)} |", "|---" * 7 + "|"]
        for name in dict.fromkeys(name for name, _ in found):
            entry, ratio = found[name, size], over_greedy(found, name, size, tokens)
            goal = GOALS.get(name, {}).get(size)
            said = "-" if goal is None else f"<= {goal}"
            if goal is not None and ratio["token"] > goal:
                said += " (missed)"
            between = [w - s for s, w in zip(entry[SHORT], entry[tokens], strict=True)]
            each = statistics.median(between) / (tokens - SHORT) / size * 1000
            lines.append(
                f"| {name} | {entry['rows']:.2f} | {each:.1f} | {ratio['token']:.2f} | {said} "
                f"| {ratio['short']:.2f} | {ratio['whole']:.2f} |"
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
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--methods", default="", help="of a shorter table, joined by commas")
    arguments = parser.parse_args()
    from pipelines.decoding.methods import TABLE

    names = ["greedy", *filter(None, arguments.methods.split(","))]
    if not arguments.methods:
        names = list(TABLE)
    found = measure(arguments.tokens, arguments.rounds, arguments.student, names)
    command = (
        f"python benchmarks/decoding_cost.py --tokens {arguments.tokens} --rounds "
        f"{arguments.rounds}"
    )
    command += f" --methods {arguments.methods}" if arguments.methods else ""
    print(table(found, arguments.tokens, arguments.rounds, command))


if __name__ == "__main__":
    main()
