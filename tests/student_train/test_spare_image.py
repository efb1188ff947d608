"""A forward without an image visits the modules in the order of one with an image."""

import pytest
import torch
from torch import nn

from student_train.attention import install
from tests.fixtures.students import IMAGE_SIZE, PATCHES, tiny_llava

pytestmark = pytest.mark.unit


def visited(model, **inputs):
    """Return the names of the modules with weights of their own, as they are entered."""
    names, handles = [], []
    for name, module in model.named_modules():
        if any(True for _ in module.parameters(recurse=False)):
            handles.append(
                module.register_forward_pre_hook(lambda *_, name=name: names.append(name))
            )
    with torch.no_grad():
        model(**inputs)
    for handle in handles:
        handle.remove()
    return names


def test_weights_are_wanted_in_one_order_with_and_without_an_image():
    # ZeRO-3 gathers weights as modules are entered: ranks in another order wait for each other
    model = tiny_llava()
    image = model.config.image_token_id
    channel = install(model, nn.ModuleDict(), (2,), image)
    channel.spare_image = IMAGE_SIZE
    shown = torch.tensor([[5, *[image] * PATCHES, 6, 7]])
    pixels = torch.zeros(1, 3, IMAGE_SIZE, IMAGE_SIZE)
    with_image = visited(model, input_ids=shown, pixel_values=pixels)
    assert any("vision_tower" in name for name in with_image)
    assert visited(model, input_ids=torch.tensor([[5, 6, 7]])) == with_image
