"""`python -m`, as launchers start it, in a folder whose names are this project's."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.integration
@pytest.mark.parametrize("module", ["student_train", "teacher_cache"])
def test_a_folder_called_shared_is_not_taken_for_the_project_s(module: str, tmp_path: Path) -> None:
    for name in ("shared", "pipelines"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('the user\\'s own')")
    found = subprocess.run(
        [sys.executable, "-m", module, "--help"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    assert "Commands" in found.stdout
