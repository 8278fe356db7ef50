"""Settings of `generate` as nobody should give them: each call works or ends in words, and leaves the next call as it was."""

import math

import torch
from fuzzing import fuzzed, policy
from hypothesis import strategies as st

from vargpt_hf import VargptGenerationConfig
from vargpt_hf.testing import drawing_model

PROMPT = torch.tensor([[0, 0, 1, 5, 6, 7], [1, 60, 60, 60, 60, 8]])
INPUTS = {"input_ids": PROMPT, "attention_mask": (PROMPT != 0).long(), "pixel_values": torch.zeros(1, 3, 16, 16)}

whole = st.integers(-3, 70) | st.sampled_from([2**31, 2**63, -(2**63), 10**30])
real = st.floats() | st.floats(0, 2) | st.sampled_from([0.0, -0.0, 1e-45, 1e-6, 1e30, math.nan, math.inf, -math.inf])
odd = st.none() | st.booleans() | st.text(max_size=3) | st.just(object()) | st.just({}) | st.just([]) | st.just(torch.tensor([1.5]))
anything = whole | real | odd | st.lists(whole | real, max_size=3)
small = st.integers(-2, 4) | real | odd  # counts of rows: how many fit is for the caller's memory to say


def of(values, fit):
    """Mostly values that fit, so that others are reached behind them."""
    return fit | fit | fit | values


SETTINGS = {
    "generation_mode": of(anything, st.sampled_from(["auto", "text", "image"])),
    "image_guidance_type": of(anything, st.sampled_from(["none", "prompt", "noise"])),
    **{
        name: of(anything, st.booleans())
        for name in ("do_sample", "image_guidance_ramp", "use_cache", "return_dict_in_generate", "output_scores")
    },
    **{
        name: of(anything, st.integers(0, 30))
        for name in ("image_top_k", "top_k", "max_images", "min_length", "min_new_tokens", "no_repeat_ngram_size")
    },
    **{name: of(anything, st.floats(0, 1)) for name in ("image_top_p", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")},
    **{name: of(anything, st.floats(0.01, 3)) for name in ("image_temperature", "temperature", "repetition_penalty", "length_penalty")},
    "image_guidance_scale": of(anything, st.floats(0, 5)),
    **{name: of(anything, st.integers(0, 63)) for name in ("pad_token_id", "bos_token_id", "eos_token_id", "forced_bos_token_id")},
    **{
        name: of(anything, st.lists(st.integers(0, 63), min_size=1, max_size=4))
        for name in ("eos_token_id", "suppress_tokens", "begin_suppress_tokens", "image_unconditional_ids", "forced_eos_token_id")
    },
    **{name: of(small, st.integers(1, 3)) for name in ("num_beams", "num_return_sequences")},
    "cache_implementation": of(anything, st.sampled_from([None, "dynamic", "static"])),
    "generator": of(anything, st.builds(torch.Generator) | st.lists(st.builds(torch.Generator), max_size=3)),
    "image_streamer": anything,
    "image_noise": anything | st.lists(st.just(torch.zeros(2, 4, 32)), max_size=3),
    "image_temprature": st.just(1.0),
}


def plain(model):
    return model.generate(**INPUTS, max_new_tokens=6, do_sample=False, return_dict_in_generate=True)


MODEL = drawing_model()
EXPECTED = plain(MODEL)
OWN = dict(vars(MODEL.generation_config))


@fuzzed(
    settings=st.fixed_dictionaries({}, optional=SETTINGS).map(lambda all_: dict(list(all_.items())[:6]))
    | st.fixed_dictionaries({}, optional=SETTINGS),
    length=of(anything, st.integers(1, 8)),
    in_a_config=st.booleans(),
)
def test_settings(settings, length, in_a_config):
    settings = {**settings, "max_new_tokens": length}
    with policy(cpu_seconds=60.0):
        if in_a_config:
            own = {name: settings.pop(name) for name in ("generator", "image_streamer", "image_noise", "image_temprature") if name in settings}
            settings = {**own, "generation_config": VargptGenerationConfig(**settings)}
        output = MODEL.generate(**INPUTS, **settings)
        sequences = output if isinstance(output, torch.Tensor) else output.sequences
        assert len(sequences) % 2 == 0 and sequences.shape[1] > PROMPT.shape[1]
        assert torch.equal(sequences[0, :6], PROMPT[0])
    assert vars(MODEL.generation_config) == OWN


def test_plain_calls_are_as_before():
    again = plain(MODEL)
    assert torch.equal(again.sequences, EXPECTED.sequences) and torch.equal(again.image_codes, EXPECTED.image_codes)
