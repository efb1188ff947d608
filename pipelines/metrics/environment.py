"""Packages that cannot live beside transformers 5 or numpy 2 run in an environment of their own.

`python -m venv ENV && ENV/bin/pip install ...` makes one, `--model NAME-python=ENV/bin/python`
names it. A small script of `pipelines/metrics/scripts/` is run there; texts go to its standard
input and values come from its standard output, both as JSON, and nothing of this project is
imported there.
"""

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from pipelines.metrics.metric import Unavailable
from shared.errors import UserError

SCRIPTS = Path(__file__).parent / "scripts"


def run_script(
    python: str, script: str, request: Mapping[str, object], *, online: bool
) -> dict[str, object]:
    """Run `scripts/SCRIPT` under the interpreter `python` and return its answer.

    Parameters
    ----------
    online
        Whether the script may download a model: only where the user named a hub id.

    Raises
    ------
    UserError
        The interpreter is not there, or the script failed: its last line of error.
    """
    offline = {} if online else {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    try:
        done = subprocess.run(
            [python, str(SCRIPTS / script)],
            input=json.dumps(request),
            capture_output=True,
            text=True,
            env=os.environ | offline,
            check=False,
        )
    except OSError as error:
        raise UserError(
            f"{python} cannot be run: {error.strerror}; name the environment's bin/python"
        ) from None
    marker = "MEDALIGN-ANSWER "  # libraries print on standard output too
    answers = [
        line.removeprefix(marker) for line in done.stdout.split("\n") if line.startswith(marker)
    ]
    if done.returncode != 0 or not answers:
        lines = [line for line in done.stderr.split("\n") if line.strip()]
        raise UserError(
            f"{script} under {python} failed: "
            f"{lines[-1] if lines else f'exit code {done.returncode}'}"
        )
    return cast("dict[str, object]", json.loads(answers[-1]))


def package_version(python: str, package: str) -> str:
    """Return the version of a package in another environment.

    Raises
    ------
    Unavailable
        The interpreter is not there, or the package is not installed in its environment.
    """
    question = f"import importlib.metadata as m; print(m.version({package!r}))"
    try:
        done = subprocess.run([python, "-c", question], capture_output=True, text=True, check=False)
    except OSError as error:
        raise Unavailable(
            f"{python} cannot be run: {error.strerror}; name the environment's bin/python"
        ) from None
    if done.returncode != 0:
        raise Unavailable(
            f"{package} is not installed in the environment of {python}; install it there with pip"
        )
    return done.stdout.strip()
