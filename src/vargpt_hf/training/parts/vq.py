"""Training of the image tokenizer, on Transformers' `Trainer`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from ...evaluation.metrics import codebook_use, perplexity, psnr
from ...modeling.scales_vargpt import ScaleSchedule
from ...modeling.vq_vargpt import VargptResidualQuantizer, VargptVQConfig, VargptVQModel


def pixels_of(rows: list[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    """Collates rows `{"image": PIL image}` of one size to pixels (B, 3, height, width) in [-1, 1]."""
    images = np.stack([np.asarray(row["image"].convert("RGB")) for row in rows])
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()  # channels last, group norms take twice as long on CPUs
    return {"pixel_values": pixels.float() / 127.5 - 1}


def reconstruction_loss(reconstruction: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """Squared errors of images (B, 3, height, width) in [-1, 1], a scalar: of the pixels, of their color minus their brightness, and
    of the finite differences along both sides.

    The differences keep edges sharp, where a perceptual network would; none trained on other data is available. Squares, since
    an absolute error settles for one average color everywhere.
    """
    error = reconstruction.float() - pixels
    colour = error - error.mean(1, keepdim=True)
    edges = error.diff(dim=2).square().mean() + error.diff(dim=3).square().mean()
    return error.square().mean() + colour.square().mean() + edges / 2


class VargptVQTrainer(Trainer):
    """Trains a `VargptVQModel`: [`reconstruction_loss`], by `reconstruction_weight`, plus the quantizer's own loss.

    For the first `continuous_steps` steps latents are decoded without the quantizer, with noise added: a codebook that learns together
    with the encoder may know light and dark alone for thousands of steps, while [`fit_quantizer`] among latents that distinguish colors
    keeps them apart. The noise, and a penalty on large latents, leave only differences that a codebook can keep.

    Codes that no position has used for `revive_every` steps are put where the current batch leaves something to code. A share
    `coarse_share` of the images is decoded from a random number of its first scales only, where coarse images matter more than the
    last bit of fidelity.
    """

    def __init__(
        self,
        *args,
        revive_every: int = 100,
        revive_until: float = 0.8,
        coarse_share: float = 0.0,
        continuous_steps: int = 0,
        latent_noise: float = 0.25,
        latent_penalty: float = 0.02,
        reconstruction_weight: float = 10.0,
        **kwargs,
    ):
        super().__init__(*args, data_collator=pixels_of, **kwargs)
        self.coarse_share = coarse_share
        self.continuous_steps = continuous_steps
        self.latent_noise = latent_noise
        self.latent_penalty = latent_penalty
        self.reconstruction_weight = reconstruction_weight
        self.revive_every = revive_every
        self.revive_until = revive_until
        self.hits = torch.zeros(self.model.config.codebook_size, dtype=torch.long)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        pixels = inputs["pixel_values"]
        if self.model.training and self.state.global_step < self.continuous_steps:
            return self._continuous_loss(pixels)
        if self.model.training and self.continuous_steps and self.state.global_step == self.continuous_steps:
            fit_quantizer(self.model.quantizer, self.model.default_schedule, self._latents())
            self.continuous_steps = 0  # once, however many batches make a step
        outputs = model(pixels, num_scales=self._num_scales(pixels) if self.model.training else None)
        loss = self.reconstruction_weight * reconstruction_loss(outputs.reconstruction, pixels) + outputs.quantization_loss
        if self.model.training:
            self.hits += torch.bincount(outputs.codes.flatten().cpu(), minlength=len(self.hits))
            self._revive(pixels)
        return (loss, {"loss": loss, "psnr": psnr(outputs.reconstruction.float(), pixels), "codes": outputs.codes}) if return_outputs else loss

    def _continuous_loss(self, pixels: torch.Tensor) -> torch.Tensor:
        latents = self.model.encode_latents(pixels).float()
        reconstruction = self.model.decode_latents(latents + self.latent_noise * torch.randn_like(latents))
        return self.reconstruction_weight * reconstruction_loss(reconstruction, pixels) + self.latent_penalty * latents.square().mean()

    @torch.no_grad()
    def _latents(self, number: int = 2000, batch_size: int = 100) -> torch.Tensor:
        """Latents of the first images to train on."""
        number = min(number, len(self.train_dataset))
        starts = range(0, number, batch_size)
        batches = (pixels_of([self.train_dataset[index] for index in range(start, min(start + batch_size, number))]) for start in starts)
        return torch.cat([self.model.encode_latents(batch["pixel_values"].to(self.model.device)).float() for batch in batches])

    def _num_scales(self, pixels: torch.Tensor) -> torch.LongTensor:
        """From how many scales each image is decoded, (B,)."""
        total = len(self.model.default_schedule)
        coarse = torch.randint(1, max(total, 2), (len(pixels),), device=pixels.device)
        return torch.where(torch.rand(len(pixels), device=pixels.device) < self.coarse_share, coarse, total)

    @torch.no_grad()
    def _revive(self, pixels: torch.Tensor) -> None:
        step = self.state.global_step
        if (step + 1) % self.revive_every or step > self.revive_until * self.state.max_steps:
            return
        revive_codes(self.model.quantizer, self.model.default_schedule, self.hits == 0, self.model.encode_latents(pixels).float())
        self.hits.zero_()


@torch.no_grad()
def revive_codes(quantizer: VargptResidualQuantizer, schedule: ScaleSchedule, dead: torch.BoolTensor, latents: torch.Tensor) -> None:
    """Puts the codes that are `dead` (V,) where latents (B, Cz, H, W) leave something to code.

    Where the error is, as k-means++ chooses: picked evenly, most codes would go to empty ground, and which of the many near-equal
    codes of empty ground comes next is noise that no decoder can learn.
    """
    if dead.any():
        residuals, errors = residuals_of(quantizer, schedule, latents)
        quantizer.codebook.weight[dead.to(residuals.device)] = residuals[torch.multinomial(errors, int(dead.sum()), replacement=True)]


def fit_quantizer(
    quantizer: VargptResidualQuantizer,
    schedule: ScaleSchedule,
    latents: torch.Tensor,
    steps: int = 400,
    learning_rate: float = 1e-2,
    batch_size: int = 128,
) -> None:
    """Fits codebook and φ to latents (N, Cz, H, W) that stay as they are."""
    with torch.no_grad():  # a start among the latents, from none to the whole length of each, long ones first
        positions = latents.flatten(2).transpose(1, 2).flatten(0, 1)
        chosen = positions[torch.multinomial(positions.square().sum(1), len(quantizer.codebook.weight), replacement=True)]
        quantizer.codebook.weight.copy_(chosen * torch.rand_like(chosen[:, :1]))
    optimizer = torch.optim.Adam(quantizer.parameters(), learning_rate)
    learning_rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    hits = torch.zeros(len(quantizer.codebook.weight), dtype=torch.long)
    for step in range(steps):
        batch = latents[torch.randint(len(latents), (batch_size,))]
        codes, f_hat, loss = quantizer.encode(batch, schedule)
        loss = loss / (1 + quantizer.commitment_weight) + F.mse_loss(f_hat, batch)  # every scale's error, the last one's again
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        learning_rates.step()
        hits += torch.bincount(codes.flatten().cpu(), minlength=len(hits))
        if step % 50 == 49:
            if step < 0.8 * steps:
                revive_codes(quantizer, schedule, hits < 3, batch)
            hits.zero_()
    optimizer.zero_grad()


@torch.no_grad()
def residuals_of(quantizer: VargptResidualQuantizer, schedule: ScaleSchedule, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What the codebook had to code at every position of every scale, (positions, Cz), of latents (B, Cz, H, W), and the squared
    distance of each from its code, (positions,)."""
    residuals, errors = [], []
    for residual, codes, _ in quantizer.residuals(latents, schedule):
        residuals.append(residual.flatten(2).transpose(1, 2).flatten(0, 1))
        errors.append((residuals[-1] - quantizer.codebook(codes.flatten())).square().sum(1))
    return torch.cat(residuals), torch.cat(errors)


