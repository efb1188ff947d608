"""How often the project's intervals hold the truth, and its tests find a difference.

    python benchmarks/interval_coverage.py [--sets 2000] [--out docs/statistics-table.md]

Data sets are drawn whose truth is known: n answers in clusters (images), with a correlation between
the answers of one cluster. Coverage is the share of sets whose interval holds the truth; beside it
stands the mean width over that of Korn and Graubard's interval with the true design effect, which
no data analyst knows.
"""

import argparse
import platform
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipelines.statistics import paired_test, score_interval
from pipelines.statistics.intervals import MIN_CLUSTERS, korn_graubard

CLUSTERS = {20: 10, 50: 14, 250: 60, 1061: 250}  # of n items
SHARES = (0.05, 0.5, 0.85, 0.95)
CORRELATIONS = (0.0, 0.1, 0.4)
COVERAGE, WIDTH = 0.93, 1.3  # the least and the most


class Cell(NamedTuple):
    """What was drawn, and what the intervals made of it."""

    n: int
    clusters: int
    truth: float
    correlation: float
    coverage: float
    width: float  # over that of Korn and Graubard's with the true design effect

    def good(self, sets: int) -> bool:
        """Whether the cell keeps its promise, two errors of the simulation allowed."""
        slack = 2 * (COVERAGE * (1 - COVERAGE) / sets) ** 0.5
        return self.coverage >= COVERAGE - slack and self.width <= WIDTH


def cells(sets: int, seed: int = 0) -> Iterator[Cell]:
    """Simulate every cell of answers that are right or wrong."""
    for (n, clusters), truth, correlation in product(CLUSTERS.items(), SHARES, CORRELATIONS):
        generator = np.random.default_rng([seed, n, int(100 * truth), int(10 * correlation)])
        names = np.arange(n) % clusters
        held, widths, ideal = 0, 0.0, 0.0
        counts = np.bincount(names)
        effect = 1 + correlation * (float((counts**2).sum()) / n - 1)
        for _ in range(sets):
            values = answers(n, names, truth, correlation, generator)
            found = score_interval(values.tolist(), names.tolist())
            held += found.low <= truth <= found.high
            widths += found.high - found.low
            low, high = korn_graubard(float(values.mean()), n, clusters, max(effect, 1.0))
            ideal += high - low
        yield Cell(n, clusters, truth, correlation, held / sets, widths / ideal)


def answers(
    n: int,
    names: NDArray[np.intp],
    truth: float,
    correlation: float,
    generator: np.random.Generator,
) -> NDArray[np.float64]:
    """Draw n answers of 0 or 1: each cluster's own share is beta distributed around the truth."""
    clusters = int(names.max()) + 1
    shares = np.full(clusters, truth)
    if correlation:
        strength = (1 - correlation) / correlation
        shares = generator.beta(truth * strength, (1 - truth) * strength, size=clusters)
    return (generator.random(n) < shares[names]).astype(np.float64)


RECALLS = {
    "one answer in ten uniform, the others 1": (lambda u: np.where(u > 0.1, 1.0, u / 0.1), 0.95),
    "0, a half or 1": (lambda u: np.where(u < 0.05, 0.0, np.where(u < 0.12, 0.5, 1.0)), 0.915),
    "one in fifty 0, the others near 1": (
        lambda u: np.where(u < 0.02, 0.0, 1 - 0.05 * (u > 0.5)),
        0.955,
    ),
}


def recalls(sets: int, seed: int = 0) -> Iterator[tuple[str, int, int, float]]:
    """Simulate scores that are not 0 or 1; give (kind, n, clusters, coverage)."""
    from scipy.stats import norm

    for kind, (n, clusters) in product(RECALLS, {20: 20, 50: 14, 250: 60}.items()):
        score, truth = RECALLS[kind]
        generator = np.random.default_rng([seed, n])
        names, held = np.arange(n) % clusters, 0
        for _ in range(sets):
            common = generator.standard_normal(clusters)[names]
            mixed = 0.4**0.5 * common + 0.6**0.5 * generator.standard_normal(n)
            found = score_interval(score(norm.cdf(mixed)).tolist(), names.tolist())
            held += found.low <= truth <= found.high
        yield kind, n, clusters, held / sets


class Pairs(NamedTuple):
    """Two methods over one set: how their test behaved."""

    n: int
    clusters: int
    disagreement: float
    difference: float
    correlation: float
    coverage: float
    rejected: float  # share of sets with p <= 0.05
    contradictions: int  # between interval and p
    detectable: float | None  # as printed, mean over the sets
    found: float | None  # share of sets with that difference in which the test finds it


