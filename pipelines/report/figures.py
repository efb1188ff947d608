"""The report's figures, each as SVG text that goes straight into the page."""

import io
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

ARM_COLOURS = {"LoRA": "#b4631a", "MEDALIGN": "#1f5fa8"}
_OTHER = "#555555"
_INK, _GRID = "#222222", "#dddddd"
LOSSES = {
    "loss_lm": "L_LM, answers",
    "loss_vis": "L_vis, visual alignment",
    "loss_att": "L_att, attention alignment",
}

Picture = NDArray[np.uint8]


class AttentionRow(NamedTuple):
    """One image with the attention over its patches by who looks.

    Teacher first, where its store holds E_a, then the students.
    """

    title: str
    picture: Picture  # (side, side) grey or (side, side, 3), the square that the student sees
    maps: dict[str, NDArray[np.float64]]  # (rows, columns), renormalised over the visible patches
    divergence: dict[str, float]  # KL(teacher || student), nats; none for the teacher


def loss_curves(histories: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """Draw the three terms over the steps, a line per arm.

    An arm without a term has no line there.
    """
    figure, axes = _figure(10.5, 3.0, 1, 3)
    for axis, (name, title) in zip(axes[0], LOSSES.items(), strict=True):
        drawn = 0
        for arm, history in histories.items():
            points = [(entry["step"], entry[name]) for entry in history if name in entry]
            if points:
                drawn += 1
                steps, values = zip(*points, strict=True)
                axis.plot(
                    steps, values, color=ARM_COLOURS.get(arm, _OTHER), label=arm, linewidth=1.6
                )
        axis.set_title(title, fontsize=10, loc="left")
        axis.set_xlabel("step")
        axis.grid(color=_GRID, linewidth=0.6)
        axis.set_ylim(bottom=min(0.0, axis.get_ylim()[0]))
        if drawn:
            axis.legend(frameon=False, fontsize=9)
        else:
            axis.text(
                0.5,
                0.5,
                "not trained in this run",
                ha="center",
                transform=axis.transAxes,
                color=_OTHER,
            )
    return _svg(figure, "losses")


def attention_figure(rows: Sequence[AttentionRow]) -> str:
    """Draw images in rows; columns are the image, the teacher's attention, and each student's."""
    columns = ["image", *rows[0].maps]
    figure, axes = _figure(2.1 * len(columns), 2.35 * len(rows), len(rows), len(columns))
    for row, line in zip(rows, axes, strict=True):
        for axis, column in zip(line, columns, strict=True):
            _bare(axis)
            _show(axis, row.picture)
            if column == "image":
                axis.set_title(row.title, fontsize=9, loc="left")
                continue
            _overlay(axis, row.maps[column], row.picture.shape[0])
            note = f"\nKL {row.divergence[column]:.2f}" if column in row.divergence else "\n"
            axis.set_title(
                column + note, fontsize=9, loc="left", color=ARM_COLOURS.get(column, _INK)
            )
    return _svg(figure, "attention")


def similarity_figure(
    picture: Picture,
    similarity: NDArray[np.float64],
    grid: tuple[int, int],
    patch: int,
    visible: NDArray[np.bool_],
) -> str:
    """Draw one patch of an image, its similarity to every other patch, and the whole matrix.

    `similarity` is (N, N); patches that are not `visible` (N,) show padding only and stay plain
    over the image.
    """
    figure, (axes,) = _figure(10.5, 3.5, 1, 3)
    side = picture.shape[0]
    height, width = side / grid[0], side / grid[1]
    row, column = divmod(patch, grid[1])
    for axis in axes[:2]:
        _bare(axis)
        _show(axis, picture)
    axes[0].set_title(f"image and patch {patch}", fontsize=10, loc="left")
    values = np.where(visible, similarity[patch], np.nan)
    low = float(np.nanmin(values))
    shown = axes[1].imshow(
        values.reshape(grid),
        extent=(0, side, side, 0),
        cmap="magma",
        alpha=0.72,
        vmin=low,
        vmax=1,
        zorder=2,
    )
    axes[1].set_title("its cosine similarity to each patch", fontsize=10, loc="left")
    figure.colorbar(shown, ax=axes[1], fraction=0.046, pad=0.03)
    for axis in axes[:2]:
        box = ((column * width, row * height), width, height)
        axis.add_patch(_rectangle(*box))
    matrix = axes[2].imshow(similarity, cmap="magma", vmin=low, vmax=1)
    axes[2].axhline(patch, color="#39c0ff", linewidth=1.2)
    axes[2].set_title(
        f"the whole matrix S_e, {len(similarity)} x {len(similarity)}", fontsize=10, loc="left"
    )
    axes[2].set_xlabel("patch")
    axes[2].set_ylabel("patch")
    figure.colorbar(matrix, ax=axes[2], fraction=0.046, pad=0.03)
    return _svg(figure, "similarity")


def _rectangle(corner: tuple[float, float], width: float, height: float) -> "Rectangle":
    from matplotlib.patches import Rectangle

    return Rectangle(
        corner, width, height, fill=False, edgecolor="#39c0ff", linewidth=1.8, zorder=3
    )


def _show(axis: "Axes", picture: Picture) -> None:
    side = picture.shape[0]
    axis.imshow(picture, cmap="gray", extent=(0, side, side, 0), vmin=0, vmax=255, zorder=1)


def _overlay(axis: "Axes", values: NDArray[np.float64], side: int) -> None:
    # A few patches often take most of the attention; scaled to them, nothing else could be told
    # apart.
    top = float(np.quantile(values, 0.95)) or float(values.max())
    axis.imshow(
        values, extent=(0, side, side, 0), cmap="inferno", vmin=0, vmax=top, alpha=0.65, zorder=2
    )


def _bare(axis: "Axes") -> None:
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_visible(False)


def _figure(
    width: float, height: float, rows: int, columns: int
) -> "tuple[Figure, NDArray[np.object_]]":
    from matplotlib.figure import Figure  # not pyplot: no window system, no global state

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def _svg(figure: "Figure", name: str) -> str:
    """Return the figure as SVG without prologue.

    `name` keeps its inner ids apart from those of other figures.
    """
    import matplotlib

    settings = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "font.family": "sans-serif",
        "text.color": _INK,
    }
    stream = io.StringIO()
    with matplotlib.rc_context(settings):
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(stream, format="svg", transparent=True, metadata=nothing)
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    # The ids of one page are unique: names such as "figure_1" occur in every figure, and equal
    # pictures share theirs.
    text = re.sub(r'(<image\b[^>]*?) id="[^"]*"', r"\g<1>", text)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    return re.sub(r'(url\(#|xlink:href="#)', rf"\g<1>{name}-", text)
