"""Transformers' common tests of processors, on VARGPT's."""

import json
import unittest

from noise_images import noise_image
from processing_helpers import DRAWN, LLAVA, codes_of, make_processor

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

    def test_processor_to_json_string(self):
        """What is saved of the reader makes the same reader; the common test looks for the dict itself on the processor."""
        processor = self.get_processor()
        saved = json.loads(processor.to_json_string())
        again = VargptProcessor(
            processor.image_processor, processor.tokenizer, **{name: saved[name] for name in ("reader", "output_image_settings")}
        )
        self.assertEqual(again.to_dict(), processor.to_dict())
        self.assertLessEqual(LLAVA.items(), saved["reader"].items())
        self.assertLessEqual(DRAWN.items(), saved["output_image_settings"].items())

    def test_model_input_names(self):
        """All that is returned where images are read and drawn, as pixels and as codes; the common test draws none."""
        processor = self.get_processor()
        text = "<image> and <|image_gen_start|><|image_gen_pad|><|image_gen_end|>"
        found = set()
        for drawn in ({"output_images": [noise_image(1)]}, {"output_image_codes": [codes_of(1)]}):
            found |= set(processor(text=text, images=[noise_image(0)], **drawn, return_tensors="pt"))
        found |= {"output_image_schedule_ids"}  # where there is more than one schedule
        self.assertSetEqual(found, set(processor.model_input_names))

    def test_tokenizer_decode_defaults(self):
        """Of a processor with its reader, without which images to read are refused; the common test gives none."""
        processor = self.get_processor()
        ids = [[1, 4, 5, 8, 1, 0, 8], [3, 4, 3, 1, 1, 8, 9]]
        self.assertListEqual(processor.batch_decode(ids), processor.tokenizer.batch_decode(ids))
