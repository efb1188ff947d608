"""A stream's words are a prefix of the answer, and end as it, under each family's tokenizer."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.decoding.prompts import plain_model
from pipelines.evaluation.loading import Loaded
from pipelines.serve.asked import Asked
from pipelines.serve.batches import Batches, Job
from shared.recipe import ModelSection
from shared.records import Turn
from student_train.models import load_base
from tests.fixtures.families import FAMILIES
from tests.fixtures.students import write_tiny_student

pytestmark = pytest.mark.integration
TOKENS, SEEDS = 48, 12
WRITERS: dict[str, Callable[[Path], object]] = {
    "tiny": write_tiny_student,
    **{name: family.write for name, family in FAMILIES.items()},
}


@pytest.fixture(scope="module", params=list(WRITERS))
def student(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    folder = tmp_path_factory.mktemp(request.param) / "model"
    WRITERS[request.param](folder)
    template = "vicuna_v1" if request.param == "tiny" else None
    base = load_base(ModelSection(name=str(folder), template=template))
    return Loaded(plain_model(base.model).eval(), base.processor("pad", None), "", "")


def asked(seed: int, **more: Any) -> Asked:
    """Random weights at this temperature say any token of the vocabulary: halves of letters too."""
    settings: dict[str, Any] = {
        "system": "", "turns": [Turn("human", "What is it?")], "images": [], "item": "What is it?",
        "max_new_tokens": TOKENS, "temperature": 2.0, "top_p": 1.0, "seed": seed, "stop": (),
        "stream": False, "usage": False,
    }  # fmt: skip
    return Asked(**(settings | more))


def pieces(job: Job) -> list[str]:
    found = []
    while not (news := job.news.get()).finish:
        assert not news.fault, news.fault
        found.append(news.text)
    return found


def test_what_is_streamed_is_the_answer(student: Loaded) -> None:
    batches = Batches(student, SEEDS, 2 * SEEDS)
    try:
        whole = [batches.submit(asked(seed)) for seed in range(SEEDS)]
        streams = [batches.submit(asked(seed, stream=True)) for seed in range(SEEDS)]
        answers = ["".join(pieces(job)) for job in whole]
        parts = [pieces(job) for job in streams]
    finally:
        batches.close()
    assert ["".join(one) for one in parts] == answers
    assert sum(map(len, parts)) > 3 * SEEDS  # they came in pieces
    assert any(not one.isascii() for one in answers)
