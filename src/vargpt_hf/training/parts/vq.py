"""Training of the image tokenizer, on Transformers' `Trainer`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from ...modeling.configuration_vargpt import VargptVQConfig
from ...modeling.vq_vargpt import VargptResidualQuantizer, VargptVQModel

PEAK = 2.0  # pixels lie in [-1, 1]


def pixels_of(rows: list[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    """Collates rows `{"image": PIL picture}` of one size to pixels (B, 3, height, width) in [-1, 1]."""
    pictures = np.stack([np.asarray(row["image"].convert("RGB")) for row in rows])
    pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous()  # channels last, group norms take twice as long on CPUs
    return {"pixel_values": pixels.float() / 127.5 - 1}


def gradient_difference(reconstruction: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """Mean absolute difference of the finite differences along both sides of pictures (B, 3, height, width), a scalar.

    Keeps edges sharp, where a perceptual network would; none is at hand that was trained on other data.
    """
    error = reconstruction - pixels
    return error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()


def psnr(reconstruction: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio of each picture in dB, (B,), of pixels in [-1, 1]."""
    mse = (reconstruction.clamp(-1, 1) - pixels).square().flatten(1).mean(1)
    return 10 * torch.log10(PEAK**2 / mse.clamp(min=1e-10))


class VargptVQTrainer(Trainer):
    """Trains a `VargptVQModel`: L1 + L2 + gradient difference of the reconstruction, plus the quantiser's own loss.

    Codes that no place has used for `revive_every` steps are put where the current batch leaves something to code. A share
    `coarse_share` of the pictures is decoded from a random number of its first scales only: without that, nothing asks the coarse
    scales to show anything, and a decoder learns to put all of a picture into the last one.
    """

    def __init__(self, *args, revive_every: int = 100, revive_until: float = 0.8, coarse_share: float = 0.0, **kwargs):
        super().__init__(*args, data_collator=pixels_of, **kwargs)
        self.coarse_share = coarse_share
        self.revive_every = revive_every
        self.revive_until = revive_until
        self.hits = torch.zeros(self.model.config.codebook_size, dtype=torch.long)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        pixels = inputs["pixel_values"]
        if self.model.training and self.state.global_step == 0:
            self._start_codebook(pixels)
        outputs = model(pixels, num_scales=self._num_scales(pixels) if self.model.training else None)
        error = outputs.reconstruction.float() - pixels
        loss = error.abs().mean() + error.square().mean() + gradient_difference(outputs.reconstruction.float(), pixels)
        loss = loss + outputs.quantization_loss
        if self.model.training:
            self.hits += torch.bincount(outputs.codes.flatten().cpu(), minlength=len(self.hits))
            self._revive(pixels)
        return (loss, {"loss": loss, "psnr": psnr(outputs.reconstruction.float(), pixels), "codes": outputs.codes}) if return_outputs else loss

    def _num_scales(self, pixels: torch.Tensor) -> torch.LongTensor:
        """From how many scales each picture is decoded, (B,)."""
        total = len(self.model.config.scales)
        coarse = torch.randint(1, max(total, 2), (len(pixels),), device=pixels.device)
        return torch.where(torch.rand(len(pixels), device=pixels.device) < self.coarse_share, coarse, total)

    @torch.no_grad()
    def _start_codebook(self, pixels: torch.Tensor) -> None:
        """Puts the codebook among the latents of the first batch, from none to the whole length of each, long ones first."""
        codebook = self.model.quantizer.codebook.weight
        latents = self.model.encode_latents(pixels).float().flatten(2).transpose(1, 2).flatten(0, 1)
        chosen = latents[torch.multinomial(latents.square().sum(1), len(codebook), replacement=True)]
        codebook.copy_(chosen * torch.rand(len(codebook), 1, device=chosen.device))

    @torch.no_grad()
    def _revive(self, pixels: torch.Tensor) -> None:
        step = self.state.global_step
        if (step + 1) % self.revive_every or step > self.revive_until * self.state.max_steps:
            return
        dead = self.hits == 0
        if dead.any():
            # Where the error is, as k-means++ chooses: picked evenly, most codes would go to empty ground, and which of the many
            # near-equal codes of empty ground comes next is noise that no decoder can learn.
            residuals, errors = residuals_of(self.model.quantizer, self.model.encode_latents(pixels).float())
            chosen = residuals[torch.multinomial(errors, int(dead.sum()), replacement=True)]
            self.model.quantizer.codebook.weight[dead.to(residuals.device)] = chosen
        self.hits.zero_()


@torch.no_grad()
def residuals_of(quantizer: VargptResidualQuantizer, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What the codebook had to code at every place of every scale, (places, Cz), of latents (B, Cz, H, W), and the squared
    distance of each from its code, (places,)."""
    f_hat, residuals, errors = torch.zeros_like(latents), [], []
    for index, side in enumerate(quantizer.scales):
        residual = F.interpolate(latents - f_hat, size=(side, side), mode="area")
        codes = quantizer.nearest_codes(residual)
        residuals.append(residual.flatten(2).transpose(1, 2).flatten(0, 1))
        errors.append((residuals[-1] - quantizer.codebook(codes.flatten())).square().sum(1))
        f_hat = f_hat + quantizer.contribution(codes, index)
    return torch.cat(residuals), torch.cat(errors)


@torch.no_grad()
def evaluate_vq(model: VargptVQModel, pictures: Dataset, batch_size: int = 100) -> dict[str, float]:
    """Mean PSNR (dB), share of the codebook in use, and perplexity of the codes over rows `{"image": PIL picture}`."""
    values, hits = [], torch.zeros(model.config.codebook_size)
    for start in range(0, len(pictures), batch_size):
        pixels = pixels_of([pictures[index] for index in range(start, min(start + batch_size, len(pictures)))])["pixel_values"]
        codes = model.encode(pixels.to(model.device))
        values.append(psnr(model.decode(codes).float().cpu(), pixels))
        hits += torch.bincount(codes.flatten().cpu(), minlength=len(hits))
    shares = hits / hits.sum()
    return {
        "psnr": torch.cat(values).mean().item(),
        "codebook_use": (hits > 0).float().mean().item(),
        "perplexity": torch.exp(-(shares * shares.clamp(min=1e-12).log()).sum()).item(),
    }


def train_vq(
    config: VargptVQConfig, pictures: Dataset, output_dir: str | Path, seed: int = 0, coarse_share: float = 0.0, **arguments
) -> VargptVQModel:
    """Trains an image tokenizer on rows `{"image": PIL picture}` and saves it.

    Args:
        config: its sizes; the pictures must be of `config.image_size`.
        coarse_share: of the pictures that are decoded from some of their scales only, see [`VargptVQTrainer`].
        arguments: of `TrainingArguments`, over the defaults here.

    Raises:
        ValueError: no pictures, or pictures of another size.
    """
    if len(pictures) == 0:
        raise ValueError("There are no pictures to train the image tokenizer on.")
    if pictures[0]["image"].size != (config.image_size, config.image_size):
        raise ValueError(f"Pictures are {pictures[0]['image'].size}, but the image tokenizer takes {config.image_size}×{config.image_size}.")
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
    trainer = VargptVQTrainer(model, training, train_dataset=pictures, coarse_share=coarse_share)
    trainer.train()
    model.eval().save_pretrained(output_dir)
    return model
