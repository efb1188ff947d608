"""One build by several processes.

Ranks of `torchrun`, a killed one, two builds that do not know of each other.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from shared.errors import UserError
from shared.imaging import Grid, ImageReference, content_key
from shared.targets import TargetStore
from shared.targets.namespace import list_namespaces
from shared.targets.segment.scan import scan
from teacher_cache.building import build
from teacher_cache.distinct import distinct_images
from teacher_cache.keeping.gc import gc
from teacher_cache.keeping.info import info
from teacher_cache.ranks import Ranks
from teacher_cache.settings import Settings
from teacher_cache.sources import find_images
from tests.fixtures import naming_ranks, tiny_teacher
from tests.fixtures.images import image_folder
from tests.fixtures.progress import Gate, wait_until
from tests.fixtures.tiny_teacher import TEACHER, arguments, records, tiny_weights

ROOT = Path(__file__).resolve().parents[2]
HELD = tiny_teacher.__file__
TORCHRUN = [
    sys.executable,
    "-m",
    "torch.distributed.run",
    "--nproc-per-node",
    "2",
    "--master-addr",
    "127.0.0.1",
]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return tiny_weights(tmp_path_factory.mktemp("weights") / "tiny.safetensors")


def start(command, **more):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **more,
    )


def port(number):
    """Return a port of this test's own, so that tests may run side by side."""
    return ["--master-port", str(29600 + os.getpid() % 300 + number)]


def undisturbed(tmp_path, weights):
    """Build the same images in one quiet process.

    One image a batch, so that equal means equal in every bit.
    """
    images = find_images(str(tmp_path / "images"))
    build(
        TEACHER,
        images,
        tmp_path / "quiet",
        weights=weights,
        settings=Settings(grid=Grid(5, 5)),
        batch_size=1,
    )
    return records(tmp_path / "quiet")


@pytest.mark.unit
@pytest.mark.parametrize("meets", [True, False])
def test_every_key_has_one_owner_and_shares_are_even(monkeypatch, meets):
    if meets:
        monkeypatch.setenv("MASTER_ADDR", "somewhere")
    else:
        monkeypatch.delenv("MASTER_ADDR", raising=False)
    keys = [os.urandom(32) for _ in range(128)]
    shares = [Ranks(rank, 3, rank).share(keys, keys) for rank in range(3)]
    assert sorted(key for share in shares for key in share) == sorted(keys)
    assert sorted(map(len, shares)) == [42, 43, 43]
    # A rank encodes in the order of the files, so that a volume is opened once.
    assert all(share == [key for key in keys if key in set(share)] for share in shares)


@pytest.mark.unit
def test_shares_of_ranks_that_do_not_meet_stay_while_the_store_fills(monkeypatch):
    """Each looks at another moment: a key must not move from one share to another's."""
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    keys = [os.urandom(32) for _ in range(30)]
    whole = [set(Ranks(rank, 4, rank).share(keys, keys)) for rank in range(4)]
    late = keys[::3]
    for rank, before in enumerate(whole):
        assert set(Ranks(rank, 4, rank).share(keys, late)) == before & set(late)


@pytest.mark.unit
def test_ranks_of_the_environment(monkeypatch):
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert Ranks.of_environment()[:2] == (2, 3)
    # An array job without a common address: nobody to wait for.
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    assert Ranks.of_environment().sum(np.array([4, 5])).tolist() == [4, 5]
    assert Ranks.of_environment().speaks
    monkeypatch.setenv("MASTER_ADDR", "somewhere")
    assert not Ranks.of_environment().speaks


@pytest.mark.integration
def test_two_ranks_share_the_work_and_fail_together_at_the_end(tmp_path, weights):
    """An unreadable image ends no other rank.

    The first reports for all, and the exit code is not 0.
    """
    image_folder(tmp_path / "images", 10, **{"bad.png": b"bad"})
    line = arguments(
        tmp_path / "images",
        tmp_path / "store",
        weights,
        "--batch-size",
        1,
        "--segment-records",
        2,
        "--json",
    )
    process = start([*TORCHRUN, *port(0), "-m", "teacher_cache", *line])
    out, err = process.communicate()
    assert process.returncode != 0, err
    report = json.loads(out)  # one document: that of rank 0, for all ranks
    assert (report["encoded"], report["failed"], report["distinct"]) == (10, 1, 11)
    assert err.count("--allow-skips 1") == 1
    assert records(tmp_path / "store") == undisturbed(tmp_path, weights)
    [described] = info(tmp_path / "store")
    assert (described["records"], described["superseded"], described["quarantined"]) == (10, 0, 1)


