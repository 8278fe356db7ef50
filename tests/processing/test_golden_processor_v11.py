"""The processor of VARGPT v1.1, held against what the released one made of chats: text, tokens, pixels."""

import re

import pytest
import torch
from golden_v11_helpers import GOLDEN_V11, golden_v11, golden_v11_json
from PIL import Image
from transformers import AutoTokenizer
from transformers.utils import is_torchvision_available

from vargpt_hf import VargptConfig, VargptProcessor
from vargpt_hf.conversion.formats.qwen2_vl import make_processor

pytestmark = pytest.mark.skipif(not is_torchvision_available(), reason="Qwen2-VL's processor needs torchvision")
CHATS = ["text", "picture", "turns", "closed"]


@pytest.fixture(scope="module")
def processor(tmp_path_factory) -> VargptProcessor:
    tokenizer = AutoTokenizer.from_pretrained(GOLDEN_V11 / "processor_tokenizer")
    ids = golden_v11_json("processor")["token_ids"]
    text = {"vocab_size": 448, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    vlm = {
        "model_type": "qwen2_vl",
        "text_config": {**text, "num_key_value_heads": 2, "rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1]}},
        "vision_config": {"depth": 1, "embed_dim": 32, "num_heads": 2, "hidden_size": 32},
        "image_token_id": ids["<|image_pad|>"],
    }
    config = VargptConfig(
        vlm_config=vlm,
        image_tokenizer_config={"model_type": "vargpt_bsq", "schedules": [[1, 2, 4]], "latent_channels": 4, "base_channels": 32},
        visual_decoder_config={"model_type": "vargpt_infinity_decoder", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
        output_image_start_token_id=ids["<|image_gen_start|>"],
        output_image_end_token_id=ids["<|image_gen_end|>"],
        output_image_token_id=ids["<|image_gen_pad|>"],
    )
    return make_processor(tmp_path_factory.mktemp("source"), tokenizer, config)


def chat_of(name: str) -> tuple[list[dict], bool]:
    """A chat with its images, and whether a reply is to follow."""
    chat = golden_v11_json("processor")["chats"][name]
    pictures = iter([Image.fromarray(golden_v11(f"processor/picture.{picture}").numpy()) for picture in chat["pictures"]])
    turns = [
        {**turn, "content": [part if part["type"] == "text" else {**part, "image": next(pictures)} for part in turn["content"]]}
        if isinstance(turn["content"], list)
        else turn
        for turn in chat["messages"]
    ]
    return turns, chat["add_generation_prompt"]


@pytest.mark.parametrize("name", CHATS)
def test_chats(processor, name):
    chat, prompts = chat_of(name)
    assert processor.apply_chat_template(chat, add_generation_prompt=prompts) == golden_v11_json("processor")["chats"][name]["rendered"]
    inputs = processor.apply_chat_template(chat, add_generation_prompt=prompts, tokenize=True, return_dict=True, return_tensors="pt")
    assert torch.equal(inputs["input_ids"], golden_v11(f"processor/{name}.input_ids"))
    if name in ("picture", "turns"):
        assert torch.equal(inputs["image_grid_thw"], golden_v11(f"processor/{name}.image_grid_thw"))
        levels = (inputs["pixel_values"] - golden_v11(f"processor/{name}.pixel_values")).abs().max() * 255 * 0.28
        assert levels < 2.5  # Pillow resized there, torchvision does here
        assert (inputs["mm_token_type_ids"] == (inputs["input_ids"] == processor.image_token_id)).all()


def test_the_assistant_is_marked(processor):
    chat, _ = chat_of("closed")
    chat[1]["content"] = [{"type": "text", "text": "a cat"}, {"type": "output_image", "codes": [0] * 21}]
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "return_assistant_tokens_mask": True}
    inputs = processor.apply_chat_template(chat, **options)
    said = inputs["input_ids"][torch.as_tensor(inputs["assistant_masks"]).bool()]
    drawn = f"<|image_gen_start|>{'<|image_gen_pad|>' * 21}<|image_gen_end|>"
    assert processor.decode(said) == f"a cat{drawn}<|im_end|>"


def row_of(name: str) -> list[dict]:
    """A training row as a chat: what its marks stand for in their places."""
    row = golden_v11_json("processor")["training"][name]
    pictures = iter([Image.fromarray(golden_v11(f"processor/picture.{picture}").numpy()) for picture in row["images"]])
    turns = []
    for message in row["messages"]:
        parts = []
        for text in re.split("(<image>|<image_gen>)", message["content"]):
            if text == "<image>":
                parts.append({"type": "image", "image": next(pictures)})
            elif text == "<image_gen>":
                parts.append({"type": "output_image", "codes": [0] * 21})
            elif text:
                parts.append({"type": "text", "text": text})
        turns.append({"role": message["role"], "content": parts})
    return turns


@pytest.mark.parametrize("name", ["paint", "edit", "turns"])
def test_training_rows(processor, name):
    """The same tokens but for the number of an image's placeholders, which the released code pads; the assistant's are labels."""
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "return_assistant_tokens_mask": True}
    inputs = processor.apply_chat_template(row_of(name), **options)
    placeholder = processor.output_image_token_id
    ids, said = inputs["input_ids"][0], torch.as_tensor(inputs["assistant_masks"])[0].bool()
    released, labels = golden_v11(f"processor/training.{name}.input_ids")[0], golden_v11(f"processor/training.{name}.labels")[0]
    ours, theirs = ids[ids != placeholder], released[released != placeholder]
    assert torch.equal(ours[: len(theirs)], theirs)
    assert processor.decode(ours[len(theirs) :]) == "\n"  # there a row ends at the end of its last turn
    assert torch.equal(said[ids != placeholder][: len(theirs)], (labels != -100)[released != placeholder])
    if "image_grid_thw" in inputs:
        assert torch.equal(inputs["image_grid_thw"], golden_v11(f"processor/training.{name}.image_grid_thw"))
        levels = (inputs["pixel_values"] - golden_v11(f"processor/training.{name}.pixel_values")).abs().max() * 255 * 0.28
        assert levels < 2.5


def test_a_padded_batch(processor):
    texts = [golden_v11_json("processor")["chats"][name]["rendered"] for name in ("text", "closed")]
    inputs = processor(text=texts, padding=True, padding_side="left", return_tensors="pt")
    assert torch.equal(inputs["input_ids"], golden_v11("processor/batch.input_ids"))
    assert torch.equal(inputs["attention_mask"], golden_v11("processor/batch.attention_mask"))
