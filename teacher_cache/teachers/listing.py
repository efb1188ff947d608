"""The teachers as `cache teachers` and docs/teachers.md show them.

`python -m teacher_cache.teachers.listing` prints the page's table and lists.
"""

import sys
from collections.abc import Iterator

from teacher_cache.teachers.base import TeacherInfo
from teacher_cache.teachers.registry import OPEN_FAMILIES, TEACHERS

HEAD = ("teacher", "grid", "width", "text tower", "gated", "licence")


def _cells(info: TeacherInfo) -> tuple[str, ...]:
    """Return what stands under `HEAD`; `own` is what the weights of a family decide."""
    width = "own" if info.width is None else str(info.width)
    gated = {None: "own", True: "yes", False: "no"}[info.gated]
    return info.name, info.grid or "own", width, info.text_tower or "own", gated, info.licence


def lines() -> Iterator[str]:
    """Yield the list for a terminal: the head, and one line a teacher."""
    known = [*TEACHERS.values(), *OPEN_FAMILIES]
    rows: list[tuple[str, ...]] = [(*HEAD, "encoder", "weights")]
    rows += [(*_cells(info), info.architecture, info.source) for info in known]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield "  ".join(cells).rstrip()


def page() -> str:
    """Return the page's part: the table of the named teachers, then encoder and weights of all."""
    table = [HEAD, tuple("---" for _ in HEAD)]
    table += [_cells(info) for info in TEACHERS.values()]
    encoders = [
        f"- **`{info.name}`**: {info.architecture}\n  - {info.source}"
        for info in (*TEACHERS.values(), *OPEN_FAMILIES)
    ]
    rows = "\n".join(f"| {' | '.join(row)} |" for row in table)
    return f"{rows}\n\nEncoder and weights of each:\n\n" + "\n".join(encoders) + "\n"


if __name__ == "__main__":
    sys.stdout.write(page())
