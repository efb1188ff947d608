"""`cache build --store s3://...` against a real server process.

Killed, continued, scanned, read by a worker.
"""

import multiprocessing
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from shared.targets.namespace import list_namespaces, quarantined
from shared.targets.segment.scan import scan
from tests.fixtures import tiny_teacher
from tests.fixtures.images import image_folder
from tests.fixtures.killed_builds import build_once
from tests.fixtures.progress import Gate, wait_until
from tests.fixtures.s3 import child_environment, s3_server, use
from tests.fixtures.tiny_teacher import arguments, records, tiny_weights

pytestmark = pytest.mark.integration
ROOT = Path(__file__).resolve().parents[2]
STORE = "s3://bucket/some/prefix"


def test_a_build_into_a_bucket_is_killed_and_continued(tmp_path, monkeypatch):
    weights = tiny_weights(tmp_path / "tiny.safetensors")
    image_folder(tmp_path / "images", 12, **{"bad.png": b"bad"})
    build_once(str(tmp_path / "images"), tmp_path / "quiet", weights)
    expected = records(tmp_path / "quiet")
    line = arguments(tmp_path / "images", STORE, weights, "--batch-size", 1, "--segment-records", 2)
    with s3_server() as environment:
        use(environment, monkeypatch)
        gate = Gate(tmp_path / "gate").make()
        command = [sys.executable, tiny_teacher.__file__, "5", str(gate.path), *line]
        more = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            command, env=child_environment(environment) | more, stderr=subprocess.PIPE, text=True
        )
        wait_until(gate.held, process)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        held = records(STORE)
        assert len(held) == 4  # the fifth is in the open segment
        assert held.items() <= expected.items()
        assert not [one for one in scan(STORE) if one.damage]
        finished = build_once(str(tmp_path / "images"), STORE, weights)
        assert (finished.found, finished.encoded, finished.failed) == (len(held), 12 - len(held), 1)
        assert not [one for one in scan(STORE) if one.damage]
        assert [record.reason[:12] for record in quarantined(list_namespaces(STORE)[0])] == [
            "not an image"
        ]
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            assert pool.map(records, [STORE]) == [expected]
        assert records(STORE) == expected
