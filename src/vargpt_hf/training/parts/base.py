"""Tokenizer, image tokenizer and vision tower → a model folder with a fresh language model and visual decoder."""

from pathlib import Path
from typing import Any

import torch
from transformers import CLIPVisionModel, GenerationConfig, PreTrainedTokenizerFast

from ...modeling.configuration_vargpt import VargptConfig
from ...modeling.image_tokenizer_vargpt import VargptImageTokenizer
from ...modeling.modeling_vargpt import VargptForConditionalGeneration
from ...processing.chat_vargpt import (
    IMAGE_TOKEN,
    OUTPUT_IMAGE_END_TOKEN,
    OUTPUT_IMAGE_START_TOKEN,
    OUTPUT_IMAGE_TOKEN,
    UNCONDITIONAL_CHAT,
)
from ...processing.image_processing_vargpt import VargptCLIPImageProcessor
from ...processing.processing_vargpt import VargptProcessor
from ...processing.reader_vargpt import llava_settings


def build_base(
    output_dir: str | Path,
    tokenizer: PreTrainedTokenizerFast,
    image_tokenizer: VargptImageTokenizer,
    vision_tower: CLIPVisionModel,
    text_config: dict[str, Any],
    visual_decoder_config: dict[str, Any],
    generation: dict[str, Any] | None = None,
    seed: int = 0,
) -> None:
    """Writes model and processor into a folder, from which the first stage of training starts.

    Args:
        text_config: of the language model, with its `model_type`; vocabulary and special tokens are the tokenizer's.
        visual_decoder_config: of the visual decoder, VAR's unless it has another `model_type`.
        generation: settings for generation_config.json.
        seed: of the fresh weights.
    """
    special = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}

    def token_id(token: str) -> int:
        return tokenizer.convert_tokens_to_ids(token)

    config = VargptConfig(
        vlm_config={
            "model_type": "llava",
            "image_token_index": token_id(IMAGE_TOKEN),
            "image_seq_length": (vision_tower.config.image_size // vision_tower.config.patch_size) ** 2,
            "text_config": {**text_config, "vocab_size": len(tokenizer), **special},
            "vision_config": without_path(vision_tower.config.to_dict()),
        },
        image_tokenizer_config=without_path(image_tokenizer.config.to_dict()),
        visual_decoder_config=visual_decoder_config,
        output_image_start_token_id=token_id(OUTPUT_IMAGE_START_TOKEN),
        output_image_end_token_id=token_id(OUTPUT_IMAGE_END_TOKEN),
        output_image_token_id=token_id(OUTPUT_IMAGE_TOKEN),
    )
    processor = make_processor(tokenizer, config)
    torch.manual_seed(seed)
    model = VargptForConditionalGeneration(config)
    model.model.image_tokenizer.load_state_dict(image_tokenizer.state_dict())
    model.model.vlm.vision_tower.load_state_dict(vision_tower.state_dict())
    unconditional = processor.apply_chat_template(UNCONDITIONAL_CHAT, add_generation_prompt=True, tokenize=True, return_dict=True)
    model.generation_config = GenerationConfig(
        **special, output_image_unconditional_ids=list(unconditional["input_ids"][0]), **(generation or {})
    )
    model.save_pretrained(output_dir)
    processor.save_pretrained(output_dir)


def without_path(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration without the folder it was read from, which means nothing elsewhere."""
    return {name: value for name, value in config.items() if name != "_name_or_path"}


def make_processor(tokenizer: PreTrainedTokenizerFast, config: VargptConfig) -> VargptProcessor:
    """The processor whose sizes fit these parts; images of the right size pass through untouched."""
    side = config.vision_config.image_size
    image_processor = VargptCLIPImageProcessor(
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    drawn = config.image_tokenizer_config
    settings = {"schedules": drawn.schedules, "downsampling": drawn.downsampling, "resize_factor": 1.0}
    return VargptProcessor(image_processor, tokenizer, reader=llava_settings(config.vlm_config), output_image_settings=settings)
