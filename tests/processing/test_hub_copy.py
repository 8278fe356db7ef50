"""The room's files work as a Hub repository's own code: copied flat, loaded where the package is not installed."""

import os
import subprocess
import sys

SAVE = """
import sys
sys.path.insert(0, {helpers!r})
from processing_helpers import make_processor
processor = make_processor()
processor.image_processor.register_for_auto_class()
processor.register_for_auto_class()
processor.save_pretrained({folder!r})
"""

LOAD = """
import sys
sys.modules["torchvision"] = None  # must not be needed
from PIL import Image
from transformers import AutoProcessor
processor = AutoProcessor.from_pretrained({folder!r}, trust_remote_code=True)
assert "vargpt_hf" not in sys.modules
picture = Image.new("RGB", (48, 48), (255, 0, 0))
chat = [{{"role": "user", "content": [{{"type": "image", "image": picture}}, {{"type": "text", "text": "what?"}}]}},
        {{"role": "assistant", "content": [{{"type": "image_gen", "image": picture}}]}}]
out = processor.apply_chat_template(chat, tokenize=True, return_dict=True, return_tensors="pt")
print(sorted(out), processor.decode(out["input_ids"][0]).count("<|image_gen_pad|>"))
"""


def run(script: str, tmp_path, pythonpath: str) -> str:
    environment = {**os.environ, "PYTHONPATH": pythonpath, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    # -P: the working directory is no place of modules
    done = subprocess.run([sys.executable, "-P", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_copied_files_work_without_the_package(tmp_path):
    folder = tmp_path / "repo"
    helpers = os.path.dirname(__file__)
    run(SAVE.format(helpers=helpers, folder=str(folder)), tmp_path, os.pathsep.join(sys.path))
    copied = {path.name for path in folder.glob("*.py")}
    assert copied == {"chat_vargpt.py", "image_processing_vargpt.py", "processing_vargpt.py"}
    blocked = tmp_path / "blocked" / "vargpt_hf"  # stands before an installed package
    blocked.mkdir(parents=True)
    (blocked / "__init__.py").write_text("raise ImportError('the package must not be needed')\n")
    printed = run(LOAD.format(folder=str(folder)), tmp_path, str(blocked.parent))
    assert printed.strip().endswith("['attention_mask', 'input_ids', 'output_pixel_values', 'pixel_values'] 6")
