"""VAR's image tokenizer, the one of VARGPT v1: a multi-scale residual VQ-VAE, pixels ⇄ codes (VAR, arXiv 2404.02905, section 3.2).

Shapes: N images, L codes of one image over all scales, l codes of one scale, V codebook size, Cz latent channels, H W the
latent grid (the last scale), h w the grid of one scale. Codes run coarse to fine, row by row inside a scale.
"""

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import initialization as init

from .autoencoder_vargpt import VargptConvDecoder, VargptConvEncoder, check_autoencoder, init_convolutions
from .base_configuration_vargpt import MOST_LAYERS, check_number, check_size, in_words
from .image_tokenizer_vargpt import VargptImageTokenizer, VargptImageTokenizerConfig, after_scale, channels_last_on_cpu
from .scales_vargpt import VAR_SIDES, ScaleSchedule


@in_words
@strict
class VargptVQConfig(VargptImageTokenizerConfig):
    r"""Sizes of the image tokenizer of VAR, a multi-scale residual VQ-VAE (arXiv 2404.02905, section 3.2).

    Args:
        schedules (`list`): scale schedules of the images, each a list of grids (height, width) or of side lengths of square ones,
            coarse to fine; the first one is the default. See [`ScaleSchedule`].
        codebook_size (`int`): number of codes V.
        latent_channels (`int`): width Cz of one code.
        in_channels (`int`): color channels of the images.
        base_channels (`int`): width of the first level of encoder and decoder.
        channel_multipliers (`tuple[int, ...]`): width of each level over `base_channels`; each level after the first
            halves the side.
        num_res_blocks (`int`): residual blocks per encoder level; a decoder level has one more.
        norm_num_groups (`int`), norm_eps (`float`): GroupNorm of the residual blocks.
        local_encoder (`bool`): leave out what shows the encoder the whole image at once: attention, and GroupNorm, in place of which norms
            see the channels of one position. So latents, and codes with them, depend less on what is elsewhere in the image. VAR's has both.
        window_size (`int`, *optional*): side in positions of the windows that are encoded by themselves, as if each were an image: encoder
            and φ do not look beyond them. What fills whole windows has, on the scales from there on, the same codes wherever it stands and
            whatever stands beside it, up to what coarser scales have coded. VAR's encodes the whole image (`None`).
        quant_conv_kernel_size (`int`): kernel of the convolutions around the quantizer.
        num_residual_convs (`int`): convolutions φ shared by the scales.
        residual_conv_ratio (`float`): share of the convolution in φ, in [0, 1].
        commitment_weight (`float`): β of the tokenizer's own loss.

    Raises:
        ValueError: schedules whose grids shrink; widths that GroupNorm cannot split; windows that do not tile the latent grid, or that a
            grid cuts; values out of range.
    """

    model_type = "vargpt_vq"

    schedules: list | tuple = (VAR_SIDES,)
    codebook_size: int = 4096
    latent_channels: int = 32
    in_channels: int = 3
    base_channels: int = 160
    channel_multipliers: list[int] | tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    norm_num_groups: int = 32
    norm_eps: float = 1e-6
    local_encoder: bool = False
    window_size: int | None = None
    quant_conv_kernel_size: int = 3
    num_residual_convs: int = 4
    residual_conv_ratio: float | int = 0.5
    commitment_weight: float | int = 0.25

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        self.check_schedules()
        check_autoencoder(self)
        self._check_numbers()
        if self.quant_conv_kernel_size % 2 == 0:
            raise ValueError(f"`quant_conv_kernel_size` must be odd, got {self.quant_conv_kernel_size}.")
        if self.window_size is not None:
            self._check_windows()

    def _check_windows(self) -> None:
        check_size("window_size", self.window_size)
        for schedule in self.scale_schedules:
            for sides in zip(*schedule.grids):  # all heights, all widths
                windows, left = divmod(sides[-1], self.window_size)
                if left or any(windows % side and side % windows for side in sides):
                    raise ValueError(
                        f"Windows of {self.window_size}×{self.window_size} positions must tile the latent grid, and every grid must have whole "
                        f"positions in a window, or whole windows in a position; the grids are {schedule.to_list()}."
                    )

    def _check_numbers(self) -> None:
        for name in ("codebook_size", "quant_conv_kernel_size"):
            check_size(name, getattr(self, name))
        check_size("num_residual_convs", self.num_residual_convs, MOST_LAYERS)
        check_number("residual_conv_ratio", self.residual_conv_ratio, most=1.0)
        check_number("commitment_weight", self.commitment_weight)

    @property
    def downsampling(self) -> int:
        """Pixels per latent position, along one side."""
        return 2 ** (len(self.channel_multipliers) - 1)

    @property
    def num_symbols(self) -> int:
        """A code is one symbol."""
        return 1

    @property
    def num_classes(self) -> int:
        """Classes V of that symbol: the codebook's rows."""
        return self.codebook_size


