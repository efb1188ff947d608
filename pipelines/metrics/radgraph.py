"""RadGraph (Jain et al. 2021): agreement of the entities and relations found in two reports.

The paper's "RadGraph" column is (entity F1 + relation F1) / 2 of each report (CXR-Report-Metric's
`radgraph_combined`). The levels of the `radgraph` package stand beside it:

| score    | an item is                                                                     |
|----------|--------------------------------------------------------------------------------|
| entity   | (tokens, label)                                                                |
| relation | ((tokens, label), (tokens, label), relation)                                   |
| simple   | (tokens, label)                                                                |
| partial  | (tokens, label, whether the entity has a relation)                             |
| complete | (tokens, label) of an entity without relations; else (tokens, label, relation, |
|          | target)                                                                        |

A level is 0 where either report has no entity. An F1 without any item on a side is 0. The package's
`complete` compares lower-case tokens in relations, and so does this.

The `radgraph` package (0.1.18) fails under transformers 5, so it annotates in an environment of its
own (`pipelines.metrics.environment`). The paper's checkpoint is RadGraph 1.0.0 of PhysioNet,
`model_type` "radgraph".
"""

import json
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import TypedDict, cast

from pipelines.metrics.environment import package_version, run_script
from pipelines.metrics.metric import Metric, Pair, Unavailable, Value, model_digest

MODEL_TYPE = "radgraph"


class Entity(TypedDict):
    """One entity of a report; a relation is [its name, the other entity's id]."""

    tokens: str
    label: str
    relations: list[list[str]]


Entities = Mapping[str, Entity]  # by id


def load(models: Mapping[str, str]) -> Metric:
    """Return the metric over an interpreter and a model.

    `radgraph-python`, and `radgraph` (a folder, or `hub`).

    Raises
    ------
    Unavailable
        Interpreter or model was not named, or the package is not installed there.
    """
    python, model = models.get("radgraph-python"), models.get("radgraph")
    if python is None or model is None:
        raise Unavailable(
            "no environment or model; python -m venv ENV && ENV/bin/pip install radgraph "
            "'transformers<5', then "
            "--model radgraph-python=ENV/bin/python and --model radgraph=FOLDER with radgraph/, "
            "unpacked from "
            "radgraph.tar.gz (Hugging Face StanfordAIMI/RRG_scorers), or radgraph=hub to let it be "
            "downloaded"
        )
    if model != "hub":
        _check_folder(Path(model) / MODEL_TYPE)
    package = package_version(python, "radgraph")

    def compute(pairs: Sequence[Pair]) -> list[Value]:
        texts = sorted({text for pair in pairs for text in pair if text.strip()})
        request = {
            "texts": texts,
            "model_type": MODEL_TYPE,
            "folder": None if model == "hub" else model,
        }
        answer = run_script(python, "radgraph_annotate.py", request, online=model == "hub")
        found = cast("list[Entities]", answer["annotations"])
        annotations = dict(zip(texts, found, strict=True))
        return [
            score(annotations.get(pair.reference, {}), annotations.get(pair.prediction, {}))
            for pair in pairs
        ]

    what = {
        "radgraph": "RadGraph: (entity F1 + relation F1) / 2, the paper's column",
        "radgraph_entity": "RadGraph entity F1",
        "radgraph_relation": "RadGraph relation F1",
        "radgraph_simple": "RadGraph package, level simple",
        "radgraph_partial": "RadGraph package, level partial",
        "radgraph_complete": "RadGraph package, level complete",
    }
    return Metric(
        "radgraph", f"radgraph {package}, {MODEL_TYPE} {model_digest(model)}", compute, what
    )


def _check_folder(folder: Path) -> None:
    """Raise Unavailable where the unpacked model is not there.

    Or where it names an encoder that would have to be downloaded.
    """
    from huggingface_hub import try_to_load_from_cache

    if not folder.is_dir():
        raise Unavailable(
            f"{folder.parent} holds no folder {MODEL_TYPE}/; unpack radgraph.tar.gz into it"
        )
    file = folder / "config.json"
    try:
        encoder = json.loads(file.read_text(encoding="utf-8"))["dataset_reader"]["token_indexers"][
            "bert"
        ]["model_name"]
    except (OSError, ValueError, LookupError, TypeError):
        raise Unavailable(
            f"{file} describes no RadGraph model; unpack radgraph.tar.gz again"
        ) from None
    if not Path(encoder).is_dir() and not isinstance(
        try_to_load_from_cache(encoder, "config.json"), str
    ):
        raise Unavailable(
            f"{file} names the encoder {encoder}, which is not here; put the path of a local copy "
            "in its place (it "
            "stands there twice), or radgraph=hub to let it be downloaded"
        )


def score(reference: Entities, prediction: Entities) -> Value:
    """Return all scores of one pair of annotations."""
    entity = f1(_entities(reference), _entities(prediction))
    relation = f1(_relations(reference), _relations(prediction))
    spoken = bool(reference) and bool(prediction)
    return {
        "radgraph": (entity + relation) / 2,
        "radgraph_entity": entity,
        "radgraph_relation": relation,
        "radgraph_simple": entity,
        "radgraph_partial": f1(_partial(reference), _partial(prediction)) if spoken else 0.0,
        "radgraph_complete": f1(_complete(reference), _complete(prediction)) if spoken else 0.0,
    }


def f1(reference: set[Hashable], prediction: set[Hashable]) -> float:
    """F1 of two sets; 0 where they share nothing."""
    shared = len(reference & prediction)
    return 2 * shared / (len(reference) + len(prediction)) if shared else 0.0


def _entities(found: Entities) -> set[Hashable]:
    return {_named(entity) for entity in found.values()}


def _relations(found: Entities) -> set[Hashable]:
    return {
        (_named(entity), _named(found[target]), relation)
        for entity in found.values()
        for relation, target in entity["relations"]
    }


def _partial(found: Entities) -> set[Hashable]:
    return {(*_named(entity), bool(entity["relations"])) for entity in found.values()}


def _complete(found: Entities) -> set[Hashable]:
    alone: set[Hashable] = {_named(entity) for entity in found.values() if not entity["relations"]}
    return alone | {
        (entity["tokens"].lower(), entity["label"], relation, found[target]["tokens"].lower())
        for entity in found.values()
        for relation, target in entity["relations"]
    }


def _named(entity: Entity) -> tuple[str, str]:
    return entity["tokens"], entity["label"]
