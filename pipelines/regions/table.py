"""An alignment as text of at most 80 columns."""

from collections.abc import Iterator

from pipelines.regions.measuring import Alignment, Test, Value

TITLES = {
    "loss_vis": "L_vis (lower is closer to the teacher)",
    "loss_att": "L_att (lower is closer to the teacher)",
    "similarity": "correlation of S_x with S_e",
    "separable": "regions told apart by their nearest neighbour",
    "pointing": "pointing game",
    "energy": "attention inside the region",
    "auc": "AUC of the attention over patches",
}


def lines_of(found: Alignment) -> Iterator[str]:
    """Yield a block for each score: its rows, then its tests."""
    yield (
        f"layer {found['layer']}, {found['images']} held-out images, targets of {found['teacher']}"
    )
    for score, title in TITLES.items():
        rows = {name: values[score] for name, values in found["rows"].items() if score in values}
        if not rows:
            continue
        first = next(iter(rows.values()))
        yield ""
        yield f"{title} ({first['n']} images of {first['patients']} patients)"
        for name, value in rows.items():
            yield f"  {name:<26} {_number(value)}"
        for test in found["tests"]:
            if test["score"] == score:
                yield f"  {_tested(test)}"


def _number(value: Value) -> str:
    low, high = value["interval"]
    return f"{value['value']:8.4f} [{low:.4f}, {high:.4f}]"


def _tested(test: Test) -> str:
    low, high = ("?" if end is None else f"{end:+.4f}" for end in test["interval"])
    return (
        f"{test['a']} - {test['b']}: {test['difference']:+.4f} [{low}, {high}], "
        f"p {test['p_holm']:.3f}"
    )
