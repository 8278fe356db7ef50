"""The vargpt-emoji model included in the package: what the README and its model card promise."""

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from transformers import AutoConfig

from vargpt_hf import VargptForConditionalGeneration, VargptProcessor
from vargpt_hf.emoji.packages import PACKAGES
from vargpt_hf.evaluation.card import headline
from vargpt_hf.inference.drawing import answer
from vargpt_hf.shipped import EMOJI_NAME, KNOWN

TWENTY_FOUR_MEGABYTES = 24_000_000
SHIPPED = KNOWN[EMOJI_NAME]
NAMES = {
    "a red scooter, flat look": "motor scooter",
    "a rocket, 3d style": "rocket",
    "a flat birthday cake": "birthday cake",
    "draw an octopus in 3d style": "octopus",
    "a castle, flat look": "castle",
    "a cactus, cartoon": "cactus",
    "a rainbow in the cartoon look": "rainbow",
    "a butterfly, flat style": "butterfly",
}


@pytest.fixture(scope="module")
def emoji():
    """Model and processor."""
    model = VargptForConditionalGeneration.from_pretrained(SHIPPED.folder, dtype="float32").eval()
    return model, VargptProcessor.from_pretrained(SHIPPED.folder)


def asked(image, question):
    return [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": question}]}]


def test_size():
    assert SHIPPED.weights.stat().st_size <= TWENTY_FOUR_MEGABYTES
    assert AutoConfig.from_pretrained(SHIPPED.folder).dtype == torch.bfloat16 and SHIPPED.image_size == (64, 64)


def test_the_card_says_how_good_it_is_and_whose_pictures_it_learned_from():
    card = (SHIPPED.folder / "README.md").read_text()
    assert all(package.credit in card for package in PACKAGES)
    shown, folded = card.partition("## Evaluation")[2].split("<details>")
    main = headline({"suite": "emoji"})
    assert len(main) > 10 and [line.split(" | ")[1] for line in shown.splitlines() if line.startswith("| emoji")] == list(main)
    assert "| ceiling of seen: both |" in folded and not any(f"| {metric} |" in folded for metric in main)
    measured = {one.metric_name for one in ModelCard(card).data.eval_results}
    assert set(main) < measured and len(measured) == len(main) + folded.count("| emoji in three looks")


def test_it_draws_the_picture_of_its_card(emoji):
    (drawn,) = answer(*emoji, ["a turtle in the flat look"], "image", do_sample=False).images
    stored = Image.open(SHIPPED.folder / "drawn.png")
    assert np.abs(np.asarray(drawn, int) - np.asarray(stored, int)).mean() < 2


def test_it_names_what_it_draws(emoji):
    """Reading and drawing are done by different parts: each is the other's witness."""
    drawn = answer(*emoji, list(NAMES), "image", seeds=[0] * len(NAMES)).images
    said = answer(*emoji, [asked(image, "what is it") for image in drawn], "text", max_new_tokens=12).texts
    assert sum(one == name for one, name in zip(said, NAMES.values(), strict=True)) >= 7
