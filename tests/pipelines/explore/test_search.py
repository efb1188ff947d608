"""Filters against a plain reading of every answer; pages; and that nothing is read in advance."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.evaluation.result import answers_path, read_result
from pipelines.explore.fields import Fields
from pipelines.explore.opening import open_explorer
from pipelines.explore.search import Filter, search
from pipelines.explore.table import Table
from shared.errors import UserError

pytestmark = pytest.mark.unit
ROWS = ["LoRA + greedy", "LoRA + beam", "MEDALIGN + beam"]
CLOSED = ("closed_accuracy", "closed_accuracy_strict")
ITEMS = 2500  # of more than two blocks

Answers = dict[str, list[tuple[str, dict[str, float]]]]


def random_answers(seed: int = 0, items: int = ITEMS) -> Answers:
    random = np.random.default_rng(seed)
    kinds = random.choice(["closed", "open", "report"], items, p=[0.6, 0.3, 0.1])
    names = {"closed": CLOSED, "open": ("open_recall", "open_f1_strict"), "report": ("rouge_l",)}
    texts = ["yes", "no ", "Yes", "it is  so", "It is so"]
    return {
        row: [
            (
                str(random.choice(texts)),
                dict.fromkeys(names[kind], float(random.choice([0, 0.5, 1]))),
            )
            for kind in kinds
        ]
        for row in ROWS
    }


def expected(answers: Answers, wanted: Filter, clusters: list[str]) -> list[int]:
    """Read every answer and ask it in plain words."""
    found = []
    for place in range(len(clusters)):
        own = [answers[row][place] for row in ROWS]
        kind = next(iter(own[0][1])).split("_")[0]
        kind = "report" if kind == "rouge" else kind
        marks = [list(scores.values())[-1] for _, scores in own]
        asked = kind != "report"
        right = [asked and one == 1 for one in marks]
        wrong = [asked and one < 1 for one in marks]
        same = {" ".join(text.lower().split()) for text, _ in own}
        turns = {
            "": True,
            "gained": wrong[wanted.a] and right[wanted.b],
            "lost": right[wanted.a] and wrong[wanted.b],
            "verdicts": any(right) and any(wrong),
            "texts": len(same) > 1,
            "right": all(right),
            "wrong": all(wrong),
        }
        if (
            turns[wanted.turn]
            and wanted.kind in ("", kind)
            and wanted.cluster in ("", clusters[place])
        ):
            found.append(place)
    return found


def pages(table: Table, wanted: Filter, fields: Fields, count: int, seconds: float) -> list[int]:
    places: list[int] = []
    start: int | None = 0
    while start is not None:
        found = search(table, wanted, fields, start, count, seconds)
        assert len(found.places) <= count
        assert found.following is None or found.following == start + found.searched
        places += found.places
        start = found.following
    return places


@pytest.mark.parametrize("count", [50, 7])
@pytest.mark.parametrize("seconds", [0.0, 9.0])
@pytest.mark.parametrize(
    "wanted",
    [
        Filter(),
        Filter(kind="open"),
        Filter(turn="gained", a=0, b=2),
        Filter(turn="lost", a=0, b=2),
        Filter(turn="gained", a=2, b=1, kind="closed"),
        Filter(turn="verdicts"),
        Filter(turn="texts", kind="report"),
        Filter(turn="right"),
        Filter(turn="wrong", cluster="patient 3"),
        Filter(kind="choice"),
    ],
    ids=str,
)
def test_filters_and_pages(written: Any, wanted: Filter, count: int, seconds: float) -> None:
    answers, clusters = random_answers(), [f"patient {place // 300}" for place in range(ITEMS)]
    folder = written(answers, clusters=clusters)
    result = read_result(folder / "result.json")
    table = Table(folder, result)
    found = pages(table, wanted, Fields(result), count, seconds)
    table.close()
    assert found == expected(answers, wanted, clusters)


def test_an_answer_that_is_almost_right_is_wrong(written: Any) -> None:
    almost = [("yes", {"open_f1_strict": 1 - 1e-12})]
    folder = written(
        {"LoRA + greedy": almost, "MEDALIGN + greedy": [("yes", {"open_f1_strict": 1})]}
    )
    explorer = open_explorer(folder, folder)
    assert [
        one["place"] for one in explorer.items(Filter(turn="gained", a=0, b=1), 0)["items"]
    ] == [0]
    explorer.close()


def test_what_nobody_asks_for_is_not_read(written: Any) -> None:
    """A file whose second half is no JSON opens, lists and shows what stands before."""
    folder: Path = written(random_answers(items=400))
    path = answers_path(folder, ROWS[0])
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([*lines[:300], b"torn {", *lines[301:]]))
    explorer = open_explorer(folder, folder)
    assert explorer.run()["items"] == 400
    page = explorer.items(Filter(), 0)
    assert [one["place"] for one in page["items"]] == list(range(50))
    assert page["following"] == 50
    assert explorer.item(299)["id"] == "id 299"
    assert explorer.item(399)["id"] == "id 399"
    with pytest.raises(UserError, match="cannot be read"):
        explorer.item(300)
    explorer.close()


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (Filter(kind="yes"), "no kind 'yes'"),
        (Filter(turn="up"), "no turn 'up'"),
        (Filter(turn="gained", b=3), "rows are numbered 0 to 2"),
        (Filter(field="plane", value="axial"), "not read"),
    ],
)
def test_filters_that_mean_nothing(written: Any, wanted: Filter, message: str) -> None:
    folder = written(random_answers(items=3))
    explorer = open_explorer(folder, folder)
    with pytest.raises(UserError, match=message):
        explorer.items(wanted, 0)
    explorer.close()


def test_answers_files_that_do_not_fit(written: Any) -> None:
    answers = random_answers(items=3)
    folder = written(answers)
    path = answers_path(folder, ROWS[1])
    lines = path.read_text().split("\n")
    path.write_text("\n".join([lines[1], lines[0], *lines[2:]]))
    explorer = open_explorer(folder, folder)
    with pytest.raises(UserError, match="another one in other rows"):
        explorer.item(0)
    path.write_text(lines[0] + "\n")
    explorer.close()
    explorer = open_explorer(folder, folder)
    with pytest.raises(UserError, match="fewer than the 3 answers"):
        explorer.items(Filter(), 0)
    explorer.close()
    path.unlink()
    with pytest.raises(UserError, match="is missing; run `medalign evaluate`"):
        open_explorer(folder, folder)
    with pytest.raises(UserError, match="no evaluation at"):
        open_explorer(folder, folder / "nowhere")
