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
from vargpt_hf.training.parts.vq import (
    VargptVQTrainer,
    evaluate_vq,
    fit_quantizer,
    pixels_of,
    reconstruction_loss,
    residuals_of,
    train_vq,
)

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


def test_reconstruction_loss_of_known_errors():
    pixels = torch.rand(2, 3, 4, 4)
    lighter = pixels + 0.2
    redder = pixels + torch.tensor([0.2, -0.1, -0.1]).view(3, 1, 1)
    striped = pixels + torch.tensor([0.2, -0.2, 0.2, -0.2])
    assert reconstruction_loss(pixels, pixels) == 0
    torch.testing.assert_close(reconstruction_loss(lighter, pixels), torch.tensor(0.04))
    torch.testing.assert_close(reconstruction_loss(redder, pixels), torch.tensor(2 * 0.02))  # as an error, and as one of colour
    torch.testing.assert_close(reconstruction_loss(striped, pixels), torch.tensor(0.04 + 0.4**2 / 2))


def test_vq_training_lowers_the_error(pairs, image_tokenizer_config, tmp_path):
    untrained = evaluate_vq(VargptVQModel(image_tokenizer_config).eval(), pairs)
    model = train_vq(
        image_tokenizer_config, pairs, tmp_path, max_steps=60, per_device_train_batch_size=8, learning_rate=5e-3, warmup_steps=5, **QUICK
    )
    trained = evaluate_vq(model, pairs)
    assert trained["psnr"] > untrained["psnr"] + 3
    assert 0 < trained["codebook_use"] <= 1 <= trained["perplexity"]
    saved = VargptVQModel.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(value, saved[name]) for name, value in model.state_dict().items())


def test_dead_codes_come_back(pairs, image_tokenizer_config, tmp_path):
    from transformers import TrainingArguments

    torch.manual_seed(0)
    model = VargptVQModel(image_tokenizer_config)
    arguments = TrainingArguments(str(tmp_path), max_steps=10, report_to=[], **QUICK)
    trainer = VargptVQTrainer(model, arguments, train_dataset=pairs, revive_every=1)
    trainer.state.max_steps = 10
    codebook = model.quantizer.codebook.weight
    with torch.no_grad():
        codebook[5:] = 1e3  # far from every latent: never used
    pixels = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    trainer.hits[:5] = 1
    residuals, errors = residuals_of(model.quantizer, model.default_schedule, model.encode_latents(pixels).float().detach())
    trainer._revive(pixels)
    distances = torch.cdist(codebook[5:], residuals, compute_mode="donot_use_mm_for_euclid_dist")
    assert distances.amin(1).max() < 1e-5  # each sits on something that was to be coded
    assert errors[distances.argmin(1)].mean() > errors.mean()  # rather where the code in use was far
    assert trainer.hits.sum() == 0


def test_quantizer_is_fitted_to_latents(image_tokenizer_config):
    """Latents of five kinds of positions: a codebook that was fitted tells them apart."""
    torch.manual_seed(0)
    model = VargptVQModel(image_tokenizer_config)
    quantizer, schedule = model.quantizer, model.default_schedule
    kinds = 3 * torch.randn(5, image_tokenizer_config.latent_channels)
    latents = kinds[torch.randint(5, (200, *schedule.final_grid))].permute(0, 3, 1, 2)
    before = (model.accumulate(quantizer.encode(latents, schedule)[0]) - latents).square().mean()
    given = latents.clone()
    fit_quantizer(quantizer, schedule, latents, steps=200)
    after = (model.accumulate(quantizer.encode(latents, schedule)[0]) - latents).square().mean()
    assert after < 0.1 * latents.var() < before
    assert torch.equal(latents, given)
    assert all(parameter.grad is None for parameter in quantizer.parameters())


def test_first_steps_go_without_quantizer(pairs, image_tokenizer_config, tmp_path):
    """The quantizer stays as it was for `continuous_steps` steps, and is then fitted to what the encoder has learnt."""
    settings = {"per_device_train_batch_size": 8, "learning_rate": 5e-3, "warmup_steps": 1, **QUICK}
    torch.manual_seed(0)
    start = VargptVQModel(image_tokenizer_config)
    errors = []
    for steps in (30, 31):
        model = train_vq(image_tokenizer_config, pairs, tmp_path / str(steps), max_steps=steps, continuous_steps=30, **settings)
        pixels = pixels_of([pairs[index] for index in range(16)])["pixel_values"]
        latents = model.encode_latents(pixels)
        assert latents.std() < 3  # bounded, though nothing quantizes them
        errors.append((model.accumulate(model.encode(pixels)) - latents).square().mean() / latents.var())
        unchanged = torch.equal(model.quantizer.codebook.weight, start.quantizer.codebook.weight)
        assert unchanged == (steps == 30)
    assert errors[1] < 0.3 * errors[0]


def test_residuals_are_what_encoding_saw(image_tokenizer_config):
    torch.manual_seed(0)
    model = VargptVQModel(image_tokenizer_config).eval()
    latents = model.encode_latents(torch.rand(2, 3, 16, 16) * 2 - 1).detach()
    residuals, errors = residuals_of(model.quantizer, model.default_schedule, latents)
    codes = model.quantizer.encode(latents, model.default_schedule)[0]
    first = model.quantizer.nearest_codes(residuals[:2].view(2, 1, -1).transpose(1, 2).unsqueeze(-1))
    assert residuals.shape == (2 * 21, 6)
    assert torch.equal(first, codes[:, :1])
    nearest = torch.cdist(residuals, model.quantizer.codebook.weight, compute_mode="donot_use_mm_for_euclid_dist").amin(1).square()
    torch.testing.assert_close(errors, nearest)


def test_coarse_images_are_trained(pairs, image_tokenizer_config, tmp_path):
    """With a share of images decoded from few scales, the coarse decodes come closer to the images."""
    pixels = pixels_of([pairs[index] for index in range(16)])["pixel_values"]
    errors = {}
    for share in (0.0, 0.7):
        settings = {"max_steps": 200, "continuous_steps": 60, "per_device_train_batch_size": 8, "learning_rate": 3e-3, **QUICK}
        model = train_vq(image_tokenizer_config, pairs, tmp_path / str(share), coarse_share=share, **settings)
        errors[share] = (model.decode(model.encode(pixels), num_scales=1) - pixels).square().mean()
    assert errors[0.7] < 0.8 * errors[0.0]


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
    with pytest.raises(ValueError, match=r"Images are \(16, 16\), but the image tokenizer takes 256×256"):
        train_vq(VargptVQConfig(), pairs, tmp_path)
    with pytest.raises(ValueError, match="no images"):
        train_vq(VargptVQConfig(), pairs.select([]), tmp_path)
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
