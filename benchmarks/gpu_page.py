"""The table of docs/gpu.md, made from the files that `benchmarks.gpu_card` wrote."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE, CARDS = DOCS / "gpu.md", DOCS / "gpu"
BEGIN, END = "<!-- cards: begin -->", "<!-- cards: end -->"
GB = 1e9


class Row(NamedTuple):
    """A row of the table; `goal` is what one H100 shall reach."""

    what: str
    figure: str
    goal: str
    reached: Callable[[float], bool]
    written: Callable[[float], str]


def _any(_: float) -> bool:
    return True


ROWS = (
    Row(
        "`cache build`, ViT-L/14-336: images/s",
        "build_images_per_second",
        ">= 1,000",
        lambda value: value >= 1000,
        "{:,.0f}".format,
    ),
    Row(
        "the same over the bare forward",
        "build_over_bare",
        ">= 0.97",
        lambda value: value >= 0.97,
        "{:.3f}".format,
    ),
    Row(
        "a step of three terms over LoRA",
        "step_over_lora",
        "<= 1.005",
        lambda value: value <= 1.005,
        "{:.4f}".format,
    ),
    Row(
        "memory of three terms over LoRA",
        "memory_over_lora",
        "<= 1.01",
        lambda value: value <= 1.01,
        "{:.4f}".format,
    ),
    Row(
        "samples/s of 726 tokens, 7B, LoRA r 32",
        "samples_per_second",
        ">= 13",
        lambda value: value >= 13,
        "{:.1f}".format,
    ),
    Row("a forward with the tap over one without", "tap_over_forward", "", _any, "{:.4f}".format),
    Row(
        "peak memory of three terms, GB",
        "medalign_peak_bytes",
        "",
        _any,
        lambda value: f"{value / GB:.1f}",
    ),
)


def cards_in(folder: Path) -> list[dict[str, Any]]:
    """Return the documents of a folder's cards, in the order of their names; no small ones."""
    found = [json.loads(file.read_text("utf-8")) for file in sorted(folder.glob("*.json"))]
    return [one for one in found if not one["small"]]


def table(cards: list[dict[str, Any]]) -> str:
    """Write goals beside what was measured; a missed goal says so."""
    names = [one["card"] for one in cards]
    lines = []
    if not cards:
        lines += ["**No GPU was had: nothing below is measured.** The goals are for one H100.", ""]
    lines.append(f"| figure | goal | {' | '.join(names or ['measured'])} |")
    lines.append("|---" * (2 + max(1, len(cards))) + "|")
    for row in ROWS:
        cells = [_cell(row, one["figures"].get(row.figure)) for one in cards] or ["-"]
        lines.append(f"| {row.what} | {row.goal or '-'} | {' | '.join(cells)} |")
    for one in cards:
        lines += ["", f"{one['card']}: {one['date']}, torch {one['torch']}, transformers "]
        lines[-1] += f"{one['transformers']}."
    return "\n".join(lines)


def _cell(row: Row, value: float | None) -> str:
    if value is None:
        return "-"
    return row.written(value) + ("" if row.reached(value) else " (missed)")


def page_with(text: str, cards: list[dict[str, Any]]) -> str:
    """Return a page's text with the table between its two marks."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the page lacks {BEGIN} or {END}")
    return f"{before}{BEGIN}\n\n{table(cards)}\n\n{END}{after}"


def write_page(page: Path, folder: Path) -> None:
    """Make the page's table again from the cards of a folder."""
    page.write_text(page_with(page.read_text("utf-8"), cards_in(folder)), "utf-8")
