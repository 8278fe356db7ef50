"""Models to measure, with seeded random weights where none are shipped."""

from collections.abc import Callable
from functools import partial

import torch
from transformers import AutoModelForMultimodalLM

from vargpt_hf import VargptConfig, VargptForConditionalGeneration
from vargpt_hf.modeling.bsq_vargpt import infinity_schedules
from vargpt_hf.testing import tiny_config
from vargpt_hf.tiny import TINY_FOLDER

SPECIAL = ("pad_token_id", "bos_token_id", "eos_token_id")
IMAGE_TOKENS = ("image_token_id", "output_image_start_token_id", "output_image_end_token_id", "output_image_token_id")
MEDIUM_TEXT = {
    "model_type": "llama",
    "vocab_size": 4096,
    "hidden_size": 512,
    "intermediate_size": 1376,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "max_position_embeddings": 2048,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def config_of(size: str) -> VargptConfig:
    """The configuration of a size.

    "micro": of the package's own tests. "vargpt-tiny": as shipped. "medium": the paper's scales and side (256 pixels, L = 680) with
    everything narrower, for CPUs. "paper": 7B + 2B, for GPUs. Those of "v1.1" are made of its parts: "medium-v1.1-256" (L = 521) and
    "medium-v1.1-512" (L = 2521) have a language model and a visual decoder as large as those of "medium".

    Raises:
        ValueError: another name.
    """
    if size not in CONFIGS:
        raise ValueError(f"Unknown size {size!r}: give one of {', '.join(SIZES)}.")
    return CONFIGS[size]()


def _micro_v1_1() -> VargptConfig:
    text = tiny_config().text_config.to_dict()
    kept = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    return _v1_1(
        {**{name: text[name] for name in (*kept, *SPECIAL)}, "rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1]}},
        {"depth": 2, "embed_dim": 32, "num_heads": 2},
        {"schedules": [[1, 2, 4]], "latent_channels": 6, "base_channels": 8, "channel_multipliers": (1, 1, 2), "norm_num_groups": 4},
        {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2},
    )


def _medium() -> VargptConfig:
    vocabulary = MEDIUM_TEXT["vocab_size"]
    return VargptConfig(
        vlm_config={
            "model_type": "llava",
            "image_token_index": vocabulary - 4,  # the last ones, as in the released vocabulary
            "text_config": MEDIUM_TEXT,
            "vision_config": {
                "model_type": "clip_vision_model",
                "hidden_size": 256,
                "intermediate_size": 1024,
                "num_hidden_layers": 4,
                "num_attention_heads": 4,
                "image_size": 224,
                "patch_size": 16,
            },
        },
        image_tokenizer_config={"base_channels": 64},
        visual_decoder_config={"hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8},
        **dict(zip(IMAGE_TOKENS[1:], range(vocabulary - 3, vocabulary))),
    )


def _medium_v1_1(budget: str) -> VargptConfig:
    schedules, reference_grids = infinity_schedules(budget)
    text = {name: value for name, value in MEDIUM_TEXT.items() if name != "model_type"} | {"max_position_embeddings": 4096}
    return _v1_1(
        {**text, "rope_parameters": {"rope_type": "default", "mrope_section": [8, 12, 12]}},
        {"depth": 4, "embed_dim": 256, "num_heads": 4},
        {"schedules": schedules[:1], "base_channels": 64},
        {"hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8, "reference_grids": reference_grids[:1]},
    )


def _v1_1(text: dict, vision: dict, tokenizer: dict, decoder: dict) -> VargptConfig:
    """A model of v1.1's parts, whose image tokens are the last ones of its vocabulary."""
    ids = range(text["vocab_size"] - 5, text["vocab_size"])
    vlm = {"model_type": "qwen2_vl", "text_config": text, "vision_config": {**vision, "hidden_size": text["hidden_size"]}}
    return VargptConfig(
        vlm_config={**vlm, "video_token_id": ids[0], IMAGE_TOKENS[0]: ids[1]},
        image_tokenizer_config={"model_type": "vargpt_bsq", **tokenizer},
        visual_decoder_config={"model_type": "vargpt_infinity_decoder", **decoder},
        plain_positions=True,
        **dict(zip(IMAGE_TOKENS[1:], ids[2:])),
    )


CONFIGS: dict[str, Callable[[], VargptConfig]] = {
    "micro": tiny_config,
    "micro-v1.1": _micro_v1_1,
    "vargpt-tiny": partial(VargptConfig.from_pretrained, TINY_FOLDER),
    "medium": _medium,
    "medium-v1.1-256": partial(_medium_v1_1, "0.06M"),
    "medium-v1.1-512": partial(_medium_v1_1, "0.25M"),
    "paper": VargptConfig.v1,
    "paper-v1.1": VargptConfig.v1_1,
}
SIZES = tuple(CONFIGS)


def model_of(size: str, dtype: torch.dtype = torch.float32, device: str = "cpu") -> VargptForConditionalGeneration:
    """A model of a size in evaluation mode; its quantizer stays in float32, as in a loaded one."""
    if size == "vargpt-tiny":
        return VargptForConditionalGeneration.from_pretrained(TINY_FOLDER, dtype=dtype).to(device).eval()
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForMultimodalLM.from_config(config_of(size), dtype=dtype).eval()
    for name in model.model.image_tokenizer._keep_in_fp32_modules_strict or ():
        model.model.image_tokenizer.get_submodule(name).float()
    return model
