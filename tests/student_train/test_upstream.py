"""Private names of other libraries: a test each that says "upstream moved" when they are gone."""

import inspect

import pytest
import torch

from student_train import upstream
from tests.fixtures.students import tiny_llava

pytestmark = pytest.mark.unit


def moved(library: str, name: str) -> str:
    return f"upstream moved: {library} has no {name} any more; mend student_train/upstream.py"


def test_the_kernel_of_a_configuration() -> None:
    from transformers import PretrainedConfig

    config = tiny_llava().get_decoder().config
    for name in ("_attn_implementation", "_attn_implementation_internal"):
        assert hasattr(PretrainedConfig(), name), moved("transformers' PretrainedConfig", name)
    config._attn_implementation = "eager"
    other = upstream.with_kernel(config, "sdpa")
    assert upstream.kernel_name(other) == "sdpa", moved("PretrainedConfig", "field behind the name")
    assert upstream.kernel_name(config) == "eager"


@pytest.mark.parametrize("text", ["llama", "mistral", "qwen2"])
def test_the_kernels_of_a_module(text: str) -> None:
    module = tiny_llava(text=text).get_decoder().layers[0].self_attn
    for name in ("eager", "sdpa"):
        config = upstream.with_kernel(module.config, name)
        assert callable(upstream.kernel_of(module, config)), moved(text, f"{name} kernel")


def test_a_registered_kernel_is_found() -> None:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    def kernel(*_: object, **__: object) -> tuple[torch.Tensor, None]:
        raise AssertionError

    upstream.register_kernel("medalign_test", kernel)
    found = ALL_ATTENTION_FUNCTIONS["medalign_test"]
    assert found is kernel, moved("transformers", "AttentionInterface.register")


def test_where_a_model_comes_from() -> None:
    model = tiny_llava()
    upstream.name_source(model, "owner/name")
    name = "_name_or_path"
    assert model.config._name_or_path == model.name_or_path == "owner/name", moved("config", name)
    assert name in inspect.getsource(type(model.config).__mro__[1]), moved("config", name)


def test_what_generate_asks_for_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import GenerationMixin

    name = "_prepare_position_ids_for_generation"
    assert hasattr(GenerationMixin, name), moved("transformers' GenerationMixin", name)
    model, asked = tiny_llava(), []
    ids, mask = torch.tensor([[7, 5, 6]]), torch.tensor([[0, 1, 1]])
    expected = upstream.text_positions(model, ids, {"attention_mask": mask})
    assert expected.tolist() == [[0, 0, 1]]

    def prepare(inputs: torch.Tensor, given: object) -> torch.Tensor:
        asked.append(inputs)
        return expected

    upstream.prepare_positions(model, prepare)
    model.generate(ids, attention_mask=mask, max_new_tokens=1, do_sample=False)
    assert len(asked) == 1, moved("transformers' generate", f"call of {name}")


def test_the_marks_of_deepspeed() -> None:
    """Parameters carry them once there is an optimiser; here its source must still set them."""
    from deepspeed.runtime.zero import partition_parameters, stage3
    from deepspeed.utils import mixed_precision_linkage

    for module, name in (
        (mixed_precision_linkage, "_hp_mapping"),
        (stage3, "_z3_optimizer"),
        (partition_parameters, "ds_id"),
    ):
        assert f".{name} = " in inspect.getsource(module), moved("DeepSpeed", name)


def test_the_ops_of_deepspeed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    import deepspeed

    operation = "deepspeed_shm_comm"
    assert operation in deepspeed.ops.__compatible_ops__, moved("DeepSpeed", operation)
    upstream.skip_shared_memory_reduction()
    assert deepspeed.ops.__compatible_ops__[operation] is False


def test_the_state_of_accelerate() -> None:
    from accelerate.state import AcceleratorState, GradientState

    for state in (AcceleratorState, GradientState):
        assert hasattr(state, "_reset_state"), moved("accelerate", f"{state.__name__}._reset_state")
    with upstream.fresh_accelerate():
        assert AcceleratorState._shared_state == {}


def test_one_gpu() -> None:
    from transformers import TrainingArguments

    assert "_n_gpu" in inspect.getsource(TrainingArguments), moved("TrainingArguments", "_n_gpu")
    arguments = TrainingArguments(use_cpu=True)
    upstream.use_one_gpu(arguments)
    assert arguments.n_gpu <= 1


def test_the_seams_of_the_trainer() -> None:
    """What `TrainerSeams` overrides is there, is called, and takes the same arguments."""
    from transformers import Trainer

    ours = [name for name in vars(upstream.TrainerSeams) if name.startswith("_get")]
    ours += ["_load_from_checkpoint", "save_model"]
    assert len(ours) == 5
    source = inspect.getsource(Trainer)
    for name in ours:
        assert hasattr(Trainer, name), moved("transformers' Trainer", name)
        assert f"self.{name}" in source, moved("transformers' Trainer", f"call of {name}")
        theirs = inspect.signature(getattr(Trainer, name)).parameters
        own = inspect.signature(getattr(upstream.TrainerSeams, name)).parameters
        assert list(theirs) == list(own), moved("transformers' Trainer", f"{name}{tuple(own)}")
    assert hasattr(Trainer, "_prepare_inputs"), moved("transformers' Trainer", "_prepare_inputs")
