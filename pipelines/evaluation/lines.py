"""What a person reads at the end of `medalign evaluate` and `medalign compare`."""

from collections.abc import Iterable, Iterator, Mapping

from pipelines.evaluation.controls import BLANK, MIRRORED
from pipelines.evaluation.reliance import under
from pipelines.evaluation.result import (
    Comparison,
    Controls,
    PairedTests,
    QuestionOnly,
    Result,
    ResultRow,
    Score,
    Survivor,
    row_name,
)
from pipelines.metrics.ceiling import ceiling_lines
from pipelines.metrics.metric import MetricScore
from pipelines.metrics.question_kind import inferred_line
from pipelines.statistics.intervals import MIN_CLUSTERS

QUESTION_ONLY = "question only"


def table_lines(result: Result) -> Iterator[str]:
    """Write the result as text.

    Rows with intervals and denominators, comparisons, power, alarms.
    """
    data, rows = result["data"], result["rows"]
    sha256 = data["sha256"][:12]
    yield (
        f"{data['file']}: {data['items']} items, {data['images']} images (sha256 {sha256}); "
        f"intervals and tests over {data['clusters']} clusters: by {data['cluster']}"
    )
    yield from _score_table(result)
    yield from _answers_of_note(rows, data["items"])
    if any("bleu" in row["scores"] for row in rows):
        yield (
            "the metrics of reports that need a model: `medalign report metrics` on this "
            "evaluation's folder"
        )
    if not all(score["trusted"] for row in rows for score in row["scores"].values()):
        yield f"fewer than {MIN_CLUSTERS} clusters: no interval is to be trusted, and none is shown"
    bare = data.get("without_image", 0)
    if bare:
        yield f"WARNING: {bare} items show no image: asked by text alone"
    if data["inferred"]:
        yield inferred_line(data["inferred"])
    yield from (f"WARNING: {line}" for line in ceiling_lines(data["ceilings"]))
    yield from comparison_lines(result)
    if result["controls"] is not None:
        yield from control_lines(result["controls"])


def _score_table(result: Result) -> Iterator[str]:
    """Write the scores of the rows, and of the baseline that sees the question only."""
    rows, blind = result["rows"], result["question_only"]
    headings = _headings(rows)
    width = max(len(QUESTION_ONLY), *(len(row_name(row)) for row in rows))
    yield "  ".join([" " * width, *headings.values(), "passes/token", "s/token"])
    for row in rows:
        yield "  ".join([f"{row_name(row):{width}}", *_cells(row, headings)])
    if blind is not None:
        yield "  ".join([f"{QUESTION_ONLY:{width}}", *_score_cells(blind["scores"], headings)])
        yield question_only_line(blind, result["data"]["items"])


def _headings(rows: Iterable[ResultRow]) -> dict[str, str]:
    """Return the heading of each score's column, with its denominator."""
    counts: dict[str, int] = {}
    for row in rows:
        counts |= {name: score["n"] for name, score in row["scores"].items()}
    if counts.get("closed_yes_no") == counts.get("closed_accuracy"):
        counts.pop("closed_yes_no", None)  # the same column twice
    return {name: f"{name} (n={count})" for name, count in counts.items()}


def _answers_of_note(rows: Iterable[ResultRow], items: int) -> Iterator[str]:
    """Say how many answers of each row are empty or were cut."""
    for row in rows:
        found = ((row["empty"], "empty"), (row["at_limit"], "as long as the token limit"))
        parts = [f"{count} {what}" for count, what in found if count]
        if parts:
            yield f"{row_name(row)}: of {items} answers {' and '.join(parts)}"


def question_only_line(found: QuestionOnly, items: int) -> str:
    """Say what the baseline is."""
    return (
        f"{QUESTION_ONLY}: the most frequent answer to each question's text in {found['train']}, "
        f"which has the text of {found['known']} of {items} questions"
    )


