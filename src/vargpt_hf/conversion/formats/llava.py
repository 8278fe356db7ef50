"""LLaVA-1.5 in Transformers' format (model_type `llava`), in all the forms that its tensors' names have had, alone or in a whole VARGPT v1."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from ...modeling.checkpoint_vargpt import read_json
from ...modeling.configuration_vargpt import VargptConfig
from ...processing import RELEASED_SYSTEM_PROMPT, VargptCLIPImageProcessor, VargptProcessor, make_chat_template
from ...processing.reader_vargpt import llava_settings
from ..checkpoint import read_config_of, said_of

MODEL_TYPE = "llava"
# LLaVA-1.5's tensors as it was released on the Hub, and in the whole checkpoint.
OLD_NAMES = [
    # Buffers that older versions of Transformers saved.
    ("vision_tower.vision_model.embeddings.position_ids", None),
    ("language_model.model.layers.{}.self_attn.rotary_emb.inv_freq", None),
    ("multi_modal_projector.{}.{}", "model.vlm.multi_modal_projector.{}.{}"),
    ("vision_tower.vision_model.{rest}", "model.vlm.vision_tower.{rest}"),
    ("language_model.model.{rest}", "model.vlm.language_model.{rest}"),
    ("language_model.lm_head.weight", "lm_head.weight"),
]

# All forms of LLaVA-1.5's tensors. Transformers has renamed them since, files keep the names of the version that wrote them.
NAMES = [
    *OLD_NAMES,
    ("vision_tower.{rest}", "model.vlm.vision_tower.{rest}"),
    ("model.vision_tower.vision_model.{rest}", "model.vlm.vision_tower.{rest}"),
    ("model.vision_tower.{rest}", "model.vlm.vision_tower.{rest}"),
    ("model.multi_modal_projector.{}.{}", "model.vlm.multi_modal_projector.{}.{}"),
    ("model.language_model.{rest}", "model.vlm.language_model.{rest}"),
    ("lm_head.weight", "lm_head.weight"),
]

_CLIP_SETTINGS = (
    "do_resize",
    "size",
    "resample",
    "do_center_crop",
    "crop_size",
    "do_rescale",
    "rescale_factor",
    "do_normalize",
    "image_mean",
    "image_std",
    "do_convert_rgb",
)
_KEPT_FIELDS = ("image_seq_length", "vision_feature_layer", "vision_feature_select_strategy", "projector_hidden_act")


def read_config(folder: Path) -> dict:
    """`config.json` of a LLaVA in Transformers' format.

    Raises:
        OSError: no folder, or no config in it.
        ValueError: a config of another kind of model, or one without a field that is needed.
    """
    config = read_config_of(folder, MODEL_TYPE, "LLaVA-1.5", "llava-hf/llava-1.5-7b-hf")
    for name in ("text_config", "vision_config"):
        if not isinstance(config.get(name), dict):
            raise ValueError(f"{folder / 'config.json'} has no `{name}`.")
    if type(config.get("image_token_index")) is not int:
        raise ValueError(f"{folder / 'config.json'} has no `image_token_index`, the id of the token at the placeholders of images.")
    return config


def vlm_config_of(
    source_config: dict[str, Any], image_token_id: int, tensors: Collection[str], vocab_size: int | None = None
) -> dict[str, Any]:
    """Fields of the backbone's configuration.

    Args:
        source_config: with `text_config` and `vision_config`.
        tensors: names of the tensors, which say whether the projector has biases.
        vocab_size: in place of the one in `source_config`.
    """
    more = {} if vocab_size is None else {"vocab_size": vocab_size}
    return {
        "model_type": MODEL_TYPE,
        "text_config": {"model_type": "llama", **source_config["text_config"], **more},
        "vision_config": {"model_type": "clip_vision_model", **source_config["vision_config"]},
        "image_token_index": image_token_id,
        "multimodal_projector_bias": any(name.endswith("multi_modal_projector.linear_1.bias") for name in tensors),
        "tie_word_embeddings": source_config.get("tie_word_embeddings", False),
        **{name: source_config[name] for name in _KEPT_FIELDS if source_config.get(name) is not None},
    }


def make_processor(source: Path, tokenizer: PreTrainedTokenizerBase, config: VargptConfig) -> VargptProcessor:
    """The processor of a model: this tokenizer, pixels to read as the files in `source` say, pixels to draw as `config` says.

    Raises:
        ValueError: a tokenizer whose image tokens are absent or have other ids than the model's.
    """
    side = config.vision_config.image_size
    settings = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    found = {}
    if (source / "preprocessor_config.json").is_file():
        found = read_json(source / "preprocessor_config.json")
    elif (source / "processor_config.json").is_file():  # where Transformers 5 puts them
        found = read_json(source / "processor_config.json").get("image_processor") or {}
    with said_of(f"What {source} says of the images to read"):
        settings.update({name: found[name] for name in _CLIP_SETTINGS if found.get(name) is not None})
        image_processor = VargptCLIPImageProcessor(**settings)
    drawn = config.image_tokenizer_config
    processor = VargptProcessor(
        image_processor,
        tokenizer,
        chat_template=make_chat_template(RELEASED_SYSTEM_PROMPT),
        reader=llava_settings(config.vlm_config),
        output_image_settings={"schedules": drawn.schedules, "downsampling": drawn.downsampling},
    )
    for name in ("image_token_id", "output_image_start_token_id", "output_image_token_id", "output_image_end_token_id"):
        if getattr(processor, name) != getattr(config, name):
            raise ValueError(
                f"The tokenizer in {source} and its config.json disagree: `{name}` is {getattr(processor, name)} in the one, "
                f"{getattr(config, name)} in the other."
            )
    return processor


__all__ = ["MODEL_TYPE", "NAMES", "OLD_NAMES", "make_processor", "read_config", "vlm_config_of"]
