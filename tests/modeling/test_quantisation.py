"""Rounded weights and rounded caches: vargpt-tiny draws and says the same with them."""

import os
import subprocess
import sys

import pytest
import torch
from quantisers import QUANTISERS
from transformers import QuantizedCache

from benchmarks.plain_cpu import PLAIN_CPU
from vargpt_hf import VargptForConditionalGeneration, VargptProcessor
from vargpt_hf.inference.mixed import StoredLinear, compute_in_float32
from vargpt_hf.peft import unquantized_modules
from vargpt_hf.tiny import TINY_FOLDER
from vargpt_hf.tiny.judges import detect

WORDS = "a red circle above a blue square"


def load(**kwargs):
    return VargptForConditionalGeneration.from_pretrained(TINY_FOLDER, dtype="float32", **kwargs)


@pytest.fixture(scope="module")
def plain():
    return load()


def draw_and_say(model, **settings):
    """What `generate` gives for the sentence, after it was seen in the image and read in the words."""
    processor = VargptProcessor.from_pretrained(TINY_FOLDER)
    chat = [{"role": "user", "content": f"draw {WORDS} and say what you drew"}]
    inputs = processor.apply_chat_template([chat], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=40, do_sample=False, return_dict_in_generate=True, **settings)
    image, words = processor.post_process_interleaved(output, prompt_length=inputs["input_ids"].shape[1])[0]
    above, below = sorted(detect(image["image"]), key=lambda seen: seen.centre[1])
    assert (above.colour, above.shape, below.colour, below.shape) == ("red", "circle", "blue", "square")
    assert words["text"] == WORDS
    read_it(model, processor, image["image"], **settings)
    return output


def read_it(model, processor, image, **settings):
    """A question about the image, and a shorter one without, padded beside it, are answered as they should be."""
    question = [{"type": "image", "image": image}, {"type": "text", "text": "how many objects are there"}]
    chats = [[{"role": "user", "content": question}], [{"role": "user", "content": "repeat: a red circle"}]]
    padded = {
        "add_generation_prompt": True,
        "tokenize": True,
        "return_dict": True,
        "return_tensors": "pt",
        "processor_kwargs": {"padding": True},
    }
    inputs = processor.apply_chat_template(chats, **padded)
    output = model.generate(**inputs, max_new_tokens=8, do_sample=False, return_dict_in_generate=True, **settings)
    said = processor.post_process_interleaved(output, prompt_length=inputs["input_ids"].shape[1])
    assert [parts[0]["text"] for parts in said] == ["two", "a red circle"]


@pytest.mark.parametrize("quantiser", QUANTISERS)
def test_quantised_language_model(plain, quantiser):
    model = load(quantization_config=QUANTISERS[quantiser](unquantized_modules()))
    for name, module in plain.named_modules():
        if isinstance(module, torch.nn.Linear):
            weight = model.get_submodule(name).weight
            kept = type(weight) is torch.nn.Parameter and torch.equal(weight, module.weight)
            assert kept != name.startswith("model.vlm.language_model.layers."), name
    draw_and_say(model)


@pytest.mark.parametrize("quantiser", QUANTISERS)
def test_the_rest_is_as_stored_and_computed_in_float32(quantiser, tmp_path):
    """A quantized language model in a model of narrow weights: what both leave of memory is the least that there is."""
    load().bfloat16().save_pretrained(tmp_path)
    settings = {"quantization_config": QUANTISERS[quantiser](unquantized_modules())}
    stored = compute_in_float32(VargptForConditionalGeneration.from_pretrained(tmp_path, dtype="auto", **settings))
    for name, module in stored.named_modules():
        if isinstance(module, torch.nn.Linear):
            assert isinstance(module, StoredLinear) != name.startswith("model.vlm.language_model.layers."), name
    draw_and_say(stored)


@pytest.mark.slow
def test_on_a_plain_cpu():
    """The tests of torchao's formats once more where torch, oneDNN and MKL have AVX2 alone."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", "torchao"]
    done = subprocess.run(command, env={**os.environ, **PLAIN_CPU}, capture_output=True, text=True)
    assert done.returncode == 0 and "4 passed" in done.stdout, done.stdout


def test_quantised_cache(plain):
    expected = draw_and_say(plain, output_logits=True)
    output = draw_and_say(plain, output_logits=True, cache_implementation="quantized", cache_config={"backend": "fp8"})
    assert isinstance(output.past_key_values, QuantizedCache)
    assert output.past_key_values.get_seq_length() == expected.past_key_values.get_seq_length()
    assert not torch.equal(output.logits[-1], expected.logits[-1])  # it does round
