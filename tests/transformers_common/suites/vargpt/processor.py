"""Transformers' common tests of processors, on VARGPT's."""

import unittest

from processing_helpers import DRAWN, LLAVA, make_processor

from vargpt_hf import VargptProcessor

from ...test_processing_common import ProcessorTesterMixin


class VargptProcessorTest(ProcessorTesterMixin, unittest.TestCase):
    processor_class = VargptProcessor

    @classmethod
    def _setup_image_processor(cls):
        return make_processor().image_processor

    @classmethod
    def _setup_tokenizer(cls):
        return make_processor().tokenizer

    @staticmethod
    def prepare_processor_dict():
        return {"reader": LLAVA, "output_image_settings": DRAWN}
