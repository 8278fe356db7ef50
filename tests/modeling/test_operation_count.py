"""What a step of training computes, counted: more images are larger operations, not more of them, each of which a GPU would wait for."""

import pytest
import torch
from golden_v11_helpers import golden_v11_model
from torch.utils._python_dispatch import TorchDispatchMode

L, WORDS = 30, 9


class Operations(TorchDispatchMode):
    """Counts what torch computes."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture
def model():
    model = golden_v11_model()  # in evaluation, where nothing is drawn by chance
    model.config.image_scale_power = 1.0
    return model


def step(model, images: int) -> int:
    """Operations forward and backward of rows that draw one image each."""
    config = model.config
    marks = [config.output_image_start_token_id, *[config.output_image_token_id] * L, config.output_image_end_token_id]
    ids = torch.tensor([[*range(5, 5 + WORDS), *marks]] * images)
    codes = torch.randint(2**8, (images, L), generator=torch.Generator().manual_seed(0))
    with Operations() as operations:
        model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids, output_image_codes=codes).loss.backward()
    return operations.count


def test_more_images_are_no_more_operations(model):
    step(model, 1)  # what is made once and kept
    assert step(model, 2) == step(model, 6) > 100
