"""VARGPT v1.1 as it was released (model_type `vargpt_qwen2_vl`, also the editing checkpoint): its config, sizes and tensors in our terms."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch

from ...modeling.configuration_vargpt import VargptConfig
from ..checkpoint import SourceTensor
from ..renaming import Adapt
from ..shapes import TensorShapes
from . import infinity, qwen2_vl
from .qwen2_vl import make_processor
from .vargpt_v1 import PROJECTOR_NAMES, output_image_token_ids

MODEL_TYPE = "vargpt_qwen2_vl"
LICENSE_NOTE = (
    "The weights that the authors of VARGPT v1.1 released are for research only, and those of Qwen2-VL and Infinity inside them have terms of "
    "their own: converting changes none of these."
)
# As it was released: 3 · cond − 2 · uncond, at all scales; temperature and top-p over each bit's two values.
GENERATION = {
    "do_sample": True,
    "output_image_guidance_type": "scale",
    "output_image_guidance_scale": 2.0,
    "output_image_guidance_ramp": False,
    "output_image_temperature": 0.5,
    "output_image_top_k": 900,
    "output_image_top_p": 0.97,
}
EMBEDDINGS = "model.embed_tokens.weight"
# What the whole checkpoint adds to the two parts, in the layout that Qwen2-VL had in Transformers 4. Of `sos_embedding` one row is read.
NAMES = [
    *((f"vae_local.{released}", ours and f"model.image_tokenizer.{ours}") for released, ours in infinity.BSQ_NAMES),
    *((f"vargpt_gen.{released}", ours and f"model.visual_decoder.{ours}") for released, ours in infinity.INFINITY_NAMES),
    ("sos_embedding.weight", "model.visual_decoder.condition_embedding"),
    *PROJECTOR_NAMES,
    *qwen2_vl.OLD_NAMES,
]
_TEXT_FIELDS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
    "rms_norm_eps",
    "hidden_act",
    "use_sliding_window",
    "sliding_window",
    "max_window_layers",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)
_VISION_FIELDS = (
    "depth",
    "embed_dim",
    "hidden_size",
    "hidden_act",
    "mlp_ratio",
    "num_heads",
    "in_channels",
    "patch_size",
    "spatial_merge_size",
    "temporal_patch_size",
)
_TOKENS = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")


def config_of(
    source_config: dict[str, Any],
    tensors: dict[str, SourceTensor],
    scales: Sequence[int] | None = None,
    reference_grid: tuple[int, int] | None = None,
) -> VargptConfig:
    """Our configuration: what the released config says, and the sizes that only its tensors tell.

    Args:
        scales: sides of square images; the schedules of 512×512 pixels, and all aspect ratios, by default.
        reference_grid: of the rotary positions of such images; their own last grid by default.

    Raises:
        ValueError: a field or a tensor that is needed is absent, or the numbers contradict one another.
    """
    opened = {name: source.tensor for name, source in tensors.items()}
    decoder, tokenizer = TensorShapes(opened, "vargpt_gen."), TensorShapes(opened, "vae_local.")
    schedules, reference_grids = infinity.schedules_of(scales, reference_grid)
    return VargptConfig(
        vlm_config=_vlm_config(source_config),
        image_tokenizer_config=infinity.tokenizer_config(tokenizer, schedules),
        visual_decoder_config=infinity.decoder_config(decoder, reference_grids),
        **output_image_token_ids(source_config),
        image_loss_weight=3.0,
        plain_positions=True,
        license_note=LICENSE_NOTE,
    )


def _vlm_config(source_config: dict[str, Any]) -> dict[str, Any]:
    """Qwen2-VL's fields, of which those of the language model stand at the top."""
    vision, rope = source_config.get("vision_config"), source_config.get("rope_scaling")
    if not isinstance(vision, dict) or not isinstance(rope, dict) or not isinstance(rope.get("mrope_section"), list):
        raise ValueError("The released config.json lacks `vision_config`, or `rope_scaling` with its `mrope_section`.")
    vision = {"in_channels": vision["in_chans"], **vision} if "in_chans" in vision else vision
    text = {name: source_config[name] for name in _TEXT_FIELDS if source_config.get(name) is not None}
    theta = source_config.get("rope_theta", 1000000.0)
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": theta, "mrope_section": rope["mrope_section"]}
    return {
        "model_type": qwen2_vl.MODEL_TYPE,
        "text_config": text,
        "vision_config": {name: vision[name] for name in _VISION_FIELDS if vision.get(name) is not None},
        "tie_word_embeddings": bool(source_config.get("tie_word_embeddings", False)),
        **{name: source_config[name] for name in _TOKENS if source_config.get(name) is not None},
    }


def adapt(tensors: dict[str, SourceTensor], config: VargptConfig) -> Adapt:
    """How tensors become ours under their new names."""
    shapes = TensorShapes({name: source.tensor for name, source in tensors.items()}, "vargpt_gen.")
    return partial(adapt_tensor, blocks_of_chunk=infinity.blocks_of_chunk(shapes), start_row=config.output_image_start_token_id)


def adapt_tensor(name: str, tensor: torch.Tensor, blocks_of_chunk: int, start_row: int) -> Iterator[tuple[str, torch.Tensor]]:
    """Our tensors of a released one; see `adapt_infinity`.

    Args:
        start_row: the row of `sos_embedding` that is read, image-start's.
    """
    if name == "model.visual_decoder.condition_embedding":
        yield name, tensor[start_row : start_row + 1]
    else:
        yield from infinity.adapt_infinity(name, tensor, blocks_of_chunk)


def stored_as(name: str) -> str:
    """The name that the table has for a tensor of ours."""
    return name


__all__ = [
    "EMBEDDINGS",
    "GENERATION",
    "LICENSE_NOTE",
    "MODEL_TYPE",
    "NAMES",
    "adapt",
    "adapt_tensor",
    "config_of",
    "make_processor",
    "stored_as",
]
