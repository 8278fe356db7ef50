"""Names of VARGPT v1.1's and Infinity's released tensors and of ours, as tables; the form is that of names.py.

Infinity's image tokenizer is met in two spellings: with a wrapper around every convolution and norm (`conv_in.conv.weight`), as VARGPT v1.1
has it, and without.
"""

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
