"""A build on Ray: three local workers, one killed."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from shared.errors import UserError
from shared.imaging import Grid
from shared.targets.segment.scan import scan
from teacher_cache.building import build
from teacher_cache.keeping.info import info
from teacher_cache.on_ray import cluster
from teacher_cache.settings import Settings
from teacher_cache.sources import find_images
from tests.fixtures import held_ray
from tests.fixtures.images import image_folder
from tests.fixtures.progress import Gate, wait_until
from tests.fixtures.tiny_teacher import TEACHER, arguments, records, tiny_weights

ROOT = Path(__file__).resolve().parents[2]
IMAGES = 24


@pytest.mark.unit
def test_ranks_of_torchrun_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="unset RANK and WORLD_SIZE"), cluster():
        pass


@pytest.mark.unit
def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")  # put back afterwards
    with pytest.raises(UserError, match=r"pip install 'medalign\[ray\]'"), cluster():
        pass


@pytest.mark.slow
def test_three_workers_one_killed(tmp_path):
    """Each stops in its third batch with blocks of four: no segment is there when one dies."""
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    weights = tiny_weights(tmp_path / "tiny.safetensors")
    image_folder(tmp_path / "images", IMAGES, **{"bad.png": b"bad"})
    line = [
        *arguments(tmp_path / "images", tmp_path / "store", weights),
        *("--engine", "ray", "--batch-size", "1", "--segment-records", "4", "--device", "cpu"),
        *("--workers", "1", "--json", "--allow-skips", "1"),
    ]
    gate = Gate(tmp_path / "gate").make()
    process = subprocess.Popen(
        [sys.executable, held_ray.__file__, str(gate.path), *line],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        wait_until(lambda: len(gate.held()) == 3, process)
        os.kill(gate.held()[0], signal.SIGKILL)
        gate.open()
        out, err = process.communicate()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, err
    report = json.loads(out)
    assert (report["distinct"], report["encoded"], report["failed"]) == (IMAGES + 1, IMAGES, 1)
    assert not [one for one in scan(tmp_path / "store") if one.damage]
    [described] = info(tmp_path / "store")
    assert (described["records"], described["superseded"]) == (IMAGES, 0)
    assert described["quarantined"] == 1
    build(
        TEACHER,
        find_images(str(tmp_path / "images")),
        tmp_path / "quiet",
        weights=weights,
        settings=Settings(grid=Grid(5, 5)),
        batch_size=1,
    )
    assert records(tmp_path / "store") == records(tmp_path / "quiet")
