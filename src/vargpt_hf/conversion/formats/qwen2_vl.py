"""Qwen2-VL in Transformers' format (model_type `qwen2_vl`), in the layouts of Transformers 4 and 5, alone or in a whole VARGPT v1.1."""

from pathlib import Path

from transformers import AutoConfig, PreTrainedConfig, PreTrainedTokenizerBase

from ...modeling.checkpoint_vargpt import read_json
from ...modeling.configuration_vargpt import VargptConfig
from ...processing import VargptProcessor
from ..checkpoint import read_config_of, said_of

MODEL_TYPE = "qwen2_vl"
# The layout of Transformers 4.
OLD_NAMES = [
    ("visual.{rest}", "model.vlm.visual.{rest}"),
    ("model.{rest}", "model.vlm.language_model.{rest}"),
    ("lm_head.weight", "lm_head.weight"),
]
NAMES = [
    ("model.visual.{rest}", "model.vlm.visual.{rest}"),
    ("model.language_model.{rest}", "model.vlm.language_model.{rest}"),
    *OLD_NAMES,
]

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


def read_config(folder: Path) -> tuple[dict, PreTrainedConfig]:
    """`config.json` of a Qwen2-VL as it is, and as Transformers reads it."""
    source = read_config_of(folder, MODEL_TYPE, "Qwen2-VL", "Qwen/Qwen2-VL-7B-Instruct")
    with said_of(folder / "config.json"):
        return source, AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)


__all__ = ["MODEL_TYPE", "NAMES", "OLD_NAMES", "make_processor", "read_config"]
