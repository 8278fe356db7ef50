"""Transformers' common tests of models and configurations, on VARGPT and its image tokenizer.

Runs inside the laid-out tree of `harness.py`, which puts Transformers' test modules two packages up.
"""

import unittest

import torch
from transformers.models.auto import modeling_auto

from vargpt_hf import VargptConfig, VargptForConditionalGeneration, VargptModel, VargptVQConfig, VargptVQModel
from vargpt_hf.modeling.bsq_vargpt import VargptBSQConfig, VargptBSQModel
from vargpt_hf.testing import tiny_config

from ... import test_modeling_common
from ...generation.test_utils import GenerationTesterMixin
from ...test_configuration_common import ConfigTester
from ...test_modeling_common import ModelTesterMixin
from ...test_training_mixin import TrainingTesterMixin

# The common tests look up by these names which class has which head.
modeling_auto.MODEL_MAPPING_NAMES.update({"vargpt": "VargptModel", "vargpt_vq": "VargptVQModel", "vargpt_bsq": "VargptBSQModel"})
modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES["vargpt"] = "VargptForConditionalGeneration"

BSQ = {
    "model_type": "vargpt_bsq",
    "schedules": [[1, 2, 4]],
    "latent_channels": 6,
    "base_channels": 8,
    "channel_multipliers": (1, 1, 2),
    "num_res_blocks": 1,
    "norm_num_groups": 4,
    "max_flip_rate": 0.0,  # what the common tests compare must not be drawn anew
}
INFINITY = {
    "model_type": "vargpt_infinity_decoder",
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "unconditional_context_size": 16,
    "reference_grids": [[8, 8]],
}
# Low ids, which stay in vocabularies that the common tests make smaller.
IMAGE, START, END, PLACEHOLDER = 3, 4, 5, 6


random_ids = test_modeling_common.ids_tensor


def random_text(shape, vocab_size, **kwargs):
    """What some common tests draw at random, without the placeholders of images that they do not bring: the model refuses those."""
    ids = random_ids(shape, vocab_size, **kwargs)
    return ids.masked_fill((ids >= IMAGE) & (ids <= PLACEHOLDER), 1)


test_modeling_common.ids_tensor = random_text


class VargptModelTester:
    """Rows that each read one image and draw one, and the sizes that the common tests look for."""

    base_model_class = VargptModel
    causal_lm_class = VargptForConditionalGeneration
    is_training = True
    batch_size = 7
    image = [IMAGE] * 4
    drawing = [START, *[PLACEHOLDER] * 21, END]

    def __init__(self, parent):
        self.parent = parent
        config = self.get_config()
        self.text_config = config.text_config.to_dict()
        self.vision_config = config.vision_config.to_dict()
        text = config.text_config
        self.vocab_size, self.pad_token_id = text.vocab_size, text.pad_token_id
        self.hidden_size, self.num_hidden_layers = text.hidden_size, text.num_hidden_layers
        self.num_attention_heads, self.num_key_value_heads = text.num_attention_heads, text.num_key_value_heads
        self.num_channels, self.image_size = 3, config.vision_config.image_size
        self.seq_length = len(self.row())

    def row(self) -> list[int]:
        """An image to read, words, a drawing, words."""
        return [1, *self.image, *torch.randint(7, 49, (4,)).tolist(), *self.drawing, *torch.randint(7, 49, (3,)).tolist()]

    def get_config(self, **kwargs) -> VargptConfig:
        tokens = {
            "vlm_config": {**tiny_config().vlm_config.to_dict(), "image_token_index": IMAGE},
            "output_image_start_token_id": START,
            "output_image_end_token_id": END,
            "output_image_token_id": PLACEHOLDER,
        }
        return tiny_config(**tokens, **kwargs)

    def prepare_config_and_inputs_for_common(self) -> tuple[VargptConfig, dict[str, torch.Tensor]]:
        config = self.get_config()
        tokenizer = config.image_tokenizer_config
        input_ids = torch.tensor([self.row() for _ in range(self.batch_size)])
        return config, {
            "input_ids": input_ids,
            "attention_mask": torch.ones_like(input_ids),
            "pixel_values": torch.rand(self.batch_size, self.num_channels, self.image_size, self.image_size),
            "output_image_codes": torch.randint(
                tokenizer.num_classes**tokenizer.num_symbols, (self.batch_size, config.schedules[0].num_positions)
            ),
        }


