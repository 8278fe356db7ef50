"""`generate` under load: many calls do not grow, and threads that share a model do not mix."""

import gc
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
import torch

from vargpt_hf.testing import drawing_model

IMAGE = 60
PROMPTS = [[1, 5, 6, 7], [1, *[IMAGE] * 4, 10, 11], [1, 20], [1, 33, 34, 61]]


@pytest.fixture(scope="module")
def model():
    return drawing_model()


def generate(model, prompt, seed, **settings):
    if IMAGE in prompt:
        settings["pixel_values"] = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
    defaults = {"max_new_tokens": 8, "do_sample": True, "return_dict_in_generate": True, "generator": torch.Generator().manual_seed(seed)}
    return model.generate(torch.tensor([prompt]), **{**defaults, **settings})


def held() -> int:
    """Tensors that are alive."""
    gc.collect()
    return sum(issubclass(type(one), torch.Tensor) for one in gc.get_objects())


@pytest.mark.slow
def test_a_thousand_generations_hold_on_to_nothing(model):
    """Images, texts and errors in turn: after the first fifty neither tensors nor memory grow."""
    settings = [
        {"generation_mode": "image"},
        {},
        {"generation_mode": "image", "output_image_guidance_type": "prompt"},
        {"generation_mode": "text"},
    ]

    def some(count):
        for index in range(count):
            generate(model, PROMPTS[index % 4], index, max_new_tokens=3, **settings[index // 4 % 4])
            with pytest.raises(ValueError, match="output_image_guidance_scale"):
                generate(model, PROMPTS[0], 0, output_image_guidance_scale=-1.0)

    some(50)
    process, tensors = psutil.Process(), held()
    memory = process.memory_info().rss
    some(1000)
    assert held() <= tensors + 5
    assert (process.memory_info().rss - memory) / 2**20 < 40


def test_eight_threads_on_one_model_give_the_results_of_one(model):
    kinds = [
        {},
        {"generation_mode": "image"},
        {"output_image_guidance_type": "prompt"},
        {"generation_mode": "text"},
        {"output_image_guidance_type": "noise"},
    ]
    jobs = [(prompt, seed, kind) for seed, kind in enumerate(kinds) for prompt in PROMPTS for _ in range(2)]

    def run(job):
        prompt, seed, kind = job
        return generate(model, prompt, seed, **kind)

    alone = [run(job) for job in jobs]
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(run, jobs))
    assert sum(len(output.output_images) for output in alone) > 8
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one.sequences, other.sequences)
        assert torch.equal(one.output_image_codes, other.output_image_codes)
        assert torch.equal(one.output_images, other.output_images)
