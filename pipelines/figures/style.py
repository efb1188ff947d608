"""What the figures share: size, letters, colours that survive grey print and colour blindness.

Colours are Okabe and Ito's (2008), ordered so that neighbours differ in lightness too; kinds are
also told apart by markers and hatches. Maps are viridis, whose lightness rises with the value.
"""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipelines.documents import write_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000", "#F0E442")
MARKERS = ("o", "^", "s", "D", "v", "P", "X", "*")
HATCHES = ("", "////", "....", "xxxx", "\\\\\\\\", "----", "++++", "oo")
INK, PALE = "#222222", "#bbbbbb"
COLUMN = 3.3  # inches: one column of a two-column page
DOTS = 300  # of the PNG, per inch
SETTINGS = {
    "svg.fonttype": "none",
    "svg.hashsalt": "medalign",
    "font.family": "sans-serif",
    "font.size": 7,
    "axes.titlesize": 7,
    "axes.labelsize": 7,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "legend.fontsize": 6.5,
    "hatch.linewidth": 0.5,
    "axes.linewidth": 0.6,
    "text.color": INK,
}


def look(number: int) -> tuple[str, str]:
    """Return marker and colour of the kind `number`; no two of the first 64 are alike."""
    turn, place = divmod(number, len(COLOURS))
    return MARKERS[(place + turn) % len(MARKERS)], COLOURS[place]


def panels(
    width: float, height: float, rows: int, columns: int, heights: Sequence[float] | None = None
) -> "tuple[Figure, NDArray[np.object_]]":
    """Make a figure of `width` x `height` inches with a grid of axes (rows, columns).

    `heights`: of the rows, relative to each other; None: all alike.
    """
    import matplotlib
    from matplotlib.figure import Figure  # not pyplot: no window system, no global state
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    with matplotlib.rc_context(SETTINGS):
        layout = ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
        figure = Figure(figsize=(width, height), layout=layout)
        return figure, figure.subplots(rows, columns, squeeze=False, height_ratios=heights)


def save(figure: "Figure", out: Path, name: str) -> list[Path]:
    """Write `name.png` and `name.svg` into `out`; equal figures are equal files."""
    import matplotlib

    out.mkdir(parents=True, exist_ok=True)
    paths = [out / f"{name}.png", out / f"{name}.svg"]
    with matplotlib.rc_context(SETTINGS):
        figure.savefig(paths[0], dpi=DOTS, metadata={"Software": None})
        figure.savefig(paths[1], metadata={"Date": None, "Creator": None})
    return paths


def write_csv(
    out: Path, name: str, columns: Sequence[str], rows: Iterable[Sequence[object]]
) -> Path:
    """Write the numbers of a figure; floats with six significant digits, None as nothing."""
    import io

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow([f"{one:.6g}" if isinstance(one, float) else one for one in row])
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{name}.csv"
    write_text(path, text.getvalue())
    return path


def bare(axis: "Axes") -> None:
    """Take ticks and frame away."""
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_visible(False)
