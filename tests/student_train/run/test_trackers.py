"""What TensorBoard, W&B and MLflow hold after a run.

The logged terms, step by step, read back by their own readers.

W&B runs offline and MLflow on a file of its own; both are skipped where they are not installed.
"""

import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.fixtures.student_runs import changed, write_run, write_train_file

pytestmark = pytest.mark.integration
Curves = Mapping[str, list[tuple[int, float]]]


@pytest.fixture(scope="module")
def values(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trackers")
    values = write_run(folder)
    names = [f"image{number}.png" for number in range(6)]
    values["data"]["validation"] = str(write_train_file(folder / "validation.json", names, 3))
    return changed(values, train__eval_steps=2, train__sample_answers=1)


def tensorboard_curves(folder: Path) -> Curves:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    [events] = (folder / "run" / "runs").glob("*")
    found = EventAccumulator(str(events)).Reload()
    return {
        tag: [(one.step, one.value) for one in found.Scalars(tag)]
        for tag in found.Tags()["scalars"]
    }


def offline_records(data: bytes) -> Iterator[bytes]:
    """Records of an offline run's file.

    7 bytes of header, then LevelDB's log format in blocks of 32 KiB.
    """
    place, parts = 7, b""
    while place < len(data):
        if (left := -place % 32768) < 7:  # a block's rest that holds no record's head is padding
            place += left
            continue
        _, length, kind = struct.unpack_from(
            "<IHB", data, place
        )  # checksum; 1 whole, 2 first, 3 middle, 4 last
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            yield parts
            parts = b""


def wandb_curves(folder: Path) -> Curves:
    from wandb.proto import wandb_internal_pb2

    [path] = folder.glob("wandb/offline-run-*/run-*.wandb")
    curves: dict[str, list[tuple[int, float]]] = {}
    for data in offline_records(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        row = {
            ".".join(item.nested_key) or item.key: json.loads(item.value_json)
            for item in record.history.item
        }
        for name, value in row.items():
            curves.setdefault(name, []).append((row["train/global_step"], value))
    return curves


def mlflow_curves(folder: Path) -> Curves:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    [run] = client.search_runs(["0"])
    assert run.info.run_name == "three terms"
    assert run.info.status == "FINISHED"
    return {
        name: [(one.step, one.value) for one in client.get_metric_history(run.info.run_id, name)]
        for name in run.data.metrics
    }


def named(tracker: str, name: str) -> str:
    """Return what a tracker calls a logged number.

    Transformers sorts it by its beginning, but for MLflow.
    """
    if tracker == "mlflow":
        return name
    return f"eval/{name.removeprefix('eval_')}" if name.startswith("eval_") else f"train/{name}"


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning"
)  # of the readers; the run is a process of its own
@pytest.mark.parametrize(
    ("tracker", "read"),
    [("tensorboard", tensorboard_curves), ("wandb", wandb_curves), ("mlflow", mlflow_curves)],
)
def test_a_tracker_holds_the_curves_of_the_run(
    values: Any, tmp_path: Path, tracker: str, read: Any
) -> None:
    pytest.importorskip(tracker)
    path = tmp_path / "recipe.yaml"
    changes = {
        "train__report_to": [tracker],
        "train__run_name": "three terms",
        "deepspeed": "zero2",
    }
    path.write_text(yaml.safe_dump(changed(values, output=str(tmp_path / "run"), **changes)))
    environment = os.environ | {
        "WANDB_MODE": "offline",
        "WANDB_DIR": str(tmp_path),
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db",
    }
    command = [sys.executable, "-m", "student_train", "train", str(path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert (f"go to {tracker}" in done.stderr) == (tracker != "tensorboard")
    question = json.loads((tmp_path / "run" / "samples.jsonl").read_text().splitlines()[0])[
        "question"
    ]
    assert question in done.stderr
    for file in [*tmp_path.glob("wandb/**/*"), *tmp_path.glob("mlflow.db")]:
        assert not file.is_file() or question.encode() not in file.read_bytes(), file
    curves = read(tmp_path)
    log = json.loads((tmp_path / "run" / "trainer_state.json").read_text())["log_history"]
    for name in ("loss", "loss_lm", "loss_vis", "loss_att", "eval_loss", "eval_loss_vis"):
        expected = [(row["step"], pytest.approx(row[name], rel=1e-5)) for row in log if name in row]
        assert len(expected) == (2 if name.startswith("eval") else 3)
        assert curves[named(tracker, name)] == expected
