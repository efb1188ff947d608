"""CheXbert, RadGraph and RaTEScore on small local models.

And what happens where a model is missing or broken.
"""

import json
import os
import pickle
import random
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from pipelines.metrics import chexbert, radgraph, ratescore
from pipelines.metrics.environment import run_script
from pipelines.metrics.metric import Pair, Unavailable
from shared.errors import UserError
from tests.fixtures.report_models import chexbert_checkpoint, ratescore_models, write_tokenizer

TEXTS = [
    "The lungs are clear. No pneumothorax.",
    "The heart size is normal. There is a small left pleural effusion.",
    "Mild edema\n in the right   lower lobe",
    "cardiomegaly",
    "",
]


@pytest.fixture(scope="module")
def chexbert_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chexbert")
    models = {
        "chexbert": str(folder / "chexbert.pth"),
        "chexbert-tokenizer": str(write_tokenizer(folder / "tokenizer")),
    }
    return models, *chexbert_checkpoint(folder / "chexbert.pth")


@pytest.mark.unit
def test_chexbert_states_and_labels_are_those_of_the_checkpoint(chexbert_files):
    from transformers import AutoTokenizer

    models, bert, heads = chexbert_files
    tokenizer = AutoTokenizer.from_pretrained(models["chexbert-tokenizer"])
    described = chexbert.describe(TEXTS, models["chexbert"], models["chexbert-tokenizer"])
    seen = set()
    for text, (state, labels) in zip(
        TEXTS, described, strict=True
    ):  # one by one: batching and padding change nothing
        with torch.inference_mode():
            expected = bert(
                **tokenizer(" ".join(text.split()), return_tensors="pt")
            ).last_hidden_state[0, 0]
            classes = [int(head(expected).argmax()) for head in heads]
        assert np.allclose(state, expected, atol=1e-5)
        assert labels == [int(found in (1, 3)) for found in classes]
        seen |= set(classes)
    assert seen == {
        0,
        1,
        2,
        3,
    }  # the test would not notice a wrong rule for a class that never occurs


@pytest.mark.unit
def test_chexbert_similarity_is_the_cosine_of_the_states(chexbert_files):
    models, _, _ = chexbert_files
    metric = chexbert.load(models)
    same, other = metric.compute([Pair(TEXTS[0], TEXTS[0]), Pair(TEXTS[0], TEXTS[1])])
    (a, _), (b, _) = chexbert.describe(TEXTS[:2], models["chexbert"], models["chexbert-tokenizer"])
    assert same["chexbert"] == pytest.approx(1)
    assert other["chexbert"] == pytest.approx(np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b))
    assert cast("float", other["chexbert"]) < 0.99
    assert set(metric.totals) == {
        f"chexbert_f1_{n}_{average}" for n in (14, 5) for average in ("micro", "macro")
    }
    tallies = metric.totals["chexbert_f1_5_micro"].tally(other)
    places = [chexbert.OBSERVATIONS.index(name) for name in chexbert.FIVE]
    assert [sum(row[::2]) for row in tallies] == [
        cast("list[int]", other["reference"])[place] for place in places
    ]
    assert [sum(row[:2]) for row in tallies] == [
        cast("list[int]", other["prediction"])[place] for place in places
    ]


