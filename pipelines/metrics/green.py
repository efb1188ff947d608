"""GREEN (Ostmeier et al. 2024): a language model counts errors and matched findings of a report.

matched findings / (matched findings + clinically significant errors), by the package `green_score`
in an environment of its own (`pipelines.metrics.environment`). Its weights
(`StanfordAIMI/GREEN-radllama2-7b`, 13 GB) must be a local folder: nothing downloads them. The
package lets a folder bring code of its own; a folder with code is refused.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

from pipelines.metrics.environment import package_version, run_script
from pipelines.metrics.metric import Metric, Pair, Unavailable, Value, model_digest
from shared.errors import UserError


def load(models: Mapping[str, str]) -> Metric:
    """Return the metric over an interpreter (`green-python`) and a folder of weights (`green`).

    Raises
    ------
    Unavailable
        One of them was not named, the weights are no local folder, or the package is not installed.
    """
    python, folder = models.get("green-python"), models.get("green")
    if python is None or folder is None or not Path(folder).is_dir():
        raise Unavailable(
            "no environment or no local weights; python -m venv ENV && ENV/bin/pip install "
            "green-score, then --model green-python=ENV/bin/python and --model green=FOLDER, a "
            "local copy of StanfordAIMI/GREEN-radllama2-7b"
        )
    code = next(Path(folder).rglob("*.py"), None)
    if code is not None:
        raise Unavailable(f"{folder} holds code ({code.name}), which would be run; remove it")
    package = package_version(python, "green-score")

    def compute(pairs: Sequence[Pair]) -> list[Value]:
        request = {"pairs": [list(pair) for pair in pairs], "model": str(Path(folder).resolve())}
        answer = run_script(python, "green_judge.py", request, online=False)
        found = cast("list[float | None]", answer["scores"])
        silent = [place for place, value in enumerate(found) if value is None]
        if silent:
            raise UserError(
                f"GREEN's model gave no judgement that can be read for {len(silent)} of "
                f"{len(pairs)} reports, first number {silent[0]}; leave out green"
            )
        return [{"green": cast("float", value)} for value in found]

    what = {"green": "GREEN: matched findings over those and significant errors, by its model"}
    return Metric("green", f"green-score {package}, {model_digest(folder)}", compute, what)
