"""What a build survives.

Kills at any moment, a full disk, a store that becomes read-only, clocks that disagree.
"""

import json
import os
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from shared.errors import UserError
from shared.targets.namespace import list_namespaces
from shared.targets.segment.scan import scan
from shared.targets.storage.local import temporary_folder
from teacher_cache.keeping.gc import gc
from tests.fixtures import killed_builds
from tests.fixtures.images import image_folder
from tests.fixtures.killed_builds import build_once
from tests.fixtures.progress import Gate, wait_until
from tests.fixtures.tiny_teacher import arguments, records, tiny_weights

pytestmark = pytest.mark.integration
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return tiny_weights(tmp_path_factory.mktemp("weights") / "tiny.safetensors")


def python(*line, **options):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *(str(part) for part in line)]
    return subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


@pytest.mark.parametrize("kills", [5, pytest.param(60, marks=pytest.mark.slow)])
def test_kill_at_random_moments(tmp_path, weights, kills):
    """After every kill what is there is sound.

    The next build gives the records of an undisturbed one, bit by bit.
    """
    image_folder(tmp_path / "images", 9)
    seed = int.from_bytes(os.urandom(4), "big")
    process = python(killed_builds.__file__, tmp_path / "images", tmp_path, weights, kills, seed)
    out, err = process.communicate()
    assert process.returncode == 0, f"seed {seed}: {err}"
    assert json.loads(out)["killed"] >= kills


LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)),) * 2)
from teacher_cache.cli import main
main()
"""


@pytest.mark.parametrize("room", [100, 3000])
def test_a_file_that_cannot_grow(tmp_path, weights, room):
    """RLIMIT_FSIZE stands for a quota.

    First already the namespace's own file, then a segment does not fit.
    """
    image_folder(tmp_path / "images", 8)
    line = arguments(tmp_path / "images", tmp_path / "store", weights, "--segment-records", 8)
    process = python("-c", LIMITED, room, *line)
    out, err = process.communicate()
    assert process.returncode == 1, (out, err)
    assert "cannot write to the store" in err
    assert "Traceback" not in err
    process = python("-m", "teacher_cache", *line, "--json")
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert json.loads(out)["encoded"] == 8
    assert not [one for one in scan(tmp_path / "store") if one.damage]


def mount(folder, options, *more):
    """Mount or remount; False where that is refused."""
    line = ["mount", *more, "-o", options, folder]
    return subprocess.run(line, check=False, capture_output=True).returncode == 0


@contextmanager
def small_disk(folder, size):
    """Mount a disk of `size` bytes, which needs root."""
    folder.mkdir()
    if not mount(folder, f"size={size}", "-t", "tmpfs", "tmpfs"):
        pytest.skip("mounting a small disk needs root")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def test_disk_full(tmp_path, weights):
    """The finished segments are safe, and the same build goes on once there is room."""
    image_folder(tmp_path / "images", 20)
    build_once(str(tmp_path / "images"), tmp_path / "quiet", weights)
    expected = records(tmp_path / "quiet")
    with small_disk(tmp_path / "disk", "300k"):
        store = tmp_path / "disk" / "store"
        line = arguments(
            tmp_path / "images", store, weights, "--segment-records", 2, "--batch-size", 1
        )
        process = python("-m", "teacher_cache", *line)
        out, err = process.communicate()
        assert process.returncode == 1, (out, err)
        assert "No space left" in err
        assert "finished segments are safe" in err
        assert not [one for one in scan(store) if one.damage]
        held = records(store)
        assert 0 < len(held) < 20
        assert held.items() <= expected.items()
        assert mount(tmp_path / "disk", "remount,size=20m")
        process = python("-m", "teacher_cache", *line, "--json")
        out, err = process.communicate()
        assert process.returncode == 0, err
        assert json.loads(out)["found"] == len(held)
        assert records(store) == expected


def test_a_store_that_becomes_read_only_half_way(tmp_path, weights):
    image_folder(tmp_path / "images", 20)
    with small_disk(tmp_path / "disk", "20m"):
        store = tmp_path / "disk" / "store"
        line = arguments(
            tmp_path / "images", store, weights, "--segment-records", 2, "--batch-size", 1
        )
        from tests.fixtures import tiny_teacher

        gate = Gate(tmp_path / "gate").make()
        process = python(tiny_teacher.__file__, 5, gate.path, *line)
        wait_until(gate.held, process)
        assert mount(tmp_path / "disk", "remount,ro")
        gate.open()
        out, err = process.communicate()
        assert process.returncode == 1, (out, err)
        assert "Read-only file system" in err
        assert "Traceback" not in err
        held = records(store)
        assert len(held) == 4
        assert not [one for one in scan(store) if one.damage]
        # Reading goes on; what is complete needs no writing.
        assert mount(tmp_path / "disk", "remount,rw")
        process = python("-m", "teacher_cache", *line, "--json")
        out, err = process.communicate()
        assert process.returncode == 0, err
        assert json.loads(out)["found"] == len(held)
        assert held.items() <= records(store).items()
        # What is complete needs no writing, and what may not be swept is left.
        stray = store.joinpath(
            next(store.glob("*/segments")), f".tmp-{socket.gethostname()}-12345-5"
        )
        stray.mkdir()
        assert mount(tmp_path / "disk", "remount,ro")
        again = build_once(str(tmp_path / "images"), store, weights)
        assert (again.found, again.encoded) == (20, 0)
        image_folder(tmp_path / "more", 1, **{"bad.png": b"bad"})
        with pytest.raises(UserError, match=r"cannot write to the store .*Read-only"):
            build_once(str(tmp_path / "more"), store, weights)
        assert gc(store)[0].strays == []
        assert stray.exists()


def test_strays_of_this_host_of_others_and_of_the_future(tmp_path, weights):
    """A build sweeps only its own host's dead.

    `gc` goes by age, on the file system's clock, and spares live work.
    """
    image_folder(tmp_path / "images", 4)
    build_once(str(tmp_path / "images"), tmp_path / "store", weights)
    [namespace] = list_namespaces(tmp_path / "store")
    segments = tmp_path / "store" / namespace.name / "segments"

    def stray(host, age):
        folder = segments / f".tmp-{host}-12345-{age}"
        folder.mkdir()
        (folder / "lock").touch()
        (folder / "data").write_bytes(b"x" * 100)
        os.utime(folder, (time.time() - age, time.time() - age))
        return folder

    own, foreign_old, foreign_new = (
        stray(socket.gethostname(), 5),
        stray("elsewhere", 90_000),
        stray("elsewhere", 60),
    )
    future = stray("fast-clock", -400_000)  # its host's clock is days ahead
    with temporary_folder(segments) as alive:
        build_once(str(tmp_path / "images"), tmp_path / "store", weights)
        assert not own.exists()
        assert alive.exists()
        assert foreign_old.exists()
        assert foreign_new.exists()
        assert future.exists()
        os.utime(alive, (0, 0))
        gc(tmp_path / "store", older_than=3600)
        assert alive.exists(), "a live writer's folder was swept"
        assert not foreign_old.exists()
        assert foreign_new.exists()
        assert future.exists()
    assert len(records(tmp_path / "store")) == 4
    assert not [one for one in scan(tmp_path / "store") if one.damage]


@pytest.mark.parametrize("year", [0, 4_000_000_000])
def test_times_of_files_decide_nothing_about_records(tmp_path, weights, year):
    """Segments stamped in 1970 or 2096, as a wrong clock leaves them, are what they are."""
    image_folder(tmp_path / "images", 4)
    build_once(str(tmp_path / "images"), tmp_path / "store", weights)
    before = records(tmp_path / "store")
    for path in (tmp_path / "store").rglob("*"):
        os.utime(path, (year, year))
    again = build_once(str(tmp_path / "images"), tmp_path / "store", weights)
    assert (again.found, again.encoded) == (4, 0)
    gc(tmp_path / "store")
    assert records(tmp_path / "store") == before
