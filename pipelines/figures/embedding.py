"""Fig. 1 and 5: patch features of labelled regions in two dimensions, with what tells them apart.

One panel for each layer of the student, before and after, and one for the expert. The picture is
t-SNE of single patches; the score under it is `separable` of whole regions, which t-SNE cannot
flatter: whether a region's nearest neighbour among other patients has its label.

N patches, d width of their features.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from pipelines.figures.style import COLUMN, look, panels, save, write_csv
from pipelines.regions.separability import Places, hits_of, vectors_of
from pipelines.statistics import Interval, score_interval
from shared.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PERPLEXITY, POINTS, DIMENSIONS = 30.0, 2000, 50

Tokens = Float[np.ndarray, "N d"]


class Labelled(NamedTuple):
    """An image whose patches have labels."""

    name: str
    patient: str
    places: Places


class Panel(NamedTuple):
    """The features of every image (N, d) by one model, under a title such as `layer 15, after`.

    `images` have their labels on that model's patches.
    """

    row: str
    column: str
    images: Sequence[Labelled]
    tokens: Sequence[Tokens]

    @property
    def title(self) -> str:
        """Row and column; the expert has one row alone."""
        return f"{self.column}, {self.row}" if self.row else self.column


class Point(NamedTuple):
    """A patch that is drawn."""

    image: int  # its place in the list
    patch: int
    label: str


class Scored(NamedTuple):
    """`separable` over patients, chance, and scikit-learn's silhouette."""

    interval: Interval
    chance: float
    silhouette: float | None


