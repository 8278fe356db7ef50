"""Transformers' common tests of processors, on Janus'."""

import unittest

from processing_helpers import make_tokenizer
from transformers import JanusProcessor, PreTrainedTokenizerFast
from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil

from ...test_processing_common import ProcessorTesterMixin


class JanusProcessorTest(ProcessorTesterMixin, unittest.TestCase):
    processor_class = JanusProcessor

    @classmethod
    def _setup_image_processor(cls):
        return JanusImageProcessorPil(size={"height": 48, "width": 48})

    @classmethod
    def _setup_tokenizer(cls):
        tokens = {"image_token": "<image>", "boi_token": "<|image_gen_start|>", "eoi_token": "<|image_gen_end|>"}
        names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
        return PreTrainedTokenizerFast(tokenizer_object=make_tokenizer().backend_tokenizer, extra_special_tokens=tokens, **names)

    @staticmethod
    def prepare_processor_dict():
        template = (
            "{% for message in messages %}{{ message['role'] }}: {% for part in message['content'] %}"
            "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}\n{% endfor %}"
        )
        return {"chat_template": template, "num_image_tokens": 4}