@torch.no_grad()
def evaluate_vq(model: VargptVQModel, images: Dataset, batch_size: int = 100) -> dict[str, float]:
    """Mean PSNR (dB), share of the codebook in use, and perplexity of the codes over rows `{"image": PIL image}`."""
    values, hits = [], torch.zeros(model.config.codebook_size)
    for start in range(0, len(images), batch_size):
        pixels = pixels_of([images[index] for index in range(start, min(start + batch_size, len(images)))])["pixel_values"]
        codes = model.encode(pixels.to(model.device))
        values.append(psnr(model.decode(codes).float().cpu(), pixels))
        hits += torch.bincount(codes.flatten().cpu(), minlength=len(hits))
    return {
        "psnr": torch.cat(values).mean().item(),
        "codebook_use": codebook_use(hits),
        "perplexity": perplexity(hits),
    }


def train_vq(
    config: VargptVQConfig,
    images: Dataset,
    output_dir: str | Path,
    seed: int = 0,
    coarse_share: float = 0.0,
    continuous_steps: int = 0,
    **arguments,
) -> VargptVQModel:
    """Trains an image tokenizer on rows `{"image": PIL image}` and saves it.

    Args:
        config: its sizes; the images must be of `config.image_size()`.
        coarse_share: of the images that are decoded from some of their scales only, see [`VargptVQTrainer`].
        continuous_steps: at the start, without quantizer, see [`VargptVQTrainer`].
        arguments: of `TrainingArguments`, over the defaults here.

    Raises:
        ValueError: no images, or images of another size.
    """
    if len(images) == 0:
        raise ValueError("There are no images to train the image tokenizer on.")
    height, width = config.image_size()
    if images[0]["image"].size != (width, height):
        raise ValueError(f"Images are {images[0]['image'].size}, but the image tokenizer takes {width}×{height}.")
    torch.manual_seed(seed)
    model = VargptVQModel(config)
    defaults = {
        "learning_rate": 1.5e-3,
        "adam_beta2": 0.95,
        "weight_decay": 0.01,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 100,
        "per_device_train_batch_size": 32,
        "logging_steps": 100,
        "save_strategy": "no",
        "report_to": [],
        "remove_unused_columns": False,
    }
    training = TrainingArguments(output_dir=str(output_dir), seed=seed, **{**defaults, **arguments})
    trainer = VargptVQTrainer(model, training, train_dataset=images, coarse_share=coarse_share, continuous_steps=continuous_steps)
    trainer.train()
    model.eval().save_pretrained(output_dir)
    return model
