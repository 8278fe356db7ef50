"""The convolutional autoencoder that image tokenizers quantize inside of: pixels to latents and back.

VAR's and Infinity's are of one form (residual blocks by levels, a middle, GroupNorm throughout); VAR's has attention at the lowest resolution.
A local encoder has neither attention nor GroupNorm, both of which look at the whole image.

Shapes: N images, height and width in pixels, H W the latent grid, Cz latent channels.
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init

from .base_configuration_vargpt import MOST_LAYERS, check_number, check_size
from .image_tokenizer_vargpt import VargptImageTokenizerConfig


class VargptPositionNorm(nn.LayerNorm):
    """LayerNorm over the channels of each position, (N, C, H, W)."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return super().forward(hidden_states.movedim(1, -1)).movedim(-1, 1)


def make_norm(config: VargptImageTokenizerConfig, channels: int, local: bool) -> nn.Module:
    """GroupNorm, or what sees one position alone (`local`)."""
    if local:
        return VargptPositionNorm(channels, eps=config.norm_eps)
    return nn.GroupNorm(config.norm_num_groups, channels, eps=config.norm_eps)


class VargptConvResidualBlock(nn.Module):
    """(Norm, SiLU, 3×3 convolution) twice beside a shortcut."""

    def __init__(self, config: VargptImageTokenizerConfig, in_channels: int, out_channels: int, local: bool = False):
        super().__init__()
        self.norm1 = make_norm(config, in_channels, local)
        self.conv1 = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1)
        self.norm2 = make_norm(config, out_channels, local)
        self.conv2 = nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1)
        same = in_channels == out_channels
        self.shortcut = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, kernel_size=1)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        # In place and one name, since at full resolution every tensor that is held counts, and so does every pass over it.
        residual = self.conv1(F.silu(self.norm1(hidden_states), inplace=True))
        residual = F.silu(self.norm2(residual), inplace=True)
        residual = self.conv2(residual)
        return residual.add_(self.shortcut(hidden_states))


class VargptNonLocalBlock(nn.Module):
    """Single-head attention over all positions of the grid.

    Not named as an attention layer, since Transformers takes by its name what follows the chosen attention implementation; this
    block, as wide as a whole level, computes the same whatever is chosen.
    """

    def __init__(self, config: VargptImageTokenizerConfig, channels: int):
        super().__init__()
        self.norm = nn.GroupNorm(config.norm_num_groups, channels, eps=config.norm_eps)
        self.qkv = nn.Conv2d(channels, 3 * channels, kernel_size=1)
        self.out_proj = nn.Conv2d(channels, channels, kernel_size=1)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        query, key, value = self.qkv(self.norm(hidden_states)).flatten(2).transpose(1, 2).chunk(3, dim=-1)
        attended = F.scaled_dot_product_attention(query, key, value)
        return hidden_states + self.out_proj(attended.transpose(1, 2).reshape(hidden_states.shape))


