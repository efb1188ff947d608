"""What an item's answer may not depend on.

Its batch, its shard, its neighbours, the order, the run.
"""

from typing import Any

import pytest

from pipelines.decoding.methods import NAMES, decoding
from tests.fixtures.decoding import LIMITS, lively_student, prompts

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def model() -> Any:
    return lively_student(rotated=True)


@pytest.mark.parametrize("name", NAMES)
def test_answers_do_not_depend_on_batch_order_or_run(model: Any, name: str) -> None:
    method = decoding(name)

    def answers(*batches: tuple[str, ...]) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for names in batches:
            decoded = method.decode(model, prompts(model, names), LIMITS, method.settings, 4)
            found |= dict(zip(names, decoded, strict=True))
        return found

    together = answers(("a", "b", "c"))
    assert together == answers(("a",), ("b",), ("c",))
    assert together == answers(("c", "a"), ("b",))
    assert together == answers(("a", "b", "c"))


@pytest.mark.parametrize("name", ["nucleus", "vcd", "avisc", "m3id", "damro"])
def test_the_seed_decides_what_is_drawn(model: Any, name: str) -> None:
    method = decoding(name)
    batch = prompts(model, ("a", "b", "c"))
    drawn = [method.decode(model, batch, LIMITS, method.settings, seed) for seed in range(3)]
    assert len({str(one) for one in drawn}) > 1


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("images", [0, 2])
def test_no_image_and_two_images_both_work(model: Any, name: str, images: int) -> None:
    method = decoding(name)
    decoded = method.decode(
        model, prompts(model, ("a", "b"), images=images), LIMITS, method.settings, 0
    )
    assert all(len(one) <= LIMITS.max_new_tokens for one in decoded)


@pytest.mark.parametrize("name", NAMES)
def test_the_model_is_left_as_it_was(model: Any, name: str) -> None:
    hooks = [
        len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()
    ]
    configs = [layer.self_attn.config for layer in model.get_decoder().layers]
    own = model.generation_config
    method = decoding(name)
    method.decode(model, prompts(model), LIMITS, method.settings, 0)
    assert [
        len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()
    ] == hooks
    assert all(
        layer.self_attn.config is one
        for layer, one in zip(model.get_decoder().layers, configs, strict=True)
    )
    assert model.generation_config is own
