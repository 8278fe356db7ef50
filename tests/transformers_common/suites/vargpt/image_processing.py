"""Transformers' common tests of image processors, on VARGPT's."""

import os
import subprocess
import sys
import tempfile
import textwrap
import unittest

import numpy as np
from PIL import Image

from vargpt_hf.processing import VargptCLIPImageProcessor

from ...test_image_processing_common import ImageProcessingTester, ImageProcessingTestMixin


class VargptImageProcessingTester(ImageProcessingTester):
    def __init__(self, parent, **kwargs):
        kwargs.setdefault("size", {"shortest_edge": 20})
        kwargs.setdefault("crop_size", {"height": 18, "width": 18})
        super().__init__(parent, **kwargs)

    def _get_image_processing_classes(self):
        """Found by name among Transformers' own models; this one is not."""
        return {"pil": VargptCLIPImageProcessor}


class VargptImageProcessingTest(ImageProcessingTestMixin, unittest.TestCase):
    image_processor_tester_class = VargptImageProcessingTester

    def test_pil_can_run_without_torchvision(self):
        """As Transformers promises it of its own classes; a class that comes with its code is loaded by `trust_remote_code`."""
        script = """
            import sys
            sys.modules["torchvision"] = None  # importing it fails
            import numpy as np
            from PIL import Image
            from transformers import AutoImageProcessor

            folder = sys.argv[1]
            processor = AutoImageProcessor.from_pretrained(folder, backend="pil", trust_remote_code=True)
            assert type(processor).__name__ == "VargptCLIPImageProcessor" and "vargpt_hf" not in sys.modules
            np.save(f"{folder}/there.npy", processor(Image.open(f"{folder}/image.png"), return_tensors="np")["pixel_values"])
            """
        image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8))
        processor = VargptCLIPImageProcessor(**self.image_processor_dict)
        with tempfile.TemporaryDirectory() as folder:
            processor.save_pretrained(folder)
            image.save(os.path.join(folder, "image.png"))
            done = subprocess.run([sys.executable, "-c", textwrap.dedent(script), folder], capture_output=True, text=True)
            self.assertEqual(done.returncode, 0, done.stderr)
            there = np.load(os.path.join(folder, "there.npy"))
        np.testing.assert_array_equal(there, processor(image, return_tensors="np")["pixel_values"])

    @unittest.skip("every image becomes RGB: vision tower and image tokenizer read three channels")
    def test_call_numpy_4_channels(self):
        pass

    @unittest.skip("resizes with Pillow alone, whose pixels the released weights have learnt; torchvision's differ")
    def test_new_models_require_torchvision_backend(self):
        pass