def residual_conv_index(scale_index: int, num_scales: int, num_convs: int) -> int:
    """Which shared convolution φ a scale uses: the one whose tick lies nearest to `scale_index / (num_scales - 1)`.

    The ticks are spread evenly inside [0, 1] in float64. For VAR's 10 scales and 4 convolutions the result is
    0 0 1 1 1 2 2 3 3 3, where scales 2 and 7 are ties that rounding decides.
    """
    margin = 1 / (3 * num_convs) if num_convs == 4 else 1 / (2 * num_convs)
    ticks = np.linspace(margin, 1 - margin, num_convs)
    return int(np.argmin(np.abs(ticks - scale_index / max(num_scales - 1, 1))))


def by_windows(function: Callable[[torch.Tensor], torch.Tensor], tensor: torch.Tensor, side: int | None) -> torch.Tensor:
    """What a function makes of a tensor (N, channels, height, width), of each window of `side`×`side` by itself; None: of the whole."""
    if side is None:
        return function(tensor)
    number, _, height, width = tensor.shape
    rows, columns = height // side, width // side
    windows = tensor.unflatten(3, (columns, side)).unflatten(2, (rows, side)).permute(0, 2, 4, 1, 3, 5)
    made = function(windows.flatten(0, 2)).unflatten(0, (number, rows, columns))
    return made.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


class VargptResidualQuantizer(nn.Module):
    """Quantizes latents scale by scale: each scale codes what the coarser ones left (VAR, algorithms 1 and 2).

    Always computes in float32, whatever the dtype of the model: the codes depend on small differences of distances.
    """

    def __init__(self, config: VargptVQConfig):
        super().__init__()
        self.commitment_weight = config.commitment_weight
        self.residual_conv_ratio = config.residual_conv_ratio
        self.window_size = config.window_size
        self.codebook = nn.Embedding(config.codebook_size, config.latent_channels)
        self.residual_convs = nn.ModuleList(
            nn.Conv2d(config.latent_channels, config.latent_channels, kernel_size=3, padding=1) for _ in range(config.num_residual_convs)
        )
        self.conv_of_scale = {  # by the number of scales
            num_scales: [residual_conv_index(scale, num_scales, config.num_residual_convs) for scale in range(num_scales)]
            for num_scales in {len(schedule) for schedule in config.scale_schedules}
        }

    def nearest_codes(self, latents: torch.Tensor) -> torch.LongTensor:
        """Codes (N, h·w) of the codebook rows nearest in squared L2 to latents (N, Cz, h, w)."""
        codebook = self.codebook.weight.float()
        flat = latents.flatten(2).transpose(1, 2)
        distances = codebook.square().sum(1) - 2 * flat @ codebook.T  # less |latent|², the same for every code
        return distances.min(-1).indices  # on CPUs twice as fast as argmin

    def contribution(self, codes: torch.LongTensor, scale: int, schedule: ScaleSchedule) -> torch.Tensor:
        """What one scale adds to f̂: φ of the interpolated codebook rows, float32 (N, Cz, H, W), from codes (N, l)."""
        grid = schedule.grids[scale]
        latents = F.embedding(codes, self.codebook.weight.float()).transpose(1, 2).unflatten(2, grid)
        if grid != schedule.final_grid:
            latents = F.interpolate(latents, size=schedule.final_grid, mode="bicubic" if self.window_size is None else "nearest")
        conv = self.residual_convs[self.conv_of_scale[len(schedule)][scale]]
        convolve = partial(F.conv2d, weight=conv.weight.float(), bias=conv.bias.float(), padding=1)
        convolved = by_windows(convolve, latents, self.window_size)
        return latents.mul(1 - self.residual_conv_ratio).add(convolved, alpha=self.residual_conv_ratio)

    def residuals(self, latents: torch.Tensor, schedule: ScaleSchedule) -> Iterator[tuple[torch.Tensor, torch.LongTensor, torch.Tensor]]:
        """For each scale: what the coarser ones left of float32 latents (N, Cz, H, W), on its grid; its codes (N, l); f̂ after it."""
        f_hat = torch.zeros_like(latents)
        for scale, grid in enumerate(schedule.grids):
            residual = latents - f_hat.detach()
            if grid != schedule.final_grid:
                residual = F.interpolate(residual, size=grid, mode="area")
            codes = self.nearest_codes(residual)
            f_hat = f_hat + self.contribution(codes, scale, schedule)
            yield residual, codes, f_hat

    def encode(
        self, latents: torch.Tensor, schedule: ScaleSchedule, num_scales: torch.LongTensor | None = None
    ) -> tuple[torch.LongTensor, torch.Tensor, torch.Tensor]:
        """Quantizes latents (N, Cz, H, W) for training.

        Args:
            num_scales: after how many scales, (N,) in [1, S], the f̂ of each image is wanted; all by default.

        Returns:
            codes (N, L); f̂ after those scales (N, Cz, H, W), which carries gradients to codebook and φ only; the
            quantization loss (scalar).
        """
        with torch.autocast(latents.device.type, enabled=False):
            latents = latents.float()
            target = latents.detach()
            wanted, codes, losses = None, [], []
            for scale, (_, scale_codes, f_hat) in enumerate(self.residuals(target, schedule)):
                codes.append(scale_codes)
                commitment = F.mse_loss(latents, f_hat.detach())
                losses.append(F.mse_loss(f_hat, target) + self.commitment_weight * commitment)
                wanted = after_scale(wanted, f_hat, scale, num_scales)
        return torch.cat(codes, dim=1), wanted, torch.stack(losses).mean()


