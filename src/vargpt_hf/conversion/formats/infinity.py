"""Infinity's two files: the visual decoder (`infinity_2b_reg.pth`) and the bitwise image tokenizer (`infinity_vae_d32reg.pth`), alone or in a
whole VARGPT v1.1.

The image tokenizer is met in two spellings: with a wrapper around every convolution and norm (`conv_in.conv.weight`), as VARGPT v1.1
has it, and without.
"""

import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from ...modeling.bsq_vargpt import infinity_schedules
from ..shapes import TensorShapes

# Dictionaries around the tensors in released files, outermost first.
DECODER_WRAPPERS = ()
BSQ_WRAPPERS = ("vae",)

_BLOCK = {
    "norm1": ("norm1.norm", "norm1"),
    "conv1": ("conv1.conv", "conv1"),
    "norm2": ("norm2.norm", "norm2"),
    "conv2": ("conv2.conv", "conv2"),
    "shortcut": ("nin_shortcut.conv", "nin_shortcut"),
}


def _half(side: str, levels: str, resample: str) -> list[tuple[str, str | None]]:
    """Rows of the encoder or the decoder; a released level is `down.K` or `up.K`, K counting from the pixels."""
    rows = []
    for layer, kind in (("conv_in", "conv"), ("norm_out", "norm"), ("conv_out", "conv")):
        rows += [(f"{side}.{layer}.{form}{{}}", f"{side}.{layer}.{{}}") for form in (f"{kind}.", "")]
    for ours, forms in _BLOCK.items():
        for form in forms:
            rows += [(f"{side}.mid.block_{k}.{form}.{{}}", f"{side}.middle.block_{k}.{ours}.{{}}") for k in (1, 2)]
            rows += [(f"{side}.{levels}.{{}}.block.{{}}.{form}.{{}}", f"{side}.levels.{{}}.blocks.{{}}.{ours}.{{}}")]
    return [
        *rows,
        *((f"{side}.{levels}.{{}}.{resample}.{form}.{{}}", f"{side}.levels.{{}}.resample.conv.{{}}") for form in ("conv.conv", "conv")),
    ]


# Infinity's own tokenizer file, and `vae_local` in the whole checkpoint.
BSQ_NAMES = [*_half("encoder", "down", "downsample"), *_half("decoder", "up", "upsample"), ("quantizer.lfq.mask", None)]

# Infinity's own decoder file, and `vargpt_gen` in the whole checkpoint. `mat_qkv` and `mat_kv` are split; block J of chunk I is block 4 I + J
# at true size. Nothing reads the pooling's query and keys (over one row its softmax is 1), the projection of another cross-attention source,
# nor zero biases.
INFINITY_NAMES = [
    ("cfg_uncond", "unconditional_context"),
    ("pos_start", "start_embedding"),
    ("text_norm.weight", "condition_norm.weight"),
    ("text_proj_for_sos.ca.mat_kv.weight", "condition_value.kv.weight"),
    ("text_proj_for_sos.ca.v_bias", "condition_value.bias"),
    ("text_proj_for_sos.ca.proj.{}", "condition_proj.{}"),
    ("lvl_embed.weight", "scale_embedding.weight"),
    ("word_embed.{}", "token_embedding.{}"),
    ("shared_ada_lin.1.{}", "shared_modulation.{}"),
    ("block_chunks.{}.module.{}.ada_gss", "chunks.{}.{}.modulation"),
    ("block_chunks.{}.module.{}.sa.mat_qkv.weight", "chunks.{}.{}.self_attn.qkv_proj.weight"),
    ("block_chunks.{}.module.{}.sa.q_bias", "chunks.{}.{}.self_attn.q_proj.bias"),
    ("block_chunks.{}.module.{}.sa.v_bias", "chunks.{}.{}.self_attn.v_proj.bias"),
    ("block_chunks.{}.module.{}.sa.scale_mul_1H11", "chunks.{}.{}.self_attn.log_scale"),
    ("block_chunks.{}.module.{}.sa.proj.{}", "chunks.{}.{}.self_attn.out_proj.{}"),
    ("block_chunks.{}.module.{}.ca.mat_q.{}", "chunks.{}.{}.cross_attn.q_proj.{}"),
    ("block_chunks.{}.module.{}.ca.mat_kv.weight", "chunks.{}.{}.cross_attn.kv_proj.weight"),
    ("block_chunks.{}.module.{}.ca.v_bias", "chunks.{}.{}.cross_attn.v_proj.bias"),
    ("block_chunks.{}.module.{}.ca.proj.{}", "chunks.{}.{}.cross_attn.out_proj.{}"),
    ("block_chunks.{}.module.{}.ca_norm.{}", "chunks.{}.{}.cross_norm.{}"),
    ("block_chunks.{}.module.{}.ffn.{}.{}", "chunks.{}.{}.mlp.{}.{}"),
    ("head_nm.ada_lin.1.{}", "norm_modulation.{}"),
    ("head.{}", "head.{}"),
    ("block_chunks.{}.module.{}.sa.zero_k_bias", None),
    ("block_chunks.{}.module.{}.ca.zero_k_bias", None),
    ("text_proj_for_sos.ca.mat_q", None),
    ("text_proj_for_sos.ca.zero_k_bias", None),
    ("text_proj_for_ca.{}.{}", None),
]
_CHUNK = re.compile(r"chunks\.(\d+)\.(\d+)\.")


