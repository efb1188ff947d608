"""CheXbert (Smit et al. 2020).

Similarity of report embeddings, the paper's column, and F1 of the 14 observations.

The paper's "CheXbert" column is the mean cosine similarity of the [CLS] states of CheXbert's BERT
(`semb_score` of CXR-Report-Metric), not an F1. `chexbert_f1_14` and `chexbert_f1_5` are what the
name usually stands for: F1 of the labels that the checkpoint gives both reports, a label counting
as present where it is positive or uncertain.

The checkpoint (`chexbert.pth`, stanfordmlgroup/CheXbert) is {"model_state_dict": {"module.bert.*",
"module.linear_heads.{0..13}.{weight, bias}"}, ...}: a BERT whose sizes follow from its tensors, and
one linear head per observation with four classes (blank, positive, negative, uncertain), two
(blank, positive) for "No Finding".
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from pipelines.metrics.metric import Metric, Pair, Total, Unavailable, Value, model_digest
from pipelines.metrics.totals import macro_f1, micro_f1

if TYPE_CHECKING:
    from torch import Tensor, nn

OBSERVATIONS = (
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
    "No Finding",
)
FIVE = ("Cardiomegaly", "Edema", "Consolidation", "Atelectasis", "Pleural Effusion")
PRESENT = (1, 3)  # positive, uncertain
HEAD_WIDTH = 64  # of one attention head in every published BERT
MAX_TOKENS = 512
BATCH = 16


def load(models: Mapping[str, str]) -> Metric:
    """Return the metric over a checkpoint and a tokenizer.

    `models["chexbert"]` and `models["chexbert-tokenizer"]`.

    Raises
    ------
    Unavailable
        Checkpoint or tokenizer was not named, or the file is not there.
    """
    path, tokenizer = models.get("chexbert"), models.get("chexbert-tokenizer")
    if path is None or tokenizer is None:
        raise Unavailable(
            "no checkpoint or tokenizer; --model chexbert=chexbert.pth "
            "(github.com/stanfordmlgroup/CheXbert links it; "
            "also in Hugging Face StanfordAIMI/RRG_scorers) and --model chexbert-tokenizer=FOLDER "
            "of "
            "bert-base-uncased, or that hub id to let it be downloaded"
        )
    if not Path(path).is_file():
        raise Unavailable(
            f"{path} is not a file; --model chexbert= wants the checkpoint chexbert.pth itself"
        )

    def compute(pairs: Sequence[Pair]) -> list[Value]:
        texts = sorted({text for pair in pairs for text in pair}, key=len)
        described = dict(zip(texts, describe(texts, path, tokenizer), strict=True))
        values: list[Value] = []
        for reference, prediction in pairs:
            (first, wanted), (second, given) = described[reference], described[prediction]
            values.append(
                {"chexbert": cosine(first, second), "reference": wanted, "prediction": given}
            )
        return values

    return Metric(
        "chexbert",
        f"chexbert 1, {model_digest(path)}, tokenizer {model_digest(tokenizer)}",
        compute,
        {
            "chexbert": "CheXbert: mean cosine similarity of [CLS] embeddings (the paper's column; "
            "not an F1)"
        },
        {
            f"chexbert_f1_{len(names)}_{average}": Total(
                f"CheXbert F1-{len(names)}, {average}", _counter(names), score
            )
            for names in (OBSERVATIONS, FIVE)
            for average, score in (("micro", micro_f1), ("macro", macro_f1))
        },
    )


def describe(
    texts: Sequence[str], checkpoint: str, tokenizer: str
) -> list[tuple[list[float], list[int]]]:
    """Return each report's [CLS] state (H,) and its 14 labels (1 present, 0 not)."""
    import torch
    from transformers import AutoTokenizer

    from shared.console import track

    bert, heads = load_checkpoint(checkpoint)
    encode = AutoTokenizer.from_pretrained(tokenizer)
    described: list[tuple[list[float], list[int]]] = []
    starts = range(0, len(texts), BATCH)
    for start in track(starts, len(starts), "CheXbert", "batches"):
        batch = [" ".join(text.split()) for text in texts[start : start + BATCH]]
        tokens = encode(
            batch, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
        )
        with torch.inference_mode():
            states: Tensor = bert(
                input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
            ).last_hidden_state[:, 0]
            classes = torch.stack([head(states).argmax(dim=1) for head in heads], dim=1)
        vectors: list[list[float]] = states.tolist()
        labels: list[list[int]] = torch.isin(classes, torch.tensor(PRESENT)).int().tolist()
        described += list(zip(vectors, labels, strict=True))
    return described


def load_checkpoint(path: str) -> "tuple[nn.Module, list[nn.Module]]":
    """Return BERT and the 14 heads of a CheXbert checkpoint, in float32 for evaluation.

    Every weight is used.

    Raises
    ------
    UserError
        The file is no such checkpoint: a tensor is missing, left over or of another shape.
    """
    import pickle

    import torch
    from transformers import BertConfig, BertModel

    from shared.errors import UserError

    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        state = {
            name.removeprefix("module."): tensor
            for name, tensor in content["model_state_dict"].items()
        }
        hidden = state["bert.embeddings.word_embeddings.weight"].shape[1]
        config = BertConfig(
            vocab_size=state["bert.embeddings.word_embeddings.weight"].shape[0],
            hidden_size=hidden,
            num_hidden_layers=1
            + max(
                int(name.split(".")[3]) for name in state if name.startswith("bert.encoder.layer.")
            ),
            num_attention_heads=max(1, hidden // HEAD_WIDTH),
            intermediate_size=state["bert.encoder.layer.0.intermediate.dense.weight"].shape[0],
            max_position_embeddings=state["bert.embeddings.position_embeddings.weight"].shape[0],
            type_vocab_size=state["bert.embeddings.token_type_embeddings.weight"].shape[0],
        )
        bert = BertModel(config)
        # A buffer of 0, 1, 2, ... that older transformers saved among the weights.
        weights = {name[5:]: tensor for name, tensor in state.items() if name.startswith("bert.")}
        weights.pop("embeddings.position_ids", None)
        bert.load_state_dict(weights)
        heads: list[nn.Module] = []
        for number in range(len(OBSERVATIONS)):
            weight = state[f"linear_heads.{number}.weight"]
            head = torch.nn.Linear(weight.shape[1], weight.shape[0])
            head.load_state_dict({"weight": weight, "bias": state[f"linear_heads.{number}.bias"]})
            heads.append(head.eval())
    except (
        LookupError,
        RuntimeError,
        ValueError,
        TypeError,
        AttributeError,
        OSError,
        EOFError,
        pickle.UnpicklingError,
    ) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"{path} is not a CheXbert checkpoint ({type(error).__name__}: {reason})"
        ) from None
    return bert.eval(), heads


def cosine(first: Sequence[float], second: Sequence[float]) -> float:
    """Return the cosine of two vectors."""
    import numpy as np

    a, b = np.asarray(first), np.asarray(second)
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def _counter(names: Sequence[str]) -> Callable[[Value], list[list[float]]]:
    """Return what counts the labels `names` of one report.

    True positives, false positives and false negatives.
    """
    places = [OBSERVATIONS.index(name) for name in names]

    def count(value: Value) -> list[list[float]]:
        wanted_labels = cast("list[int]", value["reference"])
        given_labels = cast("list[int]", value["prediction"])
        rows = []
        for place in places:
            wanted, given = wanted_labels[place], given_labels[place]
            rows.append(
                [float(wanted and given), float(given and not wanted), float(wanted and not given)]
            )
        return rows

    return count