@pytest.mark.unit
def test_ranks_that_list_other_files_do_not_name_them_together(tmp_path):
    """What the sum over two ranks gives where the other lists one file less."""
    paths = image_folder(tmp_path / "images", 3)
    sent = []

    def pair(number, sum_):
        return SimpleNamespace(rank=number, world=2, meets=True, sum=sum_)

    def first(numbers):
        sent.append(numbers)
        raise InterruptedError

    with pytest.raises(InterruptedError):
        distinct_images([ImageReference(path) for path in paths[:2]], 1, pair(0, first))
    with pytest.raises(UserError, match="do not see the same images"):
        distinct_images(
            [ImageReference(path) for path in paths], 1, pair(1, lambda numbers: numbers + sent[0])
        )


@pytest.mark.integration
def test_each_file_is_read_by_one_rank_and_named_to_all(tmp_path):
    paths = image_folder(tmp_path / "images", 7, **{"copy.png": b"same", "other.png": b"same"})
    (tmp_path / "images" / "gone.png").symlink_to(tmp_path / "nowhere")
    process = start(
        [*TORCHRUN, *port(5), naming_ranks.__file__, str(tmp_path / "images"), str(tmp_path)]
    )
    _, err = process.communicate()
    assert process.returncode == 0, err
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert sorted(first["read"] + second["read"]) == sorted(
        [*map(str, paths), str(tmp_path / "images" / "gone.png")]
    )
    assert abs(len(first["read"]) - len(second["read"])) <= 1
    for name in ("by_key", "repeated", "unopened"):
        assert first[name] == second[name]
    assert first["by_key"] == {content_key(path).hex(): str(path) for path in reversed(paths)}
    assert first["repeated"] == [
        [str(tmp_path / "images" / "other.png"), content_key(paths[0]).hex()]
    ]
    assert first["unopened"] == [
        [
            str(tmp_path / "images" / "gone.png"),
            "the file cannot be read: No such file or directory",
        ]
    ]


@pytest.mark.integration
def test_a_killed_rank_loses_its_open_segment_and_the_next_build_finishes(tmp_path, weights):
    image_folder(tmp_path / "images", 24)
    line = arguments(
        tmp_path / "images", tmp_path / "store", weights, "--batch-size", 1, "--segment-records", 2
    )
    gate = Gate(tmp_path / "gate").make()
    process = start([*TORCHRUN, *port(1), HELD, "5", str(gate.path), *line])
    try:
        wait_until(lambda: len(gate.held()) == 2, process)
        os.kill(rank_process(process.pid, 1), signal.SIGKILL)
        process.communicate()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode != 0
    held = len(TargetStore.open(tmp_path / "store"))
    assert 2 <= held < 24
    assert not [one for one in scan(tmp_path / "store") if one.damage]
    expected = undisturbed(tmp_path, weights)
    finish = start([sys.executable, "-m", "teacher_cache", *line, "--json"])
    out, err = finish.communicate()
    assert finish.returncode == 0, err
    assert (json.loads(out)["found"], json.loads(out)["encoded"]) == (held, 24 - held)
    assert records(tmp_path / "store") == expected


def rank_process(parent, rank):
    """Find the process of a rank below torchrun's."""
    import psutil

    for child in psutil.Process(parent).children(recursive=True):
        if child.environ().get("RANK") == str(rank):
            return child.pid
    raise AssertionError(f"no rank {rank} below {parent}")


