"""The rehearsal's commands, with small students: every stage of the 7B path goes through."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.integration, pytest.mark.slow]
ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("model", ["llava-med-1.5", "huatuogpt-vision-7b"])
def test_every_stage_goes_through(model: str, tmp_path: Path) -> None:
    words = ["-m", "benchmarks.rehearsal", model, "--work", str(tmp_path), "--small"]
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        [sys.executable, *words],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    costs = json.loads((tmp_path / model / "costs.json").read_text())
    assert len(costs) == 8
    # After the kill: a small student's second step may be saved by then.
    assert "goes on behind step " in done.stderr
    assert (tmp_path / model / "merged" / "config.json").is_file()
