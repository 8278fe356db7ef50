"""What drawing takes on small GPUs, and training with a recent small model: tables of docs/paper_scale.md and docs/any_vlm.md.

python benchmarks/drawing_memory.py          # prints them
python benchmarks/drawing_memory.py --write  # puts them into the pages
"""

import re
import sys
from functools import cache
from pathlib import Path

import torch
from torch import nn

from vargpt_hf import VargptConfig, VargptForConditionalGeneration
from vargpt_hf.training.outlook import describe_outlook

DOCS = Path(__file__).parent.parent / "docs"
GB = 1e9
CARDS = (12, 16, 24)
FREE = 1.5  # GB of a card for its driver, the image tokenizer's convolutions, and what the allocator cannot use
PROMPT, ROWS = 60, 2  # tokens; with guidance by a prompt two rows are drawn for an image
# Bytes of a number in the language model's linear layers: bitsandbytes keeps a scale for each row (int8) or each 64 numbers (NF4).
FORMATS = {"bfloat16": 2.0, "int8": 1.0, "NF4": 0.53}
# Qwen/Qwen3-VL-2B-Instruct, as published.
QWEN3_VL_2B = {
    "model_type": "qwen3_vl",
    "image_token_id": 151655,
    "video_token_id": 151656,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "tie_word_embeddings": True,
    "text_config": {
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
        "rope_parameters": {"rope_type": "default", "mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_theta": 5e6},
    },
    "vision_config": {
        "depth": 24,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_heads": 16,
        "out_hidden_size": 2048,
        "deepstack_visual_indexes": [5, 11, 17],
    },
}


def small_config() -> VargptConfig:
    """Qwen3-VL-2B with VAR's image tokenizer and a `base` decoder, as `vargpt compose` makes it."""
    ids = dict(zip(("output_image_start_token_id", "output_image_end_token_id", "output_image_token_id"), range(151669, 151672)))
    decoder = {"num_hidden_layers": 16, "hidden_size": 1024, "num_attention_heads": 16}
    return VargptConfig(vlm_config=QWEN3_VL_2B, visual_decoder_config=decoder, **ids)


MODELS = {
    "VARGPT v1, 256×256": VargptConfig.v1,
    "VARGPT v1.1, 512×512": VargptConfig.v1_1,
    "Qwen3-VL-2B, `base` decoder, 256×256": small_config,
}


@cache
def model_of(name: str) -> VargptForConditionalGeneration:
    with torch.device("meta"):
        return VargptForConditionalGeneration(MODELS[name]())


def bytes_of(name: str, number_format: str) -> tuple[float, float]:
    """Bytes of the weights, all in bfloat16 but for the language model's linear layers, and of both caches while an image is drawn."""
    model = model_of(name)
    config, decoder = model.config, model.config.visual_decoder_config
    linear = sum(module.weight.numel() for module in model.model.backbone.decoder.modules() if isinstance(module, nn.Linear))
    weights = 2 * (sum(p.numel() for p in model.parameters()) - linear) + FORMATS[number_format] * linear
    text, positions = config.text_config, config.schedules[0].num_positions
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    keys = text.num_hidden_layers * text.num_key_value_heads * head_dim * (PROMPT + positions)
    drawn = decoder.num_hidden_layers * decoder.hidden_size * (positions + (PROMPT if model.model.visual_decoder.uses_context else 0))
    return weights, ROWS * 2 * 2 * (keys + drawn)


def drawing_memory() -> str:
    """GB of weights and caches, and on which cards they fit."""
    head = ["model", "language model in", "weights", "caches", "in all", *(f"{card} GB" for card in CARDS)]
    lines = [head, ["---", "---", *["---:"] * 3, *["---"] * len(CARDS)]]
    for name in MODELS:
        for number_format in FORMATS:
            weights, caches = (size / GB for size in bytes_of(name, number_format))
            fits = ["fits" if weights + caches + FREE <= card else "no" for card in CARDS]
            lines.append([name, number_format, f"{weights:.1f}", f"{caches:.2f}", f"{weights + caches:.1f}", *fits])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def outlook() -> str:
    """What `vargpt compose --gpu-memory 24` prints for a recent small model."""
    return f"```text\n{describe_outlook(small_config(), 24)}\n```"


PAGES = {"paper_scale.md": drawing_memory, "any_vlm.md": outlook}


def render(page: str) -> str:
    """A page with its table anew: it stands between `<!-- name -->` and `<!-- end -->`."""
    make = PAGES[page]
    text, marked = make(), rf"(<!-- {make.__name__} -->\n).*?(<!-- end -->)"
    return re.sub(marked, lambda match: f"{match[1]}{text}\n{match[2]}", (DOCS / page).read_text(encoding="utf-8"), flags=re.DOTALL)


if __name__ == "__main__":
    for page in PAGES:
        rendered = render(page)
        if "--write" in sys.argv[1:]:
            (DOCS / page).write_text(rendered, encoding="utf-8")
        else:
            print(rendered)