def control_lines(found: Controls) -> Iterator[str]:
    """Write scores under the controls, visual reliance, image sensitivity and flags as text."""
    yield ""
    yield (
        f"controls on {found['items']} items with an image; visual reliance: the score minus that "
        f"on blank images; Holm's correction over these {len(found['losses'])} tests:"
    )
    losses = {(one["b"], one["score"]): one for one in found["losses"]}
    for row in found["rows"]:
        name = under(row["row"], row["control"])
        for score in shown_scores(row["scores"]):
            one = losses[name, score]
            low, high = one["interval"]
            what = "visual reliance" if row["control"] == BLANK else "the score loses"
            yield (
                f"  {name}: {score} {percent(row['scores'][score])}, {what} "
                f"{100 * one['difference']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}], "
                f"p = {one['p_permutation']:.3g}, Holm {one['p_holm']:.3g}"
            )
        if row["changed"] is not None:
            which = "answers that name a side" if row["control"] == MIRRORED else "answers"
            yield (
                f"  {name}: image sensitivity, {percent(row['changed'])}% of "
                f"{row['changed']['n']} {which} change"
            )
    yield from (survivor_line(one) for one in found["survivors"])


def survivor_line(one: Survivor) -> str:
    """Say that a gain is there on blank images too."""
    low, high = one["interval"]
    return (
        f"FLAG: {one['a']} - {one['b']} on {one['score']} is {100 * one['gain']:+.1f} points, and "
        f"{100 * one['blank_gain']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}] on blank images "
        f"(Holm {one['p_holm']:.3g}): this difference does not need the image"
    )


def shown_scores(names: Iterable[str]) -> list[str]:
    """Return the scores that a person is shown tests of; their strict twins are in the JSON."""
    return [name for name in names if not name.endswith("_strict") and name != "closed_yes_no"]


def _cells(row: ResultRow, headings: Mapping[str, str]) -> list[str]:
    """Scores of a row, each as wide as its heading, and its cost."""
    return [
        *_score_cells(row["scores"], headings),
        f"{row['forward_passes_per_token']:12.2f}",
        f"{row['seconds_per_token']:7.3f}",
    ]


def _score_cells(scores: Mapping[str, Score], headings: Mapping[str, str]) -> list[str]:
    return [
        f"{percent(scores[name]) if name in scores else '-':>{len(heading)}}"
        for name, heading in headings.items()
    ]


def comparison_lines(result: PairedTests) -> Iterator[str]:
    """Write paired tests, power note and alarms as text.

    The strict twins of the scores are in the JSON alone.
    """
    shown = [one for one in result["comparisons"] if shown_scores([one["score"]])]
    if shown:
        yield ""
        family = len(result["comparisons"])
        yield f"paired permutation tests; Holm's correction over the table's {family}:"
    yield from (comparison_line(one) for one in shown)
    for name in dict.fromkeys(one["score"] for one in shown):
        points = result["power"][name]
        shows = (
            "is too small to show any difference"
            if points is None
            else f"can show differences above {100 * points:.1f} points"
        )
        yield f"  power: on {name} this set {shows} (80%, level 0.05 after Holm's correction)"
    for first, second in result["identical_outputs"]:
        yield f"ALARM: {first} and {second} gave byte-identical answers"


def comparison_line(one: Comparison) -> str:
    """Write a paired test."""
    low, high = one["interval"]
    return (
        f"  {one['a']} - {one['b']}, {one['score']}: {100 * one['difference']:+.1f} points "
        f"[{100 * low:+.1f}, {100 * high:+.1f}], p = {one['p_permutation']:.3g}, Holm "
        f"{one['p_holm']:.3g}"
    )


def percent(score: Score | MetricScore) -> str:
    """Write a score in points with its interval, where there are clusters enough for one."""
    low, high = score["interval"]
    if not score["trusted"]:
        return f"{100 * score['value']:.1f}"
    return f"{100 * score['value']:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
