"""`medalign sweep --unpack`: the other end of `packing`."""

import fcntl
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, cast

from pipelines.documents import read_document, write_document, write_text
from pipelines.sweep.packing import (
    HUB,
    INSIDE,
    PACK,
    RESULTS,
    SCHEMA_NUMBER,
    STUDY,
    Pack,
)
from pipelines.sweep.pieces import check_pieces, read_pieces
from shared.console import note
from shared.errors import UserError
from shared.files import check_writable

# Below `INSIDE`: the pack's document, when unpacking begins and once all of it is there.
BEGUN, WHOLE, LOCK = "begun.json", "whole.json", "lock"


class Unpacked(NamedTuple):
    """A study in a work folder: its file, its places, and what of it was packed."""

    study: Path
    given: dict[str, str]
    parts: list[str]
    runs: list[str]

    def all_places(self, places: Mapping[str, str]) -> dict[str, str]:
        """Return every place of the study; those that no run reads lead nowhere."""
        nowhere = self.study.parent / "nowhere"
        return {name: str(nowhere / name) for name in places} | self.given


def unpack(folder: Path, work: Path, results: Path) -> Unpacked:
    """Check a pack and put its files below `work`, once: a second call finds them there.

    Several processes may call it at once, as those of a job array do. Finished runs go to
    `results`.

    Raises
    ------
    UserError
        No such pack, a damaged piece, or `work` holds something else.
    """
    if not (folder / PACK).is_file():
        raise UserError(
            f"{folder} holds no {PACK}; give the folder that --pack wrote, copied whole"
        )
    remedy = "take the version of MedAlign that wrote it"
    found = _read(folder / PACK, remedy)
    check_writable(work, "choose another --work")
    inside = work / INSIDE
    inside.mkdir(parents=True, exist_ok=True)
    with (inside / LOCK).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _is_there(found, work):
            check_pieces(folder, found["pieces"])
            write_document(inside / BEGUN, found)
            read_pieces(folder, found["pieces"], work)
            write_document(inside / WHOLE, found)
            note(f"unpacked: {work}")
    _put_results(work / RESULTS, results, found["finished"])
    use_packed_models(work)
    given = {name: str(work / place) for name, place in found["places"].items()}
    return Unpacked(work / STUDY, given | found["words"], found["parts"], found["runs"])


def _read(file: Path, remedy: str) -> Pack:
    document = read_document(file, SCHEMA_NUMBER, remedy)
    for key in Pack.__annotations__:
        if key not in document:
            raise UserError(f"{file} has no `{key}`; {remedy}")
    return cast("Pack", document)


def use_packed_models(work: Path) -> None:
    """Let the stages look for models of the hub in what was unpacked, if there are any."""
    if (work / HUB).is_dir():
        os.environ["HF_HUB_CACHE"] = str(work / HUB)


def _is_there(found: Pack, work: Path) -> bool:
    """Whether this pack was unpacked whole.

    Raises
    ------
    UserError
        The folder holds something else.
    """
    for name in (WHOLE, BEGUN):
        file = work / INSIDE / name
        if file.is_file():
            other = _read(file, "choose another --work")
            if other["pieces"] != found["pieces"]:
                raise UserError(f"{work} holds another pack; choose another --work")
            return name == WHOLE
    if {one.name for one in work.iterdir()} != {INSIDE}:
        raise UserError(f"{work} holds something else than this pack; choose another --work")
    return False


def _put_results(packed: Path, results: Path, names: Sequence[str]) -> None:
    """Copy the finished runs' results to where the sweep looks for them; what is there stays."""
    for name in names:
        source, place = packed / f"{name}.json", results / f"{name}.json"
        if not place.exists():
            write_text(place, source.read_text(encoding="utf-8"))
