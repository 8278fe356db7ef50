"""Small vision-language models of the library's own classes, and what their processors would deliver beside the tokens.

All share the vocabulary of [`vargpt_hf.testing.tiny_config`]: 64 tokens, of images that are read 60, of images that are drawn 61 to 63.
"""

from dataclasses import dataclass

import torch

IMAGE, VIDEO = 60, 59


@dataclass(frozen=True)
class Family:
    """A toy backbone: configuration, placeholders of one image, and a function that makes what is read of n images."""

    vlm_config: dict
    num_placeholders: int = 4
    reading: str = "images"


def _text(model_type: str, **kwargs) -> dict:
    fields = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 512,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return {"model_type": model_type, **fields, **kwargs}


def _tower(model_type: str, **kwargs) -> dict:
    fields = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16, "patch_size": 8}
    return {"model_type": model_type, **fields, **kwargs}


def _qwen(model_type: str, text: dict, vision: dict) -> Family:
    ids = {"image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": 58, "vision_end_token_id": 57}
    patches = {"patch_size": 4, "temporal_patch_size": 1, "spatial_merge_size": 2, "depth": 2, "num_heads": 2, "in_channels": 3}
    text = _text(f"{model_type}_text", **text)
    vision = {"model_type": f"{model_type}_vision", **patches, **vision}
    return Family({"model_type": model_type, "text_config": text, "vision_config": vision, **ids}, 6, "patches")


M_ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
LINEAR_ATTENTION = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}


def _llava(text: dict, tower: dict, model_type: str = "llava", **kwargs) -> dict:
    return {"model_type": model_type, "image_token_index": IMAGE, "text_config": text, "vision_config": tower, **kwargs}


PINPOINTS = {"image_grid_pinpoints": [[16, 32], [32, 16], [32, 32]]}
TILES = {"image_token_id": IMAGE, "scale_factor": 2, "pad_token_id": 0, "text_config": _text("llama")}
FAMILIES = {
    "llava": Family(_llava(_text("llama"), _tower("clip_vision_model"))),
    "llava_siglip": Family(_llava(_text("qwen2"), _tower("siglip_vision_model"), vision_feature_select_strategy="full")),
    "llava_next": Family(_llava(_text("mistral"), _tower("clip_vision_model"), "llava_next", **PINPOINTS), 14, "tiles"),
    "llava_onevision": Family(
        _llava(_text("qwen2"), _tower("siglip_vision_model"), "llava_onevision", video_token_index=VIDEO, **PINPOINTS), 14, "tiles"
    ),
    "qwen2_vl": _qwen("qwen2_vl", {"rope_parameters": M_ROPE}, {"embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2}),
    "qwen2_5_vl": _qwen(
        "qwen2_5_vl",
        {"rope_parameters": M_ROPE},
        {"hidden_size": 32, "out_hidden_size": 32, "intermediate_size": 48, "window_size": 16, "fullatt_block_indexes": [1]},
    ),
    "qwen3_vl": _qwen(
        "qwen3_vl",
        {"rope_parameters": {**M_ROPE, "mrope_interleaved": True}},
        {"hidden_size": 32, "out_hidden_size": 32, "intermediate_size": 48, "num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1]},
    ),
    "qwen3_5": _qwen(
        "qwen3_5",
        {"rope_parameters": {**M_ROPE, "mrope_interleaved": True, "partial_rotary_factor": 1.0}, **LINEAR_ATTENTION},
        {"hidden_size": 32, "out_hidden_size": 32, "intermediate_size": 48, "num_position_embeddings": 16},
    ),
    "smolvlm": Family({"model_type": "smolvlm", "vision_config": _tower("smolvlm_vision", patch_size=4), **TILES}, 8, "tiles_of_rows"),
    "idefics3": Family({"model_type": "idefics3", "vision_config": _tower("idefics3_vision", patch_size=4), **TILES}, 8, "tiles_of_rows"),
    "gemma3": Family(
        {
            "model_type": "gemma3",
            "image_token_index": IMAGE,
            "boi_token_index": 58,
            "eoi_token_index": 57,
            "mm_tokens_per_image": 4,
            "text_config": _text("gemma3_text", layer_types=["sliding_attention", "full_attention"], query_pre_attn_scalar=8),
            "vision_config": _tower("siglip_vision_model"),
        },
        4,
        "images_and_types",
    ),
    "internvl": Family(
        {
            "model_type": "internvl",
            "image_token_id": IMAGE,
            "downsample_ratio": 0.5,
            "text_config": _text("qwen2"),
            "vision_config": _tower("internvl_vision", image_size=[16, 16], patch_size=[4, 4]),
        }
    ),
    "mistral3": Family(_llava(_text("mistral"), _tower("pixtral", patch_size=4, head_dim=16), "mistral3"), 4, "sized_images"),
    "lfm2_vl": Family(
        {
            "model_type": "lfm2_vl",
            "image_token_id": IMAGE,
            "projector_hidden_size": 32,
            "text_config": _text("lfm2", layer_types=["conv", "full_attention"], conv_L_cache=3, block_auto_adjust_ff_dim=False),
            "vision_config": _tower("siglip2_vision_model", patch_size=4, num_patches=16),
        },
        4,
        "padded_patches",
    ),
    "paligemma": Family(
        {
            "model_type": "paligemma",
            "image_token_index": IMAGE,
            "projection_dim": 32,
            "text_config": _text("gemma"),
            "vision_config": _tower("siglip_vision_model"),
        },
        4,
        "prefix",
    ),
    "qwen3": Family(_text("qwen3"), 0, "nothing"),
    "llama": Family(_text("llama"), 0, "nothing"),
}


def backbone_config(name: str) -> dict:
    """The `vlm_config` of a family."""
    return FAMILIES[name].vlm_config


def reading_inputs(name: str, input_ids: torch.LongTensor, seed: int = 0) -> dict[str, torch.Tensor]:
    """What the family's processor would deliver beside tokens (B, T) and mask; a row with placeholders reads one image."""
    reads = (input_ids == IMAGE).any(1)
    kind, num_images = FAMILIES[name].reading, int(reads.sum())
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    is_image = (input_ids == IMAGE).long()
    if kind == "nothing":
        return {}
    if kind == "patches":  # a grid of 4 × 6 patches, merged 2 by 2
        grid = torch.tensor([[1, 4, 6]]).expand(num_images, 3)
        return {"pixel_values": noise(num_images * 24, 48), "image_grid_thw": grid, "mm_token_type_ids": is_image.int()}
    if kind == "tiles":  # one overview and two tiles side by side: 4 places, then 2 rows of 4 and a row's end each
        return {"pixel_values": noise(num_images, 3, 3, 16, 16), "image_sizes": torch.tensor([[16, 32]]).expand(num_images, 2)}
    if kind == "tiles_of_rows":
        return {"pixel_values": noise(len(reads), 2, 3, 16, 16) * reads.view(-1, 1, 1, 1, 1)}
    if kind == "sized_images":
        return {"pixel_values": noise(num_images, 3, 16, 16), "image_sizes": torch.tensor([[16, 16]]).expand(num_images, 2)}
    if kind == "padded_patches":
        mask = torch.ones(num_images, 16, dtype=torch.long)
        return {
            "pixel_values": noise(num_images, 16, 48),
            "spatial_shapes": torch.tensor([[4, 4]]).expand(num_images, 2),
            "pixel_attention_mask": mask,
        }
    types = {"images": {}, "images_and_types": {"token_type_ids": is_image}, "prefix": {"token_type_ids": torch.zeros_like(input_ids)}}
    return {"pixel_values": noise(num_images, 3, 16, 16), **types[kind]}
