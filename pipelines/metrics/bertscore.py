"""BERTScore (Zhang et al. 2020).

F1 of greedily matched token embeddings, without idf weights or baseline rescaling.

The authors use roberta-large, layer 17 (the package's choice for English). Give it as
`bertscore=FOLDER` or as a hub id. A pair with an empty side scores 0, as the package itself
decides.
"""

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from pipelines.metrics.metric import Metric, Pair, Unavailable, Value, model_digest, require


def load(models: Mapping[str, str]) -> Metric:
    """Return the metric over the model `models["bertscore"]`.

    Raises
    ------
    Unavailable
        The package is not installed, or no model was named.
    """
    require("bert_score")
    model = models.get("bertscore")
    if model is None:
        raise Unavailable(
            "no model; --model bertscore=FOLDER of roberta-large (the authors'), "
            "or bertscore=roberta-large to let it be downloaded (1.4 GB)"
        )
    layer = layer_of(model)

    def compute(pairs: Sequence[Pair]) -> list[Value]:
        from bert_score import BERTScorer

        spoken = [
            place
            for place, pair in enumerate(pairs)
            if pair.reference.strip() and pair.prediction.strip()
        ]
        values = [0.0] * len(pairs)
        if spoken:
            # One pair a batch: the package lets padding count as a similarity of 0, so that a pair
            # whose words are all unlike would score by what stands beside it.
            scorer = BERTScorer(model_type=model, num_layers=layer, idf=False, batch_size=1)
            _, _, f1 = scorer.score(
                [pairs[place].prediction for place in spoken], [pairs[p].reference for p in spoken]
            )
            found: list[float] = f1.tolist()
            for place, value in zip(spoken, found, strict=True):
                values[place] = value
        return [{"bertscore": value} for value in values]

    what = {"bertscore": f"BERTScore F1, {Path(model).name}, layer {layer}, no idf, no rescaling"}
    return Metric(
        "bertscore",
        f"bert_score {version('bert-score')}, {model_digest(model)}, layer {layer}",
        compute,
        what,
    )


def layer_of(model: str) -> int:
    """Return the layer whose states are compared.

    The package's choice for models that it knows, else the last.

    Raises
    ------
    Unavailable
        A hub id that the package does not know.
    """
    from bert_score.utils import model2layers

    config = Path(model) / "config.json"
    if not config.is_file():
        if model in model2layers:
            return int(model2layers[model])
        raise Unavailable(
            f"{model} is neither a folder with a config.json nor a model that bert_score knows"
        )
    content = json.loads(config.read_text())
    layers = int(content["num_hidden_layers"])
    if (content.get("model_type"), layers) == (
        "roberta",
        24,
    ):  # roberta-large, wherever it was saved
        return int(model2layers["roberta-large"])
    return int(model2layers.get(Path(model).name, layers))
