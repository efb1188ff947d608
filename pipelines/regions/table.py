"""An alignment, and an audit, as text of at most 80 columns."""

from collections.abc import Iterator, Mapping, Sequence
from textwrap import wrap

from pipelines.regions.audit import Audit
from pipelines.regions.experts import CHANCE
from pipelines.regions.gate import Gate, verdict
from pipelines.regions.measuring import Alignment
from pipelines.regions.scoring import Test, Value

WIDTH = 80  # columns
TITLES = {
    "loss_vis": "L_vis (lower is closer to the teacher)",
    "loss_att": "L_att (lower is closer to the teacher)",
    "similarity": "correlation of S_x with S_e",
    "separable": "regions told apart by their nearest neighbour",
    "pointing": "pointing game",
    "energy": "attention inside the region",
    "auc": "AUC of the attention over patches",
    "together": "AUC of S_e within the region; chance 0.5",
    "deletion": "deletion AUC (lower is better)",
    "insertion": "insertion AUC (higher is better)",
}


def lines_of(found: Alignment) -> Iterator[str]:
    """Yield a block for each score: its rows, then its tests; then of layers and sides."""
    yield (
        f"layer {found['layer']}, {found['images']} held-out images, targets of {found['teacher']}"
    )
    yield from _blocks(found["rows"], found["tests"])
    layered, sides = found.get("by_layer"), found.get("sides")
    if layered is not None:
        titles = {str(layer): f"regions told apart in layer {layer}" for layer in layered["layers"]}
        yield from _blocks(layered["rows"], layered["tests"], titles)
    if sides is not None:
        yield ""
        yield "Questions that name a side, and the same with left and right exchanged:"
        yield from _blocks(sides["rows"], sides["tests"])


def audit_lines(found: Audit) -> Iterator[str]:
    """Yield the blocks of each teacher, then the tests between teachers."""
    yield f"{found['images']} images with regions of {found['patients']} patients"
    if found["without_target"]:
        yield f"{found['without_target']} more have no target in the store and are left out"
    for name, audited in found["teachers"].items():
        yield ""
        yield f"{name}, {audited['grid']}"
        yield from _blocks(audited["rows"], audited["tests"])
        if audited["deletion_against"]:
            yield f"  deletion and insertion: cosine with {audited['deletion_against']}"
        if audited["silhouette"] is not None:
            yield f"  silhouette of the regions in E_v: {audited['silhouette']:.4f}"
        if audited["left_out"]:
            yield f"  without E_v: {audited['left_out']}"
        if audited["gate"] is not None:
            yield from _gate(audited["gate"])
    for test in found["between"]:
        yield ""
        yield f"{test['score']}, {test['a']}"
        yield f"  less {test['b']}"
        yield f"  {_difference(test)}"


def _gate(gate: Gate) -> Iterator[str]:
    yield ""
    yield f"The gate of `{gate['of']}`"
    for check in gate["checks"]:
        answer = {True: "yes", False: "no", None: "not measured"}[check["holds"]]
        yield f"  {check['name']}: {answer}"
        if check["said"] != answer:
            for part in check["said"].split("; "):
                yield from wrap(part, WIDTH, initial_indent="    ", subsequent_indent="      ")
    yield from wrap(verdict(gate), WIDTH, subsequent_indent="  ")


def _blocks(
    every: Mapping[str, Mapping[str, Value]],
    tests: Sequence[Test],
    titles: Mapping[str, str] = TITLES,
) -> Iterator[str]:
    for score, title in titles.items():
        rows = {name: values[score] for name, values in every.items() if score in values}
        if not rows:
            continue
        first = next(iter(rows.values()))
        yield ""
        yield f"{title} ({first['n']} images of {first['patients']} patients)"
        for name, value in rows.items():
            yield f"  {name:<26} {_number(value, name)}"
        for test in tests:
            if test["score"] == score:
                yield f"  {test['a']} - {test['b']}: {_difference(test)}"


def _number(value: Value, row: str) -> str:
    low, high = value["interval"]
    # Chance is computed, not observed.
    interval = "" if row == CHANCE else f" [{low:.4f}, {high:.4f}]"
    return f"{value['value']:8.4f}{interval}"


def _difference(test: Test) -> str:
    low, high = ("?" if end is None else f"{end:+.4f}" for end in test["interval"])
    return f"{test['difference']:+.4f} [{low}, {high}], p {test['p_holm']:.3f}"