def draw_separability(
    shown: Sequence[Panel],
    out: Path,
    *,
    perplexity: float = PERPLEXITY,
    seed: int = 0,
) -> list[Path]:
    """Draw the panels; write `separability.png`, `.svg`, `.csv` and `separability-points.csv`.

    Raises
    ------
    UserError
        Fewer than two labels, or too few patches for the perplexity.
    """
    chosen = [draw_points(panel.images, seed) for panel in shown]
    labels = sorted({point.label for points in chosen for point in points})
    if len(labels) < 2:
        raise UserError("the chosen images show fewer than two labels; choose others or more")
    fewest = min(map(len, chosen))
    if fewest <= 3 * perplexity:
        raise UserError(
            f"{fewest} labelled patches are too few for --perplexity {perplexity:g}; "
            "choose more images or a smaller one"
        )
    places = _layout(shown)
    rows, columns = (1 + max(one[axis] for one in places.values()) for axis in (0, 1))
    width = COLUMN if columns < 4 else 2.1 * COLUMN
    height = rows * (width / columns + 0.3) + 0.28 + 0.12 * -(-len(labels) // 3)
    figure, axes = panels(width, height, rows, columns)
    for axis in axes.ravel():
        axis.set_visible(False)
    scores, drawn = {}, []
    for panel, points in zip(shown, chosen, strict=True):
        axis = axes[places[panel.title]]
        axis.set_visible(True)
        flat = flatten(panel.tokens, points, perplexity, seed)
        scores[panel.title] = score(panel.images, panel.tokens)
        _scatter(axis, panel.title, flat, points, labels, scores[panel.title])
        drawn += [
            (panel.title, panel.images[point.image], point, float(x), float(y))
            for (x, y), point in zip(flat.tolist(), points, strict=True)
        ]
    _legend(figure, labels, f"t-SNE, perplexity {perplexity:g}, seed {seed}")
    paths = save(figure, out, "separability")
    paths.append(write_csv(out, "separability", SCORE_COLUMNS, _score_rows(scores)))
    fields = ("panel", "image", "patient", "patch", "label", "x", "y")
    every = (
        (title, image.name, image.patient, point.patch, point.label, x, y)
        for title, image, point, x, y in drawn
    )
    paths.append(write_csv(out, "separability-points", fields, every))
    return paths


def draw_points(images: Sequence[Labelled], seed: int, most: int = POINTS) -> list[Point]:
    """Choose the patches to draw: those of one label alone, as many of each where there are more.

    Parameters
    ----------
    most
        Patches in all.
    """
    by_label: dict[str, list[Point]] = {}
    for number, image in enumerate(images):
        every = np.sum([own for _, own in image.places], axis=0) if image.places else np.zeros(0)
        for label, own in image.places:
            for patch in np.flatnonzero(own & (every == 1)).tolist():
                by_label.setdefault(label, []).append(Point(number, patch, label))
    generator = np.random.default_rng(seed)
    share = most // max(1, len(by_label))
    chosen = []
    for _, points in sorted(by_label.items()):
        kept = generator.permutation(len(points))[:share]
        chosen += [points[place] for place in sorted(kept.tolist())]
    return chosen


def flatten(
    tokens: Sequence[Tokens], points: Sequence[Point], perplexity: float, seed: int
) -> NDArray[np.float64]:
    """Return the points in two dimensions, (points, 2): PCA to 50 dimensions, then t-SNE.

    Features are divided by their length: S_e and the score know their direction alone.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    features = np.stack([tokens[point.image][point.patch] for point in points]).astype(np.float64)
    features /= np.linalg.norm(features, axis=1, keepdims=True).clip(1e-12)
    if features.shape[1] > DIMENSIONS and len(features) > DIMENSIONS:
        features = PCA(DIMENSIONS, random_state=seed).fit_transform(features)
    tsne = TSNE(perplexity=perplexity, init="pca", random_state=seed)
    return np.asarray(tsne.fit_transform(features), dtype=np.float64)


def score(images: Sequence[Labelled], tokens: Sequence[Tokens]) -> Scored | None:
    """Score the regions of all images; None where no two patients share a label."""
    vectors = [
        vector
        for image, own in zip(images, tokens, strict=True)
        for vector in vectors_of(own, image.name, image.patient, image.places)
    ]
    found = hits_of(vectors)
    if not found.hits:
        return None
    patients = {image.name: image.patient for image in images}
    clusters = [patients[name] for name in found.hits]
    interval = score_interval(list(found.hits.values()), clusters)
    return Scored(interval, float(np.mean(list(found.chance.values()))), found.silhouette)


SCORE_COLUMNS = (
    "panel", "separable", "low", "high", "chance", "silhouette", "images", "patients",
)  # fmt: skip


def _score_rows(scores: dict[str, Scored | None]) -> Iterator[Sequence[object]]:
    for title, scored in scores.items():
        if scored is not None:
            value, low, high, n, clusters = scored.interval
            silhouette = "" if scored.silhouette is None else scored.silhouette
            yield title, value, low, high, scored.chance, silhouette, n, clusters


def _layout(shown: Sequence[Panel]) -> dict[str, tuple[int, int]]:
    """Row and column of each panel: a row for each student, the expert below."""
    rows = list(dict.fromkeys(panel.row for panel in shown))
    places: dict[str, tuple[int, int]] = {}
    for panel in shown:
        row = rows.index(panel.row)
        places[panel.title] = row, sum(place[0] == row for place in places.values())
    return places


def _scatter(
    axis: "Axes",
    title: str,
    places: NDArray[np.float64],
    points: Sequence[Point],
    labels: Sequence[str],
    scored: Scored | None,
) -> None:
    for number, label in enumerate(labels):
        chosen = np.array([point.label == label for point in points])
        axis.scatter(
            places[chosen, 0],
            places[chosen, 1],
            s=3.5,
            marker=look(number)[0],
            color=look(number)[1],
            alpha=0.6,
            linewidths=0,
            rasterized=True,
        )
    axis.set_title(title, fontsize=7)
    axis.set_xticks([])
    axis.set_yticks([])
    if scored is not None:
        value, low, high = scored.interval[:3]
        few = f"({scored.interval.clusters} units)"
        width = f"[{low:.2f}, {high:.2f}]" if scored.interval.trusted else few
        text = f"{value:.2f} {width}\nchance {scored.chance:.2f}"
        axis.set_xlabel(text, fontsize=6.5)


def _legend(figure: "object", labels: Sequence[str], note: str) -> None:
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    assert isinstance(figure, Figure)
    handles = []
    for number, label in enumerate(labels):
        marker, colour = look(number)
        handles.append(
            Line2D([], [], linestyle="", markersize=4, label=label, marker=marker, color=colour)
        )
    figure.legend(
        handles=handles, loc="outside lower center", ncols=min(3, len(labels)), frameon=False,
        fontsize=6.5, title=note, title_fontsize=6,
    )  # fmt: skip
