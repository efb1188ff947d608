"""Reading targets stays light: a training worker loads neither a command line nor torch for it."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

HEAVY = {"typer", "click", "rich", "torch", "zarr", "PIL"}
READING = f"""
import sys
import shared.targets
loaded = {HEAVY} & set(sys.modules)
assert not loaded, f"import shared.targets loads {{loaded}}"
from shared.targets import TargetStore
store = TargetStore.open(sys.argv[1])
store.batch(list(store.keys()))
loaded = {HEAVY} & set(sys.modules)
assert not loaded, f"reading targets loads {{loaded}}"
"""


def test_reading_targets_loads_no_command_line_and_no_torch(tmp_path):
    from tests.fixtures.targets import write_records

    write_records(tmp_path / "store", range(3))
    command = [sys.executable, "-c", READING, str(tmp_path / "store")]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[3])
