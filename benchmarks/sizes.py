"""Models to measure, with seeded random weights where none are shipped."""

import torch
from transformers import AutoModelForMultimodalLM

from vargpt_hf import VargptConfig, VargptForConditionalGeneration
from vargpt_hf.testing import tiny_config
from vargpt_hf.tiny import TINY_FOLDER

SIZES = ("micro", "vargpt-tiny", "medium", "paper")
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
    everything narrower, for CPUs. "paper": 7B + 2B, for GPUs.

    Raises:
        ValueError: another name.
    """
    if size == "micro":
        return tiny_config()
    if size == "vargpt-tiny":
        return VargptConfig.from_pretrained(TINY_FOLDER)
    if size == "medium":
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
    if size == "paper":
        return VargptConfig.v1()
    raise ValueError(f"Unknown size {size!r}: give one of {', '.join(SIZES)}.")


def model_of(size: str, dtype: torch.dtype = torch.float32, device: str = "cpu") -> VargptForConditionalGeneration:
    """A model of a size in evaluation mode; its quantizer stays in float32, as in a loaded one."""
    if size == "vargpt-tiny":
        return VargptForConditionalGeneration.from_pretrained(TINY_FOLDER, dtype=dtype).to(device).eval()
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForMultimodalLM.from_config(config_of(size), dtype=dtype).eval()
    model.model.image_tokenizer.quantizer.float()
    return model
