"""RaTEScore (Zhao et al. 2024).

Similarity of the medical entities of two reports, by the `RaTEScore` package.

The package needs medspacy, whose spaCy needs numpy 1, so it runs in an environment of its own
(`pipelines.metrics.environment`). Its entity recogniser is `Angelakeke/RaTE-NER-Deberta`, its
encoder `FremyCompany/BioLORD-2023-C`, its affinity matrix "long". A pair without an entity on a
side scores 0.5.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

from pipelines.metrics.environment import package_version, run_script
from pipelines.metrics.metric import Metric, Pair, Unavailable, Value, model_digest


def load(models: Mapping[str, str]) -> Metric:
    """Return the metric over an interpreter and two models.

    `ratescore-python`, `ratescore-ner` and `ratescore-encoder`.

    Raises
    ------
    Unavailable
        One of the three was not named, or the package is not installed there.
    """
    names = ("ratescore-python", "ratescore-ner", "ratescore-encoder")
    if any(name not in models for name in names):
        raise Unavailable(
            "no environment or models; python -m venv ENV && ENV/bin/pip install RaTEScore "
            "medspacy torch transformers "
            "pandas, then --model ratescore-python=ENV/bin/python, --model ratescore-ner=FOLDER "
            "(of "
            "Angelakeke/RaTE-NER-Deberta) and --model ratescore-encoder=FOLDER (of "
            "FremyCompany/BioLORD-2023-C); "
            "the hub ids themselves let them be downloaded"
        )
    python, ner, encoder = (models[name] for name in names)
    package = package_version(python, "RaTEScore")

    def compute(pairs: Sequence[Pair]) -> list[Value]:
        online = not (Path(ner).is_dir() and Path(encoder).is_dir())
        request = {"pairs": [list(pair) for pair in pairs], "ner": ner, "encoder": encoder}
        answer = run_script(python, "ratescore_score.py", request, online=online)
        return [{"ratescore": value} for value in cast("list[float]", answer["scores"])]

    what = {"ratescore": "RaTEScore, affinity matrix long"}
    return Metric(
        "ratescore",
        f"RaTEScore {package}, {model_digest(ner)}, {model_digest(encoder)}",
        compute,
        what,
    )
