"""Images to draw of VARGPT v1.1: resized and cropped as the released data code does it."""

import pytest
import torch
from golden_v11_helpers import golden_v11, golden_v11_json
from PIL import Image

from vargpt_hf.processing.image_processing_vargpt import VargptImageProcessor

SETTINGS = golden_v11_json("processor")["training_settings"]
ROWS = golden_v11_json("processor")["training"]
DRAWN = {"paint": "p2", "edit": "p3", "turns": "p3"}  # in the row "shrunk", the released code shrinks an image first by taking nearest pixels


@pytest.mark.parametrize("name", DRAWN)
def test_resized_and_cropped(name, monkeypatch):
    (_, _, top, left), places = ROWS[name]["crops_h_w_top_left"][0], []
    original, offsets = torch.randint, iter((left, top))

    def chosen(high, *args, **kwargs):
        places.append(high)
        return torch.tensor(next(offsets))

    picture = Image.fromarray(golden_v11(f"processor/picture.{DRAWN[name]}").numpy())
    processor = VargptImageProcessor(schedules=[[1, 2, 3, 4]])
    monkeypatch.setattr(torch, "randint", chosen)
    pixels = processor(picture, random_crop=True, return_tensors="pt")["output_pixel_values"]
    monkeypatch.setattr(torch, "randint", original)
    height, width = ROWS[name]["crops_h_w_top_left"][0][:2]
    assert places == [width - SETTINGS["target_side"] + 1, height - SETTINGS["target_side"] + 1]  # resized as there, rounding included
    torch.testing.assert_close(pixels, golden_v11(f"processor/training.{name}.pixel_gen_values"), atol=1e-6, rtol=0)
