"""A folder of a small vision-language model with random weights, to try the recipes in a minute: it stands for the model that you use.

    python examples/any_vlm/small_reader.py qwen3_vl reader

Families: qwen3_vl, smolvlm, llava. Qwen3-VL's and SmolVLM's processors need torchvision, SmolVLM's num2words as well.
"""

import sys

import torch
import transformers
from transformers import AutoConfig, AutoModelForImageTextToText, AutoTokenizer
from transformers.utils import is_torchvision_available

from vargpt_hf.tiny import TINY_FOLDER

SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
TOWER = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 48, "patch_size": 12}
PATCHES = {"patch_size": 6, "temporal_patch_size": 2, "merge_size": 2}
SQUARES = {"shortest_edge": 576, "longest_edge": 2304}  # pixels in all
TILES = {"size": {"longest_edge": 96}, "max_image_size": {"longest_edge": 48}}
CELLS = [f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2)]
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] + ': ' }}{% for p in m['content'] %}{% if p['type'] == 'image' %}{{ 'IMAGE' }}{% else %}"
    "{{ p['text'] }}{% endif %}{% endfor %}{{ eos_token if m['role'] == 'assistant' else ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


def library(name: str):
    """A class of Transformers; of image processors the one that needs no torchvision, where there is none."""
    return getattr(transformers, name if is_torchvision_available() or not name.endswith("ImageProcessor") else f"{name}Pil")


def qwen3_vl(tokenizer) -> tuple[dict, object, str]:
    image = "<|vision_start|><|image_pad|><|vision_end|>"
    names = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
    tokenizer.add_tokens(list(names), special_tokens=True)
    ids = dict(
        zip(("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"), tokenizer.convert_tokens_to_ids(names))
    )
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2], "mrope_interleaved": True}
    sizes = {"hidden_size": 64, "out_hidden_size": 64, "intermediate_size": 96, "depth": 2, "num_heads": 4, "num_position_embeddings": 64}
    vision = {**sizes, "patch_size": 6, "temporal_patch_size": 2, "spatial_merge_size": 2, "deepstack_visual_indexes": [0, 1]}
    config = {"text_config": {**SIZES, "rope_parameters": rope}, "vision_config": vision, **ids, "tie_word_embeddings": True}
    parts = {
        "image_processor": transformers.Qwen2VLImageProcessor(**PATCHES, size=SQUARES),
        "video_processor": transformers.Qwen3VLVideoProcessor(**PATCHES, size=SQUARES),
    }
    return config, transformers.Qwen3VLProcessor(tokenizer=tokenizer, **parts), image


def smolvlm(tokenizer) -> tuple[dict, object, str]:
    tokenizer.add_tokens([*CELLS, "<global-img>", "<fake_token_around_image>", "<end_of_utterance>"], special_tokens=True)
    config = {"text_config": {"model_type": "llama", **SIZES}, "vision_config": TOWER, "scale_factor": 2}
    config["image_token_id"] = tokenizer.convert_tokens_to_ids("<image>")
    parts = {"image_processor": transformers.SmolVLMImageProcessor(**TILES), "video_processor": transformers.SmolVLMVideoProcessor()}
    return config, transformers.SmolVLMProcessor(tokenizer=tokenizer, image_seq_len=4, **parts), "<image>"


def llava(tokenizer) -> tuple[dict, object, str]:
    text = {"model_type": "llama", **SIZES}
    config = {"text_config": text, "vision_config": {"model_type": "clip_vision_model", **TOWER}, "image_seq_length": 16}
    config["image_token_index"] = tokenizer.convert_tokens_to_ids("<image>")
    images = library("CLIPImageProcessor")(size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48})
    options = {"patch_size": 12, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    return config, transformers.LlavaProcessor(images, tokenizer, **options), "<image>"


FAMILIES = {"qwen3_vl": qwen3_vl, "smolvlm": smolvlm, "llava": llava}


def main() -> None:
    family, folder = sys.argv[1:]
    tokenizer = AutoTokenizer.from_pretrained(TINY_FOLDER)
    config, processor, image = FAMILIES[family](tokenizer)
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config["text_config"] |= {**ids, "vocab_size": len(tokenizer), "max_position_embeddings": 1024}
    torch.manual_seed(0)
    AutoModelForImageTextToText.from_config(AutoConfig.for_model(family, **config)).save_pretrained(folder)
    processor.chat_template = TEMPLATE.replace("IMAGE", image)
    processor.save_pretrained(folder)


if __name__ == "__main__":
    main()
