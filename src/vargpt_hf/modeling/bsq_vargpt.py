"""Infinity's image tokenizer, the one of VARGPT v1.1: a multi-scale residual BSQ-VAE, pixels ⇄ bits (arXiv 2412.04431, section 3.2).

Binary spherical quantization (arXiv 2406.07548) has no codebook: a latent vector is projected to the unit sphere, and every component's
sign is one bit of its code.

Shapes: N images, L codes of one image over all scales, l codes of one scale, d bits of a code, H W the latent grid (the last scale), h w the
grid of one scale. Codes run coarse to fine, row by row inside a scale.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import nn

from .autoencoder_vargpt import VargptConvDecoder, VargptConvEncoder, check_autoencoder, init_convolutions
from .base_configuration_vargpt import check_number, in_words
from .image_tokenizer_vargpt import VargptImageTokenizer, VargptImageTokenizerConfig, after_scale, channels_last_on_cpu
from .scales_vargpt import ScaleSchedule

# Sides of Infinity's square images: the first 7 make 256×256 pixels, 10 make 512×512, 12 make 768×768, all 1024×1024.
INFINITY_SIDES = (1, 2, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64)
# Its upright images, by grids (height, width) of about the same numbers of positions; a lying image swaps the two.
INFINITY_UPRIGHT = (
    ((1, 1), (2, 2), (3, 3), (5, 4), (10, 8), (15, 12), (20, 16), (25, 20), (30, 24), (35, 28), (45, 36), (55, 44), (70, 56)),
    ((1, 1), (2, 2), (4, 3), (8, 6), (12, 9), (16, 12), (20, 15), (24, 18), (28, 21), (36, 27), (48, 36), (60, 45), (72, 54)),
    ((1, 1), (2, 2), (3, 2), (6, 4), (9, 6), (15, 10), (21, 14), (27, 18), (33, 22), (39, 26), (48, 32), (63, 42), (78, 52)),
    ((1, 1), (2, 2), (3, 3), (7, 4), (11, 6), (14, 8), (21, 12), (28, 16), (35, 20), (42, 24), (56, 32), (70, 40), (84, 48)),
    ((1, 1), (2, 2), (4, 2), (6, 3), (10, 5), (16, 8), (22, 11), (30, 15), (38, 19), (46, 23), (60, 30), (74, 37), (90, 45)),
    ((1, 1), (2, 2), (5, 2), (10, 4), (15, 6), (20, 8), (25, 10), (30, 12), (40, 16), (50, 20), (65, 26), (80, 32), (100, 40)),
    ((1, 1), (2, 2), (6, 2), (9, 3), (15, 5), (21, 7), (27, 9), (36, 12), (45, 15), (54, 18), (72, 24), (90, 30), (111, 37)),
)
INFINITY_BUDGETS = {"0.06M": 7, "0.25M": 10, "0.60M": 12, "1M": 13}  # scales of a pixel budget


def infinity_schedules(budget: str) -> tuple[list, list]:
    """Infinity's schedules of a pixel budget, the square one first, and for each the reference grid of its rotary positions.

    Raises:
        ValueError: an unknown budget.
    """
    if budget not in INFINITY_BUDGETS:
        raise ValueError(f"`budget` must be one of {', '.join(INFINITY_BUDGETS)}, got {budget!r}.")
    square = tuple((side, side) for side in INFINITY_SIDES)
    lying = tuple(tuple((width, height) for height, width in grids) for grids in INFINITY_UPRIGHT)
    whole = (square, *(grids for pair in zip(INFINITY_UPRIGHT, lying) for grids in pair))
    schedules = [ScaleSchedule(grids[: INFINITY_BUDGETS[budget]]).to_list() for grids in whole]
    return schedules, [list(grids[-1]) for grids in whole]


@in_words
@strict
class VargptBSQConfig(VargptImageTokenizerConfig):
    r"""Sizes of the image tokenizer of Infinity, a multi-scale residual BSQ-VAE.

    Args:
        schedules (`list`): scale schedules of the images, each a list of grids (height, width) or of side lengths of square ones,
            coarse to fine; the first one is the default. See [`ScaleSchedule`].
        latent_channels (`int`): bits d of one code, at most 62.
        in_channels (`int`): color channels of the images.
        base_channels (`int`): width of the first level of encoder and decoder.
        channel_multipliers (`tuple[int, ...]`): width of each level over `base_channels`; each level after the first
            halves the side.
        num_res_blocks (`int`): residual blocks per encoder level; a decoder level has one more.
        norm_num_groups (`int`), norm_eps (`float`): GroupNorm of the residual blocks.
        max_flip_rate (`float`): bitwise self-correction (arXiv 2412.04431, section 3.4): in training every scale of a batch draws a rate
            of whole percents from 0 to this one, and so many of the bits that are fed forward are inverted. 0 switches it off.
        commitment_weight (`float`), entropy_weight (`float`), diversity_weight (`float`): of the tokenizer's own loss: latents near their
            codes; bits that are certain; bits that differ from image to image.
        entropy_temperature (`float`): of the bits' probabilities in that loss.

    Raises:
        ValueError: schedules whose grids shrink; widths that GroupNorm cannot split; values out of range.
    """

    model_type = "vargpt_bsq"

    schedules: list | tuple = (INFINITY_SIDES[:10],)
    latent_channels: int = 32
    in_channels: int = 3
    base_channels: int = 128
    channel_multipliers: list[int] | tuple[int, ...] = (1, 2, 4, 4, 4)
    num_res_blocks: int = 2
    norm_num_groups: int = 32
    norm_eps: float = 1e-6
    max_flip_rate: float | int = 0.3
    commitment_weight: float | int = 0.25
    entropy_weight: float | int = 0.1
    diversity_weight: float | int = 1.0
    entropy_temperature: float | int = 0.01

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        self.check_schedules()
        check_autoencoder(self)
        if self.latent_channels > 62:
            raise ValueError(f"`latent_channels` must be at most 62, so that a code's bits fit into an int64, got {self.latent_channels}.")
        check_number("max_flip_rate", self.max_flip_rate, most=1.0)
        for name in ("commitment_weight", "entropy_weight", "diversity_weight"):
            check_number(name, getattr(self, name))
        check_number("entropy_temperature", self.entropy_temperature, excluded=(0.0,))

    @property
    def downsampling(self) -> int:
        """Pixels per latent position, along one side."""
        return 2 ** (len(self.channel_multipliers) - 1)

    @property
    def num_symbols(self) -> int:
        """Bits d of a code."""
        return self.latent_channels

    @property
    def num_classes(self) -> int:
        """A bit has two values."""
        return 2


class VargptBSQModel(VargptImageTokenizer):
    """Multi-scale residual BSQ-VAE: `encode` pixels to codes, `decode` codes to pixels, `forward` to train it."""

    config: VargptBSQConfig
    encoding_modules = ("encoder",)
    code_modules = ("encoder", "decoder.conv_in")  # the layer that reads the bits gives them their meaning
    _no_split_modules = ["VargptConvResidualBlock"]

    def __init__(self, config: VargptBSQConfig):
        super().__init__(config)
        self.encoder = VargptConvEncoder(config, attention=False)
        self.decoder = VargptConvDecoder(config, attention=False)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        init_convolutions(module)

    def encode_latents(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.encoder(channels_last_on_cpu(pixel_values.to(self.encoder.conv_in.weight.dtype))).contiguous()

    def decode_latents(self, f_hat: torch.Tensor) -> torch.Tensor:
        return self.decoder(channels_last_on_cpu(f_hat.to(self.decoder.conv_in.weight.dtype))).contiguous()

    # ---- bits

    def bits_to_latents(self, bits: torch.Tensor) -> torch.Tensor:
        """Points on the sphere (…, d), each component ±1/√d, float32, of bits (…, d)."""
        return (2.0 * bits.float() - 1.0) / self.config.latent_channels**0.5

    def upsample(self, latents: torch.Tensor, schedule: ScaleSchedule) -> torch.Tensor:
        """Latents (N, d, h, w) of one scale on the latent grid, bilinear."""
        if tuple(latents.shape[2:]) == schedule.final_grid:
            return latents
        return F.interpolate(latents, size=schedule.final_grid, mode="bilinear")

    def residuals(
        self, latents: torch.Tensor, schedule: ScaleSchedule, flips: torch.BoolTensor | None = None
    ) -> Iterator[tuple[torch.Tensor, torch.BoolTensor, torch.Tensor]]:
        """For each scale: what the coarser ones left of float32 latents (N, d, H, W), on its grid; its bits (N, l, d); f̂ after it.

        Args:
            flips: bits (N, L, d) that are inverted in what is fed forward, in f̂ and so in all later residuals, while the bits that are
                handed out stay those of the residual.
        """
        f_hat = torch.zeros_like(latents)
        flips_of_scales = [None] * len(schedule) if flips is None else schedule.split(flips)
        for grid, flipped in zip(schedule.grids, flips_of_scales):
            residual = latents - f_hat
            if grid != schedule.final_grid:
                residual = F.interpolate(residual, size=grid, mode="area")
            bits = residual.flatten(2).transpose(1, 2) > 0  # the projection to the sphere leaves signs as they are
            fed = bits if flipped is None else bits ^ flipped
            f_hat = f_hat + self.upsample(self.bits_to_latents(fed).transpose(1, 2).unflatten(2, grid), schedule)
            yield residual, bits, f_hat

    def quantize(self, latents: torch.Tensor, schedule: ScaleSchedule) -> torch.LongTensor:
        return torch.cat([self.from_symbols(bits.long()) for _, bits, _ in self.residuals(latents.float(), schedule)], dim=1)

    def contribution(self, codes: torch.LongTensor, scale: int, schedule: ScaleSchedule) -> torch.Tensor:
        latents = self.bits_to_latents(self.to_symbols(codes)).transpose(1, 2).unflatten(2, schedule.grids[scale])
        return self.upsample(latents, schedule)

    def next_input(self, f_hat: torch.Tensor, scale: int, schedule: ScaleSchedule) -> torch.Tensor:
        if (grid := schedule.grids[scale]) != schedule.final_grid:
            f_hat = F.interpolate(f_hat, size=grid, mode="bilinear")
        return f_hat.flatten(2).transpose(1, 2)

    def fingerprint_tensors(self) -> dict[str, torch.Tensor]:
        """No codebook is learned: which latents the signs stand for is decided by the layer that reads them.

        Its own signs, which no rounding to another format changes, tell image tokenizers apart.
        """
        return {"bits": torch.tensor(self.config.latent_channels), "reading": self.decoder.conv_in.weight.signbit()}

    @property
    def last_layer(self) -> nn.Parameter:
        return self.decoder.conv_out.weight

    @property
    def corrects_itself(self) -> bool:
        return self.config.max_flip_rate > 0

    # ---- self-correction

    def draw_flips(self, num_images: int, schedule: ScaleSchedule, device: torch.device) -> torch.BoolTensor:
        """Bits (N, L, d) to be inverted: at every scale a share of whole percents, from 0 to `max_flip_rate`, alike for the whole batch."""
        most = round(100 * self.config.max_flip_rate)
        rates = torch.randint(most + 1, (len(schedule),), device=device) / 100
        rates = rates[schedule.scale_of_position(device)]
        return torch.rand(num_images, schedule.num_positions, self.config.latent_channels, device=device) < rates[:, None]

    @torch.no_grad()
    def training_pair(
        self,
        images: torch.Tensor | None,
        schedule: ScaleSchedule | None = None,
        codes: torch.LongTensor | None = None,
        flips: torch.BoolTensor | None = None,
    ) -> tuple[torch.LongTensor, torch.Tensor]:
        """See [`VargptImageTokenizer.training_pair`]; in training mode with self-correction.

        Labels are the bits of each residual, and inputs are made of the flipped ones. That needs the latents: codes made ahead have lost
        them, and are taken as they are, without self-correction.

        Args:
            flips: bits (N, L, d) to invert, in place of drawn ones.
        """
        schedule = schedule or self.default_schedule
        if codes is not None:
            return super().training_pair(None, schedule, codes=codes)
        if flips is None and self.training and self.config.max_flip_rate > 0:
            flips = self.draw_flips(len(images), schedule, images.device)
        if flips is None:
            return super().training_pair(images, schedule)
        self.check_pixels(images, schedule)
        with torch.autocast(images.device.type, enabled=False):
            latents = torch.cat([self.encode_latents(part) for part in images.split(self.images_at_once(schedule))]).float()
            labels, inputs = [], []
            for scale, (_, bits, f_hat) in enumerate(self.residuals(latents, schedule, flips)):
                labels.append(self.from_symbols(bits.long()))
                if scale + 1 < len(schedule):
                    inputs.append(self.next_input(f_hat, scale + 1, schedule))
            none = latents.new_zeros(len(latents), 0, latents.shape[1])
            return torch.cat(labels, dim=1), torch.cat([none, *inputs], dim=1)

    # ---- the tokenizer's own training

    def quantize_to_train(
        self, latents: torch.Tensor, schedule: ScaleSchedule, num_scales: torch.LongTensor | None
    ) -> tuple[torch.LongTensor, torch.Tensor, torch.Tensor]:
        codes, losses, wanted = [], [], None
        with torch.autocast(latents.device.type, enabled=False):
            for scale, (residual, bits, f_hat) in enumerate(self.residuals(latents.float(), schedule)):
                codes.append(self.from_symbols(bits.long()))
                losses.append(self._loss_of_scale(residual, bits))
                wanted = after_scale(wanted, f_hat, scale, num_scales)
        return torch.cat(codes, dim=1), wanted, torch.stack(losses).mean()

    def _loss_of_scale(self, residual: torch.Tensor, bits: torch.BoolTensor) -> torch.Tensor:
        """Commitment and entropy terms of one scale (arXiv 2406.07548, sections 4.1 and 4.2), from residuals (N, d, h, w).

        On the sphere a bit of component z has the probability σ(2 z / (τ √d)); bits are taken as independent.
        """
        config = self.config
        unit = F.normalize(residual.flatten(2).transpose(1, 2), dim=-1, eps=1e-12)
        commitment = (unit - self.bits_to_latents(bits)).square().sum(-1).mean()
        logits = 2 * unit / (config.entropy_temperature * config.latent_channels**0.5)
        certain = (F.softplus(logits) - logits * logits.sigmoid()).sum(-1).mean()  # entropy of σ(x), which stays finite where it is 0 or 1
        mean = logits.sigmoid().mean((0, 1)).clamp(1e-6, 1 - 1e-6)
        diverse = -(mean * mean.log() + (1 - mean) * (1 - mean).log()).sum()
        return config.commitment_weight * commitment + config.entropy_weight * (certain - config.diversity_weight * diverse)


VargptBSQModel.register_for_auto_class()
VargptBSQConfig.register_for_auto_class()

__all__ = ["INFINITY_SIDES", "VargptBSQConfig", "VargptBSQModel", "infinity_schedules"]
