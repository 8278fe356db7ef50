"""Keeping a codebook in use: codes that nothing uses come back, and a quantizer is fitted to latents that stay as they are."""

import torch
import torch.nn.functional as F

from ...modeling.scales_vargpt import ScaleSchedule
from ...modeling.vq_vargpt import VargptResidualQuantizer


@torch.no_grad()
def revive_codes(quantizer: VargptResidualQuantizer, schedule: ScaleSchedule, dead: torch.BoolTensor, latents: torch.Tensor) -> None:
    """Puts the codes that are `dead` (V,) where latents (N, Cz, H, W) leave something to code.

    Where the error is, as k-means++ chooses: picked evenly, most codes would go to empty ground, and which of the many near-equal
    codes of empty ground comes next is noise that no decoder can learn.
    """
    if dead.any():
        residuals, errors = residuals_of(quantizer, schedule, latents)
        if not errors.sum() > 0:  # all is coded to the last bit: nothing to choose by
            return
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
        batch = latents[torch.randint(len(latents), (batch_size,), device=latents.device)]
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
    """What the codebook had to code at every position of every scale, (positions, Cz), of latents (N, Cz, H, W), and the squared
    distance of each from its code, (positions,)."""
    residuals, errors = [], []
    for residual, codes, _ in quantizer.residuals(latents, schedule):
        residuals.append(residual.flatten(2).transpose(1, 2).flatten(0, 1))
        errors.append((residuals[-1] - quantizer.codebook(codes.flatten())).square().sum(1))
    return torch.cat(residuals), torch.cat(errors)


__all__ = ["fit_quantizer", "residuals_of", "revive_codes"]