def _edited(path, target, edit):
    content = torch.load(path, weights_only=True)
    edit(content)
    torch.save(content, target)


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.unit
@pytest.mark.parametrize(
    "damage",
    [
        "truncated",
        "no state",
        "missing head",
        "missing tensor",
        "extra tensor",
        "wrong shape",
        "code",
        "text",
    ],
)
def test_a_damaged_checkpoint_is_refused_in_one_line(damage, chexbert_files, tmp_path):
    path, bad = Path(chexbert_files[0]["chexbert"]), tmp_path / "bad.pth"
    edits = {
        "no state": lambda content: content.pop("model_state_dict"),
        "missing head": lambda content: content["model_state_dict"].pop(
            "module.linear_heads.13.bias"
        ),
        "missing tensor": lambda content: content["model_state_dict"].pop(
            "module.bert.pooler.dense.bias"
        ),
        "extra tensor": lambda c: c["model_state_dict"].update(
            {"module.bert.other": torch.ones(1)}
        ),
        "wrong shape": lambda c: c["model_state_dict"].update(
            {"module.bert.pooler.dense.bias": torch.ones(3)}
        ),
    }
    if damage == "truncated":
        bad.write_bytes(path.read_bytes()[:5000])
    elif damage == "text":
        bad.write_text("<html>sign in</html>")
    elif damage == "code":
        bad.write_bytes(pickle.dumps(Payload(tmp_path / "touched"), protocol=2))
    else:
        _edited(path, bad, edits[damage])
    with pytest.raises(UserError, match=r"bad\.pth is not a CheXbert checkpoint"):
        chexbert.load_checkpoint(str(bad))
    assert not (tmp_path / "touched").exists()


@pytest.mark.unit
def test_missing_models_say_how_to_get_them(tmp_path):
    with pytest.raises(Unavailable, match=r"--model chexbert=chexbert\.pth.*chexbert-tokenizer"):
        chexbert.load({})
    with pytest.raises(Unavailable, match="not a file"):
        chexbert.load({"chexbert": str(tmp_path), "chexbert-tokenizer": "x"})
    with pytest.raises(Unavailable, match="--model radgraph-python=ENV/bin/python"):
        radgraph.load({"radgraph": "hub"})
    with pytest.raises(Unavailable, match="holds no folder radgraph/"):
        radgraph.load({"radgraph": str(tmp_path), "radgraph-python": sys.executable})
    with pytest.raises(Unavailable, match="RaTE-NER-Deberta"):
        ratescore.load({"ratescore-python": sys.executable})
    with pytest.raises(Unavailable, match="cannot be run"):
        radgraph.load({"radgraph": "hub", "radgraph-python": str(tmp_path / "python")})


# The example of the RadGraph paper's format: tokens, label, and relations to other entities by
# their number.
FOUND: Any = {
    "1": {
        "tokens": "acute",
        "label": "OBS-DA",
        "start_ix": 2,
        "end_ix": 2,
        "relations": [["modify", "3"]],
    },
    "2": {
        "tokens": "Cardiopulmonary",
        "label": "ANAT-DP",
        "start_ix": 3,
        "end_ix": 3,
        "relations": [],
    },
    "3": {
        "tokens": "process",
        "label": "OBS-DA",
        "start_ix": 4,
        "end_ix": 4,
        "relations": [["located_at", "2"]],
    },
}


@pytest.mark.unit
def test_radgraph_scores_by_hand():
    other = json.loads(json.dumps(FOUND))
    other["2"]["tokens"] = "cardiopulmonary"
    other["3"] |= {"relations": []}
    scores = radgraph.score(FOUND, other)
    assert (
        scores["radgraph_entity"] == scores["radgraph_simple"] == pytest.approx(2 / 3)
    )  # the case of one differs
    assert scores["radgraph_relation"] == pytest.approx(
        2 * 1 / (2 + 1)
    )  # acute modifies process, in both
    assert scores["radgraph"] == pytest.approx((2 / 3 + 2 / 3) / 2)
    assert scores["radgraph_partial"] == pytest.approx(
        2 * 1 / 6
    )  # only `acute`, with a relation in both
    # complete: {acute-modify-process, (Cardiopulmonary), process-located_at-cardiopulmonary}
    # against {acute-modify-process, (cardiopulmonary), (process)}
    assert scores["radgraph_complete"] == pytest.approx(2 * 1 / 6)
    same = radgraph.score(FOUND, FOUND)
    assert all(value == 1 for value in same.values())
    assert all(value == 0 for value in radgraph.score(FOUND, {}).values())
    assert all(value == 0 for value in radgraph.score({}, {}).values())


