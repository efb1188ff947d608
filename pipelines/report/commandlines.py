"""The commands that made a run's page, to be pasted: training, evaluation, metrics, alignment."""

import shlex
from collections.abc import Mapping
from pathlib import Path

from pipelines.evaluation.result import FOLDER, Result, decoding_method


def command_lines(run: Path, folder: Path, arms: Mapping[str, Path], result: Result) -> list[str]:
    """Return shell lines; `folder` is the evaluation's, `arms` the adapters that answered.

    A later `medalign evaluate` of the same line finds every answer in the journal.
    """
    trained = [one for one in arms.values() if (one / "recipe.yaml").is_file()]
    settings, data = result["settings"], result["data"]
    asked = dict.fromkeys(
        row["method"].partition(" + ")[2] or decoding_method(row) for row in result["rows"]
    )
    evaluate: list[object] = ["medalign", "evaluate", "--run", run, "--data", data["file"]]
    options = {
        "--image-root": data.get("image_root"),
        "--out": None if folder == run / FOLDER else folder,
        "--decode": ",".join(asked),
        "--preset": settings["preset"],
        "--max-new-tokens": settings["max_new_tokens"],
        "--seed": settings["seed"],
        "--limit": settings["limit"],
        "--base": settings.get("base"),
    }
    for name, value in options.items():
        evaluate += [] if value is None else [name, value]
    for override in settings["overrides"]:
        evaluate += ["--set", override]
    report: list[object] = ["medalign", "report", "--run", run]
    report += [] if folder == run / FOLDER else ["--evaluation", folder]
    lines = [["student", "train", one / "recipe.yaml"] for one in trained]
    return [shlex.join(map(str, line)) for line in [*lines, evaluate, report]]
