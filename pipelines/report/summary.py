"""The demo report's plain words.

What was done, what the budget allows, and what the numbers do and do not show.
"""

from collections.abc import Sequence

from pipelines.evaluation.result import Comparison
from pipelines.report.demo_scores import DemoDescription
from pipelines.report.kinds import Kind


def demo_summary(
    demo: DemoDescription,
    comparisons: Sequence[Comparison],
    kinds: Sequence[Kind],
) -> list[str]:
    """Paragraphs for the top of the page, each following from the numbers."""
    what = (
        "A small student (SmolLM2-135M with the first half of a ViT-S/14) learned to answer "
        "questions about slices of "
        "one brain, twice from the same start and the same seed: with LoRA alone, and with LoRA "
        "and the three-term "
        "loss, whose targets the whole ViT-S/14 had written to the store before. "
        f"Each arm had {demo['arm_steps']} steps of {demo['batch_size']} conversations."
    )
    return [what, _learned(kinds), _difference(comparisons), _budget(demo)]


def _learned(kinds: Sequence[Kind]) -> str:
    """Name the kinds that the last arm answers better than a constant answer would.

    By its interval.
    """
    above = [kind for kind in kinds if kind["values"][-1]["low"] > kind["constant"]]
    rest = [kind for kind in kinds if kind not in above]
    said = []
    if above:
        said.append(
            "Learned, as far as these intervals show (better than the best constant answer): "
            + _list(above)
            + "."
        )
    if rest:
        said.append("Not learned so far: " + _list(rest) + ".")
    return " ".join(said)


def _list(kinds: Sequence[Kind]) -> str:
    return "; ".join(
        f"{kind['text'].split(' (')[0]} ({100 * kind['values'][-1]['value']:.0f}%)"
        for kind in kinds
    )


def _difference(tests: Sequence[Comparison]) -> str:
    """Say what the paired tests found between the two arms."""
    if not tests:
        return ""
    sure = [one for one in tests if one["p_holm"] < 0.05]
    if not sure:
        shown = [one["detectable"] for one in tests if one["detectable"] is not None]
        power = (
            f"which could show differences from about {100 * max(shown):.0f} points on"
            if len(shown) == len(tests)
            else "which is too small to show any"
        )
        return (
            "No paired test tells the two arms apart: the differences in the table are within "
            f"chance for a set of this size, {power}."
        )
    found = "; ".join(
        f"{one['score'].replace('_', ' ')} {100 * one['difference']:+.1f} points for {one['a']} "
        f"over {one['b']} "
        f"(p = {one['p_holm']:.3f})"
        for one in sure
    )
    return (
        f"The paired tests tell the arms apart on: {found}. One brain and one seed carry no "
        "further than that."
    )


def _budget(demo: DemoDescription) -> str:
    if demo["full"]:
        return (
            "This was the full run. It shows the pipeline on a task that can be learned; the size "
            "of any difference "
            "between the arms says nothing about medical models, other images or the paper's "
            "claims."
        )
    return (
        f"{demo['arm_steps']} steps show what distillation moved, above all other numbers, and "
        "that every part of the pipeline works on real images; they do not show that the method "
        "helps answers. `medalign demo --full` trains until most of the task is learned; whether "
        "answers gain is asked by the study on chest X-rays (docs/sweep.md)."
    )


def stage_notes(demo: DemoDescription) -> list[str]:
    """Remarks under the table of stages."""
    notes = [f"Precision {demo['precision']}, the faster one on this machine."]
    for stage in demo["stages"]:
        if stage["name"] == "cache again":
            output = stage["output"]
            found, encoded = output["found"], output["encoded"]
            notes.append(
                f"The second build found {found} images in the store and encoded {encoded}."
            )
    return notes
