"""The notebook: its cells in order, in a fresh process, end at maps that training has moved."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from pipelines.demo.quickstart import LEAST_FALL

NOTEBOOK = Path(__file__).parents[1] / "docs" / "notebook.ipynb"


@pytest.mark.slow
def test_its_cells_run_in_order(tmp_path: Path) -> None:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    told = "import json\nprint('\\n' + json.dumps(apart))"
    (tmp_path / "cells.py").write_text("\n\n".join([*code, told]), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "cells.py"], cwd=tmp_path, capture_output=True, text=True, check=False,
        env=os.environ | {"MPLBACKEND": "agg", "PYTHONPATH": str(NOTEBOOK.parents[1])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert 1 - found["after"] / found["before"] >= LEAST_FALL  # what `quickstart` asks of L_vis
    with Image.open(tmp_path / "notebook" / "maps.png") as picture:
        assert picture.size == (1200, 600)


@pytest.mark.unit
def test_it_keeps_no_output() -> None:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len(code) >= 5
    assert not any(cell["outputs"] or cell["execution_count"] for cell in code)
