"""VAR's two files: the visual decoder (`var_d30.pth`) and the image tokenizer (`vae_ch160v4096z32.pth`), alone or in a whole VARGPT v1."""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from ...modeling.scales_vargpt import VAR_SIDES, ScaleSchedule
from ...modeling.var_decoder_vargpt import VargptVARDecoderConfig
from ...modeling.vq_vargpt import VargptVQConfig
from ..checkpoint import SourceTensor
from ..shapes import TensorShapes

# Dictionaries around the tensors in checkpoints of VAR's own training, outermost first.
DECODER_WRAPPERS = ("trainer", "var_wo_ddp")
VQ_WRAPPERS = ("trainer", "vae_local")

_VQ_BLOCK = {"norm1": "norm1", "conv1": "conv1", "norm2": "norm2", "conv2": "conv2", "nin_shortcut": "shortcut"}
_VQ_ATTENTION = {"norm": "norm", "qkv": "qkv", "proj_out": "out_proj"}


def _vq_half(side: str, levels: str, resample: str) -> list[tuple[str, str]]:
    """Rows of the encoder or the decoder; a released level is `down.K` or `up.K`, K counting from the pixels."""
    rows = [(f"{side}.{layer}.{{}}", f"{side}.{layer}.{{}}") for layer in ("conv_in", "norm_out", "conv_out")]
    for released, ours in _VQ_BLOCK.items():
        rows += [(f"{side}.mid.block_{k}.{released}.{{}}", f"{side}.middle.block_{k}.{ours}.{{}}") for k in (1, 2)]
        rows += [(f"{side}.{levels}.{{}}.block.{{}}.{released}.{{}}", f"{side}.levels.{{}}.blocks.{{}}.{ours}.{{}}")]
    for released, ours in _VQ_ATTENTION.items():
        rows += [(f"{side}.mid.attn_1.{released}.{{}}", f"{side}.middle.attention.{ours}.{{}}")]
        rows += [(f"{side}.{levels}.{{}}.attn.{{}}.{released}.{{}}", f"{side}.levels.{{}}.attentions.{{}}.{ours}.{{}}")]
    return [*rows, (f"{side}.{levels}.{{}}.{resample}.conv.{{}}", f"{side}.levels.{{}}.resample.conv.{{}}")]


# VAR's own VQ-VAE file, and `vae_local` in the whole checkpoint.
VQ_NAMES = [
    *_vq_half("encoder", "down", "downsample"),
    *_vq_half("decoder", "up", "upsample"),
    ("quant_conv.{}", "quant_conv.{}"),
    ("post_quant_conv.{}", "post_quant_conv.{}"),
    ("quantize.embedding.weight", "quantizer.codebook.weight"),
    ("quantize.quant_resi.qresi_ls.{}.{}", "quantizer.residual_convs.{}.{}"),
    ("quantize.ema_vocab_hit_SV", None),
]

# VAR's own decoder file, and `vargpt_gen` in the whole checkpoint. `mat_qkv` is split into q, k and v; rows of `class_emb` become
# our two conditions.
DECODER_NAMES = [
    ("word_embed.{}", "token_embedding.{}"),
    ("class_emb.weight", "condition_embedding.weight"),
    ("pos_start", "start_embedding"),
    ("pos_1LC", "position_embedding"),
    ("lvl_embed.weight", "scale_embedding.weight"),
    ("blocks.{}.attn.mat_qkv.weight", "layers.{}.self_attn.qkv_proj.weight"),
    ("blocks.{}.attn.q_bias", "layers.{}.self_attn.q_proj.bias"),
    ("blocks.{}.attn.v_bias", "layers.{}.self_attn.v_proj.bias"),
    ("blocks.{}.attn.scale_mul_1H11", "layers.{}.self_attn.log_scale"),
    ("blocks.{}.attn.proj.{}", "layers.{}.self_attn.out_proj.{}"),
    ("blocks.{}.ffn.{}.{}", "layers.{}.mlp.{}.{}"),
    ("blocks.{}.ada_lin.1.{}", "layers.{}.modulation.{}"),
    ("head_nm.ada_lin.1.{}", "norm_modulation.{}"),
    ("head.{}", "head.{}"),
    ("blocks.{}.attn.zero_k_bias", None),
    ("lvl_1L", None),
    ("attn_bias_for_masking", None),
]

# The buffer with the scale of each position, which not every file has.
SCALE_OF_POSITION = "lvl_1L"
# Fused in VAR's file; what our three are stored as. The name may have a prefix.
_QKV = re.compile(r"(?:^|(?<=\.))(layers\.\d+\.self_attn)\.[qkv]_proj\.weight$")


def stored_as(name: str) -> str:
    """The name that `DECODER_NAMES` has for a tensor of ours; queries, keys and values share one. Other parts' names stay as they are."""
    return _QKV.sub(r"\1.qkv_proj.weight", name) if name.startswith(("layers.", "model.visual_decoder.")) else name


def adapt_decoder(name: str, tensor: torch.Tensor, conditions: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """Our tensors of one of the visual decoder's, as views wherever they are more than a few rows.

    Args:
        name: ours, by the table.
        conditions: of a released table of condition embeddings the two rows "generate" and null; a table that it does not know comes
            back whole, for the check of shapes to refuse.
    """
    if name.endswith("self_attn.qkv_proj.weight") and tensor.dim() == 2 and len(tensor) % 3 == 0:
        for part, weight in zip("qkv", tensor.chunk(3)):
            yield name.replace("qkv_proj", f"{part}_proj"), weight
    elif name.endswith("condition_embedding.weight"):
        yield name, conditions(tensor)
    elif name.endswith((".start_embedding", ".position_embedding")) and tensor.dim() > 1:
        yield name, tensor.flatten(0, -2)
    elif name.endswith(".log_scale"):
        yield name, tensor.flatten()
    else:
        yield name, tensor


def var_conditions(table: torch.Tensor) -> torch.Tensor:
    """The rows for "generate" and null, (2, C), of VAR's class table (classes + 1, C): twice its null class, which is the last row."""
    return table[[-1, -1]] if table.dim() == 2 and len(table) else table


def refuse_shared_modulation(decoder: dict[str, SourceTensor], path: Path) -> None:
    """Refuses weights whose blocks share one AdaLN layer, as those of VAR-d36 do."""
    if shared := [name for name in decoder if name.startswith("shared_ada_lin.") or name.endswith(".ada_gss")]:
        raise ValueError(
            f"The blocks of {path} share one AdaLN layer ({shared[0]} is there; VAR's option `shared_aln`, as in var_d36.pth); ours have one "
            "each. Take weights without it, such as var_d30.pth."
        )


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


__all__ = [
    "DECODER_NAMES",
    "DECODER_WRAPPERS",
    "SCALE_OF_POSITION",
    "VQ_NAMES",
    "VQ_WRAPPERS",
    "adapt_decoder",
    "decoder_config_of",
    "refuse_shared_modulation",
    "scales_of",
    "stored_as",
    "var_conditions",
    "vq_config_of",
]
