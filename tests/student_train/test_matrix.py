"""What is held for every student: a table of cells, and a test of each cell for each layout.

A layout is a row, a line of `CELLS` a column. Where the tests of a column run over all layouts,
the column names one test, and each layout has to be among its cases. This room only reads the
collection: the tests themselves stand where the table says.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.decoding.methods import NAMES
from student_train.models import FAMILIES as NAMED
from student_train.models import LAYOUTS
from tests.fixtures.families import FAMILIES

pytestmark = pytest.mark.integration
ROOT = Path(__file__).parents[2]
MODELS, RUN = "tests/student_train/models/", "tests/student_train/run/"
DECODING = "tests/pipelines/decoding/test_families.py"
COMMAND = "tests/pipelines/evaluation/test_families_command.py"

# Column: the test that goes over every layout.
CELLS = {
    "W = 0 and LoRA B = 0 are the model's own logits": (
        f"{MODELS}test_families.py::test_without_training_the_logits_are_the_models_own"
    ),
    "the tap is its own eager attention": (
        f"{MODELS}test_families.py::test_the_tap_reads_what_its_eager_attention_has"
    ),
    "train": f"{RUN}test_families.py::test_all_three_terms_train_and_every_pair_moves",
    "checkpointing and accumulation": (
        f"{RUN}test_families.py::test_however_a_step_is_computed_it_is_the_same"
    ),
    "resume, bit for bit": f"{RUN}test_families.py::test_a_resumed_run_is_an_uninterrupted_one",
    "save": f"{MODELS}test_families.py::test_a_saved_folder_is_transformers_own",
    "load and export with W": (
        f"{RUN}test_families.py::test_loaded_and_exported_students_answer_alike"
    ),
    "merge without W": (
        f"{RUN}test_families.py::test_without_w_an_export_is_transformers_own_model"
    ),
    "projector alone": f"{RUN}test_families.py::test_the_projector_warms_up_alone",
    "generate from the cache": (
        f"{MODELS}test_families.py::test_with_w_an_answer_from_the_cache_is_one_without"
    ),
    "greedy and beams are its own generate": (
        f"{DECODING}::test_plain_methods_are_transformers_generate"
    ),
    "contrast pairs": (
        f"{DECODING}::test_a_pair_sees_prompt_and_view_as_the_models_own_class_does"
    ),
    "what QLoRA would quantise": (
        f"{MODELS}test_families.py::test_qlora_quantizes_the_layers_of_the_decoder_alone"
    ),
    "built, trained and scored by command": f"{COMMAND}::test_from_images_to_scores",
    "two ranks under ZeRO-2 and ZeRO-3": f"{RUN}test_family_ranks.py::test_two_ranks_are_one",
}
# Each named student by its name, from training to an answer by command.
BY_NAME = "tests/pipelines/datasets/test_published_layouts.py::test_two_steps_then_an_answer"
# Every method for every layout: an answer that no batch changes, or the reason why not.
METHODS = f"{DECODING}::test_every_method_answers_whatever_the_batch_or_says_why_not"
# The keys of a published layout at full size, without memory: each layout has its own test.
_ORIGINAL = f"{MODELS}test_original.py::test_every_published_weight_has_its_place"
FULL_SIZE = {
    "llava": f"{MODELS}test_full_size.py::test_every_published_key_of_llava_1_5_has_its_place",
    "llava_mistral": f"{_ORIGINAL}[llava_mistral]",
    "llava_qwen2": f"{_ORIGINAL}[llava_qwen2]",
    "llava_llama": f"{_ORIGINAL}[llava_llama]",
    "smolvlm": f"{MODELS}test_full_size.py::test_every_published_key_of_smolvlm_has_its_place",
    "gemma3": f"{MODELS}test_gemma3.py::test_every_published_key_of_the_4b_model_has_its_place",
    "internvl": f"{MODELS}test_internvl.py::test_every_published_key_of_the_8b_model_has_its_place",
    "qwen2_5_vl": (
        f"{MODELS}test_qwen2_5_vl.py::test_every_published_key_of_the_7b_model_has_its_place"
    ),
    "qwen3_vl": f"{MODELS}test_qwen3_vl.py::test_every_published_key_of_the_8b_model_has_its_place",
}


@pytest.fixture(scope="module")
def collected() -> set[str]:
    """Return the ids of all tests in the files of the table, the slow ones too."""
    tests = (*CELLS.values(), METHODS, BY_NAME, *FULL_SIZE.values())
    files = {name.partition("::")[0] for name in tests}
    command = [sys.executable, "-m", "pytest", "-n0", "--collect-only", "-q", "-m", ""]
    done = subprocess.run(
        [*command, *sorted(files)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:]
    return {line for line in done.stdout.splitlines() if "::" in line}


def cases(collected: set[str], test: str) -> list[set[str]]:
    """Return the parameters of each case of a test."""
    given = [one.removeprefix(f"{test}[").removesuffix("]") for one in collected if test in one]
    return [set(one.split("-")) for one in given]


def test_every_layout_is_a_row() -> None:
    assert set(FAMILIES) == set(LAYOUTS) == set(FULL_SIZE)


def test_every_named_student_runs_by_its_name(collected: set[str]) -> None:
    assert {f"{BY_NAME}[{name}]" for name in NAMED} <= collected


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_cell_is_empty(collected: set[str], layout: str) -> None:
    for column, test in CELLS.items():
        assert any(layout in case for case in cases(collected, test)), column
    answered = [case for case in cases(collected, METHODS) if layout in case]
    assert {name for case in answered for name in case} - {layout} == set(NAMES)
    assert FULL_SIZE[layout] in collected
