"""`cache build --store s3://...` against a real server process: killed, continued, verified, read by workers."""

import json
import multiprocessing
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shared.targets.object_storage import ObjectStorage
from shared.targets.scan import scan
from tests.fixtures import tiny_teacher
from tests.fixtures.images import image_folder
from tests.fixtures.killed_builds import build_once
from tests.fixtures.s3 import child_environment, s3_server, use
from tests.fixtures.tiny_teacher import arguments, records, tiny_weights

pytestmark = pytest.mark.integration
ROOT = Path(__file__).resolve().parents[2]
STORE = "s3://bucket/some/prefix"


def start(line, environment):
    more = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *map(str, line)]
    return subprocess.Popen(
        command, env=child_environment(environment) | more, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def visible(storage):
    return [segment for name in storage.names("") for segment in storage.names(f"{name}/segments")]


def test_a_build_into_a_bucket_is_killed_and_continued(tmp_path, monkeypatch):
    weights = tiny_weights(tmp_path / "tiny.safetensors")
    image_folder(tmp_path / "images", 12, **{"bad.png": b"bad"})
    build_once(str(tmp_path / "images"), tmp_path / "quiet", weights)
    expected = records(tmp_path / "quiet")
    line = arguments(tmp_path / "images", STORE, weights, "--batch-size", 1, "--segment-records", 2)
    with s3_server() as environment:
        use(environment, monkeypatch)
        storage = ObjectStorage(STORE)
        for segments in (1, 3):
            process = start([tiny_teacher.__file__, 0.3, *line], environment)
            end = time.monotonic() + 200
            while len(visible(storage)) < segments:
                assert process.poll() is None, process.stderr.read()
                assert time.monotonic() < end
                time.sleep(0.02)
            process.send_signal(signal.SIGKILL)
            process.communicate(timeout=60)
            held = records(STORE)
            assert 0 < len(held) < 12
            assert held.items() <= expected.items()
            assert not [one for one in scan(STORE) if one.damage]
        process = start(["-m", "teacher_cache", *line, "--allow-skips", 1, "--json"], environment)
        out, err = process.communicate(timeout=200)
        assert process.returncode == 0, err
        assert (json.loads(out)["found"], json.loads(out)["encoded"]) == (len(held), 12 - len(held))
        process = start(["-m", "teacher_cache", "verify", "--store", STORE, "--json"], environment)
        out, err = process.communicate(timeout=200)
        assert (process.returncode, json.loads(out)["damaged"]) == (0, []), err
        assert records(STORE) == expected
        with multiprocessing.get_context("spawn").Pool(2) as pool:
            assert pool.map(records, [STORE, STORE]) == [expected, expected]
