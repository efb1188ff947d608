"""Packs: what they hold, what they refuse, and that a study goes on from them elsewhere."""

import io
import json
import os
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import constants
from typer.testing import CliRunner

from pipelines.cli import app
from pipelines.sweep.ledger import read_run, write_run
from pipelines.sweep.packing import PACK, pack
from pipelines.sweep.pieces import Packed, check_pieces, read_pieces, write_pieces
from pipelines.sweep.running import Sweep
from pipelines.sweep.study import read_study, recipe_file, runs_of
from pipelines.sweep.unpacking import unpack
from shared.errors import UserError
from tests.fixtures.studies import made_up, sweep_command, tiny_study

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SIZE = 100_000  # of a piece


def tree(folder: Path) -> dict[str, bytes | None]:
    """Every file below a folder with its bytes; empty folders as None."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
        if path.is_file() or not any(path.iterdir())
    }


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A file longer than two pieces, small ones, an empty folder, a link to a folder elsewhere."""
    random = np.random.default_rng(0)
    folder = tmp_path / "files"
    (folder / "empty").mkdir(parents=True)
    (folder / "large").write_bytes(random.bytes(2 * SIZE + 7))
    (folder / "müller 1.txt").write_text("text\n")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "blob").write_bytes(random.bytes(99))
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    return folder


@pytest.mark.unit
def test_files_come_back_from_pieces_of_a_bounded_size(files: Path, tmp_path: Path) -> None:
    pieces = write_pieces([Packed(files, "a/b")], tmp_path / "pack", SIZE)
    assert [piece["bytes"] for piece in pieces[:2]] == [SIZE, SIZE]
    assert 0 < pieces[-1]["bytes"] < SIZE
    for piece in pieces:
        assert (tmp_path / "pack" / piece["file"]).stat().st_size == piece["bytes"]
    check_pieces(tmp_path / "pack", pieces)
    read_pieces(tmp_path / "pack", pieces, tmp_path / "out")
    found = tree(tmp_path / "out" / "a" / "b")
    assert found == tree(files) | {"linked/blob": (tmp_path / "elsewhere" / "blob").read_bytes()}
    # And without this program.
    (tmp_path / "tar").mkdir()
    command = f"cat {tmp_path}/pack/study.tar.gz.* | tar xz -C {tmp_path}/tar"
    subprocess.run(["bash", "-euo", "pipefail", "-c", command], check=True)
    assert tree(tmp_path / "tar") == tree(tmp_path / "out")