def pairs(sets: int, seed: int = 0) -> Iterator[Pairs]:
    """Simulate two methods on one set."""
    shapes = {20: 12, 50: 14, 250: 60}
    effects = ((0.1, 0.0), (0.3, 0.0), (0.3, 0.1), (0.5, 0.3))
    for (n, clusters), (disagreement, difference), correlation in product(
        shapes.items(), effects, (0.0, 0.4)
    ):
        generator = np.random.default_rng([seed, n, int(100 * disagreement)])
        names = np.arange(n) % clusters
        tests = [
            paired_test(
                *two_methods(names, disagreement, difference, correlation, generator),
                names.tolist(),
            )
            for _ in range(sets)
        ]
        shown = [test.detectable for test in tests if test.detectable is not None]
        detectable = float(np.mean(shown)) if shown else None
        found = None
        if detectable is not None:
            wide = max(disagreement, detectable)
            again = [
                paired_test(
                    *two_methods(names, wide, detectable, correlation, generator), names.tolist()
                )
                for _ in range(sets)
            ]
            found = float(np.mean([test.p <= 0.05 for test in again]))
        yield Pairs(
            n,
            clusters,
            disagreement,
            difference,
            correlation,
            float(np.mean([test.low <= difference <= test.high for test in tests])),
            float(np.mean([test.p <= 0.05 for test in tests])),
            sum((test.p <= 0.05) == (test.low <= 0 <= test.high) for test in tests),
            detectable,
            found,
        )


def two_methods(
    names: NDArray[np.intp],
    disagreement: float,
    difference: float,
    correlation: float,
    generator: np.random.Generator,
) -> tuple[list[float], list[float]]:
    """Draw the right and wrong answers of two methods; who is better is alike within a cluster."""
    from scipy.stats import norm

    n = len(names)
    common = generator.standard_normal(int(names.max()) + 1)[names]
    mixed = correlation**0.5 * common + (1 - correlation) ** 0.5 * generator.standard_normal(n)
    place = norm.cdf(mixed)
    better = place < (disagreement + difference) / 2
    worse = place > 1 - (disagreement - difference) / 2
    alike = generator.integers(0, 2, n).astype(np.float64)
    first = np.where(better, 1.0, np.where(worse, 0.0, alike))
    second = np.where(better, 0.0, np.where(worse, 1.0, alike))
    return first.tolist(), second.tolist()


def page(sets: int, command: str) -> str:
    """Return the tables as markdown."""
    lines = [
        f"Measured {datetime.now(UTC).date()} with `{command}`:",
        f"{sets} sets a row, numpy {np.__version__}, Python {platform.python_version()}.",
        "",
        f"**Answers of 0 or 1.** Promise: at least {COVERAGE:.0%}, less two errors of the",
        f"simulation, and at most {WIDTH} times the width.",
        "",
        "| n | clusters | truth | correlation | coverage | width | kept |",
        "|---|---|---|---|---|---|---|",
    ]
    for cell in cells(sets):
        kept = "yes" if cell.good(sets) else "**no**"
        lines.append(
            f"| {cell.n} | {cell.clusters} | {cell.truth} | {cell.correlation} | "
            f"{cell.coverage:.3f} | {cell.width:.2f} | {kept} |"
        )
        print(lines[-1], flush=True)
    lines += [
        "",
        "**Scores between 0 and 1**, correlation 0.4 within a cluster.",
        "",
        "| scores | n | clusters | coverage |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {kind} | {n} | {clusters} | {share:.3f} |" for kind, n, clusters, share in recalls(sets)
    ]
    lines += [
        "",
        f"**Paired tests**, {sets // 5} sets a row. `rejected` at difference 0 is the rate of",
        "false positives; `found` is how often the printed smallest difference was found.",
        "",
        "| n | clusters | disagree | differ | correl. | coverage | rejected | against p | "
        "smallest | found |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for one in pairs(sets // 5):
        shown = "-" if one.detectable is None else f"{one.detectable:.3f}"
        found = "-" if one.found is None else f"{one.found:.2f}"
        lines.append(
            f"| {one.n} | {one.clusters} | {one.disagreement} | {one.difference} | "
            f"{one.correlation} | {one.coverage:.3f} | {one.rejected:.3f} | {one.contradictions} | "
            f"{shown} | {found} |"
        )
        print(lines[-1], flush=True)
    lines += ["", f"Below {MIN_CLUSTERS} clusters no interval is to be trusted, and none is shown."]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Simulate and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sets", type=int, default=2000)
    parser.add_argument("--out", type=Path, default=Path("docs/statistics-table.md"))
    arguments = parser.parse_args()
    command = f"python benchmarks/interval_coverage.py --sets {arguments.sets}"
    arguments.out.write_text(page(arguments.sets, command), encoding="utf-8")


if __name__ == "__main__":
    main()
