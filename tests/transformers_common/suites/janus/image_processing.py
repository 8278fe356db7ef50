"""Transformers' common tests of image processors, on Janus'."""

import unittest

from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil

from ...test_image_processing_common import ImageProcessingTester, ImageProcessingTestMixin


class JanusImageProcessingTester(ImageProcessingTester):
    def __init__(self, parent, **kwargs):
        kwargs.setdefault("size", {"height": 20, "width": 20})
        super().__init__(parent, **kwargs)

    def _get_image_processing_classes(self):
        """Only the backend that both models have."""
        return {"pil": JanusImageProcessorPil}


class JanusImageProcessingTest(ImageProcessingTestMixin, unittest.TestCase):
    image_processor_tester_class = JanusImageProcessingTester
