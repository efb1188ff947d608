"""A long job's diary: its stages, each a command in a process of its own, and which are done.

`OUT/stages.json` lists the finished ones. Started again, the job skips those and begins with the
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
from typing import IO, NamedTuple, NotRequired, TypedDict, TypeVar, cast

from pipelines.documents import read_document, write_document
from shared.console import say
from shared.errors import UserError
from shared.files import check_writable

T = TypeVar("T")

SCHEMA_NUMBER = 1
STAGES = "stages.json"
# A stage ends with its job, even where that is killed: as at SIGTERM, with a checkpoint. On Linux:
# PR_SET_PDEATHSIG is 1, SIGTERM 15.
_WITH_THE_JOB = "import ctypes; ctypes.CDLL(None).prctl(1, 15)" if sys.platform == "linux" else ""
_MAIN = {
    "cache": "pipelines.regions.cache",
    "student": "student_train.cli",
    "medalign": "pipelines.cli",
}


class Stage(NamedTuple):
    """One command.

    `result` is removed before it starts again, unless the command continues by itself. `resumes`:
    it does so with `--resume` where `result` holds a checkpoint.
    """

    name: str
    command: list[str]
    result: Path | None = None
    resumes: bool = False


class StageEntry(TypedDict):
    """A finished stage; `output` is the JSON that its command printed."""

    name: str
    command: str
    seconds: float
    output: NotRequired[dict[str, object]]


class StagesFile(TypedDict):
    """What `stages.json` holds: finished stages, and values that a continued job keeps."""

    schema: int
    stages: list[StageEntry]
    remembered: dict[str, object]


class Diary:
    """The finished stages of a job's folder with their seconds and output, on disk after each.

    Parameters
    ----------
    out
        The job's folder: new, empty, or one of an earlier start.
    job
        What the job is called in errors.
    log
        File that the commands write to; None: the terminal.
    lock
        Descriptor of a locked file: it stays locked until the job and its stage have ended.
    """

    def __init__(
        self, out: Path, job: str = "demo", log: Path | None = None, lock: int | None = None
    ) -> None:
        check_writable(out, "choose another folder")
        self.path, self.job, self.log, self.lock = out / STAGES, job, log, lock
        self.entries: StagesFile = {"schema": SCHEMA_NUMBER, "stages": [], "remembered": {}}
        if self.path.is_file():
            remedy = f"remove {out} or choose another --out"
            self.entries = cast("StagesFile", read_document(self.path, SCHEMA_NUMBER, remedy))
        elif out.exists() and any(out.iterdir()):
            raise UserError(f"{out} holds something else than a {job}; choose another --out")
        out.mkdir(parents=True, exist_ok=True)
        self._write()

    @property
    def seconds(self) -> float:
        """Time of all finished stages."""
        return float(sum(stage["seconds"] for stage in self.entries["stages"]))

    def remember(self, name: str, find: Callable[[], T]) -> T:
        """Return what was found under `name` the first time.

        A continued job goes on with the same values.
        """
        remembered = self.entries["remembered"]
        if name not in remembered:
            remembered[name] = find()
            self._write()
        return cast("T", remembered[name])

    def lacks(self, stage: Stage) -> bool:
        """Whether a stage is still to be run."""
        return all(entry["name"] != stage.name for entry in self.entries["stages"])

    def adopt(self, stage: Stage) -> None:
        """Note a stage as done whose result has come from elsewhere; one that is noted stays."""
        if self.lacks(stage):
            line = shlex.join(stage.command)
            self.entries["stages"].append({"name": stage.name, "command": line, "seconds": 0.0})
            self._write()

    def run(self, stage: Stage) -> None:
        """Run a stage's command, unless it is done."""
        line = shlex.join(stage.command)
        done = next(
            (entry for entry in self.entries["stages"] if entry["name"] == stage.name), None
        )
        if done is not None:
            if done["command"] != line:
                raise UserError(
                    f"{self.path.parent} holds a {self.job} with another budget or version; remove "
                    "it or choose another --out"
                )
            self._say(f"\n$ {line}\n(done before, {done['seconds']:.0f} s)")
            return
        command, result = stage.command, stage.result
        if result is not None and stage.resumes and any(result.glob("checkpoint-*")):
            command = [*command, "--resume"]
        elif result is not None and result.exists():
            shutil.rmtree(result)
        self._say(f"\n$ {shlex.join(command)}")
        began = time.perf_counter()
        output = self._run(command, keep="--json" in command)
        entry: StageEntry = {
            "name": stage.name,
            "command": line,
            "seconds": time.perf_counter() - began,
        }
        if output is not None:
            entry["output"] = json.loads(output)
            self._say(output)
        self.entries["stages"].append(entry)
        self._write()

    def _write(self) -> None:
        write_document(self.path, self.entries)

    def _say(self, text: str) -> None:
        if self.log is None:
            say(text)
        else:
            with self.log.open("a", encoding="utf-8") as log:
                log.write(text + "\n")

    def _run(self, command: Sequence[str], keep: bool) -> str | None:
        if self.log is None:
            return run_command(command, keep, job=self.job, lock=self.lock)
        with self.log.open("ab") as log:
            return run_command(command, keep, job=self.job, log=log, lock=self.lock)


def run_command(
    command: Sequence[str],
    keep: bool = False,
    *,
    job: str = "demo",
    log: IO[bytes] | None = None,
    lock: int | None = None,
) -> str | None:
    """Run one of the project's commands in a process of its own, without a network.

    Return its standard output where it is to be kept. `log` takes what it prints otherwise. The
    process ends with this one, and holds the descriptor `lock` until then.

    Raises
    ------
    UserError
        It failed.
    """
    program, *arguments = command
    if program not in _MAIN:
        raise UserError(f"`{program}` is no command of this project; there are {', '.join(_MAIN)}")
    script = f"{_WITH_THE_JOB}\nfrom {_MAIN[program]} import main; main()"
    starter = [sys.executable, "-c", script, *arguments]
    # Nothing of the job comes from the network.
    quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    result = subprocess.run(
        starter,
        env=os.environ | quiet,
        stdout=subprocess.PIPE if keep else log,
        stderr=log,
        check=False,
        pass_fds=() if lock is None else (lock,),
    )
    if result.returncode:
        where = "" if log is None else f" ({log.name} holds what it said)"
        raise UserError(
            f"`{shlex.join(command)}` failed{where}; mend what it says and start the {job} again, "
            "it continues there"
        )
    return result.stdout.decode() if keep else None