class VargptVQModel(VargptImageTokenizer):
    """Multi-scale residual VQ-VAE: `encode` pixels to codes, `decode` codes to pixels, `forward` to train it."""

    config: VargptVQConfig
    _no_split_modules = ["VargptConvResidualBlock", "VargptNonLocalBlock"]
    encoding_modules = ("encoder", "quant_conv")
    code_modules = ("encoder", "quant_conv", "quantizer")
    _keep_in_fp32_modules_strict = ["quantizer"]  # a few weights: rounded, they would give other codes to the same image

    def __init__(self, config: VargptVQConfig):
        super().__init__(config)
        kernel, channels = config.quant_conv_kernel_size, config.latent_channels
        self.encoder = VargptConvEncoder(config, attention=not config.local_encoder, local=config.local_encoder)
        self.quant_conv = nn.Conv2d(channels, channels, kernel_size=kernel, padding=kernel // 2)
        self.quantizer = VargptResidualQuantizer(config)
        self.post_quant_conv = nn.Conv2d(channels, channels, kernel_size=kernel, padding=kernel // 2)
        self.decoder = VargptConvDecoder(config, attention=True)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        init_convolutions(module)
        if isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=self.config.latent_channels**-0.5)

    def encode_latents(self, pixel_values: torch.Tensor) -> torch.Tensor:
        size = self.config.window_size
        side = None if size is None else size * self.config.downsampling
        return by_windows(self._latents, pixel_values.to(self.quant_conv.weight.dtype), side).contiguous()

    def _latents(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.quant_conv(self.encoder(channels_last_on_cpu(pixel_values)))

    def decode_latents(self, f_hat: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.post_quant_conv(channels_last_on_cpu(f_hat.to(self.post_quant_conv.weight.dtype)))).contiguous()

    def quantize(self, latents: torch.Tensor, schedule: ScaleSchedule) -> torch.LongTensor:
        return torch.cat([codes for _, codes, _ in self.quantizer.residuals(latents.float(), schedule)], dim=1)

    def contribution(self, codes: torch.LongTensor, scale: int, schedule: ScaleSchedule) -> torch.Tensor:
        return self.quantizer.contribution(codes, scale, schedule)

    def next_input(self, f_hat: torch.Tensor, scale: int, schedule: ScaleSchedule) -> torch.Tensor:
        if (grid := schedule.grids[scale]) != schedule.final_grid:
            f_hat = F.interpolate(f_hat, size=grid, mode="area")
        return f_hat.flatten(2).transpose(1, 2)

    def fingerprint_tensors(self) -> dict[str, torch.Tensor]:
        return self.quantizer.state_dict()

    @property
    def last_layer(self) -> nn.Parameter:
        return self.decoder.conv_out.weight

    def quantize_to_train(
        self, latents: torch.Tensor, schedule: ScaleSchedule, num_scales: torch.LongTensor | None
    ) -> tuple[torch.LongTensor, torch.Tensor, torch.Tensor]:
        return self.quantizer.encode(latents, schedule, num_scales)


VargptVQModel.register_for_auto_class()
VargptVQConfig.register_for_auto_class()

__all__ = ["VargptResidualQuantizer", "VargptVQConfig", "VargptVQModel", "residual_conv_index"]