@pytest.mark.unit
def test_a_piece_that_is_cut_changed_or_missing_is_named(files: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pack"
    pieces = write_pieces([Packed(files, "x")], folder, SIZE)
    second = folder / pieces[1]["file"]
    whole = second.read_bytes()
    for damaged in (whole[:-1], whole[:50] + bytes([whole[50] ^ 1]) + whole[51:]):
        second.write_bytes(damaged)
        with pytest.raises(UserError, match=rf"{second.name} is damaged.*copy it again"):
            check_pieces(folder, pieces)
    second.unlink()
    with pytest.raises(UserError, match=rf"{second.name} is missing"):
        check_pieces(folder, pieces)


@pytest.mark.unit
@pytest.mark.parametrize("kind", ["above", "absolute", "link", "device"])
def test_an_archive_writes_nothing_elsewhere(tmp_path: Path, kind: str) -> None:
    member = tarfile.TarInfo({"above": "../out.txt", "absolute": "/tmp/out.txt"}.get(kind, "in"))
    if kind == "link":
        member.type, member.linkname = tarfile.SYMTYPE, "/etc"
    if kind == "device":
        member.type = tarfile.CHRTYPE
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w:gz") as archive:
        archive.addfile(member)
    (tmp_path / "piece").write_bytes(written.getvalue())
    piece: Any = {"file": "piece", "bytes": 0, "sha256": ""}
    with pytest.raises(UserError, match="is not unpacked"):
        read_pieces(tmp_path, [piece], tmp_path / "to" / "work")
    assert not (tmp_path / "to" / "out.txt").exists()
    (tmp_path / "piece").write_bytes(b"no archive")
    with pytest.raises(UserError, match="no archive of this program"):
        read_pieces(tmp_path, [piece], tmp_path / "to" / "work")


def sweep_of(file: Path, given: dict[str, str]) -> Sweep:
    study = read_study(file)
    recipes = {part: recipe_file(study, file, part) for part in study.parts}
    work = file.parent / "work"
    return Sweep(study, recipes, work, work / "results", given)


@pytest.mark.integration
def test_a_pack_brings_places_steps_and_results_and_is_unpacked_once(
    tmp_path: Path, inputs: dict[str, str]
) -> None:
    """A place that only a step reads stays away, and no step is made again."""
    step = {"makes": "{work}/base", "command": "student tiny --out {work}/base --width {width}"}
    names = {name: name for name in ("data", "store", "width")}
    file = tiny_study(tmp_path / "here", places=names, steps=[step])
    text = file.read_text().replace("model.name: '{base}'", "model.name: '{work}/base'")
    file.write_text(text)
    given = {"data": inputs["data"], "store": inputs["store"], "width": "64"}
    sweep, runs = sweep_of(file, given), runs_of(read_study(file), file)
    sweep.make_steps(["one"])
    write_run(sweep.results, runs[0], made_up(runs[0], sweep.study, []))
    found = pack(sweep, runs, tmp_path / "pack", SIZE)
    assert max(piece["bytes"] for piece in found["pieces"]) == SIZE
    assert (found["finished"], found["words"]) == (["LoRA-one"], {})
    assert found["places"] == {"data": "pack/places/data", "store": "pack/places/store"}

    there, work = tmp_path / "there", tmp_path / "there" / "deep" / "work"
    shutil.copytree(tmp_path / "pack", there / "pack")
    planned = ["sweep", "--unpack", str(there / "pack"), "--work", str(work), "--plan", "--json"]
    done = CliRunner().invoke(app, planned)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["missing"] == ["full-one"]
    assert tree(work / "pack" / "places" / "store") == tree(Path(inputs["store"]))
    assert tree(work / "base") == tree(sweep.work / "base")
    taken = unpack(there / "pack", work, work / "results")
    study = read_study(taken.study)
    assert {one.name: one.identity for one in runs_of(study, taken.study)} == {
        one.name: one.identity for one in runs
    }
    elsewhere = sweep_of(file, taken.all_places(study.places))
    elsewhere.work = work
    elsewhere.adopt_steps(taken.parts)
    before = (work / "base" / "config.json").stat().st_mtime_ns
    elsewhere.make_steps(["one"])
    assert (work / "base" / "config.json").stat().st_mtime_ns == before

    (work / "base" / "config.json").write_text("{}")  # a second call lets it be
    unpack(there / "pack", work, tmp_path / "kept")
    assert (work / "base" / "config.json").read_text() == "{}"
    assert read_run(tmp_path / "kept", runs[0]) is not None
    (work / "pack" / "whole.json").unlink()  # as where it was stopped: all of it again
    unpack(there / "pack", work, tmp_path / "kept")
    assert tree(work / "base") == tree(sweep.work / "base")


@pytest.mark.integration
def test_what_cannot_be_packed_or_unpacked_is_one_line(
    tmp_path: Path, inputs: dict[str, str]
) -> None:
    file = tiny_study(tmp_path / "here")
    sweep, runs = sweep_of(file, inputs), runs_of(read_study(file), file)
    with pytest.raises(UserError, match=r"--pack .* lies in what is packed"):
        pack(sweep, runs, Path(inputs["data"]) / "pack")
    pack(sweep, runs, tmp_path / "pack", SIZE)
    with pytest.raises(UserError, match="not empty"):
        pack(sweep, runs, tmp_path / "pack")
    no_after = tiny_study(tmp_path / "short", after={})
    for name, study, message in (
        ("data", file, r"LoRA-one: data.train: .* lies neither in a place"),
        ("base", file, r"LoRA-one: model.name: .* lies neither in a place"),
        ("store", file, r"after: alignment: .* lies neither in a place"),
        ("store", no_after, r"full-one: targets.store: .* lies neither in a place"),
    ):
        changed = study.read_text().replace(f"{{{name}}}", inputs[name])
        (file.parent / "other.yaml").write_text(changed)
        other = file.parent / "other.yaml"
        with pytest.raises(UserError, match=message):
            pack(sweep_of(other, inputs), runs_of(read_study(other), other), tmp_path / name)
        assert not (tmp_path / name).exists()
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds something else than this pack"):
        unpack(tmp_path / "pack", tmp_path / "work", tmp_path / "r")
    with pytest.raises(UserError, match=rf"holds no {PACK}"):
        unpack(tmp_path, tmp_path / "new", tmp_path / "r")
    last = sorted((tmp_path / "pack").glob("*.tar.gz.*"))[-1]
    last.write_bytes(last.read_bytes()[:-1])
    with pytest.raises(UserError, match=f"{last.name} is damaged"):
        unpack(tmp_path / "pack", tmp_path / "new", tmp_path / "r")
    assert list(tree(tmp_path / "new")) == ["pack/lock"]
    document = json.loads((tmp_path / "pack" / PACK).read_text())
    del document["pieces"]
    (tmp_path / "pack" / PACK).write_text(json.dumps(document))
    with pytest.raises(UserError, match="has no `pieces`"):
        unpack(tmp_path / "pack", tmp_path / "new", tmp_path / "r")


@pytest.mark.unit
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "name a study, or give --unpack"),
        (("figure-4a", "--unpack", "p"), "name a study, or give --unpack"),
        (("--unpack", "p", "--set", "a=b"), "leave out --set"),
        (("figure-4a", "--pack", "p", "--plan"), "--pack goes neither"),
    ],
)
def test_what_does_not_go_together_is_one_line(
    tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    found = CliRunner().invoke(app, ["sweep", *words, "--work", str(tmp_path / "work")])
    assert isinstance(found.exception, UserError)
    assert message in str(found.exception)


def hub_cache(folder: Path, model: Path) -> None:
    """A cache of the hub's library with `tiny/student`, in links to blobs as it makes them."""
    repository = folder / "models--tiny--student"
    for place in ("blobs", f"snapshots/{COMMIT}", "refs"):
        (repository / place).mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    for file in model.iterdir():
        shutil.copy(file, repository / "blobs" / file.name)
        (repository / "snapshots" / COMMIT / file.name).symlink_to(Path("../../blobs") / file.name)


@pytest.mark.integration
def test_a_study_goes_on_elsewhere_with_the_same_result(
    tmp_path: Path, inputs: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its model is one of the hub; everything that the first machine had is gone by then."""
    here, there = tmp_path / "here", tmp_path / "there"
    given = {name: str(here / name) for name in ("data", "store")} | {"base": "tiny/student"}
    for name in ("data", "store"):
        shutil.copytree(inputs[name], here / name)
    hub_cache(here / "hub", Path(inputs["base"]))
    monkeypatch.setenv("HF_HUB_CACHE", str(here / "hub"))  # of the stages
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(here / "hub"))  # of this process
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    file = tiny_study(here / "study", arms={"full": {"losses.alpha": 3}})
    command = sweep_command(file, given)
    packed = CliRunner().invoke(app, [*command, "--pack", str(there / "pack"), "--json"])
    assert packed.exit_code == 0, packed.output
    assert json.loads(packed.stdout)["words"] == {"base": "tiny/student"}
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    first = json.loads((here / "study" / "work" / "results" / "full-one.json").read_text())
    shutil.rmtree(here)

    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "no-hub"))
    again = ["sweep", "--unpack", str(there / "pack"), "--work", str(there / "work")]
    done = CliRunner().invoke(app, [*again, "--results", str(there / "results"), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["finished"] == 1
    assert os.environ["HF_HUB_CACHE"] == str(there / "work" / "pack" / "hub")
    second = json.loads((there / "results" / "full-one.json").read_text())
    for result in (first, second):
        del result["seconds"]
    assert second == first
