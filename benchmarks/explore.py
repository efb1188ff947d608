"""How long `medalign explore` takes to open few and many items: a ratio, in one run.

    python -m benchmarks.explore [--few 40] [--many 400000] [--folder DIR]

Writes an evaluation of synthetic answers of two rows for each size. Each is opened in a process of
its own, from the command's own functions up to the answers to what the page asks first: the run,
the first page of the list, the last item. Then filters that have to look at every item. Times are
of the wall clock, best of five openings in turns; memory is the process's largest.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from pipelines.evaluation.result import SCHEMA_NUMBER, AnswerLine, write_answers

ROUNDS = 5
QUESTIONS = ("Is the heart enlarged?", "Is there a pleural effusion?", "Which side is affected?")


def write_evaluation(folder: Path, items: int) -> None:
    """Write `result.json` and the answers of LoRA and MEDALIGN."""
    random.seed(0)
    rows = []
    for arm, share in (("LoRA", 0.6), ("MEDALIGN", 0.62)):
        name = f"{arm} + greedy"
        lines: list[AnswerLine] = []
        for place in range(items):
            right = random.random() < share
            lines.append(
                {
                    "id": f"item-{place:07d}",
                    "images": [f"images/{place // 4:06d}.png"],
                    "cluster": f"patient-{place // 16:05d}",
                    "question": f"{QUESTIONS[place % 3]} Answer yes or no.",
                    "reference": "yes" if place % 2 else "no",
                    "prediction": "yes" if bool(place % 2) == right else "no",
                    "scores": dict.fromkeys(
                        ("closed_accuracy", "closed_accuracy_strict", "closed_yes_no"),
                        float(right),
                    ),
                }
            )
        write_answers(folder, name, lines)
        rows.append(
            {
                "method": name, "adapter": arm, "decoding": {"method": "greedy"}, "scores": {},
                "empty": 0, "at_limit": 0, "tokens": items, "seconds_per_token": 0.1,
                "forward_passes_per_token": 1.0, "sequence_passes_per_token": 1.0,
            }
        )  # fmt: skip
    result: dict[str, Any] = {
        "schema": SCHEMA_NUMBER, "rows": rows, "comparisons": [], "identical_outputs": [],
        "power": {}, "controls": None, "question_only": None, "by": [],
        "settings": {
            "preset": "published", "overrides": [], "max_new_tokens": 16, "batch_size": 8,
            "seed": 0, "limit": None, "adapters": {},
        },
        "data": {
            "file": str(folder / "test.json"), "image_root": str(folder), "set": None,
            "split": None, "sha256": "00" * 32, "items": items, "images": items // 4,
            "clusters": items // 16, "cluster": "patient", "without_image": 0, "inferred": {},
            "ceilings": {},
        },
    }  # fmt: skip
    (folder / "result.json").write_text(json.dumps(result))


def measure(folder: Path) -> dict[str, float]:
    """Open an evaluation and ask what the page asks; seconds and MiB."""
    from pipelines.explore.opening import open_explorer
    from pipelines.explore.search import Filter

    start = time.perf_counter()
    explorer = open_explorer(folder, folder)
    items = explorer.run()["items"]
    explorer.items(Filter(), 0)
    found = {"open and list": time.perf_counter() - start}
    found["the same, imports too"] = time.time() - psutil.Process().create_time()
    start = time.perf_counter()
    explorer.item(items // 2)
    found["an item in the middle"] = time.perf_counter() - start
    last = f"patient-{(items - 1) // 16:05d}"
    filters = {
        "first page of a filter": Filter(turn="gained", a=0, b=1),
        "a filter over all items": Filter(cluster=last),
        "another one, with turns": Filter(turn="lost", a=0, b=1, cluster=last),
        "the same again": Filter(turn="lost", a=0, b=1, cluster=last),
    }
    for name, wanted in filters.items():
        start = time.perf_counter()
        place: int | None = 0
        while place is not None:
            page = explorer.items(wanted, place)
            place = None if "first" in name else page["following"]
        found[name] = time.perf_counter() - start
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    found["MiB"] = int(status.partition("VmHWM:")[2].split()[0]) / 1024
    explorer.close()
    return found


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--few", type=int, default=40)
    parser.add_argument("--many", type=int, default=400_000)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure is not None:
        print(json.dumps(measure(arguments.measure)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        sizes = {"few": arguments.few, "many": arguments.many}
        for name, items in sizes.items():
            (folder / name).mkdir(parents=True, exist_ok=True)
            write_evaluation(folder / name, items)
        best: dict[str, dict[str, float]] = {name: {} for name in sizes}
        for _ in range(ROUNDS):
            for name in sizes:
                words = [sys.executable, "-m", "benchmarks.explore", "--measure", folder / name]
                done = subprocess.run(words, capture_output=True, text=True, check=True)
                for what, value in json.loads(done.stdout).items():
                    best[name][what] = min(value, best[name].get(what, value))
        print(f"{'':26}{arguments.few:>12,} items{arguments.many:>12,} items{'ratio':>8}")
        for what, small in best["few"].items():
            large = best["many"][what]
            unit = "MiB" if what == "MiB" else "ms"
            scale = 1 if what == "MiB" else 1000
            shown = f"{small * scale:>13.1f} {unit:4}{large * scale:>14.1f} {unit:4}"
            print(f"{what:26}{shown}{large / small:>8.2f}")


if __name__ == "__main__":
    main()
