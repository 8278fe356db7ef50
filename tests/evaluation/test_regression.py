"""vargpt-tiny on everything that runs offline, against stored intervals: a part in CI, all by `pytest -m regression`."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from vargpt_hf import VargptForConditionalGeneration, VargptProcessor
from vargpt_hf.evaluation import shapes_and_digits
from vargpt_hf.evaluation.image_files import as_pixels
from vargpt_hf.evaluation.image_metrics import compare_sets, features_of, psnr_of_pairs, ssim_of_pairs
from vargpt_hf.evaluation.intervals import mean
from vargpt_hf.evaluation.networks import feature_network
from vargpt_hf.tiny import TINY_FOLDER
from vargpt_hf.tiny.rows import rows
from vargpt_hf.tiny.shapes import render, sample_scene

STORED = Path(__file__).with_name("regression.json")  # intervals of all rows, by metric
ROWS, ROWS_IN_CI = 200, 24


@pytest.fixture(scope="module")
def tiny():
    return VargptForConditionalGeneration.from_pretrained(TINY_FOLDER, dtype="float32").eval(), VargptProcessor.from_pretrained(TINY_FOLDER)


def drawings_and_answers(tiny, number):
    return dict(shapes_and_digits.evaluate(*tiny, number=number, seed=1).metrics)


def distances(tiny, number):
    """Drawings against other scenes than those that were asked for, of the same kind, seen through the model's own eyes."""
    asked, others = (list(rows({"draw": 1.0}, number, seed, "test")) for seed in (5, 6))
    drawn, real = shapes_and_digits.draw_rows(*tiny, asked, 1, 50), [row["output_images"][0] for row in others]
    network = feature_network(TINY_FOLDER)
    return compare_sets(features_of(drawn, network), features_of(real, network), resamples=20)


def reconstructions(tiny, number):
    """Scenes through the image tokenizer and back."""
    rng = np.random.default_rng(9)
    pixels = as_pixels([render(sample_scene(rng)) for _ in range(number)])
    with torch.no_grad():
        again = tiny[0].decode_image_codes(tiny[0].encode_images(pixels))
    return {"PSNR": mean(psnr_of_pairs(again, pixels).tolist(), unit="dB"), "SSIM": mean(ssim_of_pairs(again, pixels).tolist())}


def overlap(found, stored):
    """Names of metrics whose interval does not meet the stored one."""
    return [name for name, metric in found.items() if metric.low > stored[name]["high"] or metric.high < stored[name]["low"]]


def measured(tiny, number):
    return {**drawings_and_answers(tiny, number), **reconstructions(tiny, number), **distances(tiny, number)}


def test_a_part_is_as_good_as_stored(tiny):
    """Distances depend on the number of images, and are measured of all alone."""
    stored = json.loads(STORED.read_text())
    found = {**drawings_and_answers(tiny, ROWS_IN_CI), **reconstructions(tiny, ROWS_IN_CI)}
    assert set(found) <= set(stored) and overlap(found, stored) == []


@pytest.mark.regression
def test_all_is_as_good_as_stored(tiny):
    stored = json.loads(STORED.read_text())
    found = measured(tiny, ROWS)
    assert set(found) == set(stored) and overlap(found, stored) == []


def test_a_worse_model_is_noticed():
    """Shares and decibels that a damaged model has do not meet the stored intervals."""
    stored = json.loads(STORED.read_text())
    model = VargptForConditionalGeneration.from_pretrained(TINY_FOLDER, dtype="float32").eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.model.visual_decoder.parameters():
            parameter.add_(parameter.std().nan_to_num() * torch.randn_like(parameter))
    worse = drawings_and_answers((model, VargptProcessor.from_pretrained(TINY_FOLDER)), 12)
    assert "seen: shape and colour" in overlap(worse, stored) and "answers" not in overlap(worse, stored)


if __name__ == "__main__":  # stores the intervals anew: python tests/evaluation/test_regression.py
    loaded = VargptForConditionalGeneration.from_pretrained(TINY_FOLDER, dtype="float32").eval(), VargptProcessor.from_pretrained(TINY_FOLDER)
    intervals = {name: {"low": metric.low, "value": metric.value, "high": metric.high} for name, metric in measured(loaded, ROWS).items()}
    STORED.write_text(json.dumps(intervals, indent=1, sort_keys=True) + "\n")
