"""The demo's diary: its stages, each a command in a process of its own, and which are done.

`OUT/stages.json` lists the finished ones. Started again, the demo skips those and begins with the
one it was in.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypedDict, TypeVar, cast

from pipelines.documents import read_document, write_document
from pipelines.report.demo_scores import StageEntry
from shared.console import say
from shared.errors import UserError

T = TypeVar("T")

SCHEMA_NUMBER = 1
STAGES = "stages.json"
_MAIN = {"cache": "teacher_cache.cli", "student": "student_train.cli", "medalign": "pipelines.cli"}


class Stage(NamedTuple):
    """One command.

    `result` is removed before it starts again, unless the command continues by itself.
    """

    name: str
    command: list[str]
    result: Path | None = None


class StagesFile(TypedDict):
    """What `stages.json` holds: finished stages, and values that a continued demo keeps."""

    schema: int
    stages: list[StageEntry]
    remembered: dict[str, object]


class Diary:
    """The finished stages of a demo folder with their seconds and output, on disk after each."""

    def __init__(self, out: Path) -> None:
        self.path = out / STAGES
        self.entries: StagesFile = {"schema": SCHEMA_NUMBER, "stages": [], "remembered": {}}
        if self.path.is_file():
            remedy = f"remove {out} or choose another --out"
            self.entries = cast("StagesFile", read_document(self.path, SCHEMA_NUMBER, remedy))
        elif out.exists() and any(out.iterdir()):
            raise UserError(f"{out} holds something else than a demo; choose another --out")
        out.mkdir(parents=True, exist_ok=True)
        self._write()

    @property
    def seconds(self) -> float:
        """Time of all finished stages."""
        return float(sum(stage["seconds"] for stage in self.entries["stages"]))

    def remember(self, name: str, find: Callable[[], T]) -> T:
        """Return what was found under `name` the first time.

        A continued demo goes on with the same values.
        """
        remembered = self.entries["remembered"]
        if name not in remembered:
            remembered[name] = find()
            self._write()
        return cast("T", remembered[name])

    def run(self, stage: Stage) -> None:
        """Run a stage's command, unless it is done."""
        line = shlex.join(stage.command)
        done = next(
            (entry for entry in self.entries["stages"] if entry["name"] == stage.name), None
        )
        if done is not None:
            if done["command"] != line:
                raise UserError(
                    f"{self.path.parent} holds a demo with another budget or version; remove it or "
                    "choose another --out"
                )
            say(f"\n$ {line}\n(done before, {done['seconds']:.0f} s)")
            return
        if stage.result is not None and stage.result.exists():
            shutil.rmtree(stage.result)
        say(f"\n$ {line}")
        began = time.perf_counter()
        output = run_command(stage.command, keep="--json" in stage.command)
        entry: StageEntry = {
            "name": stage.name,
            "command": line,
            "seconds": time.perf_counter() - began,
        }
        if output is not None:
            entry["output"] = json.loads(output)
            say(output)
        self.entries["stages"].append(entry)
        self._write()

    def _write(self) -> None:
        write_document(self.path, self.entries)


def run_command(command: Sequence[str], keep: bool = False) -> str | None:
    """Run one of the project's commands in a process of its own.

    Return its standard output where it is to be kept.
    """
    program, *arguments = command
    starter = [sys.executable, "-c", f"from {_MAIN[program]} import main; main()", *arguments]
    # Nothing of the demo comes from the network.
    quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    result = subprocess.run(
        starter, env=os.environ | quiet, stdout=subprocess.PIPE if keep else None, check=False
    )
    if result.returncode:
        raise UserError(
            f"`{shlex.join(command)}` failed; mend what it says and start the demo again, it "
            "continues there"
        )
    return result.stdout.decode() if keep else None
