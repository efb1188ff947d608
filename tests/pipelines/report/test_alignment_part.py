"""What a page says of a run's alignment: the numbers of `alignment.json`, or nothing."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.regions.measuring import measure
from pipelines.report.alignment import alignment_part
from shared.errors import UserError
from tests.fixtures.runs import write_run
from tests.fixtures.student_runs import write_store

pytestmark = pytest.mark.integration
IMAGES = 12


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_run(tmp_path_factory.mktemp("run"), images=IMAGES)
    write_store(folder / "store", folder / "data", [f"{n}.png" for n in range(IMAGES)])
    rows = [{"image": f"{n}.png", "boxes": [[n, 3, 12, 11]]} for n in range(IMAGES)]
    (folder / "regions.json").write_text(json.dumps({"records": rows}))
    measure(folder, store=str(folder / "store"), regions=folder / "regions.json")
    return folder


def test_the_table_has_the_measured_numbers_and_leads_with_the_change(run: Path) -> None:
    part = alignment_part(run)
    found: Any = json.loads((run / "alignment.json").read_text())
    assert part["measured"]
    assert part["columns"] == ["before", "LoRA", "MEDALIGN", "teacher", "prior", "chance"]
    by_title = {row["title"]: row for row in part["scores"]}
    value = found["rows"]["MEDALIGN"]["pointing"]
    low, high = value["interval"]
    assert by_title["pointing game"]["cells"][2] == f"{value['value']:.3f} [{low:.3f}, {high:.3f}]"
    assert by_title["pointing game"]["n"] == IMAGES
    before, after = (found["rows"][row]["loss_vis"]["value"] for row in ("before", "MEDALIGN"))
    assert (
        f"L_vis, MEDALIGN: {before:.4f} before, {after:.4f} after (p = " in part["before_after"][0]
    )
    prior = found["rows"]["prior"]["pointing"]["value"]
    assert f"the prior hits in {100 * prior:.0f}%" in part["before_after"][-1]
    assert {(one["a"], one["b"]) for one in part["tests"]} == {
        ("LoRA", "before"), ("MEDALIGN", "before"), ("MEDALIGN", "LoRA"),
        ("LoRA", "prior"), ("MEDALIGN", "prior"),
    }  # fmt: skip


def test_layers_and_exchanged_sides_have_tables_of_their_own(run: Path) -> None:
    assert alignment_part(run)["further"] == []
    kept = (run / "alignment.json").read_text()
    try:
        measure(run, store=str(run / "store"), regions=run / "regions.json", layers=[0, 2])
        found: Any = json.loads((run / "alignment.json").read_text())
        found["sides"] = {"images": 12} | {name: found[name] for name in ("rows", "tests")}
        (run / "alignment.json").write_text(json.dumps(found))
        layers, sides = alignment_part(run)["further"]
    finally:
        (run / "alignment.json").write_text(kept)
    assert [row["title"] for row in layers["scores"]] == ["layer 0", "layer 2"]
    place = layers["columns"].index("LoRA")
    value = found["by_layer"]["rows"]["LoRA"]["2"]
    low, high = value["interval"]
    assert layers["scores"][1]["cells"][place] == f"{value['value']:.3f} [{low:.3f}, {high:.3f}]"
    assert {one["score"] for one in layers["tests"]} <= set(layers["test_titles"])
    assert sides["columns"] == list(found["rows"])
    assert "12 questions" in sides["note"]
    assert sides["tests"] == found["tests"]


def test_few_units_have_neither_interval_nor_test(run: Path, tmp_path: Path) -> None:
    rows = [
        {"image": f"{n}.png", "patient": f"p{n // 3}", "boxes": [[n, 3, 12, 11]]}
        for n in range(IMAGES)
    ]
    (tmp_path / "regions.json").write_text(json.dumps({"records": rows}))
    kept = (run / "alignment.json").read_text()
    try:
        measure(run, store=str(run / "store"), regions=tmp_path / "regions.json")
        part = alignment_part(run)
    finally:
        (run / "alignment.json").write_text(kept)
    assert part["tests"] == []
    assert not any("[" in cell for row in part["scores"] for cell in row["cells"])
    assert all("4 units, too few for a test" in one for one in part["before_after"])


def test_the_picture_is_shown_where_it_was_drawn(run: Path) -> None:
    assert alignment_part(run)["picture"] is None
    (run / "figures").mkdir()
    (run / "figures" / "attention.png").write_bytes(b"picture")
    assert alignment_part(run)["picture"] == base64.b64encode(b"picture").decode()


def test_a_run_without_a_measurement_has_an_empty_part(tmp_path: Path) -> None:
    part = alignment_part(tmp_path)
    assert (part["measured"], part["scores"], part["picture"]) == (False, [], None)
    (tmp_path / "alignment.json").write_text('{"schema": 9}')
    with pytest.raises(UserError, match="medalign alignment"):
        alignment_part(tmp_path)
