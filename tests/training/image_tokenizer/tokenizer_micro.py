"""Images of few colors, and image tokenizers small enough to learn them in seconds."""

import numpy as np
import torch
from datasets import Dataset
from PIL import Image

from vargpt_hf.training.image_tokenizer.arguments import ImageTokenizerTrainingConfig
from vargpt_hf.training.image_tokenizer.loading import fresh_image_tokenizer
from vargpt_hf.training.image_tokenizer.trainer import VargptImageTokenizerTrainer

SIZES = {
    "schedules": [[1, 2, 4]],
    "latent_channels": 6,
    "base_channels": 8,
    "channel_multipliers": (1, 1, 2),
    "num_res_blocks": 1,
    "norm_num_groups": 4,
}
FIELDS = {"vq": {**SIZES, "codebook_size": 24}, "bsq": {**SIZES, "latent_channels": 10}}
EVERYTHING = {
    "adversarial_weight": 0.3,
    "adversarial_start": 3,
    "discriminator_layers": 2,
    "discriminator_channels": 8,
    "ema_decay": 0.9,
    "random_flip": True,
    "color_weight": 1.0,
    "edge_weight": 0.5,
}


def tokenizer(kind="vq", seed=0, **fields):
    """A fresh image tokenizer of 16×16 pixels."""
    torch.manual_seed(seed)
    return fresh_image_tokenizer(kind, {**FIELDS[kind], **fields})


def image(seed, size=(16, 16)):
    """Two halves, each of one color."""
    rng = np.random.default_rng(seed)
    pixels = np.empty((size[1], size[0], 3), dtype=np.uint8)
    pixels[:, : size[0] // 2], pixels[:, size[0] // 2 :] = rng.integers(0, 256, (2, 3))
    return Image.fromarray(pixels)


def images(number=32, size=(16, 16)):
    return Dataset.from_list([{"image": image(seed, size)} for seed in range(number)])


def pixels_of(number=8, size=16, seed=0):
    return torch.rand(number, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def settings(folder, **given):
    defaults = {"max_steps": 6, "per_device_train_batch_size": 8, "learning_rate": 3e-3, "bf16": False, "use_cpu": True, "disable_tqdm": True}
    return ImageTokenizerTrainingConfig(str(folder), **{**defaults, "save_strategy": "no", "num_sample_images": 0, **given})


def trainer(folder, kind="vq", model=None, train=None, **given):
    model = tokenizer(kind) if model is None else model
    return VargptImageTokenizerTrainer(model, settings(folder, **given), images() if train is None else train, images(8))
