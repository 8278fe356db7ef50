"""A saved folder is a Hub repository that stands alone: loaded with `trust_remote_code`, where this package is not installed."""

import filecmp
import json
import shutil

import pytest
from repository_helpers import run_without_package
from toy_v11 import write_toy_v11_folder
from transformers import AutoModelForMultimodalLM, AutoProcessor

from vargpt_hf import VargptForConditionalGeneration, VargptProcessor
from vargpt_hf.tiny import TINY_FOLDER

CODE = {
    "adapters_vargpt.py",
    "autoencoder_vargpt.py",
    "backbone_vargpt.py",
    "base_configuration_vargpt.py",
    "base_modeling_vargpt.py",
    "bsq_vargpt.py",
    "card_vargpt.py",
    "chat_processing_vargpt.py",
    "chat_vargpt.py",
    "checkpoint_vargpt.py",
    "codes_vargpt.py",
    "configuration_vargpt.py",
    "decoding_vargpt.py",
    "drawing_plan_vargpt.py",
    "drawing_vargpt.py",
    "errors_vargpt.py",
    "fit_vargpt.py",
    "generation_vargpt.py",
    "image_loading_vargpt.py",
    "image_processing_vargpt.py",
    "image_sampling_vargpt.py",
    "image_tokenizer_vargpt.py",
    "infinity_decoder_vargpt.py",
    "llm_cache_vargpt.py",
    "losses_vargpt.py",
    "modeling_vargpt.py",
    "output_images_vargpt.py",
    "outputs_vargpt.py",
    "pipeline_vargpt.py",
    "placeholders_vargpt.py",
    "postprocessing_vargpt.py",
    "pretrained_vargpt.py",
    "processing_vargpt.py",
    "reader_vargpt.py",
    "scales_vargpt.py",
    "settings_vargpt.py",
    "var_decoder_vargpt.py",
    "visual_decoder_vargpt.py",
    "vq_vargpt.py",
}

AUTO_CLASSES = """
import json, sys
import torch, transformers
from transformers import AutoConfig, AutoImageProcessor, AutoProcessor, AutoTokenizer
folder, again = sys.argv[1:]
trust = {"trust_remote_code": True}
found = {"AutoConfig": AutoConfig.from_pretrained(folder, **trust), "AutoTokenizer": AutoTokenizer.from_pretrained(folder, **trust)}
found["AutoImageProcessor"] = AutoImageProcessor.from_pretrained(folder, **trust)
found["AutoProcessor"] = processor = AutoProcessor.from_pretrained(folder, **trust)
for name in ("AutoModel", "AutoModelForCausalLM", "AutoModelForImageTextToText", "AutoModelForMultimodalLM"):
    found[name] = getattr(transformers, name).from_pretrained(folder, **trust)
found["AutoModelForMultimodalLM"].save_pretrained(again)
processor.save_pretrained(again)
model = found["AutoModelForMultimodalLM"]
chat = [{"role": "user", "content": "draw a red circle above a blue square"}]
inputs = processor.apply_chat_template([chat], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt")
settings = {"generation_mode": "image", "do_sample": False, "return_dict_in_generate": True}
output = model.float().generate(**inputs, **settings)
assert "vargpt_hf" not in sys.modules
print(json.dumps({"classes": {name: type(value).__name__ for name, value in found.items()}, "codes": output.output_image_codes.tolist()}))
"""

PIPELINE = """
import json, sys
from transformers import pipeline
(folder,) = sys.argv[1:]
pipe = pipeline("any-to-any", model=folder, trust_remote_code=True)
assert "vargpt_hf" not in sys.modules
drawn = pipe([{"role": "user", "content": "draw a red circle above a blue square and say what you drew"}], max_new_tokens=40)[0]
print(json.dumps([part.get("text", type(part.get("image")).__name__) for part in drawn["generated_content"]]))
"""


