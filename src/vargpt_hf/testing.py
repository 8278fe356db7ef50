"""One tiny VARGPT for tests: real code, a few thousand weights, built in milliseconds."""

import torch

from .modeling.configuration_vargpt import VargptConfig
from .modeling.modeling_vargpt import VargptForConditionalGeneration


def tiny_config(**kwargs) -> VargptConfig:
    """Configuration of a model small enough for unit tests; `kwargs` replace fields of [`VargptConfig`].

    The vocabulary has 64 tokens: pad 0, bos 1, eos 2, and of images 60 (placeholder of one that is read), 61 (start), 62 (end) and 63
    (placeholder of one that is drawn). Images are 16×16 px, read in 4 positions, drawn in scales 1, 2, 4 (L = 21).
    """
    fields = {
        "vlm_config": {
            "model_type": "llava",
            "image_token_index": 60,
            "text_config": {
                "model_type": "llama",
                "vocab_size": 64,
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "max_position_embeddings": 512,
                "pad_token_id": 0,
                "bos_token_id": 1,
                "eos_token_id": 2,
            },
            "vision_config": {
                "model_type": "clip_vision_model",
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "image_size": 16,
                "patch_size": 8,
            },
        },
        "image_tokenizer_config": {
            "schedules": [[1, 2, 4]],
            "codebook_size": 24,
            "latent_channels": 6,
            "base_channels": 8,
            "channel_multipliers": (1, 1, 2),
            "num_res_blocks": 1,
            "norm_num_groups": 4,
        },
        "visual_decoder_config": {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2},
        "output_image_start_token_id": 61,
        "output_image_end_token_id": 62,
        "output_image_token_id": 63,
    }
    return VargptConfig(**{**fields, **kwargs})


def tiny_model(seed: int = 0, **kwargs) -> VargptForConditionalGeneration:
    """A freshly initialized model of [`tiny_config`] in evaluation mode."""
    torch.manual_seed(seed)
    return VargptForConditionalGeneration(tiny_config(**kwargs)).eval()


def drawing_model() -> VargptForConditionalGeneration:
    """A [`tiny_model`] whose random head makes some rows draw by themselves, at different steps."""
    model = tiny_model()
    torch.manual_seed(1)
    with torch.no_grad():
        model.lm_head.weight.normal_(std=0.6)
    return model
