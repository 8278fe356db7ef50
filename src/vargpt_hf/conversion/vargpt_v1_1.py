"""VARGPT v1.1 as it was released (model_type `vargpt_qwen2_vl`, also the editing checkpoint): its config, sizes and tensors in our terms."""

import math
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from ..modeling.bsq_vargpt import infinity_schedules
from ..modeling.checkpoint_vargpt import read_json
from ..modeling.configuration_vargpt import VargptConfig
from ..processing import VargptProcessor
from .checkpoint import SourceTensor
from .names_infinity import V11_NAMES, adapt_infinity
from .sizes import TensorShapes

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
NAMES = V11_NAMES
EMBEDDINGS = "model.embed_tokens.weight"
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

LARGEST_AREA = 1280 * 28**2  # pixels of an image that is read
SMALLEST_AREA = 56**2
# ChatML, as in Qwen2-VL; `output_image` parts stand where they are.
CHAT_TEMPLATE = """\
{%- macro render(parts) -%}
    {%- if parts is string -%}
        {{- parts -}}
    {%- else -%}
        {%- for part in parts -%}
            {%- if part['type'] == 'text' -%}
                {{- part['text'] -}}
            {%- elif part['type'] == 'image' -%}
                {{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
            {%- elif part['type'] == 'output_image' -%}
                {{- '<|image_gen_start|><|image_gen_pad|><|image_gen_end|>' -}}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
{%- endmacro -%}
{{- '' if messages[0]['role'] == 'system' else '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' -}}
{%- for message in messages -%}
    {{- '<|im_start|>' + message['role'] + '\\n' -}}
    {%- if message['role'] == 'assistant' -%}
        {%- generation -%}{{- render(message['content']) + '<|im_end|>' -}}{%- endgeneration -%}
    {%- else -%}
        {{- render(message['content']) + '<|im_end|>' -}}
    {%- endif -%}
    {{- '\\n' -}}
{%- endfor -%}
{{- '<|im_start|>assistant\\n' if add_generation_prompt else '' -}}
"""


def make_processor(source: Path, tokenizer: PreTrainedTokenizerBase, config: VargptConfig) -> VargptProcessor:
    """The processor of a model: Qwen2-VL's own for images to read, with the areas that the files in `source` say, and ChatML.

    Raises:
        ValueError: a tokenizer whose image tokens are absent or have other ids than the model's.
        ImportError: torchvision is not installed, which Qwen2-VL's processor needs.
    """
    from transformers import Qwen2VLImageProcessor  # here, since it warns where torchvision is missing

    vision = config.vision_config
    found = read_json(source / "preprocessor_config.json") if (source / "preprocessor_config.json").is_file() else {}
    area = {"shortest_edge": found.get("min_pixels") or SMALLEST_AREA, "longest_edge": found.get("max_pixels") or LARGEST_AREA}
    patches = {"patch_size": vision.patch_size, "temporal_patch_size": vision.temporal_patch_size, "merge_size": vision.spatial_merge_size}
    reader = {"processor_class": "Qwen2VLProcessor", "video_processor": {"video_processor_type": "Qwen2VLVideoProcessor", **patches}}
    drawn = config.image_tokenizer_config
    processor = VargptProcessor(
        Qwen2VLImageProcessor(size=area, **patches),
        tokenizer,
        chat_template=CHAT_TEMPLATE,
        reader=reader,
        output_image_settings={"schedules": drawn.schedules, "downsampling": drawn.downsampling},
    )
    processor.check_fits(config)
    return processor


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
    schedules, reference_grids = schedules_of(scales, reference_grid)
    special = source_config.get("special_tokens")
    special = special if isinstance(special, dict) else {}

    def token(name: str) -> int:
        found = special.get(name, source_config.get(name))
        if type(found) is not int:
            raise ValueError(f"The released config.json has no token id `{name}`, nor do its `special_tokens`.")
        return found

    return VargptConfig(
        vlm_config=_vlm_config(source_config),
        image_tokenizer_config=tokenizer_config(tokenizer, schedules),
        visual_decoder_config=decoder_config(decoder, reference_grids),
        output_image_start_token_id=token("image_gen_start_token_id"),
        output_image_end_token_id=token("image_gen_end_token_id"),
        output_image_token_id=token("image_gen_pad_token_id"),
        image_loss_weight=3.0,
        plain_positions=True,
        license_note=LICENSE_NOTE,
    )


def schedules_of(scales: Sequence[int] | None, reference_grid: tuple[int, int] | None) -> tuple[list, list]:
    """Schedules and reference grids: those of 512×512 pixels in all aspect ratios, or one of squares with these sides."""
    if scales is None:
        return infinity_schedules("0.25M")
    return [list(scales)], [list(reference_grid or (scales[-1], scales[-1]))]


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
        "model_type": "qwen2_vl",
        "text_config": text,
        "vision_config": {name: vision[name] for name in _VISION_FIELDS if vision.get(name) is not None},
        "tie_word_embeddings": bool(source_config.get("tie_word_embeddings", False)),
        **{name: source_config[name] for name in _TOKENS if source_config.get(name) is not None},
    }


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
    chunks, blocks = shapes.count("block_chunks"), shapes.count("block_chunks.0.module")
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


def adapt(tensors: dict[str, SourceTensor], config: VargptConfig):
    """How tensors become ours under their new names."""
    shapes = TensorShapes({name: source.tensor for name, source in tensors.items()}, "vargpt_gen.")
    blocks = shapes.count("block_chunks.0.module")
    return partial(_adapt, blocks=blocks, start_row=config.output_image_start_token_id)


def _adapt(name: str, tensor: torch.Tensor, blocks: int, start_row: int) -> Iterable[tuple[str, torch.Tensor]]:
    return adapt_infinity(name, tensor, blocks, start_row)
