"""Names of the released checkpoints' tensors and of ours, as tables.

Each row is (released, ours): `{}` stands for any part without a dot, carried over in order. None in place of our name marks a
tensor that nothing reads. The first row that fits counts; a released name that fits none is unexpected.
"""

import re
from functools import cache

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

# LLaVA-1.5's tensors as it was released on the Hub, and in the whole checkpoint.
_LLAVA_OLD_NAMES = [
    # Buffers that older versions of Transformers saved.
    ("vision_tower.vision_model.embeddings.position_ids", None),
    ("language_model.model.layers.{}.self_attn.rotary_emb.inv_freq", None),
    ("multi_modal_projector.{}.{}", "model.vlm.multi_modal_projector.{}.{}"),
    ("vision_tower.vision_model.{rest}", "model.vlm.vision_tower.{rest}"),
    ("language_model.model.{rest}", "model.vlm.language_model.{rest}"),
    ("language_model.lm_head.weight", "lm_head.weight"),
]

# All forms of LLaVA-1.5's tensors. Transformers has renamed them since, files keep the names of the version that wrote them.
LLAVA_NAMES = [
    *_LLAVA_OLD_NAMES,
    ("vision_tower.{rest}", "model.vlm.vision_tower.{rest}"),
    ("model.vision_tower.vision_model.{rest}", "model.vlm.vision_tower.{rest}"),
    ("model.vision_tower.{rest}", "model.vlm.vision_tower.{rest}"),
    ("model.multi_modal_projector.{}.{}", "model.vlm.multi_modal_projector.{}.{}"),
    ("model.language_model.{rest}", "model.vlm.language_model.{rest}"),
    ("lm_head.weight", "lm_head.weight"),
]

# The projectors between language model and visual decoder, in the checkpoints of v1 and of v1.1.
PROJECTOR_NAMES = [
    ("image_gen_projector.mlp.0.{}", "model.projector_to_llm.fc1.{}"),
    ("image_gen_projector.mlp.2.{}", "model.projector_to_llm.fc2.{}"),
    ("image_gen_projector_out.mlp.0.{}", "model.projector_to_decoder.fc1.{}"),
    ("image_gen_projector_out.mlp.2.{}", "model.projector_to_decoder.fc2.{}"),
    ("image_gen_projector.ln_q.{}", None),
    ("image_gen_projector_out.ln_q.{}", None),
]

# What the whole checkpoint adds to VAR's two parts. `{rest}` stands for anything.
WHOLE_NAMES = [
    *((f"vae_local.{released}", ours and f"model.image_tokenizer.{ours}") for released, ours in VQ_NAMES),
    *((f"vargpt_gen.{released}", ours and f"model.visual_decoder.{ours}") for released, ours in DECODER_NAMES),
    *PROJECTOR_NAMES,
    *_LLAVA_OLD_NAMES,
]

_WILDCARDS = re.compile(r"\\\{(rest)?\\\}")


def rename(name: str, table: list[tuple[str, str | None]]) -> str | None:
    """Our name of a released tensor, or None where nothing reads it.

    Raises:
        KeyError: a name that no row of the table fits.
    """
    for released, ours in table:
        if (parts := _parts(name, released)) is not None:
            return ours and _filled(ours, parts)
    raise KeyError(name)


def released_names(name: str, table: list[tuple[str, str | None]]) -> list[str]:
    """All released names of a tensor of ours, in the order of the table."""
    pairs = [(released, _parts(name, ours)) for released, ours in table if ours]
    names = [_filled(released, parts) for released, parts in pairs if parts is not None]
    return [found for found in names if rename(found, table) == name]


def _parts(name: str, form: str) -> tuple[str, ...] | None:
    """What stands in a name at the wildcards of a row's form, None where it does not fit."""
    match = _pattern(form).fullmatch(name)
    return None if match is None else match.groups()


@cache
def _pattern(form: str) -> re.Pattern[str]:
    return re.compile(_WILDCARDS.sub(lambda wildcard: "(.+)" if wildcard[1] else r"([^.]+)", re.escape(form)))


def _filled(form: str, parts: tuple[str, ...]) -> str:
    """A row's form with these in place of its wildcards."""
    return form.replace("{rest}", "{}").format(*parts)
