"""Names of VARGPT v1.1's and Infinity's released tensors and of ours, as tables; the form is that of names.py.

Infinity's image tokenizer is met in two spellings: with a wrapper around every convolution and norm (`conv_in.conv.weight`), as VARGPT v1.1
has it, and without.
"""

import re
from collections.abc import Iterator

import torch

from .names import PROJECTOR_NAMES

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
# What the whole checkpoint adds to the two parts, in the layout that Qwen2-VL had in Transformers 4. Of `sos_embedding` one row is read.
V11_NAMES = [
    *((f"vae_local.{released}", ours and f"model.image_tokenizer.{ours}") for released, ours in BSQ_NAMES),
    *((f"vargpt_gen.{released}", ours and f"model.visual_decoder.{ours}") for released, ours in INFINITY_NAMES),
    ("sos_embedding.weight", "model.visual_decoder.condition_embedding"),
    *PROJECTOR_NAMES,
    ("visual.{rest}", "model.vlm.visual.{rest}"),
    ("model.{rest}", "model.vlm.language_model.{rest}"),
    ("lm_head.weight", "lm_head.weight"),
]
# Qwen2-VL's own tensors in the layouts of Transformers 5 and 4.
QWEN2_VL_NAMES = [
    ("model.visual.{rest}", "model.vlm.visual.{rest}"),
    ("model.language_model.{rest}", "model.vlm.language_model.{rest}"),
    ("visual.{rest}", "model.vlm.visual.{rest}"),
    ("model.{rest}", "model.vlm.language_model.{rest}"),
    ("lm_head.weight", "lm_head.weight"),
]
_CHUNK = re.compile(r"chunks\.(\d+)\.(\d+)\.")


def adapt_infinity(name: str, tensor: torch.Tensor, blocks_of_chunk: int, start_row: int = 0) -> Iterator[tuple[str, torch.Tensor]]:
    """Our tensors of one of the visual decoder's, as views wherever they are more than a few rows; of others the tensor as it is.

    Args:
        name: ours, by the table, perhaps with a prefix.
        blocks_of_chunk: blocks in one of the released chunks.
        start_row: the row of `sos_embedding` that is read, image-start's.
    """
    if not re.match(r"(model\.visual_decoder\.)?(chunks|condition|start_embedding)", name):
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
    elif name.endswith("condition_embedding"):
        yield name, tensor[start_row : start_row + 1]
    elif name.endswith(".log_scale"):
        yield name, tensor.flatten()
    elif name.endswith(("start_embedding", ".modulation")):
        yield name, tensor.squeeze()
    else:
        yield name, tensor


__all__ = ["BSQ_NAMES", "INFINITY_NAMES", "QWEN2_VL_NAMES", "V11_NAMES", "adapt_infinity"]