class VargptModelTest(ModelTesterMixin, GenerationTesterMixin, unittest.TestCase):
    all_model_classes = (VargptModel, VargptForConditionalGeneration)
    additional_model_inputs = ["pixel_values", "output_image_codes"]
    _is_composite = True
    test_can_init_all_missing_weights_before_2023 = True
    test_all_params_have_gradient = False  # the image tokenizer makes targets and is trained by itself

    def setUp(self):
        self.model_tester = VargptModelTester(self)
        self.config_tester = ConfigTester(self, config_class=VargptConfig, has_text_modality=False)

    def test_config(self):
        self.config_tester.run_common_tests()

    def test_reverse_loading_mapping(self):
        """Tensors are saved in the names that the model has: see `save_pretrained`."""
        super().test_reverse_loading_mapping(check_keys_were_modified=False)


class VargptOfText(VargptForConditionalGeneration):
    """Writes only: the test decodes without a cache, where nothing can be drawn."""

    def __init__(self, config: VargptConfig):
        super().__init__(config)
        self.generation_config.generation_mode = "text"


class VargptTextTrainingTester(VargptModelTester):
    """A configuration that tells the number of tokens as one of a model of text alone does; low ids are words."""

    causal_lm_class = VargptOfText

    def get_config(self) -> VargptConfig:
        return tiny_config(vocab_size=64)


class VargptTrainingTest(TrainingTesterMixin, unittest.TestCase):
    all_model_classes = (VargptForConditionalGeneration,)
    model_tester = None

    def setUp(self):
        self.model_tester = VargptTextTrainingTester(self)


class VargptVQModelTester:
    """Pixels for the image tokenizer alone."""

    is_training = True
    batch_size = 7
    num_channels = 3

    def __init__(self, parent):
        self.parent = parent
        self.image_size = self.get_config().image_size()[0]

    def get_config(self) -> VargptVQConfig:
        return tiny_config().image_tokenizer_config

    def prepare_config_and_inputs_for_common(self) -> tuple[VargptVQConfig, dict[str, torch.Tensor]]:
        pixels = torch.rand(self.batch_size, self.num_channels, self.image_size, self.image_size) * 2 - 1
        return self.get_config(), {"pixel_values": pixels}


class VargptVQModelTest(ModelTesterMixin, unittest.TestCase):
    all_model_classes = (VargptVQModel,)
    has_attentions = False
    test_can_init_all_missing_weights_before_2023 = True
    test_resize_embeddings = False

    def setUp(self):
        self.model_tester = VargptVQModelTester(self)
        self.config_tester = ConfigTester(self, config_class=VargptVQConfig, has_text_modality=False, common_properties=[])

    def test_config(self):
        self.config_tester.run_common_tests()

    @unittest.skip("feature maps of several sizes, no layers of one width")
    def test_hidden_states_output(self):
        pass

    @unittest.skip("feature maps of several sizes, no layers of one width")
    def test_retain_grad_hidden_states_attentions(self):
        pass

    @unittest.skip("reads pixels, has no token embeddings")
    def test_model_get_set_embeddings(self):
        pass


class VargptInfinityModelTester(VargptModelTester):
    """The same with the parts of VARGPT v1.1 that draw."""

    def get_config(self, **kwargs) -> VargptConfig:
        return super().get_config(image_tokenizer_config=BSQ, visual_decoder_config=INFINITY, **kwargs)


class VargptInfinityModelTest(VargptModelTest):
    def setUp(self):
        self.model_tester = VargptInfinityModelTester(self)
        self.config_tester = ConfigTester(self, config_class=VargptConfig, has_text_modality=False)


class VargptBSQModelTester(VargptVQModelTester):
    def get_config(self) -> VargptBSQConfig:
        return VargptBSQConfig(**{name: value for name, value in BSQ.items() if name != "model_type"})


class VargptBSQModelTest(VargptVQModelTest):
    all_model_classes = (VargptBSQModel,)

    def setUp(self):
        self.model_tester = VargptBSQModelTester(self)
        self.config_tester = ConfigTester(self, config_class=VargptBSQConfig, has_text_modality=False, common_properties=[])
