"""SmolVLM through its adapter.

The same model as transformers' own class, trained and loaded like the others.
"""

from pathlib import Path
from typing import Any, cast

import pytest
import torch

from shared.recipe import make_recipe
from shared.records import Turn
from student_train.models import load_base
from student_train.models.prompts import IGNORED, encode_conversation, encode_prompt
from tests.fixtures.student_checkpoints import smolvlm
from tests.fixtures.student_runs import write_images, write_store, write_train_file

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("smolvlm") / "model"
    smolvlm(path)
    return path


def ids_of(base: Any, *questions: str) -> torch.Tensor:
    rows = [
        encode_prompt(
            text, base.template, base.tokenizer, base.image_tokens, base.image_token_id, images=1
        ).input_ids
        for text in questions
    ]
    return torch.tensor(rows)


def test_prompt_is_the_published_chat_template(folder: Path) -> None:
    base = load_base(str(folder))
    assert (tuple(base.grid), base.image_size, base.template.name) == ((4, 4), 64, "smolvlm")
    fake, image = "<fake_token_around_image>", "<image>" * 16
    shown = f"{fake}<global-img>{image}{fake}"
    text = f"<|im_start|>User:{shown}What is shown?<end_of_utterance>\nAssistant:"
    assert ids_of(base, "What is shown?")[0].tolist() == base.tokenizer(text).input_ids
    turns = [Turn("human", "Really?"), Turn("gpt", "yes")]
    encoded = encode_conversation(turns, base.template, base.tokenizer, 16, base.image_token_id)
    text = "<|im_start|>User: Really?<end_of_utterance>\nAssistant: yes<end_of_utterance>"
    assert encoded.input_ids == base.tokenizer(text).input_ids
    learned = [token for token in encoded.labels if token != IGNORED]
    assert base.tokenizer.decode(learned) == " yes<end_of_utterance>"


def test_a_system_turn_is_that_of_the_published_chat_template(folder: Path) -> None:
    """`{{ role | capitalize }}`, a blank behind the colon unless an image comes first."""
    base = load_base(str(folder))
    inputs = base.encode("Really?", system="Be brief.")
    text = (
        "<|im_start|>System: Be brief.<end_of_utterance>\n"
        "User: Really?<end_of_utterance>\nAssistant:"
    )
    assert inputs["input_ids"][0].tolist() == base.tokenizer(text).input_ids


def test_images_reach_the_model_as_transformers_wants_them(folder: Path) -> None:
    from transformers import SmolVLMForConditionalGeneration

    base = load_base(str(folder))
    ids = ids_of(base, "What is in this image?", "What is in this image?")
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    own = SmolVLMForConditionalGeneration.from_pretrained(folder).eval()
    with torch.no_grad():
        expected = own(
            input_ids=ids, pixel_values=pixels.unsqueeze(1)
        ).logits  # one image in each row
        got = base.model(input_ids=ids, pixel_values=pixels).logits
        swapped = base.model(input_ids=ids, pixel_values=pixels.flip(0)).logits
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(swapped, got, atol=1e-4)


def test_trains_saves_and_answers(folder: Path, tmp_path: Path) -> None:
    import student_train
    from student_train.run.train import train

    images = write_images(tmp_path / "images", 3)
    values: dict[str, Any] = {
        "output": str(tmp_path / "run"),
        "deepspeed": "none",
        "model": {"name": str(folder)},
        "data": {
            "train": str(write_train_file(tmp_path / "train.json", images, 4)),
            "image_root": str(tmp_path / "images"),
            "workers": 0,
        },
        "targets": {"store": str(write_store(tmp_path / "store", tmp_path / "images", images, 4))},
        "losses": {"layer": 2},
        "lora": {"r": 4},
        "train": {
            "max_steps": 2,
            "batch_size": 2,
            "accumulation": 1,
            "device": "cpu",
            "precision": "fp32",
            "learning_rate": 0.01,
            "logging_steps": 1,
            "save_steps": 0,
            "report_to": [],
        },
    }
    output = train(make_recipe(values))
    model, processor = student_train.load(output)
    inputs = processor.encode(
        ["What is shown?", "Where?"], [[tmp_path / "images" / name] for name in images[:2]]
    )
    assert cast("Any", model).get_base_model().rotation["2"].weight.abs().sum() > 0
    with torch.no_grad():
        tuned = model(**inputs).logits
        cast("Any", model).get_base_model().rotation["2"].weight.zero_()
        assert not torch.allclose(model(**inputs).logits, tuned, atol=1e-5)
        tokens = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert tokens.shape[0] == 2
    # LLaVA's first stage, here of the connector alone, saves a whole folder that loads like the
    # original.
    values |= {"output": str(tmp_path / "warm"), "train": values["train"] | {"tune": "projector"}}
    before, after = (
        load_base(str(folder)).model.state_dict(),
        load_base(str(train(make_recipe(values)))).model.state_dict(),
    )
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.startswith("model.connector.") for name in changed)
