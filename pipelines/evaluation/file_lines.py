"""What a person reads of scored files, and of scores by group."""

from collections.abc import Iterator, Mapping, Sequence

from pipelines.evaluation.files import ScoredFiles
from pipelines.evaluation.lines import comparison_line, percent, question_only_line, shown_scores
from pipelines.evaluation.result import Grouping, Score
from pipelines.metrics.ceiling import ceiling_lines
from pipelines.metrics.items import SCORES
from pipelines.metrics.metric import MetricScore
from pipelines.metrics.question_kind import inferred_line


def score_lines(result: ScoredFiles) -> Iterator[str]:
    """Write every score of every row, with what stands beside it."""
    data = result["data"]
    yield (
        f"{data['file']}: {data['items']} items (sha256 {data['sha256'][:12]}); intervals over "
        f"{data['clusters']} clusters: by {data['cluster']}"
    )
    for row in result["rows"]:
        joined = "" if row["joined"] == "id" else ", joined by place: every question agrees"
        yield f"{row['name']} ({row['file']}{joined})"
        yield from _scores({**row["scores"], **row["totals"]})
    if result["question_only"] is not None:
        yield question_only_line(result["question_only"], data["items"])
        yield from _scores(result["question_only"]["scores"])
    for metric, way in result["not_computed"].items():
        yield f"  {metric:24} not computed: {way}"
    if data["inferred"]:
        yield inferred_line(data["inferred"])
    yield from (f"WARNING: {line}" for line in ceiling_lines(data["ceilings"]))
    yield from group_lines(result["by"])


def _scores(scores: Mapping[str, Score | MetricScore]) -> Iterator[str]:
    for name, score in scores.items():
        what = str(score.get("what") or SCORES.get(name, ""))
        trusted = "" if score["trusted"] else ", too few for an interval"
        yield (
            f"  {name:24} {percent(score):22} n={score['n']}, {score['clusters']} clusters"
            f"{trusted}{'; ' if what else ''}{what}"
        )


def group_lines(groupings: Sequence[Grouping]) -> Iterator[str]:
    """Write the scores of each group, and its paired tests."""
    for grouping in groupings:
        tests = sum(len(group["comparisons"]) for group in grouping["groups"])
        correction = f"; Holm's correction over these {tests} tests" if tests else ""
        yield f"by {grouping['field']} (intervals only from 10 clusters on{correction}):"
        for group in grouping["groups"]:
            yield f"  {group['value']} ({group['items']} items)"
            for row, scores in group["scores"].items():
                cells = [
                    f"{name} {percent(scores[name])} (n={scores[name]['n']})"
                    for name in shown_scores(scores)
                ]
                yield f"    {row}: {', '.join(cells)}"
            for one in group["comparisons"]:
                if shown_scores([one["score"]]):
                    yield f"  {comparison_line(one)}"
