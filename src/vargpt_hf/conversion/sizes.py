"""Sizes of the image tokenizer and the visual decoder, inferred from the shapes of released tensors.

The released configuration says nothing of these two. Names here are those of VAR's own files: what the whole checkpoint puts
before them (`vae_local.`, `vargpt_gen.`) is removed first.
"""

import math
import re
from collections.abc import Sequence

import torch

from ..modeling.scales_vargpt import VAR_SIDES, ScaleSchedule
from ..modeling.var_decoder_vargpt import VargptVARDecoderConfig
from ..modeling.vq_vargpt import VargptVQConfig


class TensorShapes:
    """Shapes of the tensors below a prefix.

    Args:
        tensors: tensors by name.
        prefix: what is removed from the names; tensors without it are left out.
        where: what holds the tensors, for errors.
    """

    def __init__(self, tensors: dict[str, torch.Tensor], prefix: str = "", where: str = "The checkpoint"):
        self.prefix, self.where = prefix, where
        self.shapes = {name.removeprefix(prefix): tensor.shape for name, tensor in tensors.items() if name.startswith(prefix)}

    def of(self, name: str, axes: int) -> torch.Size:
        """The shape of a tensor with so many axes; ValueError where it is absent, has others or is empty."""
        if name not in self.shapes:
            raise ValueError(f"{self.where} lacks the tensor {self.prefix}{name}, off whose shape a size is read.")
        shape = self.shapes[name]
        if len(shape) != axes or not all(shape):
            raise ValueError(f"{self.where} has {self.prefix}{name} of shape {tuple(shape)}; {axes} axes are needed, none of them empty.")
        return shape

    def count(self, prefix: str) -> int:
        """How many numbered parts there are below `prefix`: the highest number and one."""
        pattern = re.compile(re.escape(prefix) + r"\.(\d+)\.")
        numbers = [int(match[1]) for name in self.shapes if (match := pattern.match(name))]
        if not numbers:
            raise ValueError(f"{self.where} lacks all tensors {self.prefix}{prefix}.*, by which parts are counted.")
        return max(numbers) + 1


def vq_config_of(shapes: TensorShapes, scales: Sequence[int]) -> VargptVQConfig:
    """Configuration of the image tokenizer with these shapes and these sides of code maps."""
    channels, in_channels = shapes.of("encoder.conv_in.weight", 4)[:2]
    levels = shapes.count("encoder.down")
    widths = [shapes.of(f"encoder.down.{level}.block.0.conv1.weight", 4)[0] for level in range(levels)]
    if any(width % channels for width in widths):
        raise ValueError(f"The widths {widths} of the image tokenizer's levels are not multiples of its first, {channels}.")
    codebook_size, latent_channels = shapes.of("quantize.embedding.weight", 2)
    return VargptVQConfig(
        schedules=[list(scales)],
        codebook_size=codebook_size,
        latent_channels=latent_channels,
        in_channels=in_channels,
        base_channels=channels,
        channel_multipliers=tuple(width // channels for width in widths),
        num_res_blocks=shapes.count("encoder.down.0.block"),
        quant_conv_kernel_size=shapes.of("quant_conv.weight", 4)[-1],
        num_residual_convs=shapes.count("quantize.quant_resi.qresi_ls"),
    )


def decoder_config_of(shapes: TensorShapes) -> VargptVARDecoderConfig:
    """Configuration of the visual decoder with these shapes."""
    width = shapes.of("word_embed.weight", 2)[0]
    return VargptVARDecoderConfig(
        hidden_size=width,
        num_hidden_layers=shapes.count("blocks"),
        num_attention_heads=math.prod(shapes.of("blocks.0.attn.scale_mul_1H11", 4)),
        mlp_ratio=shapes.of("blocks.0.ffn.fc1.weight", 2)[0] / width,
    )


def scales_of(shapes: TensorShapes, scale_of_position: torch.Tensor | None = None, given: Sequence[int] | None = None) -> tuple[int, ...]:
    """Side lengths of the code maps.

    Args:
        shapes: of the visual decoder's tensors.
        scale_of_position: the buffer `lvl_1L`, (1, L) or (L,), where the checkpoint has it: the scale of each position.
        given: what the caller says.

    Raises:
        ValueError: sides that do not fit the tensors, or none given where they cannot be known.
    """
    num_scales, num_positions = shapes.of("lvl_embed.weight", 2)[0], shapes.of("pos_1LC", 3)[-2]
    what = f"{shapes.where} has {num_scales} scales with {num_positions} positions in all"
    if given is not None:
        if not all(type(side) is int for side in given):
            raise TypeError(f"`scales` must be whole numbers, the side lengths of the code maps, got {given!r}.")
        scales = tuple(given)
    elif scale_of_position is not None:
        positions = scale_of_position.flatten()
        are_whole = not (positions.is_floating_point() or positions.is_complex())
        if not are_whole or not all(0 <= scale < num_scales for scale in positions[: num_positions + 1].tolist()):
            raise ValueError(f"{what}, but its tensor lvl_1L does not hold the number of its scale for each position.")
        scales = tuple(math.isqrt(positions.eq(scale).sum()) for scale in range(num_scales))
    elif (num_scales, num_positions) == (len(VAR_SIDES), ScaleSchedule.of(VAR_SIDES).num_positions):
        scales = VAR_SIDES
    else:
        raise ValueError(f"{what}, which is not VAR's schedule {VAR_SIDES}: give their side lengths as `scales`.")
    found = sum(side * side for side in scales)
    if (len(scales), found) != (num_scales, num_positions) or min(scales) < 1:
        raise ValueError(f"{what}, but the scales {scales} are {len(scales)} with {found} positions: give others as `scales`.")
    return scales