def save_repository(source, folder):
    VargptForConditionalGeneration.from_pretrained(source).save_pretrained(folder)
    VargptProcessor.from_pretrained(source).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    return save_repository(TINY_FOLDER, tmp_path_factory.mktemp("repository") / "vargpt-tiny")


@pytest.fixture(scope="module")
def toy_v1_1(tmp_path_factory):
    """A model with the parts of VARGPT v1.1 that draw."""
    parent = tmp_path_factory.mktemp("repository")
    return save_repository(write_toy_v11_folder(parent / "made"), parent / "toy-v1.1")


@pytest.mark.parametrize("kind", ["repository", "toy_v1_1"])
def test_every_auto_class_loads_it_without_the_package(kind, request, tmp_path):
    repository = request.getfixturevalue(kind)
    assert {path.name for path in repository.glob("*.py")} == CODE
    again = tmp_path / "again"
    printed = json.loads(run_without_package(AUTO_CLASSES, tmp_path, repository, again))
    assert printed["classes"] == {
        "AutoConfig": "VargptConfig",
        "AutoTokenizer": "TokenizersBackend",
        "AutoImageProcessor": "VargptCLIPImageProcessor",
        "AutoProcessor": "VargptProcessor",
        "AutoModel": "VargptModel",
        "AutoModelForCausalLM": "VargptForConditionalGeneration",
        "AutoModelForImageTextToText": "VargptForConditionalGeneration",
        "AutoModelForMultimodalLM": "VargptForConditionalGeneration",
    }
    model, processor = VargptForConditionalGeneration.from_pretrained(repository, dtype="float32"), VargptProcessor.from_pretrained(repository)
    chat = [{"role": "user", "content": "draw a red circle above a blue square"}]
    inputs = processor.apply_chat_template([chat], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt")
    output = model.generate(**inputs, generation_mode="image", do_sample=False, return_dict_in_generate=True)
    assert printed["codes"] == output.output_image_codes.tolist() and len(printed["codes"]) == 1
    names = {path.name for path in repository.iterdir()}
    assert {path.name for path in again.iterdir()} == names
    same, different, missing = filecmp.cmpfiles(repository, again, names, shallow=False)
    assert (different, missing) == ([], [])


@pytest.mark.parametrize("circumstances", [{"local_files_only": True}, {"local_files_only": False, "token": "hf_told", "revision": "main"}])
def test_saved_files_do_not_tell_how_they_were_loaded(repository, tmp_path, circumstances):
    """Nothing of being online or offline, of tokens, folders and revisions: the same files each time."""
    moved, again = tmp_path / "moved", tmp_path / "again"
    shutil.copytree(repository, moved)
    for kind in (VargptForConditionalGeneration, VargptProcessor):
        kind.from_pretrained(moved, **circumstances, cache_dir=tmp_path / "cache", force_download=True).save_pretrained(again)
    names = {path.name for path in repository.iterdir()}
    assert {path.name for path in again.iterdir()} == names
    _, different, missing = filecmp.cmpfiles(repository, again, names, shallow=False)
    assert (different, missing) == ([], [])
    written = "".join(path.read_text() for path in again.iterdir() if path.suffix in (".json", ".jinja"))
    written = written.replace('"_name_or_path": ""', "")  # a configuration inside of another one has it, empty
    for told in ("is_local", "local_files_only", "hf_told", "_name_or_path", "cache_dir", "force_download", str(tmp_path)):
        assert told not in written, told


def test_the_installed_package_needs_no_remote_code(repository):
    assert type(AutoModelForMultimodalLM.from_pretrained(repository)) is VargptForConditionalGeneration
    assert type(AutoProcessor.from_pretrained(repository)) is VargptProcessor
    assert type(AutoModelForMultimodalLM.from_pretrained(repository, trust_remote_code=True)) is VargptForConditionalGeneration


def test_the_pipeline_of_the_repository(repository, tmp_path):
    printed = json.loads(run_without_package(PIPELINE, tmp_path, repository))
    assert printed == ["Image", "a red circle above a blue square"]
