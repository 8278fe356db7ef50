"""Tokenizer, image tokenizer, CLIP, and the model folder that they make."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from transformers import CLIPConfig, CLIPVisionModel

from vargpt_hf import VargptForConditionalGeneration, VargptProcessor, VargptVQConfig, VargptVQModel
from vargpt_hf.testing import tiny_config
from vargpt_hf.training.parts.base import build_base
from vargpt_hf.training.parts.clip import PairCollator, retrieval_accuracy, train_clip
from vargpt_hf.training.parts.tokenizer import IMAGE_TOKENS, train_tokenizer

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "white": (255, 255, 255)}
TEXTS = [f"a {colour} image" for colour in COLOURS]
QUICK = {"use_cpu": True, "disable_tqdm": True}


@pytest.fixture(scope="module")
def pairs():
    """Images of one colour each, with their captions."""
    rows = [{"image": Image.new("RGB", (16, 16), COLOURS[name]), "text": f"a {name} image"} for name in COLOURS] * 8
    return Dataset.from_list(rows).with_format(None)


@pytest.fixture(scope="module")
def image_tokenizer_config() -> VargptVQConfig:
    return tiny_config().image_tokenizer_config


def test_tokenizer_gives_any_text_back():
    tokenizer = train_tokenizer(TEXTS, 280)
    for text in ("a red image", "Ünï¢ödé 🙂\n\ttabs", "   spaces  "):
        ids = tokenizer(text)["input_ids"]
        assert ids[0] == tokenizer.bos_token_id
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert all(len(tokenizer.tokenize(token)) == 1 for token in IMAGE_TOKENS)
    assert len(tokenizer) == 280


def test_tokenizer_refuses_what_it_cannot_do():
    with pytest.raises(ValueError, match="at least 263 .*, got 100"):
        train_tokenizer(TEXTS, 100)
    with pytest.raises(ValueError, match="no texts"):
        train_tokenizer([], 300)


def test_clip_learns_to_match(pairs, tmp_path):
    tokenizer = train_tokenizer(TEXTS, 280)
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={**tower, **special, "vocab_size": 280, "max_position_embeddings": 16},
        vision_config={**tower, "image_size": 16, "patch_size": 8},
        projection_dim=16,
    )
    four = pairs.select(range(4))
    vision = train_clip(
        config, tokenizer, four, tmp_path, four, max_steps=60, per_device_train_batch_size=4, learning_rate=1e-2, warmup_steps=5, **QUICK
    )
    saved = CLIPVisionModel.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(value, saved[name]) for name, value in vision.state_dict().items())


def test_retrieval_accuracy_counts():
    class Model:
        def __call__(self, **batch):
            scores = torch.eye(4)
            scores[3] = torch.tensor([1.0, 0, 0, 0])

            class Output:
                logits_per_image = scores

            return Output()

    class Collator:
        def __call__(self, rows):
            return {}

    assert retrieval_accuracy(Model(), Collator(), Dataset.from_list([{"x": 0}] * 4)) == 0.75


def test_pair_collator_marks_the_end(pairs):
    tokenizer = train_tokenizer(TEXTS, 280)
    batch = PairCollator(tokenizer, 16)([pairs[0], pairs[1]])
    assert (batch["input_ids"] == tokenizer.eos_token_id).sum() == 2
    assert batch["pixel_values"].shape == (2, 3, 16, 16)
    assert batch["pixel_values"].min() == -1 and batch["pixel_values"].max() == 1


def test_wrong_images_are_refused(pairs, tmp_path):
    with pytest.raises(ValueError, match="takes 224×224"):
        train_clip(CLIPConfig(), train_tokenizer(TEXTS, 280), pairs, tmp_path)


def test_base_holds_the_parts_it_was_given(image_tokenizer_config, tmp_path):
    tokenizer = train_tokenizer(TEXTS, 280)
    torch.manual_seed(3)
    image_tokenizer = VargptVQModel(image_tokenizer_config)
    from transformers import CLIPVisionConfig

    vision = CLIPVisionModel(
        CLIPVisionConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=8)
    )
    text = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    build_base(
        tmp_path,
        tokenizer,
        image_tokenizer,
        vision,
        text,
        {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1},
        {"max_output_images": 2},
    )
    model, processor = VargptForConditionalGeneration.from_pretrained(tmp_path), VargptProcessor.from_pretrained(tmp_path)
    for part, given in ((model.model.image_tokenizer, image_tokenizer), (model.model.vlm.vision_tower, vision)):
        assert all(torch.equal(value, given.state_dict()[name]) for name, value in part.state_dict().items())
    assert model.config.output_image_start_token_id == tokenizer.convert_tokens_to_ids("<|image_gen_start|>")
    assert tokenizer.decode(model.generation_config.output_image_unconditional_ids) == "<s>USER: ASSISTANT:"
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    chat = [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "a"}]}]
    inputs = processor.apply_chat_template([chat], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt")
    output = model.generate(**inputs, generation_mode="image", max_new_tokens=2, return_dict_in_generate=True)
    assert output.output_images.shape == (1, 3, 16, 16)
