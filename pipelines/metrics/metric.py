"""What a report metric is.

Scores of (reference, prediction) pairs, under a version that names all they depend on.
"""

from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple, TypedDict

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

NAMES = (
    "bleu", "rouge", "coco", "meteor", "bertscore", "chexbert", "radgraph", "ratescore", "green",
)  # fmt: skip
# What `--model NAME=...` may name.
MODELS = (
    "bertscore",
    "chexbert",
    "chexbert-tokenizer",
    "green",
    "green-python",
    "radgraph",
    "radgraph-python",
    "ratescore-encoder",
    "ratescore-ner",
    "ratescore-python",
)


class Pair(NamedTuple):
    """A reference report and the one that was generated."""

    reference: str
    prediction: str


# What a metric knows of one pair: a score by name, or labels that a summary counts.
Value = Mapping[str, float | list[int]]


class Metric(NamedTuple):
    """A metric ready to compute.

    Attributes
    ----------
    version
        Names library, version, settings and model weights: equal versions give equal values, which
        are cached by it.
    compute
        `compute(pairs)` returns one mapping a pair; the entries that `scores` names are floats in
        [0, 1].
    scores
        What each score is, in words, by name; a score is the mean over the reports.
    totals
        Scores of the whole set rather than of a report, by name: F1 over all labels, corpus BLEU.
    """

    name: str
    version: str
    compute: Callable[[Sequence[Pair]], list[Value]]
    scores: Mapping[str, str]
    totals: "Mapping[str, Total]" = MappingProxyType({})


class Total(NamedTuple):
    """A score over counts that are summed over the reports before the quotient is taken.

    `tally` gives the counts of a report, (L, K); `score` the value of their sum (`totals.py`).
    """

    what: str
    tally: Callable[[Value], Sequence[Sequence[float]]]
    score: "Callable[[NDArray[np.float64]], NDArray[np.float64]]"


class MetricScore(TypedDict):
    """A score over `n` reports in `clusters` clusters, with its interval [low, high]."""

    what: str
    value: float
    interval: list[float]
    n: int
    clusters: int
    trusted: bool


class MetricScores(TypedDict):
    """What came of the metrics asked for.

    Scores by name, how to get the metrics that are missing, and the others' versions.
    """

    scores: dict[str, MetricScore]
    not_computed: dict[str, str]
    versions: dict[str, str]


class Unavailable(Exception):
    """A metric cannot be computed here; the message says what is missing and how to get it."""


def require(package: str, extra: str = "metrics") -> None:
    """Raise `Unavailable` where a Python package is not installed."""
    if find_spec(package) is None:
        raise Unavailable(
            f"the package {package} is not installed; pip install 'medalign[{extra}]'"
        )


def model_digest(path: str) -> str:
    """Return 12 hex digits over the weight files of a local folder or file.

    A hub id stands for itself.

    Files are told apart by name, size and content, so a cache never mixes two checkpoints of one
    name.
    """
    import hashlib

    local = Path(path)
    if not local.exists():
        return path
    digest = hashlib.sha256()
    files = (
        [local] if local.is_file() else sorted(file for file in local.rglob("*") if file.is_file())
    )
    for file in files:
        digest.update(f"{file.relative_to(local)}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()[:12]
