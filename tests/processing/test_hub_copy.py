"""The room's files work as a Hub repository's own code: copied flat, loaded where the package is not installed."""

from pathlib import Path

from processing_helpers import make_processor
from repository_helpers import run_without_package

from vargpt_hf import processing

LOAD = """
import sys
from PIL import Image
from transformers import AutoProcessor
processor = AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)
assert "vargpt_hf" not in sys.modules
image = Image.new("RGB", (48, 48), (255, 0, 0))
chat = [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "what?"}]},
        {"role": "assistant", "content": [{"type": "output_image", "image": image}]}]
out = processor.apply_chat_template(chat, tokenize=True, return_dict=True, return_tensors="pt")
print(sorted(out), processor.decode(out["input_ids"][0]).count("<|image_gen_pad|>"))
"""


def test_copied_files_work_without_the_package(tmp_path):
    folder = tmp_path / "repo"
    make_processor().save_pretrained(folder)
    copied = {path.name for path in folder.glob("*.py")}
    assert copied == {path.name for path in Path(processing.__file__).parent.glob("*_vargpt.py")}
    printed = run_without_package(LOAD, tmp_path, folder)
    assert printed.strip().endswith("['attention_mask', 'input_ids', 'output_pixel_values', 'pixel_values'] 5")
