"""Image tokenizer of VARGPT: a multi-scale residual VQ-VAE, pixels ⇄ codes (VAR, arXiv 2404.02905, section 3.2).

Shapes: B batch, L codes of one picture over all scales, l codes of one scale, V codebook size, Cz latent channels, H W the
latent grid (the last scale), h w the grid of one scale. Codes run coarse to fine, row by row inside a scale.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput, torch_compilable_check
from transformers.utils.generic import can_return_tuple

from .configuration_vargpt import VargptVQConfig

# A batch goes through the convolutions in parts of so many pixels: four pictures of 256×256, which keep any machine busy.
PIXELS_AT_ONCE = 4 * 256**2


@dataclass
class VargptVQOutput(ModelOutput):
    """What a training pass of the image tokenizer gives.

    Args:
        reconstruction (`torch.Tensor` of shape `(B, 3, image_size, image_size)`): decoded pixels, not clamped.
        codes (`torch.LongTensor` of shape `(B, L)`): codes of the pictures.
        quantization_loss (`torch.Tensor`, scalar): codebook term plus β times commitment term, mean over the scales.
    """

    reconstruction: torch.Tensor | None = None
    codes: torch.LongTensor | None = None
    quantization_loss: torch.Tensor | None = None


class VargptVQResidualBlock(nn.Module):
    """(GroupNorm, SiLU, 3×3 convolution) twice beside a shortcut."""

    def __init__(self, config: VargptVQConfig, in_channels: int, out_channels: int):
        super().__init__()
        self.norm1 = nn.GroupNorm(config.norm_num_groups, in_channels, eps=config.norm_eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1)
        self.norm2 = nn.GroupNorm(config.norm_num_groups, out_channels, eps=config.norm_eps)
        self.conv2 = nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1)
        same = in_channels == out_channels
        self.shortcut = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, kernel_size=1)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        # In place and one name, since at full resolution every tensor that is held counts, and so does every pass over it.
        residual = self.conv1(F.silu(self.norm1(hidden_states), inplace=True))
        residual = F.silu(self.norm2(residual), inplace=True)
        residual = self.conv2(residual)
        return residual.add_(self.shortcut(hidden_states))


class VargptVQNonLocalBlock(nn.Module):
    """Single-head attention over all places of the grid.

    Not named as an attention layer, since Transformers takes by its name what follows the chosen attention implementation; this
    block, as wide as a whole level, computes the same whatever is chosen.
    """

    def __init__(self, config: VargptVQConfig, channels: int):
        super().__init__()
        self.norm = nn.GroupNorm(config.norm_num_groups, channels, eps=config.norm_eps)
        self.qkv = nn.Conv2d(channels, 3 * channels, kernel_size=1)
        self.out_proj = nn.Conv2d(channels, channels, kernel_size=1)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        query, key, value = self.qkv(self.norm(hidden_states)).flatten(2).transpose(1, 2).chunk(3, dim=-1)
        attended = F.scaled_dot_product_attention(query, key, value)
        return hidden_states + self.out_proj(attended.transpose(1, 2).reshape(hidden_states.shape))


class VargptVQDownsample(nn.Module):
    """Halves the side: a 3×3 convolution of stride 2 after one row and column of zeros, right and bottom only."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel_size=3, stride=2)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.conv(F.pad(hidden_states, (0, 1, 0, 1)))


