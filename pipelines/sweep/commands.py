"""`medalign sweep`: run what is missing of a study, say what it takes, show what it found."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shared.console import report, resumable
from shared.errors import UserError

if TYPE_CHECKING:
    from pipelines.sweep.study import Run

StudyFile = Annotated[
    Path | None,
    typer.Argument(help="A study file, or the name of a shipped one, such as chest-strength."),
]


def sweep_command(
    *,
    file: StudyFile = None,
    work: Annotated[Path, typer.Option(help="Folder of the runs and what they share.")],
    results: Annotated[
        Path | None, typer.Option(help="Folder of the finished runs' JSON; default: WORK/results.")
    ] = None,
    given: Annotated[
        list[str] | None, typer.Option("--set", help="NAME=VALUE of the study's places.")
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="Arms, parts or ARM-PART; default: all.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time on this machine.")] = 1,
    shard: Annotated[
        str | None, typer.Option(help="I/N: every N-th run from the I-th on (job arrays), 0-based.")
    ] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Say what is missing and how long.")] = False,
    pack: Annotated[
        Path | None,
        typer.Option(help="Write what the runs need into this folder, in pieces of 60 MiB."),
    ] = None,
    unpack: Annotated[
        Path | None, typer.Option(help="A folder of --pack: go on with its study in --work.")
    ] = None,
    show: Annotated[bool, typer.Option("--show", help="Only show what is finished.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Run the runs of a study that have no result yet, then print its table.

    Stopped or killed, the same command goes on. `--results` in a repository keeps the study across
    machines. `--pack DIR` here and `--unpack DIR` there take it to a machine without a network.
    """
    from pipelines.sweep.packing import pack as write_pack
    from pipelines.sweep.packing import pack_lines
    from pipelines.sweep.planning import plan_lines, plan_of
    from pipelines.sweep.running import Sweep
    from pipelines.sweep.study import read_study, recipe_file, runs_of
    from pipelines.sweep.tables import document_of, lines_of, table_of
    from pipelines.sweep.unpacking import unpack as take_pack

    results = work / "results" if results is None else results
    _check_asked(file, given, pack, unpack, plan or show)
    taken = None if unpack is None else take_pack(unpack, work.resolve(), results)
    file = _study_file(file) if taken is None else taken.study
    study = read_study(file)
    every = runs_of(study, file)
    there = [run for run in every if taken is None or run.name in taken.runs]
    runs = _share(_chosen(there, only or []), shard)
    if plan:
        planned = plan_of(runs, results, jobs)
        report(planned, as_json, plan_lines(planned))
        return
    if not show:
        sweep = Sweep(
            study,
            {part: recipe_file(study, file, part).resolve() for part in study.parts},
            work.resolve(),
            results.resolve(),
            _pairs(given or []) if taken is None else taken.all_places(study.places),
            jobs,
        )
        if taken is not None:
            sweep.adopt_steps(taken.parts)
        with resumable():
            sweep.make_steps(list(dict.fromkeys(run.part for run in runs)))
            if pack is not None:
                packed = write_pack(sweep, runs, pack)
                report(packed, as_json, pack_lines(packed, pack))
                return
            sweep.run_all(runs)
    table = table_of(study, every, results)
    report(document_of(study, table), as_json, lines_of(study, table))


def _check_asked(
    file: Path | None, given: list[str] | None, pack: Path | None, unpack: Path | None, shown: bool
) -> None:
    """Refuse what does not go together."""
    if (file is None) == (unpack is None):
        raise UserError("name a study, or give --unpack DIR, whose study it then is")
    if unpack is not None and (given or pack is not None):
        raise UserError("--unpack brings its places along: leave out --set and --pack")
    if pack is not None and shown:
        raise UserError("--pack goes neither with --plan nor with --show; leave one of them out")


def _study_file(name: Path | None) -> Path:
    from pipelines.sweep.study import study_file

    assert name is not None  # `_check_asked`
    return study_file(name)


def _pairs(given: list[str]) -> dict[str, str]:
    pairs = {}
    for one in given:
        name, equals, value = one.partition("=")
        if not equals or not name:
            raise UserError(f"--set {one}: write NAME=VALUE")
        pairs[name] = value
    return pairs


def _chosen(runs: "list[Run]", only: list[str]) -> "list[Run]":
    if not only:
        return runs
    for name in only:
        if not any(name in (run.arm, run.part, run.name) for run in runs):
            known = ", ".join(dict.fromkeys(run.arm for run in runs))
            raise UserError(f"--only {name}: no arm, part or run is called so; arms are {known}")
    return [run for run in runs if any(name in (run.arm, run.part, run.name) for name in only)]


def _share(runs: "list[Run]", shard: str | None) -> "list[Run]":
    if shard is None:
        return runs
    first, slash, count = shard.partition("/")
    if not (slash and first.isdigit() and count.isdigit() and int(first) < int(count)):
        raise UserError(f"--shard {shard}: write I/N with I below N, such as 0/4")
    return runs[int(first) :: int(count)]
