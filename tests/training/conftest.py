"""A micro model and its processor."""

import copy

import pytest
import torch
from micro import ROWS
from transformers import CLIPVisionConfig, CLIPVisionModel

from vargpt_hf import VargptForConditionalGeneration, VargptProcessor, VargptVQModel
from vargpt_hf.testing import tiny_config
from vargpt_hf.training.parts.base import build_base
from vargpt_hf.training.parts.tokenizer import train_tokenizer


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """A folder with a micro model and a processor that fits it."""
    folder = tmp_path_factory.mktemp("base")
    tokenizer = train_tokenizer((part for entry in ROWS for m in entry["messages"] for p in m["content"] for part in [p.get("text", "")]), 300)
    torch.manual_seed(0)
    config = tiny_config()
    vision = CLIPVisionModel(CLIPVisionConfig(**{k: v for k, v in config.vision_config.to_dict().items() if k != "model_type"}))
    decoder = {**config.visual_decoder_config.to_dict(), "drop_path_rate": 0.0, "condition_dropout": 0.0}
    text = {k: config.text_config.to_dict()[k] for k in ("model_type", "hidden_size", "intermediate_size", "num_hidden_layers")}
    text |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256}
    build_base(folder, tokenizer, VargptVQModel(config.image_tokenizer_config), vision, text, decoder)
    return folder


@pytest.fixture(scope="session")
def loaded(base):
    return VargptForConditionalGeneration.from_pretrained(base)


@pytest.fixture
def model(loaded):
    return copy.deepcopy(loaded)


@pytest.fixture(scope="session")
def processor(base):
    return VargptProcessor.from_pretrained(base)
