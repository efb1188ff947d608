"""An --out that cannot be a folder is one line, before any work."""

from pathlib import Path
from typing import Any

import pytest

from pipelines.datasets.brain_atlas.writing import prepare_brain_atlas
from pipelines.datasets.prepare import prepare
from pipelines.documents import write_document
from pipelines.evaluation.run import evaluate
from pipelines.report.table_formats import write_tables
from pipelines.stages import Diary
from shared.errors import UserError

pytestmark = pytest.mark.unit
WAYS: dict[str, Any] = {
    "data prepare": lambda out: prepare("slake", Path("nowhere"), out),
    "data prepare brain-atlas": prepare_brain_atlas,
    "demo": Diary,
    "evaluate": lambda out: evaluate({"base": out.parent}, out.parent, methods=["greedy"], out=out),
    "report tables": write_tables,
    "report metrics": lambda out: write_document(out, {}),
}


@pytest.mark.parametrize("below", ["", "deeper"])
@pytest.mark.parametrize("command", WAYS)
def test_a_file_in_the_place_of_a_folder(tmp_path: Path, command: str, below: str) -> None:
    place = tmp_path / "file"
    if command == "report metrics" and not below:
        place.mkdir()
    else:
        place.write_text("kept")
    with pytest.raises(UserError, match=rf"cannot write (to )?{place / below}.*; choose another"):
        WAYS[command](place / below)
    assert place.is_dir() or place.read_text() == "kept"