@pytest.mark.integration
def test_ranks_that_meet_share_what_is_missing_evenly(tmp_path, weights):
    """After a build of a part, the rest is cut anew: 7 of 13 lie in the store, 3 + 3 are left."""
    images = image_folder(tmp_path / "images", 13)
    named = {content_key(path) for path in images}
    line = arguments(tmp_path / "images", tmp_path / "store", weights, "--batch-size", 1)
    first = start([sys.executable, "-m", "teacher_cache", *line, "--limit", "7"])
    _, err = first.communicate()
    assert first.returncode == 0, err
    process = start([*TORCHRUN, *port(7), "-m", "teacher_cache", *line])
    _, err = process.communicate()
    assert process.returncode == 0, err
    assert "rank 0 of 2: its share is 3 of 6" in err
    assert "rank 1 of 2: its share is 3 of 6" in err
    assert set(records(tmp_path / "store")) == named
    assert info(tmp_path / "store")[0]["superseded"] == 0


@pytest.mark.integration
def test_a_slurm_array_as_the_page_says_it(tmp_path, weights):
    """The script of docs/cache.md, under the variables that SLURM sets; task 4 is run again."""
    image_folder(tmp_path / "images", 12)
    page = (ROOT / "docs" / "cache.md").read_text()
    script = page.partition("#SBATCH --array=3-5\n")[2].partition("```")[0]
    assert "cache build" in script
    line = [str(part) for part in arguments(tmp_path / "images", tmp_path / "store", weights)]
    command = " ".join([sys.executable, "-m", "teacher_cache", *line])
    head, _, _ = script.partition("cache build")

    def task(number):
        slurm = {
            "SLURM_ARRAY_TASK_ID": str(number),
            "SLURM_ARRAY_TASK_MIN": "3",
            "SLURM_ARRAY_TASK_COUNT": "3",
            "SLURM_PROCID": "0",
        }
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
        kept = {name: value for name, value in os.environ.items() if name not in names}
        return subprocess.run(
            ["bash", "-euc", head + command],
            env=kept | slurm | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )

    early = [task(number) for number in (3, 5)]  # task 4 died before its first segment
    assert [one.returncode for one in early] == [1, 1]
    assert "8 images are the share of other ranks" in early[0].stderr
    assert "4 images are the share of other ranks" in early[1].stderr
    again = task(4)
    assert again.returncode == 0, again.stderr
    assert records(tmp_path / "store").keys() == undisturbed(tmp_path, weights).keys()
    assert info(tmp_path / "store")[0]["superseded"] == 0


@pytest.mark.integration
def test_sigterm_publishes_the_open_segment(tmp_path, weights):
    image_folder(tmp_path / "images", 12)
    line = arguments(
        tmp_path / "images", tmp_path / "store", weights, "--batch-size", 1, "--segment-records", 3
    )
    gate = Gate(tmp_path / "gate").make()
    process = start([sys.executable, HELD, "5", str(gate.path), *line])
    wait_until(gate.held, process)
    process.terminate()
    process.communicate()
    assert process.returncode == 143
    assert len(TargetStore.open(tmp_path / "store")) in (
        4,
        5,
    )  # three were a segment, a fifth may be under way
    assert not [one for one in scan(tmp_path / "store") if one.damage]
    assert not list((tmp_path / "store").rglob(".tmp-*"))


@pytest.mark.integration
def test_two_builds_into_one_store_at_once(tmp_path, weights):
    image_folder(tmp_path / "images", 12)
    line = arguments(
        tmp_path / "images", tmp_path / "store", weights, "--batch-size", 1, "--segment-records", 3
    )
    gate = Gate(tmp_path / "gate").make()
    both = [start([sys.executable, HELD, "2", str(gate.path), *line]) for _ in range(2)]
    wait_until(lambda: len(gate.held()) == 2, *both)
    gate.open()
    for process in both:
        _, err = process.communicate()
        assert process.returncode == 0, err
    assert not [one for one in scan(tmp_path / "store") if one.damage]
    found = records(tmp_path / "store")
    assert len(found) == 12
    gc(tmp_path / "store")
    [described] = info(tmp_path / "store")
    assert (described["records"], described["superseded"]) == (12, 0)
    assert records(tmp_path / "store") == found == undisturbed(tmp_path, weights)
    assert len(list_namespaces(tmp_path / "store")) == 1