class VargptVQUpsample(nn.Module):
    """Doubles the side: nearest neighbour, then a 3×3 convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel_size=3, padding=1)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.conv(F.interpolate(hidden_states, scale_factor=2.0, mode="nearest"))


class VargptVQLevel(nn.Module):
    """The residual blocks of one resolution, each followed by attention at the lowest, then the way to the next one."""

    def __init__(self, config: VargptVQConfig, in_channels: int, channels: int, num_blocks: int, attention: bool, resample: nn.Module):
        super().__init__()
        self.blocks = nn.ModuleList(
            VargptVQResidualBlock(config, in_channels if index == 0 else channels, channels) for index in range(num_blocks)
        )
        self.attentions = nn.ModuleList(VargptVQNonLocalBlock(config, channels) if attention else nn.Identity() for _ in range(num_blocks))
        self.resample = resample

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        for block, attention in zip(self.blocks, self.attentions):
            hidden_states = attention(block(hidden_states))
        return self.resample(hidden_states)


class VargptVQMiddle(nn.Module):
    """Residual block, attention, residual block at the lowest resolution."""

    def __init__(self, config: VargptVQConfig, channels: int):
        super().__init__()
        self.block_1 = VargptVQResidualBlock(config, channels, channels)
        self.attention = VargptVQNonLocalBlock(config, channels)
        self.block_2 = VargptVQResidualBlock(config, channels, channels)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.block_2(self.attention(self.block_1(hidden_states)))


class VargptVQEncoder(nn.Module):
    """Pixels (B, 3, image_size, image_size) to continuous latents (B, Cz, H, W)."""

    def __init__(self, config: VargptVQConfig):
        super().__init__()
        widths = [config.base_channels * multiplier for multiplier in config.channel_multipliers]
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(config.in_channels, config.base_channels, kernel_size=3, padding=1)
        self.levels = nn.ModuleList(
            VargptVQLevel(
                config,
                in_channels=config.base_channels if index == 0 else widths[index - 1],
                channels=width,
                num_blocks=config.num_res_blocks,
                attention=index == last,
                resample=nn.Identity() if index == last else VargptVQDownsample(width),
            )
            for index, width in enumerate(widths)
        )
        self.middle = VargptVQMiddle(config, widths[-1])
        self.norm_out = nn.GroupNorm(config.norm_num_groups, widths[-1], eps=config.norm_eps)
        self.conv_out = nn.Conv2d(widths[-1], config.latent_channels, kernel_size=3, padding=1)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        hidden_states = self.conv_in(pixel_values)
        for level in self.levels:
            hidden_states = level(hidden_states)
        return self.conv_out(F.silu(self.norm_out(self.middle(hidden_states)), inplace=True))


class VargptVQDecoder(nn.Module):
    """Latents (B, Cz, H, W) to pixels (B, 3, image_size, image_size): the encoder's mirror image, level by level."""

    def __init__(self, config: VargptVQConfig):
        super().__init__()
        widths = [config.base_channels * multiplier for multiplier in config.channel_multipliers]
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(config.latent_channels, widths[-1], kernel_size=3, padding=1)
        self.middle = VargptVQMiddle(config, widths[-1])
        self.levels = nn.ModuleList(
            VargptVQLevel(
                config,
                in_channels=widths[min(index + 1, last)],
                channels=width,
                num_blocks=config.num_res_blocks + 1,
                attention=index == last,
                resample=nn.Identity() if index == 0 else VargptVQUpsample(width),
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


def channels_last_on_cpu(pixels: torch.Tensor) -> torch.Tensor:
    """The same pixels or latents (B, channels, H, W), laid out as CPUs convolve them fastest, in bfloat16 twice as fast.

    Without gradients only: training of the image tokenizer itself rounds as it always has.
    """
    wanted = pixels.device.type == "cpu" and not torch.is_grad_enabled()
    return pixels.contiguous(memory_format=torch.channels_last) if wanted else pixels


def residual_conv_index(scale_index: int, num_scales: int, num_convs: int) -> int:
    """Which shared convolution φ a scale uses: the one whose tick lies nearest to `scale_index / (num_scales - 1)`.

    The ticks are spread evenly inside [0, 1] in float64. For VAR's 10 scales and 4 convolutions the result is
    0 0 1 1 1 2 2 3 3 3, where scales 2 and 7 are ties that rounding decides.
    """
    margin = 1 / (3 * num_convs) if num_convs == 4 else 1 / (2 * num_convs)
    ticks = np.linspace(margin, 1 - margin, num_convs)
    return int(np.argmin(np.abs(ticks - scale_index / max(num_scales - 1, 1))))


class VargptResidualQuantizer(nn.Module):
    """Quantises latents scale by scale: each scale codes what the coarser ones left (VAR, algorithms 1 and 2).

    Always computes in float32, whatever the dtype of the model: the codes hang on small differences of distances.
    """

    def __init__(self, config: VargptVQConfig):
        super().__init__()
        self.scales = config.scales
        self.latent_size = config.latent_size
        self.commitment_weight = config.commitment_weight
        self.residual_conv_ratio = config.residual_conv_ratio
        self.conv_of_scale = [residual_conv_index(index, len(config.scales), config.num_residual_convs) for index in range(len(config.scales))]
        self.codebook = nn.Embedding(config.codebook_size, config.latent_channels)
        self.residual_convs = nn.ModuleList(
            nn.Conv2d(config.latent_channels, config.latent_channels, kernel_size=3, padding=1) for _ in range(config.num_residual_convs)
        )

    def nearest_codes(self, latents: torch.Tensor) -> torch.LongTensor:
        """Codes (B, h·w) of the codebook rows nearest in squared L2 to latents (B, Cz, h, w)."""
        codebook = self.codebook.weight.float()
        flat = latents.flatten(2).transpose(1, 2)
        distances = codebook.square().sum(1) - 2 * flat @ codebook.T  # less |latent|², the same for every code
        return distances.min(-1).indices  # on CPUs twice as fast as argmin

    def contribution(self, codes: torch.LongTensor, scale_index: int) -> torch.Tensor:
        """What one scale adds to f̂: φ of the interpolated codebook rows, float32 (B, Cz, H, W), from codes (B, l)."""
        side = self.scales[scale_index]
        latents = F.embedding(codes, self.codebook.weight.float()).transpose(1, 2).unflatten(2, (side, side))
        if side != self.latent_size:
            latents = F.interpolate(latents, size=(self.latent_size, self.latent_size), mode="bicubic")
        conv = self.residual_convs[self.conv_of_scale[scale_index]]
        convolved = F.conv2d(latents, conv.weight.float(), conv.bias.float(), padding=1)
        return latents.mul(1 - self.residual_conv_ratio).add(convolved, alpha=self.residual_conv_ratio)

    def next_scale_input(self, f_hat: torch.Tensor, scale_index: int) -> torch.Tensor:
        """f̂ (B, Cz, H, W) area-interpolated to the grid of `scale_index`, as tokens (B, l, Cz)."""
        side = self.scales[scale_index]
        if side != self.latent_size:
            f_hat = F.interpolate(f_hat, size=(side, side), mode="area")
        return f_hat.flatten(2).transpose(1, 2)

    def encode(self, latents: torch.Tensor, num_scales: torch.LongTensor | None = None) -> tuple[torch.LongTensor, torch.Tensor, torch.Tensor]:
        """Quantises latents (B, Cz, H, W).

        Args:
            num_scales: after how many scales, (B,) in [1, S], the f̂ of each picture is wanted; all by default.

        Returns:
            codes (B, L); f̂ after those scales (B, Cz, H, W), which carries gradients to codebook and φ only; the
            quantisation loss (scalar).
        """
        with torch.autocast(latents.device.type, enabled=False):
            latents = latents.float()
            target = latents.detach()
            f_hat = wanted = torch.zeros_like(target)
            codes, losses = [], []
            for index, side in enumerate(self.scales):
                residual = target - f_hat.detach()
                if side != self.latent_size:
                    residual = F.interpolate(residual, size=(side, side), mode="area")
                codes.append(self.nearest_codes(residual))
                f_hat = f_hat + self.contribution(codes[-1], index)
                commitment = F.mse_loss(latents, f_hat.detach())
                losses.append(F.mse_loss(f_hat, target) + self.commitment_weight * commitment)
                wanted = f_hat if num_scales is None else torch.where((num_scales > index)[:, None, None, None], f_hat, wanted)
        return torch.cat(codes, dim=1), wanted, torch.stack(losses).mean()

    def accumulate(self, codes: torch.LongTensor, num_scales: int | None = None) -> torch.Tensor:
        """f̂ (B, Cz, H, W) after `num_scales` scales (all by default), from at least their codes (B, ≥ l...)."""
        f_hat = None
        sizes = [side * side for side in self.scales[:num_scales]]
        for index, scale_codes in enumerate(codes[:, : sum(sizes)].split(sizes, dim=1)):
            addition = self.contribution(scale_codes, index)
            f_hat = addition if f_hat is None else f_hat + addition
        return f_hat

    def decoder_inputs(self, codes: torch.LongTensor) -> torch.Tensor:
        """Teacher-forcing input of scales 1…S−1, (B, L − p₀², Cz): f̂ of all coarser scales on each scale's grid."""
        sizes = [side * side for side in self.scales]
        f_hat = 0
        inputs = []
        for index, scale_codes in enumerate(codes.split(sizes, dim=1)[:-1]):
            f_hat = f_hat + self.contribution(scale_codes, index)
            inputs.append(self.next_scale_input(f_hat, index + 1))
        if not inputs:
            return self.codebook.weight.new_zeros(codes.shape[0], 0, self.codebook.embedding_dim, dtype=torch.float32)
        return torch.cat(inputs, dim=1)


class VargptVQModel(PreTrainedModel):
    """Multi-scale residual VQ-VAE: `encode` pixels to codes, `decode` codes to pixels, `forward` to train it."""

    config: VargptVQConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _no_split_modules = ["VargptVQResidualBlock", "VargptVQNonLocalBlock"]
    _keep_in_fp32_modules_strict = ["quantizer"]  # a few weights: rounded, they would give other codes to the same picture
    # Its own attention is the same whatever is chosen; without these flags, choosing one for the whole VARGPT would fail here.
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: VargptVQConfig):
        super().__init__(config)
        kernel, channels = config.quant_conv_kernel_size, config.latent_channels
        self.encoder = VargptVQEncoder(config)
        self.quant_conv = nn.Conv2d(channels, channels, kernel_size=kernel, padding=kernel // 2)
        self.quantizer = VargptResidualQuantizer(config)
        self.post_quant_conv = nn.Conv2d(channels, channels, kernel_size=kernel, padding=kernel // 2)
        self.decoder = VargptVQDecoder(config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            init.kaiming_normal_(module.weight, nonlinearity="linear")
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.GroupNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=self.config.latent_channels**-0.5)

    def encode_latents(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Continuous latents (B, Cz, H, W) of pixels (B, 3, image_size, image_size) in [-1, 1]."""
        side = self.config.image_size
        if pixel_values.ndim != 4 or pixel_values.shape[1:] != (self.config.in_channels, side, side):
            raise ValueError(
                f"The image tokenizer takes pixels of shape (batch, {self.config.in_channels}, {side}, {side}), got "
                f"{tuple(pixel_values.shape)}: resize and crop the pictures (the processor does)."
            )
        return self.quant_conv(self.encoder(channels_last_on_cpu(pixel_values.to(self.quant_conv.weight.dtype)))).contiguous()

    def decode_latents(self, f_hat: torch.Tensor) -> torch.Tensor:
        """Pixels (B, 3, image_size, image_size), not clamped, of latents (B, Cz, H, W)."""
        return self.decoder(self.post_quant_conv(channels_last_on_cpu(f_hat.to(self.post_quant_conv.weight.dtype)))).contiguous()

    def _pictures_at_once(self) -> int:
        return max(PIXELS_AT_ONCE // self.config.image_size**2, 1)

    @torch.no_grad()
    def encode(self, pixel_values: torch.Tensor) -> torch.LongTensor:
        """Codes (B, L) of pixels (B, 3, image_size, image_size) in [-1, 1].

        Raises:
            ValueError: pixels of another shape.
        """
        with torch.autocast(pixel_values.device.type, enabled=False):  # codes are targets: the same with and without autocast
            latents = [self.encode_latents(part) for part in pixel_values.split(self._pictures_at_once())]
            return self.quantizer.encode(torch.cat(latents))[0]

    def fingerprint(self) -> str:
        """What the meaning of codes hangs on, as 16 hexadecimal digits: scales, codebook and φ, which stay in float32."""
        digest = hashlib.sha256(repr(tuple(self.config.scales)).encode())
        for name, tensor in sorted(self.quantizer.state_dict().items()):
            digest.update(name.encode() + tensor.float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def check_codes(self, codes: torch.LongTensor, num_scales: int | None = None) -> None:
        """Raises a ValueError unless `codes` is (batch, ≥ places of the scales asked for) with values in [0, V)."""
        num_scales = len(self.config.scales) if num_scales is None else num_scales
        if not 1 <= num_scales <= len(self.config.scales):
            raise ValueError(f"`num_scales` must be between 1 and {len(self.config.scales)}, got {num_scales}.")
        needed = sum(side * side for side in self.config.scales[:num_scales])
        if codes.ndim != 2 or codes.shape[1] < needed or codes.shape[1] > self.config.num_image_tokens:
            raise ValueError(
                f"Codes of {num_scales} scales must have shape (batch, {needed}), at most (batch, "
                f"{self.config.num_image_tokens}); got {tuple(codes.shape)}."
            )
        torch_compilable_check(
            ((codes >= 0) & (codes < self.config.codebook_size)).all(),
            lambda: (
                f"Codes must lie in [0, {self.config.codebook_size}), got values from {codes.min()} to {codes.max()}: were "
                "they made by another image tokenizer?"
            ),
        )

    @torch.no_grad()
    def decode(self, codes: torch.LongTensor, num_scales: int | None = None) -> torch.Tensor:
        """Pixels (B, 3, image_size, image_size) in [-1, 1] of codes (B, L).

        Args:
            codes: codes of the pictures, coarse to fine; those of scales after `num_scales` may be absent.
            num_scales: how many scales to use (all by default); fewer give the coarse pictures on the way.

        Raises:
            ValueError: codes of another length or beyond the codebook, or `num_scales` out of range.
        """
        self.check_codes(codes, num_scales)
        f_hat = self.quantizer.accumulate(codes, num_scales)
        return torch.cat([self.decode_latents(part) for part in f_hat.split(self._pictures_at_once())]).clamp(-1, 1)

    @can_return_tuple
    def forward(self, pixel_values: torch.Tensor, num_scales: torch.LongTensor | None = None, **kwargs) -> tuple | VargptVQOutput:
        """Encodes, quantises with a straight-through gradient, and decodes pixels (B, 3, image_size, image_size).

        Args:
            num_scales: from how many scales, (B,) in [1, S], each picture is decoded; all by default.
        """
        latents = self.encode_latents(pixel_values)
        codes, f_hat, loss = self.quantizer.encode(latents, num_scales)
        straight_through = latents + (f_hat - latents).detach()
        return VargptVQOutput(reconstruction=self.decode_latents(straight_through), codes=codes, quantization_loss=loss)


VargptVQModel.register_for_auto_class()

__all__ = ["VargptResidualQuantizer", "VargptVQModel", "VargptVQOutput", "residual_conv_index"]
