"""The loss curve of a fixed run as text: a refactor must reproduce it.

After a change that is meant to move the numbers: `python -m tests.student_train.test_golden_losses`
writes it anew.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest

from student_train.run.train import train
from tests.fixtures.student_runs import recipe, write_run

GOLDEN = Path(__file__).with_name("golden_losses.txt")
NAMES = ("loss", "loss_lm", "loss_vis", "loss_att", "grad_norm")
RUNS: dict[str, Any] = {
    "renormalized": {},
    "softmax": {"losses__attention_normalization": "softmax"},
    "l2": {"losses__attention_normalization": "l2"},
    "last-row-unmasked": {"losses__attention_rows": "last", "losses__mask_padding": False},
    "low-rank": {"rotation": {"kind": "low_rank", "rank": 3}},
    "orthogonal": {"rotation": {"kind": "orthogonal", "rank": 3}},
    "two-layers": {"losses__layer": [1, 3]},
}


def curve(values, folder, name):
    output = train(recipe(values, output=str(folder / name), **RUNS[name]))
    rows = json.loads((output / "trainer_state.json").read_text())["log_history"]
    return [[row["step"], *(row[key] for key in NAMES)] for row in rows if "loss_lm" in row]


def golden_run(folder):
    """The run's values; squares have the student's own mean around them, as when it was made."""
    values = write_run(folder, records=14, text_only=2)
    values["data"]["padding"] = [122, 116, 104]
    return values


def golden():
    found = {name: [] for name in RUNS}
    for line in GOLDEN.read_text().splitlines():
        if line and not line.startswith("#"):
            name, *numbers = line.split()
            found[name].append([float(number) for number in numbers])
    return found


@pytest.fixture(scope="module")
def values(tmp_path_factory):
    return golden_run(tmp_path_factory.mktemp("golden"))


@pytest.mark.integration
@pytest.mark.parametrize("name", RUNS)
def test_the_golden_losses(values, tmp_path, name):
    found = curve(values, tmp_path, name)
    expected = golden()[name]
    assert len(found) == len(expected)
    for row, other in zip(found, expected, strict=True):
        assert row == pytest.approx(other, rel=2e-4, abs=2e-6)


def main():
    lines = [f"# run step {' '.join(NAMES)}"]
    with tempfile.TemporaryDirectory() as folder:
        values = golden_run(Path(folder))
        for name in RUNS:
            for row in curve(values, Path(folder), name):
                lines.append(f"{name} {row[0]} " + " ".join(f"{number:.6g}" for number in row[1:]))
    GOLDEN.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
