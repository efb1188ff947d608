"""Running what is missing of a study: its steps, then its runs, several side by side.

Every run is a diary of stages (`pipelines.stages`) in `WORK/runs/ARM/PART`. A killed sweep goes on
where it was: finished stages are not repeated, a training resumes from its last checkpoint. A lock
on each run keeps two sweeps over one folder apart.
"""

import fcntl
import json
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from pipelines.evaluation.result import FOLDER, RESULT, read_answers, read_result, row_name
from pipelines.stages import Diary, Stage
from pipelines.sweep.ledger import SCHEMA_NUMBER, Item, RunResult, read_run, write_run
from pipelines.sweep.study import Run, Study, command_of, fill
from shared.console import note
from shared.errors import UserError
from shared.records import load_records

TERMS = ("loss", "loss_lm", "loss_vis", "loss_att")


class Sweep:
    """A study in a working folder.

    Parameters
    ----------
    study, recipes
        The study and the file of each part's recipe.
    work
        Folder of runs and of what the steps make.
    results
        Folder of the runs' results.
    given
        The study's places, by name.
    jobs
        Runs at a time; each gets its share of the processor's cores.
    """

    def __init__(
        self,
        study: Study,
        recipes: Mapping[str, Path],
        work: Path,
        results: Path,
        given: Mapping[str, str],
        jobs: int = 1,
    ) -> None:
        unknown = [name for name in given if name not in study.places]
        if unknown:
            known = ", ".join(study.places) or "none"
            raise UserError(f"--set {unknown[0]}: the study has no such place; it has {known}")
        missing = [name for name in study.places if name not in given]
        if missing:
            raise UserError(f"the study needs --set {missing[0]}=VALUE: {study.places[missing[0]]}")
        self.study, self.recipes, self.work, self.results = study, recipes, work, results
        self.given, self.jobs = dict(given), jobs

    def places(self, arm: str, part: str) -> dict[str, str]:
        """Return every place of a run, as paths from the root."""
        run = self.work / "runs" / arm / part / "run"
        own = {"work": str(self.work), "arm": arm, "part": part, "run": str(run)}
        return {**self.given, **own}

    def make_steps(self, parts: Sequence[str]) -> None:
        """Make what the runs share and is not there yet."""
        for diary, stage in self._steps(parts):
            if diary.lacks(stage):
                note(f"makes: {stage.result}")
            diary.run(stage)

    def adopt_steps(self, parts: Sequence[str]) -> None:
        """Take what the runs share as made: it has come from another machine."""
        for diary, stage in self._steps(parts):
            diary.adopt(stage)

    def made(self, parts: Sequence[str]) -> list[Path]:
        """Return the files and folders that the steps make for some parts."""
        return [made for made, _ in self._makings(parts)]

    def _steps(self, parts: Sequence[str]) -> Iterator[tuple[Diary, Stage]]:
        for made, command in self._makings(parts):
            # Its own place below: two steps may end in the same name, as MEAN/PART, START/PART.
            inside = made.is_relative_to(self.work)
            place = made.relative_to(self.work if inside else made.anchor)
            folder = self.work / "steps" / place
            folder.parent.mkdir(parents=True, exist_ok=True)
            diary = Diary(folder, "sweep", folder.parent / f"{folder.name}.log")
            yield diary, Stage("make", command, made)

    def _makings(self, parts: Sequence[str]) -> Iterator[tuple[Path, list[str]]]:
        """Yield what each step makes, and how."""
        for step in self.study.steps:
            for part in parts if "{part}" in step.makes else parts[:1]:
                places = self.places("", part)
                made = Path(str(fill(step.makes, places, "steps")))
                yield made, command_of(step.command, places, "steps")

    def run_all(self, runs: Sequence[Run]) -> int:
        """Run the missing ones of `runs`; return how many were run here.

        Raises
        ------
        UserError
            Some failed; the others were run all the same.
        """
        cores = os.cpu_count() or 1
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // self.jobs)))
        done, failed = 0, []
        with ThreadPoolExecutor(self.jobs) as pool:
            waiting = {pool.submit(self.run_one, run): run for run in runs}
            for future in as_completed(waiting):
                run = waiting[future]
                try:
                    done += future.result()
                except UserError as error:
                    failed.append(f"{run.name}: {error}")
                    note(f"failed: {failed[-1]}")
        if failed:
            raise UserError(f"{len(failed)} of {len(runs)} runs failed, first {failed[0]}")
        return done

    def run_one(self, run: Run) -> bool:
        """Train, evaluate and write the result, unless it is there or another process has it."""
        folder = self.work / "runs" / run.arm / run.part
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _lock(folder.with_suffix(".lock")) as lock:
            if lock is None:
                note(f"passed over: {run.name}, which another process has now")
                return False
            if read_run(self.results, run) is not None:
                return False
            note(f"begins: {run.name}")
            diary = Diary(folder, "sweep", folder.with_suffix(".log"), lock)
            places = self.places(run.arm, run.part)
            output = Path(places["run"])
            for stage in self._stages(run, places, output):
                diary.run(stage)
            result = self._result(run, diary, output)
            write_run(self.results, run, result)
            total = sum(result["seconds"].values())
            note(f"done: {run.name} in {total / 60:.1f} minutes")
            return True

    def overrides(self, run: Run) -> list[str]:
        """Return a run's overrides of its part's recipe, every place filled in."""
        places = self.places(run.arm, run.part)
        values = {
            key: fill(value, places, f"{run.name}: {key}") for key, value in run.values.items()
        }
        return [f"{key}={written(value)}" for key, value in values.items()]

    def _stages(self, run: Run, places: Mapping[str, str], output: Path) -> list[Stage]:
        overrides = self.overrides(run)
        train = ["student", "train", str(self.recipes[run.part]), f"output={output}", *overrides]
        evaluate = ["medalign", "evaluate", "--run", str(output)]
        if self.study.unit is not None:
            evaluate += ["--cluster", self.study.unit]
        stages = [Stage("train", train, output, resumes=True), Stage("evaluate", evaluate)]
        for name, text in self.study.after.items():
            stages.append(Stage(name, command_of(text, places, f"after: {name}")))
        return stages

    def _result(self, run: Run, diary: Diary, output: Path) -> RunResult:
        folder = output / FOLDER
        result = read_result(folder / RESULT)
        answered = read_answers(folder, row_name(result["rows"][0]))
        kinds = {
            record.id: str(record.extra.get("kind", ""))
            for record in load_records(result["data"]["file"])
        }
        items: list[Item] = [
            {
                "id": line["id"],
                "unit": line["cluster"],
                "kind": kinds[line["id"]],
                "scores": line["scores"],
            }
            for line in answered
        ]
        state = json.loads((output / "trainer_state.json").read_text(encoding="utf-8"))
        logged = [entry for entry in state["log_history"] if "loss_lm" in entry]
        entries = diary.entries["stages"]
        return {
            "schema": SCHEMA_NUMBER,
            "study": self.study.name,
            "arm": run.arm,
            "part": run.part,
            "identity": run.identity,
            "values": run.values,
            "items": items,
            "losses": {name: logged[-1][name] for name in TERMS if logged and name in logged[-1]},
            "steps": int(state["global_step"]),
            "after": {
                entry["name"]: self._portable(entry["output"])
                for entry in entries
                if "output" in entry
            },
            "seconds": {entry["name"]: round(entry["seconds"], 1) for entry in entries},
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "software": {name: version(name) for name in ("medalign", "torch", "transformers")},
        }

    def _portable(self, value: object) -> object:
        """Write places of this machine by their names, as the study does."""
        if isinstance(value, str):
            places = {"work": str(self.work), **self.given}
            for name, place in sorted(places.items(), key=lambda one: -len(one[1])):
                if Path(place).is_absolute():
                    value = value.replace(place, f"{{{name}}}")
            return value
        if isinstance(value, dict):
            return {key: self._portable(one) for key, one in value.items()}
        return [self._portable(one) for one in value] if isinstance(value, list) else value


def written(value: object) -> str:
    """Return a value as an override of the recipe is written."""
    return value if isinstance(value, str) else json.dumps(value)


@contextmanager
def _lock(file: Path) -> Iterator[int | None]:
    """Hold a file for this process and its stages; None where another one holds it.

    A kill frees it, once the stage that was running has ended too.
    """
    with file.open("a") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        yield held.fileno()