class VargptDownsample(nn.Module):
    """Halves the side: a 3×3 convolution of stride 2 after one row and column of zeros, right and bottom only."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel_size=3, stride=2)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.conv(F.pad(hidden_states, (0, 1, 0, 1)))


class VargptUpsample(nn.Module):
    """Doubles the side: nearest neighbor, then a 3×3 convolution.

    A kernel meets copies of the same value, whose weights can be summed first: both steps together are one transposed convolution with 4×4
    weights and stride 2, of 4 products for every 9. On CPUs in float32 that takes half the time for grids from 32×32 on; for smaller ones it
    takes longer, and in bfloat16 the sums of weights would be rounded.
    """

    fused_from = 32 * 32  # positions of the smaller grid

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel_size=3, padding=1)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if self._is_faster_fused(hidden_states):
            return F.conv_transpose2d(hidden_states, self._fused_weight(), self.conv.bias, stride=2, padding=1)
        return self.conv(F.interpolate(hidden_states, scale_factor=2.0, mode="nearest"))

    def _is_faster_fused(self, hidden_states: torch.Tensor) -> bool:
        if type(self.conv) is not nn.Conv2d or torch.is_autocast_enabled("cpu"):  # what an adapter has put in its place, for one
            return False
        here = all(tensor.device.type == "cpu" and tensor.dtype == torch.float32 for tensor in (hidden_states, self.conv.weight))
        return here and hidden_states.shape[-2:].numel() >= self.fused_from

    def _fused_weight(self) -> torch.Tensor:
        """Weights (inputs, outputs, 4, 4) of both steps: along either axis k[a] = w[2 − a] + w[3 − a], of those that there are."""
        weight = self.conv.weight.flip(2, 3).transpose(0, 1)
        weight = F.pad(weight, (0, 1)) + F.pad(weight, (1, 0))
        return F.pad(weight, (0, 0, 0, 1)) + F.pad(weight, (0, 0, 1, 0))


class VargptConvLevel(nn.Module):
    """The residual blocks of one resolution, each followed by attention at the lowest, then the way to the next one."""

    def __init__(
        self,
        config: VargptImageTokenizerConfig,
        in_channels: int,
        channels: int,
        num_blocks: int,
        attention: bool,
        resample: nn.Module,
        local: bool = False,
    ):
        super().__init__()
        self.blocks = nn.ModuleList(
            VargptConvResidualBlock(config, in_channels if index == 0 else channels, channels, local) for index in range(num_blocks)
        )
        self.attentions = nn.ModuleList(VargptNonLocalBlock(config, channels) if attention else nn.Identity() for _ in range(num_blocks))
        self.resample = resample

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        for block, attention in zip(self.blocks, self.attentions):
            hidden_states = attention(block(hidden_states))
        return self.resample(hidden_states)


class VargptConvMiddle(nn.Module):
    """Residual block, attention where there is some, residual block at the lowest resolution."""

    def __init__(self, config: VargptImageTokenizerConfig, channels: int, attention: bool, local: bool = False):
        super().__init__()
        self.block_1 = VargptConvResidualBlock(config, channels, channels, local)
        self.attention = VargptNonLocalBlock(config, channels) if attention else nn.Identity()
        self.block_2 = VargptConvResidualBlock(config, channels, channels, local)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.block_2(self.attention(self.block_1(hidden_states)))


class VargptConvEncoder(nn.Module):
    """Pixels (N, channels, height, width) to continuous latents (N, Cz, H, W).

    Args:
        config: with `base_channels`, `channel_multipliers`, `num_res_blocks`, `norm_num_groups`, `norm_eps`.
        attention: at the lowest resolution.
        local: norms over the channels of each position in place of GroupNorm.
    """

    def __init__(self, config: VargptImageTokenizerConfig, attention: bool, local: bool = False):
        super().__init__()
        widths = [config.base_channels * multiplier for multiplier in config.channel_multipliers]
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(config.in_channels, config.base_channels, kernel_size=3, padding=1)
        self.levels = nn.ModuleList(
            VargptConvLevel(
                config,
                in_channels=config.base_channels if index == 0 else widths[index - 1],
                channels=width,
                num_blocks=config.num_res_blocks,
                attention=attention and index == last,
                resample=nn.Identity() if index == last else VargptDownsample(width),
                local=local,
            )
            for index, width in enumerate(widths)
        )
        self.middle = VargptConvMiddle(config, widths[-1], attention, local)
        self.norm_out = make_norm(config, widths[-1], local)
        self.conv_out = nn.Conv2d(widths[-1], config.latent_channels, kernel_size=3, padding=1)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        hidden_states = self.conv_in(pixel_values)
        for level in self.levels:
            hidden_states = level(hidden_states)
        return self.conv_out(F.silu(self.norm_out(self.middle(hidden_states)), inplace=True))


class VargptConvDecoder(nn.Module):
    """Latents (N, Cz, H, W) to pixels (N, channels, height, width): the encoder's mirror image, level by level."""

    def __init__(self, config: VargptImageTokenizerConfig, attention: bool):
        super().__init__()
        widths = [config.base_channels * multiplier for multiplier in config.channel_multipliers]
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(config.latent_channels, widths[-1], kernel_size=3, padding=1)
        self.middle = VargptConvMiddle(config, widths[-1], attention)
        self.levels = nn.ModuleList(
            VargptConvLevel(
                config,
                in_channels=widths[min(index + 1, last)],
                channels=width,
                num_blocks=config.num_res_blocks + 1,
                attention=attention and index == last,
                resample=nn.Identity() if index == 0 else VargptUpsample(width),
            )
            for index, width in enumerate(widths)
        )
        self.norm_out = nn.GroupNorm(config.norm_num_groups, widths[0], eps=config.norm_eps)
        self.conv_out = nn.Conv2d(widths[0], config.in_channels, kernel_size=3, padding=1)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        hidden_states = self.middle(self.conv_in(latents))
        for level in reversed(self.levels):
            hidden_states = level(hidden_states)
        return self.conv_out(F.silu(self.norm_out(hidden_states), inplace=True))


@torch.no_grad()
def init_convolutions(module: nn.Module) -> None:
    """Fresh weights of a convolution or norm; other modules are left alone, and nothing is written over what was loaded."""
    if isinstance(module, nn.Conv2d):
        init.kaiming_normal_(module.weight, nonlinearity="linear")
        if module.bias is not None:
            init.zeros_(module.bias)
    elif isinstance(module, (nn.GroupNorm, nn.LayerNorm)):
        init.ones_(module.weight)
        init.zeros_(module.bias)


def check_autoencoder(config: VargptImageTokenizerConfig) -> None:
    """Raises a ValueError or TypeError for sizes that make no autoencoder."""
    config.channel_multipliers = tuple(config.channel_multipliers)
    for name in ("latent_channels", "in_channels", "base_channels", "norm_num_groups"):
        check_size(name, getattr(config, name))
    check_size("num_res_blocks", config.num_res_blocks, MOST_LAYERS)
    if not 1 <= len(config.channel_multipliers) <= 24:  # each after the first halves the side, which has 24 bits at most
        raise ValueError(f"`channel_multipliers` must be 1 to 24 numbers, one a level, got {len(config.channel_multipliers)}.")
    for multiplier in config.channel_multipliers:
        check_size("channel_multipliers", multiplier)
    widths = [config.base_channels * multiplier for multiplier in config.channel_multipliers]
    if any(width % config.norm_num_groups for width in widths):
        raise ValueError(f"Every level's width must be divisible by norm_num_groups={config.norm_num_groups}: {widths}.")
    check_number("norm_eps", config.norm_eps)


__all__ = ["VargptConvDecoder", "VargptConvEncoder", "check_autoencoder", "init_convolutions"]
