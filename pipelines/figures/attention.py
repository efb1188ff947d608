"""Fig. 2 and 6: attention over the image, with the region outlined and the hit in the corner.

Each image has three rows: the image, the expert's E_a and the prior, which is the mean region of
the other patients and knows no image; the students, before and after, at layer l; and their mean
over all layers.
The maps lie over the image as it is, without the padding of the encoder's square.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipelines.figures.style import COLUMN, bare, panels, save, write_csv
from pipelines.regions.grounding import Map, grounding
from pipelines.regions.masks import Mask, pixels_of
from pipelines.regions.reading import Box
from shared.imaging.geometry import content_box
from shared.imaging.grid import Grid
from shared.vocabulary import Geometry

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BRIGHT = 0.99  # quantile of a map that is drawn brightest: single patches often take most


class Looked(NamedTuple):
    """An image, its region, and who looked at it how.

    `rows`: for `layer 15` and `all layers` the maps (N,) of each model (`before`, an arm).
    `beside`: the expert's map and the prior. `shares`, `centres`, `visible`: (N,), as of
    `grounding`.
    """

    title: str
    picture: NDArray[np.uint8]  # (height, width, 3), the image as it is
    places: Sequence[Box | Mask]
    rows: Mapping[str, Mapping[str, Map]]
    beside: Mapping[str, Map]
    shares: NDArray[np.float64]
    centres: NDArray[np.bool_]
    visible: NDArray[np.bool_]
    geometry: Geometry

    def scores(self, map_: Map) -> dict[str, float]:
        """Score one of its maps."""
        return grounding(map_, self.shares, self.centres, self.visible)

    def every(self) -> Iterator[tuple[str, str, Map]]:
        """Yield each map under its row and column."""
        for row, maps in self.rows.items():
            for column, map_ in maps.items():
                yield row, column, map_
        for column, map_ in self.beside.items():
            yield "", column, map_


def draw_attention(looked: Sequence[Looked], grid: Grid, out: Path) -> list[Path]:
    """Draw every image; write `attention.png`, `.svg`, `.csv` and `attention-maps.csv`."""
    rows, columns = _layout(looked[0])
    height, width, _ = looked[0].picture.shape
    across = COLUMN / columns
    figure, axes = panels(
        COLUMN, len(looked) * rows * (across * height / width + 0.14) + 0.05,
        len(looked) * rows, columns,
    )  # fmt: skip
    for number, one in enumerate(looked):
        _image(axes[number * rows : (number + 1) * rows], one, grid)
    paths = save(figure, out, "attention")
    scored = (
        (one.title, row, column, *(one.scores(map_).get(name, "") for name in SCORES))
        for one in looked
        for row, column, map_ in one.every()
    )
    paths.append(write_csv(out, "attention", ("image", "row", "map", *SCORES), scored))
    values = (
        (one.title, row, column, patch // grid.columns, patch % grid.columns, float(value))
        for one in looked
        for row, column, map_ in one.every()
        for patch, value in enumerate(map_)
    )
    fields = ("image", "row", "map", "patch_row", "patch_column", "weight")
    paths.append(write_csv(out, "attention-maps", fields, values))
    return paths


SCORES = ("pointing", "energy", "auc")


def _layout(one: Looked) -> tuple[int, int]:
    """Rows and columns of one image."""
    return 1 + len(one.rows), max(1 + len(one.beside), *(len(maps) for maps in one.rows.values()))


def _image(axes: NDArray[np.object_], one: Looked, grid: Grid) -> None:
    for axis in axes.ravel():
        axis.set_visible(False)
    _panel(axes[0][0], one, None, shortened(one.title), grid)
    for axis, (name, map_) in zip(axes[0][1:], one.beside.items(), strict=False):
        _panel(axis, one, map_, name, grid)
    for line, (row, maps) in zip(axes[1:], one.rows.items(), strict=True):
        for axis, (name, map_) in zip(line, maps.items(), strict=False):
            _panel(axis, one, map_, f"{name}, {row}", grid)


def shortened(title: str, most: int = 24) -> str:
    """Cut the middle out of a title that is too long for a panel."""
    if len(title) <= most:
        return title
    ends = (most - 1) // 2
    return f"{title[:ends]}…{title[-ends:]}"


def _panel(axis: "Axes", one: Looked, map_: Map | None, title: str, grid: Grid) -> None:
    height, width, _ = one.picture.shape
    axis.set_visible(True)
    bare(axis)
    axis.set_title(title, fontsize=6, pad=2)
    axis.imshow(one.picture, extent=(0, width, height, 0), interpolation="antialiased")
    if map_ is not None:
        _overlay(axis, map_, one, grid)
    for place in one.places:
        _outline(axis, place, width, height)
    axis.set_xlim(0, width)
    axis.set_ylim(height, 0)


def square_extent(width: int, height: int, geometry: Geometry) -> tuple[float, float, float, float]:
    """Return left, right, bottom and top of the encoder's square in pixels of the image."""
    if geometry == "pad":
        side, box = max(width, height), content_box(width, height, "pad")
        left, top = -box.left * side, -box.top * side
    else:
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
    return left, left + side, top + side, top


def _overlay(axis: "Axes", map_: Map, one: Looked, grid: Grid) -> None:
    """Lay a map over the image: dim and clear where it is low, bright yellow where it is high."""
    from matplotlib import colormaps

    height, width, _ = one.picture.shape
    values = np.where(one.visible, np.asarray(map_, dtype=np.float64), 0.0)
    top = float(np.quantile(values[one.visible], BRIGHT)) or float(values.max()) or 1.0
    share = np.clip(values / top, 0, 1).reshape(grid.rows, grid.columns)
    colours = colormaps["viridis"](share)
    colours[..., 3] = 0.25 + 0.5 * share
    extent = square_extent(width, height, one.geometry)
    left, right, _, top_edge = extent
    side = right - left
    axis.imshow(colours, extent=extent, interpolation="nearest")
    scores = one.scores(map_)
    highest = int(values.argmax())
    row, column = divmod(highest, grid.columns)
    # The middle of what a patch shows of the image: its own middle may lie in the padding.
    x = _middle(left + column * side / grid.columns, side / grid.columns, width)
    y = _middle(top_edge + row * side / grid.rows, side / grid.rows, height)
    axis.plot(x, y, marker="+", color="white", markersize=5, markeredgewidth=1.0)
    auc = f", AUC {scores['auc']:.2f}" if "auc" in scores else ""
    text = f"{'hit' if scores['pointing'] >= 0.5 else 'miss'}{auc}"
    axis.text(
        0.02, 0.02, text, transform=axis.transAxes, fontsize=5.5, va="bottom",
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8, "alpha": 0.85},
    )  # fmt: skip


def _middle(begin: float, length: float, end: int) -> float:
    return (max(begin, 0.0) + min(begin + length, float(end))) / 2


def _outline(axis: "Axes", place: Box | Mask, width: int, height: int) -> None:
    """Draw a region's edge: white on black, so that it is seen on every ground."""
    from matplotlib.patches import Rectangle

    for colour, line in (("black", 1.8), ("white", 0.9)):
        if isinstance(place, Mask):
            pixels = np.pad(pixels_of(place, width, height), 1)
            x, y = np.arange(-1, width + 1) + 0.5, np.arange(-1, height + 1) + 0.5
            axis.contour(x, y, pixels, levels=[0.5], colors=colour, linewidths=line)
            continue
        left, top, across, down = place
        axis.add_patch(
            Rectangle((left, top), across, down, fill=False, edgecolor=colour, linewidth=line)
        )
