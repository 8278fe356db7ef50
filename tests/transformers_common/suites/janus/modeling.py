"""Transformers' common tests of models and configurations, on Janus: the yardstick for VARGPT's."""

import unittest

import torch
from transformers import JanusConfig, JanusForConditionalGeneration, JanusModel, JanusVQVAE, JanusVQVAEConfig

from vargpt_hf.testing import tiny_config

from ...generation.test_utils import GenerationTesterMixin
from ...test_configuration_common import ConfigTester
from ...test_modeling_common import ModelTesterMixin

IMAGE = 3

TEXT = tiny_config().text_config.to_dict()
VISION = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
    "num_image_tokens": 4,
    "projection_dim": 32,
}
VQ = {
    "embed_dim": 6,
    "num_embeddings": 24,
    "latent_channels": 6,
    "base_channels": 32,
    "channel_multiplier": [1, 1, 1, 1],
    "num_res_blocks": 1,
    "num_patches": 2,
    "projection_dim": 32,
    "image_token_embed_dim": 32,
}


class JanusModelTester:
    base_model_class = JanusModel
    causal_lm_class = JanusForConditionalGeneration
    is_training = True
    batch_size = 7
    seq_length = 12

    def __init__(self, parent):
        self.parent = parent
        self.text_config, self.vision_config = TEXT, VISION
        self.vocab_size, self.pad_token_id = TEXT["vocab_size"], TEXT["pad_token_id"]
        self.hidden_size, self.num_hidden_layers = TEXT["hidden_size"], TEXT["num_hidden_layers"]
        self.num_attention_heads, self.num_key_value_heads = TEXT["num_attention_heads"], TEXT["num_key_value_heads"]
        self.num_channels, self.image_size = 3, VISION["image_size"]

    def get_config(self) -> JanusConfig:
        return JanusConfig(text_config=dict(TEXT), vision_config=dict(VISION), image_tokenizer_config=dict(VQ), image_token_id=IMAGE)

    def prepare_config_and_inputs_for_common(self) -> tuple[JanusConfig, dict[str, torch.Tensor]]:
        input_ids = torch.randint(7, 49, (self.batch_size, self.seq_length))
        input_ids[:, 1:5] = IMAGE
        pixels = torch.rand(self.batch_size, self.num_channels, self.image_size, self.image_size)
        return self.get_config(), {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), "pixel_values": pixels}


class JanusModelTest(ModelTesterMixin, GenerationTesterMixin, unittest.TestCase):
    all_model_classes = (JanusModel, JanusForConditionalGeneration)
    additional_model_inputs = ["pixel_values"]
    _is_composite = True
    test_all_params_have_gradient = False  # what draws is not trained by `labels`

    def setUp(self):
        self.model_tester = JanusModelTester(self)
        self.config_tester = ConfigTester(self, config_class=JanusConfig, has_text_modality=False)

    def test_config(self):
        self.config_tester.run_common_tests()


class JanusVQModelTester:
    is_training = True
    batch_size = 7
    num_channels = 3
    image_size = 16

    def __init__(self, parent):
        self.parent = parent

    def get_config(self) -> JanusVQVAEConfig:
        return JanusVQVAEConfig(**VQ)

    def prepare_config_and_inputs_for_common(self) -> tuple[JanusVQVAEConfig, dict[str, torch.Tensor]]:
        return self.get_config(), {"pixel_values": torch.rand(self.batch_size, self.num_channels, self.image_size, self.image_size)}


class JanusVQModelTest(ModelTesterMixin, unittest.TestCase):
    all_model_classes = (JanusVQVAE,)
    has_attentions = False
    test_resize_embeddings = False

    def setUp(self):
        self.model_tester = JanusVQModelTester(self)
        self.config_tester = ConfigTester(self, config_class=JanusVQVAEConfig, has_text_modality=False, common_properties=[])

    def test_config(self):
        self.config_tester.run_common_tests()
