"""Configurations of any content make a model or one error in words."""

import copy
import json

import torch
from fuzzing import fuzzed, policy
from hypothesis import strategies as st

from vargpt_hf import VargptConfig, VargptForConditionalGeneration
from vargpt_hf.testing import tiny_model

TINY = json.loads(tiny_model().config.to_json_string(use_diff=False))
PARTS = [(), ("vlm_config",), ("vlm_config", "text_config"), ("vlm_config", "vision_config")]
PARTS += [("image_tokenizer_config",), ("visual_decoder_config",)]


def part_of(config, parts: tuple[str, ...]):
    for part in parts:
        config = config[part] if isinstance(config, dict) else getattr(config, part)
    return config


# Paths to all fields, most of them below a part.
FIELDS = [(*parts, name) for parts in PARTS for name in part_of(TINY, parts)]

NUMBERS = st.one_of(st.integers(-3, 40), st.sampled_from([10**6, 2**31, 2**63, 10**30]), st.floats())
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=5), st.sampled_from(["llama", "gelu", "full", "float16", "int8", "nn"]))
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=2), max_leaves=5
)


def changed(changes: list[tuple[tuple[str, ...], object]]) -> dict:
    config = copy.deepcopy(TINY)
    for (*parts, name), value in changes:
        holder = config
        for part in parts:
            holder = holder[part] if isinstance(holder.get(part), dict) else {}
        holder[name] = value
    return config


@fuzzed(changes=st.lists(st.tuples(st.sampled_from(FIELDS), VALUES), min_size=1, max_size=2))
def test_changed_fields(changes):
    with policy():
        config = VargptConfig.from_dict(changed(changes))
        assert VargptConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()
        with torch.device("meta"):
            VargptForConditionalGeneration(config)


@fuzzed(content=st.one_of(VALUES, st.dictionaries(st.sampled_from([*TINY, "more"]), VALUES, max_size=6)))
def test_any_json(content):
    with policy():
        VargptConfig.from_dict(content)


OWN_FIELDS = [field for field in FIELDS if field[0] != "vlm_config" or len(field) == 1]  # the others are set on Transformers' own objects


@fuzzed(field=st.sampled_from(OWN_FIELDS), value=VALUES)
def test_fields_set_afterwards(field, value):
    config = VargptConfig.from_dict(copy.deepcopy(TINY))
    with policy():
        setattr(part_of(config, field[:-1]), field[-1], value)
