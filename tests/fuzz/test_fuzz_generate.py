"""Settings of `generate` as nobody should give them: each call works or ends in words, and leaves the next call as it was."""

import math

import torch
from fuzzing import fuzzed, policy
from hypothesis import strategies as st

from vargpt_hf import VargptGenerationConfig
from vargpt_hf.modeling.generation_vargpt import RUN_ARGUMENTS
from vargpt_hf.testing import drawing_model

PROMPT = torch.tensor([[0, 0, 1, 5, 6, 7], [1, 60, 60, 60, 60, 8]])
INPUTS = {"input_ids": PROMPT, "attention_mask": (PROMPT != 0).long(), "pixel_values": torch.zeros(1, 3, 16, 16)}

whole = st.integers(-3, 70) | st.sampled_from([2**31, 2**63, -(2**63), 10**30])
real = st.floats() | st.floats(0, 2) | st.sampled_from([0.0, -0.0, 1e-45, 1e-6, 1e30, math.nan, math.inf, -math.inf])
odd = st.none() | st.booleans() | st.text(max_size=3) | st.just(object()) | st.just({}) | st.just([]) | st.just(torch.tensor([1.5]))
anything = whole | real | odd | st.lists(whole | real, max_size=3)
small = st.integers(-2, 4) | real | odd  # counts of rows: how many fit is for the caller's memory to say


FITTING = {
    "generation_mode": st.sampled_from(["auto", "text", "image"]),
    "output_image_guidance_type": st.sampled_from(["none", "prompt", "noise"]),
    **{name: st.booleans() for name in ("do_sample", "output_image_guidance_ramp", "use_cache", "return_dict_in_generate", "output_scores")},
    **{
        name: st.integers(0, 30)
        for name in ("output_image_top_k", "top_k", "max_output_images", "min_length", "min_new_tokens", "no_repeat_ngram_size")
    },
    **{name: st.floats(0, 1) for name in ("output_image_top_p", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")},
    **{name: st.floats(0.01, 3) for name in ("output_image_temperature", "temperature", "repetition_penalty", "length_penalty")},
    "output_image_guidance_scale": st.floats(0, 5),
    **{name: st.integers(0, 63) for name in ("pad_token_id", "bos_token_id", "forced_bos_token_id")},
    **{
        name: st.lists(st.integers(0, 63), min_size=1, max_size=4)
        for name in ("eos_token_id", "suppress_tokens", "begin_suppress_tokens", "output_image_unconditional_ids", "forced_eos_token_id")
    },
    **{name: st.integers(1, 3) for name in ("num_beams", "num_return_sequences")},
    "cache_implementation": st.sampled_from([None, "dynamic", "static"]),
    "generator": st.builds(torch.Generator) | st.lists(st.builds(torch.Generator), min_size=2, max_size=2),
    "output_image_streamer": st.none(),
    "output_image_noise": st.just([torch.zeros(2, side**2, 32) for side in (1, 2, 4)]),
    "output_image_size": st.tuples(st.integers(1, 99), st.integers(1, 99)),
    "output_image_aspect_ratio": st.floats(0.1, 10) | st.lists(st.floats(0.1, 10), min_size=2, max_size=2),
    "max_new_tokens": st.integers(1, 8),
}
COUNTS = ("num_beams", "num_return_sequences")
fitting = st.lists(st.sampled_from(sorted(FITTING)), unique=True, max_size=5).flatmap(
    lambda names: st.fixed_dictionaries({name: FITTING[name] for name in names})
)
# At most one setting is odd, so that it is met, and not only the first of many.
wrong = st.sampled_from([*sorted(FITTING), "image_temprature"]).flatmap(
    lambda name: st.tuples(st.just(name), small if name in COUNTS else anything)
)


def plain(model):
    return model.generate(**INPUTS, max_new_tokens=6, do_sample=False, return_dict_in_generate=True)


MODEL = drawing_model()
EXPECTED = plain(MODEL)
OWN = dict(vars(MODEL.generation_config))


@fuzzed(2, settings=fitting, odd=st.none() | st.lists(wrong, max_size=1), in_a_config=st.booleans())
def test_settings(settings, odd, in_a_config):
    settings = {"max_new_tokens": 6, **settings, **dict(odd or ())}
    with policy(cpu_seconds=60.0):
        if in_a_config:
            own = {name: settings.pop(name) for name in (*RUN_ARGUMENTS, "image_temprature") if name in settings}
            settings = {**own, "generation_config": VargptGenerationConfig(**settings)}
        output = MODEL.generate(**INPUTS, **settings)
        sequences = output if isinstance(output, torch.Tensor) else output.sequences
        assert len(sequences) % 2 == 0 and sequences.shape[1] > PROMPT.shape[1]
        assert torch.equal(sequences[0, :6], PROMPT[0])
    assert vars(MODEL.generation_config) == OWN


def test_plain_calls_are_as_before():
    again = plain(MODEL)
    assert torch.equal(again.sequences, EXPECTED.sequences) and torch.equal(again.output_image_codes, EXPECTED.output_image_codes)