def blocks_of_chunk(shapes: TensorShapes) -> int:
    """Blocks in each of the decoder's chunks."""
    return shapes.count("block_chunks.0.module")


def adapt_infinity(name: str, tensor: torch.Tensor, blocks_of_chunk: int) -> Iterator[tuple[str, torch.Tensor]]:
    """Our tensors of one of the visual decoder's, as views wherever they are more than a few rows; of others the tensor as it is.

    Args:
        name: ours, by the table, perhaps with a prefix.
        blocks_of_chunk: blocks in one of the released chunks.
    """
    if not re.match(r"(model\.visual_decoder\.)?(chunks|condition_|start_embedding)", name):
        yield name, tensor
        return
    name = _CHUNK.sub(lambda found: f"layers.{int(found[1]) * blocks_of_chunk + int(found[2])}.", name)
    if name.endswith("qkv_proj.weight"):
        for part, weight in zip("qkv", tensor.chunk(3)):
            yield name.replace("qkv_proj", f"{part}_proj"), weight
    elif name.endswith("kv_proj.weight"):
        for part, weight in zip("kv", tensor.chunk(2)):
            yield name.replace("kv_proj", f"{part}_proj"), weight
    elif name.endswith("condition_value.kv.weight"):
        yield name.replace(".kv.", "."), tensor.chunk(2)[1]
    elif name.endswith(".log_scale"):
        yield name, tensor.flatten()
    elif name.endswith(("start_embedding", ".modulation")):
        yield name, tensor.squeeze()
    else:
        yield name, tensor


def schedules_of(scales: Sequence[int] | None, reference_grid: tuple[int, int] | None) -> tuple[list, list]:
    """Schedules and reference grids: those of 512×512 pixels in all aspect ratios, or one of squares with these sides."""
    if scales is None:
        return infinity_schedules("0.25M")
    return [list(scales)], [list(reference_grid or (scales[-1], scales[-1]))]


def tokenizer_config(shapes: TensorShapes, schedules: list) -> dict[str, Any]:
    """Fields of the image tokenizer with these shapes, in either spelling of its names, and these schedules."""
    wrapped = ".conv" if "encoder.conv_in.conv.weight" in shapes.shapes else ""
    channels, in_channels = shapes.of(f"encoder.conv_in{wrapped}.weight", 4)[:2]
    widths = [shapes.of(f"encoder.down.{level}.block.0.conv1{wrapped}.weight", 4)[0] for level in range(shapes.count("encoder.down"))]
    if any(width % channels for width in widths):
        raise ValueError(f"The widths {widths} of the image tokenizer's levels are not multiples of its first, {channels}.")
    return {
        "model_type": "vargpt_bsq",
        "schedules": schedules,
        "latent_channels": shapes.of(f"encoder.conv_out{wrapped}.weight", 4)[0],
        "in_channels": in_channels,
        "base_channels": channels,
        "channel_multipliers": [width // channels for width in widths],
        "num_res_blocks": shapes.count("encoder.down.0.block"),
    }


def decoder_config(shapes: TensorShapes, reference_grids: list) -> dict[str, Any]:
    """Fields of the visual decoder with these shapes; a reference grid for each schedule."""
    chunks, blocks = shapes.count("block_chunks"), blocks_of_chunk(shapes)
    return {
        "model_type": "vargpt_infinity_decoder",
        "hidden_size": shapes.of("pos_start", 3)[-1],
        "num_hidden_layers": chunks * blocks,
        "num_attention_heads": math.prod(shapes.of("block_chunks.0.module.0.sa.scale_mul_1H11", 4)),
        "intermediate_size": shapes.of("block_chunks.0.module.0.ffn.fc1.weight", 2)[0],
        "max_scales": shapes.of("lvl_embed.weight", 2)[0],
        "unconditional_context_size": shapes.of("cfg_uncond", 2)[0],
        "reference_grids": reference_grids,
    }


__all__ = [
    "BSQ_NAMES",
    "BSQ_WRAPPERS",
    "DECODER_WRAPPERS",
    "INFINITY_NAMES",
    "adapt_infinity",
    "blocks_of_chunk",
    "decoder_config",
    "schedules_of",
    "tokenizer_config",
]
