"""Fig. 4A, 4B and 7A: bars with intervals. Fig. 7B: a curve over layers."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.figures.results import Bar
from pipelines.figures.style import COLOURS, COLUMN, HATCHES, INK, PALE, panels, save, write_csv
from pipelines.regions.scoring import UNBOUNDED
from pipelines.regions.table import TITLES
from shared.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_bars(bars: Sequence[Bar], out: Path, name: str) -> list[Path]:
    """Draw a panel for each score, a bar for each arm; write `NAME.png`, `.svg` and `.csv`.

    The line through each end of a bar is its interval.
    """
    scores = list(dict.fromkeys(bar.score for bar in bars))
    colours = {arm: number for number, arm in enumerate(dict.fromkeys(bar.arm for bar in bars))}
    counts = [sum(bar.score == score for bar in bars) for score in scores]
    height = sum(0.36 + 0.16 * count for count in counts) + 0.05
    figure, axes = panels(COLUMN, height, len(scores), 1, [1.2 + count for count in counts])
    for axis, score in zip(axes[:, 0], scores, strict=True):
        _bars(axis, [bar for bar in bars if bar.score == score], colours)
    return [*save(figure, out, name), _numbers(bars, out, name)]


def _bars(axis: "Axes", bars: Sequence[Bar], colours: Mapping[str, int]) -> None:
    scale = _scale(bars[0].score)
    for number, bar in enumerate(bars):
        look = colours[bar.arm]
        value, low, high = (scale * one for one in (bar.value, bar.low, bar.high))
        axis.barh(
            number, value, height=0.7, color=COLOURS[look % len(COLOURS)], alpha=0.75,
            hatch=HATCHES[look % len(HATCHES)], edgecolor=INK, linewidth=0.5,
        )  # fmt: skip
        axis.plot([low, high], [number, number], color=INK, linewidth=1.0)
        axis.plot([low, high], [number, number], "|", color=INK, markersize=4)
        axis.text(
            1.01, number, f"{value:.{_digits(scale)}f}", transform=axis.get_yaxis_transform(),
            va="center", fontsize=6,
        )  # fmt: skip
    axis.set_yticks(range(len(bars)), [bar.arm for bar in bars])
    axis.set_ylim(len(bars) - 0.4, -0.6)
    _frame(axis, bars)


def draw_layers(bars: Sequence[Bar], out: Path) -> list[Path]:
    """Draw each score over the distillation layer; arms without one are lines across.

    Raises
    ------
    UserError
        Fewer than two layers, or two arms of one.
    """
    if len({bar.layer for bar in bars if bar.layer is not None}) < 2:
        raise UserError(
            "the chosen arms have fewer than two distillation layers; give runs or a study that "
            "differ in losses.layer"
        )
    twice = Counter((bar.score, bar.layer) for bar in bars if bar.layer is not None)
    for (_, layer), count in twice.items():
        if count > 1:
            raise UserError(f"{count} arms have layer {layer}; choose one of them with --arms")
    scores = list(dict.fromkeys(bar.score for bar in bars))
    figure, axes = panels(COLUMN, 1.55 * len(scores) + 0.2, len(scores), 1)
    for axis, score in zip(axes[:, 0], scores, strict=True):
        _curve(axis, [bar for bar in bars if bar.score == score])
    return [*save(figure, out, "layers"), _numbers(bars, out, "layers")]


def _curve(axis: "Axes", bars: Sequence[Bar]) -> None:
    scale = _scale(bars[0].score)
    by_layer = {bar.layer: bar for bar in bars if bar.layer is not None}
    layers = sorted(by_layer)
    points = [by_layer[layer] for layer in layers]
    value, low, high = (
        [scale * one for one in column]
        for column in zip(*((bar.value, bar.low, bar.high) for bar in points), strict=True)
    )
    axis.fill_between(layers, low, high, color=COLOURS[0], alpha=0.2, linewidth=0)
    axis.plot(layers, value, color=COLOURS[0], marker="o", markersize=3.5, linewidth=1.2)
    flat = [bar for bar in bars if bar.layer is None]
    for number, bar in enumerate(flat):
        style = ("--", ":", "-.")[number % 3]
        axis.axhline(scale * bar.value, color=COLOURS[5], linestyle=style, linewidth=1.0)
        axis.annotate(
            bar.arm, (1, scale * bar.value), xycoords=("axes fraction", "data"), fontsize=6,
            ha="right", va="bottom",
        )  # fmt: skip
    axis.set_xticks(layers)
    axis.set_ylabel(_title(bars), fontsize=6.5)
    axis.set_xlabel("distillation layer l")
    axis.grid(color=PALE, linewidth=0.4)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def _frame(axis: "Axes", bars: Sequence[Bar]) -> None:
    about = f"{_title(bars)} (n = {bars[0].n}, {bars[0].clusters} units)"
    axis.annotate(
        about,
        (0, 1),
        xycoords=("figure fraction", "axes fraction"),
        xytext=(2, 3),
        textcoords="offset points",
        fontsize=6.5,
    )
    axis.grid(axis="x", color=PALE, linewidth=0.4)
    axis.set_axisbelow(True)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def _title(bars: Sequence[Bar]) -> str:
    score = bars[0].score
    name = TITLES.get(score, score.replace("_", " "))
    return name if _scale(score) == 1 else f"{name}, %"


def _scale(score: str) -> int:
    """Return what a score is multiplied by: shares of questions or images are in percent."""
    return 1 if score in (*UNBOUNDED, "auc") else 100


def _digits(scale: int) -> int:
    return 1 if scale == 100 else 3


def _numbers(bars: Sequence[Bar], out: Path, name: str) -> Path:
    rows = [[bar._asdict()[field] for field in Bar._fields] for bar in bars]
    return write_csv(out, name, Bar._fields, rows)
