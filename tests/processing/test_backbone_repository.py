"""A saved folder of any backbone is a Hub repository that stands alone: model and processor load where this package is not installed."""

import json

import numpy as np
import pytest
import torch
from backbone_configs import backbone_config
from PIL import Image
from reader_helpers import READERS, make_reader
from repository_helpers import run_without_package
from transformers.utils import is_torchvision_available

from vargpt_hf import VargptForConditionalGeneration, VargptProcessor
from vargpt_hf.testing import tiny_config

# Of the CLIP-like, the tiled and the patched kind.
FAMILIES = ["llava", "idefics3", "qwen2_vl"]

READ_AND_DRAW = """
import json, sys
from transformers import AutoModelForMultimodalLM, AutoProcessor
folder, file = sys.argv[1:]
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
model = AutoModelForMultimodalLM.from_pretrained(folder, trust_remote_code=True)
chat = [{"role": "user", "content": [{"type": "image", "path": file}, {"type": "text", "text": "what is it"}]}]
inputs = processor.apply_chat_template([chat], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt")
output = model.generate(**inputs, generation_mode="image", do_sample=False, return_dict_in_generate=True)
image, = processor.post_process_multimodal_output(output, generation_mode="image")
found = {"modules": [type(part).__module__ for part in (model, processor)], "package": "vargpt_hf" in sys.modules, "size": image.size}
found |= {"reader": type(processor.reader).__name__, "vlm": type(model.model.vlm).__name__}
print(json.dumps({**found, "sequences": output.sequences.tolist(), "codes": output.output_image_codes.tolist()}))
"""


@pytest.mark.parametrize("family", FAMILIES)
def test_a_repository_reads_and_draws_without_the_package(family, tmp_path):
    if READERS[family].needs_torchvision and not is_torchvision_available():
        pytest.skip("the backbone's own processor needs torchvision")
    torch.manual_seed(0)
    config = tiny_config(vlm_config=backbone_config(family))
    drawn = {name: getattr(config.image_tokenizer_config, name) for name in ("schedules", "downsampling")}
    model, processor = VargptForConditionalGeneration(config).eval(), VargptProcessor(reader=make_reader(family), output_image_settings=drawn)
    processor.check_fits(config)
    folder, file = tmp_path / "repository", tmp_path / "seen.png"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(file)

    found = json.loads(run_without_package(READ_AND_DRAW, tmp_path, folder, file, torchvision=READERS[family].needs_torchvision))
    assert not found["package"] and all(module.startswith("transformers_modules.") for module in found["modules"])
    assert (found["reader"], found["vlm"]) == (READERS[family].name, type(model.model.vlm).__name__)
    chat = [{"role": "user", "content": [{"type": "image", "path": str(file)}, {"type": "text", "text": "what is it"}]}]
    inputs = processor.apply_chat_template([chat], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt")
    assert (inputs["input_ids"] == config.image_token_id).any()
    output = model.generate(**inputs, generation_mode="image", do_sample=False, return_dict_in_generate=True)
    assert found["codes"] == output.output_image_codes.tolist() and found["sequences"] == output.sequences.tolist()
    assert found["size"] == list(processor.post_process_multimodal_output(output, generation_mode="image")[0].size)