@pytest.mark.unit
def test_radgraph_is_symmetric_and_bounded():
    generator = random.Random(0)
    for _ in range(50):
        a, b = (_random_annotation(generator) for _ in range(2))
        forward, backward = radgraph.score(a, b), radgraph.score(b, a)
        assert forward == backward
        assert all(0 <= cast("float", value) <= 1 for value in forward.values())


def _random_annotation(generator):
    size = generator.randrange(0, 5)
    names = [str(number) for number in range(1, size + 1)]
    return {
        name: {
            "tokens": generator.choice(["lung", "clear", "Edema"]),
            "label": generator.choice(["OBS-DP", "ANAT-DP"]),
            "relations": [
                ["modify", generator.choice(names)] for _ in range(generator.randrange(0, 2))
            ],
        }
        for name in names
    }


def _package(folder, name, source):
    """A package that another environment would have, on its path and with a version."""
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text(source)
    about = folder / f"{name}-9.9.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 9.9\n")
    return folder


RADGRAPH = """
class RadGraph:
    def __init__(self, model_type, model_cache_dir=None):
        import os
        assert os.environ["HF_HUB_OFFLINE"] == "1" and model_type == "radgraph" and model_cache_dir
        print("Using device: cpu")

    def __call__(self, texts):
        return {
            str(number): {"text": text, "entities": {
                str(place + 1): {"tokens": word, "label": "OBS-DP", "relations": []}
                for place, word in enumerate(text.replace(".", "").split())}}
            for number, text in enumerate(texts)}
"""


def _radgraph_config(folder, encoder):
    (folder / "radgraph").mkdir(parents=True, exist_ok=True)
    indexers = {"bert": {"model_name": str(encoder)}}
    (folder / "radgraph/config.json").write_text(
        json.dumps({"dataset_reader": {"token_indexers": indexers}})
    )


@pytest.mark.unit
def test_radgraph_downloads_no_encoder_for_a_local_model(tmp_path):
    models = {"radgraph": str(tmp_path), "radgraph-python": sys.executable}
    (tmp_path / "radgraph").mkdir()
    with pytest.raises(Unavailable, match=r"unpack radgraph\.tar\.gz again"):
        radgraph.load(models)
    _radgraph_config(tmp_path, "someone/no-such-encoder")
    with pytest.raises(
        Unavailable, match="names the encoder someone/no-such-encoder, which is not here"
    ):
        radgraph.load(models)


@pytest.mark.integration
def test_radgraph_in_its_own_environment(tmp_path):
    """The package itself on a small checkpoint of the published format.

    Its own F1RadGraph agrees with ours.
    """
    python = os.environ.get("MEDALIGN_RADGRAPH_PYTHON")
    if python is None:
        pytest.skip(
            "MEDALIGN_RADGRAPH_PYTHON names no environment with radgraph: its package was not run"
        )
    builder = Path(__file__).parents[2] / "fixtures" / "radgraph_checkpoint.py"
    offline = os.environ | {"HF_HUB_OFFLINE": "1"}
    subprocess.run(
        [python, str(builder), str(tmp_path)], check=True, capture_output=True, env=offline
    )
    pairs = [
        Pair(TEXTS[0], TEXTS[0]),
        Pair(TEXTS[0], "The lungs are clear. No effusion."),
        Pair(TEXTS[0], TEXTS[1]),
        Pair("x", ""),
    ]
    ours = radgraph.load({"radgraph": str(tmp_path), "radgraph-python": python}).compute(pairs)
    assert ours[0]["radgraph"] == 1
    assert 0 < cast("float", ours[1]["radgraph"]) < 1
    assert set(ours[3].values()) == {0.0}
    program = (
        "import json, sys; from radgraph import F1RadGraph\n"
        "score = F1RadGraph(reward_level='all', model_type='radgraph', "
        "model_cache_dir=sys.argv[1])\n"
        "references, predictions = zip(*json.load(sys.stdin))\n"
        "print('REWARDS', json.dumps(score(refs=list(references), hyps=list(predictions))[1], "
        "default=float))"
    )
    done = subprocess.run(
        [python, "-c", program, str(tmp_path)],
        input=json.dumps(pairs[:3]),
        check=True,
        capture_output=True,
        text=True,
        env=offline,
    )
    theirs = json.loads(done.stdout.partition("REWARDS ")[2])
    for level, rewards in zip(("simple", "partial", "complete"), theirs, strict=True):
        assert [value[f"radgraph_{level}"] for value in ours[:3]] == pytest.approx(
            rewards, abs=1e-9
        )


