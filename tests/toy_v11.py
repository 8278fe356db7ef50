"""Toy models with the parts of VARGPT v1.1 that draw, a bitwise image tokenizer and Infinity's decoder."""

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from transformers import CLIPVisionConfig, CLIPVisionModel

from vargpt_hf.modeling.bsq_vargpt import VargptBSQConfig, VargptBSQModel
from vargpt_hf.testing import tiny_config
from vargpt_hf.training.parts.base import build_base
from vargpt_hf.training.parts.tokenizer import train_tokenizer

SENTENCES = ("draw a red circle", "make the red circle blue", "what is this", "say hello", "hello", "USER:", "ASSISTANT:")
TOKENIZER = {
    "schedules": [[1, 2, 4], [[1, 1], [1, 2], [2, 4]]],
    "latent_channels": 6,
    "base_channels": 8,
    "channel_multipliers": (1, 1, 2),
    "num_res_blocks": 1,
    "norm_num_groups": 4,
}
DECODER = {
    "model_type": "vargpt_infinity_decoder",
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "unconditional_context_size": 16,
    "reference_grids": [[8, 8], [4, 8]],
}


def write_toy_v11_folder(
    folder: Path, texts: Iterable[str] = SENTENCES, tokenizer: dict | None = None, decoder: dict | None = None, **fields
) -> Path:
    """A folder with a model whose reading side, a LLaVA's, has a processor that does without torchvision, and that processor.

    Args:
        texts: what the text tokenizer is trained on.
        tokenizer, decoder: fields of the image tokenizer and of the visual decoder, in place of those above.
        fields: of config.json, beside them.
    """
    torch.manual_seed(0)
    config = tiny_config()
    vision = CLIPVisionModel(CLIPVisionConfig(**{k: v for k, v in config.vision_config.to_dict().items() if k != "model_type"}))
    text = {k: config.text_config.to_dict()[k] for k in ("model_type", "hidden_size", "intermediate_size", "num_hidden_layers")}
    text |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256}
    drawn = VargptBSQModel(VargptBSQConfig(**(tokenizer or TOKENIZER)))
    build_base(folder, train_tokenizer(texts, 300), drawn, vision, text, {**(decoder or DECODER), "drop_path_rate": 0.0})
    stored = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(stored | {"image_loss_weight": 3.0} | fields))
    return folder
