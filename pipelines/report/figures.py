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
    from matplotlib.image import AxesImage
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


class Similar(NamedTuple):
    """What a student's patches are to each other: S_x, and how far it goes with S_e."""

    matrix: NDArray[np.float64]  # (N, N)
    correlation: float  # with S_e, over the pairs of visible patches


class AttentionRow(NamedTuple):
    """One image with the attention over its patches by who looks.

    Teacher first, where its store holds E_a, then the map of the question's words, where there is
    one, then the students.
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
    """Draw images in rows; columns are the image, the teacher's attention, and each student's.

    All maps have one scale of colours, with a bar. Where an image has no map of a column, its place
    stays empty.
    """
    fullest = max(rows, key=lambda row: len(row.maps))
    columns = ["image", *fullest.maps]
    # A few patches often take most of the attention; scaled to them, nothing else could be told
    # apart.
    every = [one for row in rows for one in row.maps.values()]
    top = max(float(np.quantile(one, 0.95)) for one in every)
    top = top or max(float(one.max()) for one in every)
    shown = None
    widths = [*[1.0] * len(columns), 0.08]
    figure, axes = _figure(
        2.1 * len(columns) + 0.9, 2.35 * len(rows), len(rows), len(widths), widths
    )
    for row, line in zip(rows, axes, strict=True):
        line[-1].remove()
        for axis, column in zip(line[:-1], columns, strict=True):
            _bare(axis)
            if column != "image" and column not in row.maps:
                axis.set_axis_off()
                axis.set_title(f"no map of the {column}", fontsize=9, loc="left")
                continue
            _show(axis, row.picture)
            if column == "image":
                axis.set_title(row.title, fontsize=9, loc="left")
                continue
            shown = _overlay(axis, row.maps[column], row.picture.shape[0], top)
            note = f"\nKL {row.divergence[column]:.2f}" if column in row.divergence else "\n"
            axis.set_title(
                column + note, fontsize=9, loc="left", color=ARM_COLOURS.get(column, _INK)
            )
    if shown is not None:
        place = figure.add_subplot(axes[0, 0].get_gridspec()[:, -1])
        bar = figure.colorbar(shown, cax=place, extend="max")
        bar.set_label("share of the attention, a patch", fontsize=9)
    return _svg(figure, "attention")


def similarity_figure(
    picture: Picture,
    similarity: NDArray[np.float64],
    grid: tuple[int, int],
    patch: int,
    visible: NDArray[np.bool_],
    students: Mapping[str, Similar] | None = None,
) -> str:
    """Draw one patch of an image and its similarity to each other patch, then whole matrices.

    The columns are the image, the teacher's S_e, and S_x of each of `students`; all have one scale
    of colours. `similarity` is S_e (N, N); patches that are not `visible` (N,) show padding only
    and stay plain over the image.
    """
    panels = {"teacher": similarity} | {name: one.matrix for name, one in (students or {}).items()}
    figure, axes = _figure(max(10.5, 2.6 * (1 + len(panels))), 6.0, 2, 1 + len(panels))
    side = picture.shape[0]
    box = (side / grid[1], side / grid[0])
    corner = (patch % grid[1] * box[0], patch // grid[1] * box[1])
    low = min(float(matrix[np.ix_(visible, visible)].min()) for matrix in panels.values())
    _bare(axes[0, 0])
    _show(axes[0, 0], picture)
    axes[0, 0].set_title(f"image and patch {patch}", fontsize=10, loc="left")
    axes[0, 0].add_patch(_rectangle(corner, *box))
    axes[1, 0].set_axis_off()
    shown = None
    for column, (name, matrix) in enumerate(panels.items(), 1):
        above, below = axes[:, column]
        _bare(above)
        _show(above, picture)
        values = np.where(visible, matrix[patch], np.nan).reshape(grid)
        above.imshow(
            values,
            extent=(0, side, side, 0),
            cmap="magma",
            alpha=0.72,
            vmin=low,
            vmax=1,
            zorder=2,
        )
        above.add_patch(_rectangle(corner, *box))
        symbol = "S_x" if students and name in students else "S_e"
        title = f"{name}: {symbol} of the patch"
        if students and name in students:
            title += f"\ncorrelation with S_e {students[name].correlation:.2f}"
        above.set_title(title, fontsize=9, loc="left", color=ARM_COLOURS.get(name, _INK))
        shown = below.imshow(matrix, cmap="magma", vmin=low, vmax=1)
        below.axhline(patch, color="#39c0ff", linewidth=1.2)
        below.set_title(f"{symbol}, {len(matrix)} x {len(matrix)}", fontsize=9, loc="left")
        below.set_xlabel("patch")
    if shown is not None:
        bar = figure.colorbar(shown, ax=axes.ravel().tolist(), fraction=0.02, pad=0.01)
        bar.set_label("cosine similarity", fontsize=9)
    return _svg(figure, "similarity")


def _rectangle(corner: tuple[float, float], width: float, height: float) -> "Rectangle":
    from matplotlib.patches import Rectangle

    return Rectangle(
        corner, width, height, fill=False, edgecolor="#39c0ff", linewidth=1.8, zorder=3
    )


def _show(axis: "Axes", picture: Picture) -> None:
    side = picture.shape[0]
    axis.imshow(
        picture,
        cmap="gray",
        extent=(0, side, side, 0),
        vmin=0,
        vmax=255,
        zorder=1,
        interpolation="none",  # embedded as it is, whatever its place on the page
    )


def _overlay(axis: "Axes", values: NDArray[np.float64], side: int, top: float) -> "AxesImage":
    rows, columns = (np.arange(side) * count // side for count in values.shape)
    return axis.imshow(
        values[np.ix_(rows, columns)],  # on the picture's own pixels
        extent=(0, side, side, 0),
        interpolation="none",
        cmap="inferno",
        vmin=0,
        vmax=top,
        alpha=0.65,
        zorder=2,
    )


def _bare(axis: "Axes") -> None:
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_visible(False)


def _figure(
    width: float, height: float, rows: int, columns: int, widths: Sequence[float] | None = None
) -> "tuple[Figure, NDArray[np.object_]]":
    from matplotlib.figure import Figure  # not pyplot: no window system, no global state

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, width_ratios=widths)


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
