"""Pushed to a Hub and loaded back: by id, in a process without the package."""

import json
import subprocess
import sys

import pytest
from fake_hub import FakeHub
from huggingface_hub import ModelCard
from toy_v11 import write_toy_v11_folder

from vargpt_hf import VargptForConditionalGeneration, VargptProcessor
from vargpt_hf.inference.drawing import answer
from vargpt_hf.tiny import TINY_FOLDER

PUSH = """
from vargpt_hf import VargptForConditionalGeneration, VargptProcessor
from vargpt_hf.tiny import TINY_FOLDER
model = VargptForConditionalGeneration.from_pretrained(TINY_FOLDER)
VargptProcessor.from_pretrained(TINY_FOLDER).push_to_hub("me/drawer")
model.push_to_hub("me/drawer")
"""

LOAD = """
import json, sys
sys.modules["vargpt_hf"] = None
from transformers import AutoModelForMultimodalLM, AutoProcessor
model = AutoModelForMultimodalLM.from_pretrained("me/drawer", trust_remote_code=True, dtype="float32")
processor = AutoProcessor.from_pretrained("me/drawer", trust_remote_code=True)
chat = [{"role": "user", "content": "a red circle above a blue square"}]
inputs = processor.apply_chat_template([chat], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt")
output = model.generate(**inputs, max_new_tokens=5, do_sample=False, return_dict_in_generate=True)
print(json.dumps(output.output_image_codes.tolist()))
"""


def run(script, hub, home):
    """What a script prints last, in a process that knows this Hub only."""
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=home, env=hub.environment(home), capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1:]


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    with FakeHub() as hub:
        run(PUSH, hub, tmp_path_factory.mktemp("pusher"))
        yield hub


def test_what_was_pushed_draws_the_same_without_the_package(hub, tmp_path):
    (printed,) = run(LOAD, hub, tmp_path)
    model, processor = (
        VargptForConditionalGeneration.from_pretrained(TINY_FOLDER, dtype="float32"),
        VargptProcessor.from_pretrained(TINY_FOLDER),
    )
    chat = [{"role": "user", "content": "a red circle above a blue square"}]
    inputs = processor.apply_chat_template([chat], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt")
    codes = model.generate(**inputs, max_new_tokens=5, do_sample=False, return_dict_in_generate=True).output_image_codes.tolist()
    assert len(codes) == 1 and json.loads(printed) == codes


def test_the_card_says_what_it_is(hub):
    card = ModelCard(hub.repositories["me/drawer"]["README.md"].decode())
    assert (card.data.pipeline_tag, card.data.library_name) == ("any-to-any", "transformers")
    assert 'pipeline("any-to-any", model="me/drawer", trust_remote_code=True)' in card.text
    assert "has 46 codes of 512 classes" in card.text


def test_a_model_of_v1_1_s_parts_makes_the_round_trip(hub, tmp_path):
    folder = write_toy_v11_folder(tmp_path / "toy")
    (tmp_path / "home").mkdir()
    run(PUSH.replace("me/drawer", "me/bits").replace("TINY_FOLDER)", f"{str(folder)!r})"), hub, tmp_path / "home")
    load = LOAD.replace("me/drawer", "me/bits").replace("max_new_tokens=5,", 'generation_mode="image",')
    (printed,) = run(load.replace("a red circle above a blue square", "draw a red circle"), hub, tmp_path / "home")
    model, processor = VargptForConditionalGeneration.from_pretrained(folder, dtype="float32"), VargptProcessor.from_pretrained(folder)
    drawn = answer(model, processor, ["draw a red circle"], "image", do_sample=False)
    assert json.loads(printed) == drawn.output.output_image_codes.tolist()
    assert "has 21 codes of 6 × 2 classes" in hub.repositories["me/bits"]["README.md"].decode()


def test_a_card_that_is_there_stays(hub, tmp_path):
    hub.repositories["me/drawer"]["README.md"] = b"---\nlicense: mit\n---\nMy own words.\n"
    run(PUSH, hub, tmp_path)
    card = ModelCard(hub.repositories["me/drawer"]["README.md"].decode())
    assert card.data.license == "mit" and "My own words." in card.text