@pytest.mark.integration
def test_radgraph_annotates_in_another_environment(tmp_path, monkeypatch):
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):  # a folder alone keeps it off the hub
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYTHONPATH", str(_package(tmp_path / "packages", "radgraph", RADGRAPH)))
    _radgraph_config(tmp_path / "model", encoder=tmp_path)
    metric = radgraph.load({"radgraph": str(tmp_path / "model"), "radgraph-python": sys.executable})
    assert metric.version.startswith("radgraph 9.9")
    pairs = [Pair("clear lungs.", "clear lungs"), Pair("clear lungs.", "edema"), Pair("clear", "")]
    same, other, empty = metric.compute(pairs)
    assert same["radgraph_simple"] == 1
    assert same["radgraph"] == 0.5  # no relation anywhere: its F1 is 0, as in CXR-Report-Metric
    assert other["radgraph"] == empty["radgraph"] == 0


@pytest.mark.integration
def test_a_failing_environment_is_one_line(tmp_path, monkeypatch):
    broken = _package(tmp_path / "packages", "radgraph", "raise RuntimeError('no such model')")
    monkeypatch.setenv("PYTHONPATH", str(broken))
    request = {"texts": ["a"], "model_type": "radgraph", "folder": None}
    with pytest.raises(
        UserError, match=r"radgraph_annotate\.py under .* failed: RuntimeError: no such model"
    ):
        run_script(sys.executable, "radgraph_annotate.py", request, online=False)
    with pytest.raises(UserError, match="cannot be run"):
        run_script(str(tmp_path / "nowhere"), "radgraph_annotate.py", request, online=False)


MEDSPACY = """
import re
class _Doc:
    def __init__(self, text):
        self.sents = [piece for piece in re.split(r"(?<=[.])\\s+", text) if piece]
def load(medspacy_enable=None):
    return _Doc
"""


def _check_ratescore(python, folder):
    ner, encoder = ratescore_models(folder)
    models = {
        "ratescore-python": python,
        "ratescore-ner": str(ner),
        "ratescore-encoder": str(encoder),
    }
    metric = ratescore.load(models)
    assert metric.version.startswith("RaTEScore 0.")
    pairs = [
        Pair("", "clear lungs"),  # without the guard this pair would shift the ones behind it
        Pair("the lungs are clear. no effusion.", "the lungs are clear. no effusion."),
        Pair("the lungs are clear. no effusion.", "mild edema in the left lower lobe."),
    ]
    empty, same, other = (value["ratescore"] for value in metric.compute(pairs))
    assert empty == 0.5
    assert same == pytest.approx(1, abs=1e-5)
    assert 0 < cast("float", other) < 0.999


@pytest.mark.integration
def test_ratescore_runs_its_package_on_small_models(tmp_path, monkeypatch):
    """The real package; only medspacy's sentence splitter, which needs numpy 1, is a stand-in."""
    monkeypatch.setenv("PYTHONPATH", str(_package(tmp_path / "packages", "medspacy", MEDSPACY)))
    _check_ratescore(sys.executable, tmp_path)


@pytest.mark.integration
def test_ratescore_in_its_own_environment(tmp_path):
    python = os.environ.get("MEDALIGN_RATESCORE_PYTHON")
    if python is None:
        pytest.skip(
            "MEDALIGN_RATESCORE_PYTHON names no environment with RaTEScore and medspacy: not run "
            "there"
        )
    _check_ratescore(python, tmp_path)
