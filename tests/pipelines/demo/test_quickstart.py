"""`medalign quickstart`: a miniature of it, what it refuses, and the whole with its assertion."""

import base64
import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.demo import quickstart
from pipelines.demo.quickpage import write_page
from pipelines.demo.quickstart import WHOLE, Size, held_out_loss, run_quickstart
from pipelines.regions.measuring import read_alignment
from shared.errors import UserError
from shared.imaging.grid import Grid
from shared.imaging.keys import content_key
from shared.records import load_records
from shared.targets import TargetStore

TINY = Size(train=6, test=3, grid="4x4", steps=4)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("quick") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quickstart, "LEAST_FALL", -1.0)  # four steps promise nothing
        assert run_quickstart(out, TINY) == out / "index.html"
    return out


def page_data(run: Path) -> Any:
    [text] = re.findall(r"^const DATA = (.*);$", (run / "index.html").read_text(), re.MULTILINE)
    return json.loads(text)


@pytest.mark.integration
def test_no_image_is_trained_on_and_held_out(run: Path) -> None:
    train, test = (load_records(run / "data" / f"{one}.json") for one in ("train", "test"))
    assert (len(train), len(test)) == (6, 3)
    keys = [content_key(run / "data" / record.images[0]) for record in [*train, *test]]
    assert len(set(keys)) == 9
    slabs = [{record.extra["patient"] for record in part} for part in (train, test)]
    assert not slabs[0] & slabs[1]


@pytest.mark.integration
def test_the_page_shows_what_the_store_holds(run: Path) -> None:
    data = page_data(run)
    assert (data["rows"], data["columns"], len(data["images"])) == (4, 4, 3)
    store = TargetStore.open(run / "store", grid=Grid(4, 4))
    rows, columns = np.triu_indices(16, 1)
    for one in data["images"]:
        target = store[content_key(run / "data" / "images" / f"{one['name']}.png")]
        levels = np.frombuffer(base64.b64decode(one["alike"]["teacher"]), np.uint8).reshape(16, 16)
        shown = levels.astype(np.float64) / 127.5 - 1
        wanted = np.asarray(target.similarity, dtype=np.float64).clip(-1, 1)
        # half a level of 2/255, and half a unit more where the level is rounded in float32
        np.testing.assert_allclose(shown[rows, columns], wanted, atol=0.51 / 127.5)
        assert (levels.diagonal() == 255).all()
        assert sum(one["maps"]["after"]) == pytest.approx(1, abs=16 * 1e-6)


@pytest.mark.integration
def test_the_page_needs_no_network(run: Path) -> None:
    page = (run / "index.html").read_text()
    assert not re.search(r"(src|href)=[\"']?(https?:)?//|https?://|import\(|fetch\(", page)


@pytest.mark.integration
def test_a_name_ends_no_script_of_the_page(run: Path) -> None:
    file, page = run / "data" / "test.json", run / "index.html"
    records, text = file.read_text(), page.read_text()
    rows = json.loads(records)
    rows[0]["id"] = "</script><b>"
    file.write_text(json.dumps(rows))
    try:
        write_page(run, 1.0, 0.5)
        assert page_data(run)["images"][0]["name"] == "</script><b>"
        assert page.read_text().count("</script>") == text.count("</script>")
    finally:
        file.write_text(records)
        page.write_text(text)


@pytest.mark.integration
def test_started_again_it_does_nothing_anew_and_asserts_the_fall(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (run / "stages.json").read_bytes()
    monkeypatch.setattr(quickstart, "LEAST_FALL", 1.0)
    with pytest.raises(UserError, match=r"fall by 100% at least"):
        run_quickstart(run, TINY)
    assert (run / "stages.json").read_bytes() == before
    printed = capsys.readouterr().out
    for stage in json.loads(before)["stages"]:
        assert f"$ {stage['command']}" in printed
        assert shlex.split(stage["command"])[0] in {"student", "cache", "medalign"}


@pytest.mark.unit
def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="something else than a quickstart"):
        run_quickstart(tmp_path)
    assert [one.name for one in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.slow
@pytest.mark.integration
def test_the_whole_quickstart_distils(tmp_path: Path) -> None:
    run_quickstart(tmp_path / "run", WHOLE)
    measured = read_alignment(tmp_path / "run" / "medalign")
    assert measured is not None
    before, after = held_out_loss(measured)
    assert after <= 0.7 * before
