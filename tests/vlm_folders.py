"""Folders of small models that read, of random weights, as people download them: weights, tokenizer, processor."""

import copy
import json
from pathlib import Path

import torch
from backbone_configs import FAMILIES, backbone_config
from reader_helpers import READER_TEMPLATE, READERS, TEXT_TEMPLATE, make_reader, make_reader_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedConfig, PreTrainedModel
from transformers.utils import is_torchvision_available

# Of families whose image processor is not named like their processor.
IMAGE_PROCESSORS = {
    "Qwen2_5_VLProcessor": "Qwen2VLImageProcessor",
    "Qwen3VLProcessor": "Qwen2VLImageProcessor",
    "InternVLProcessor": "GotOcr2ImageProcessor",
}


def reads_images(family: str) -> bool:
    return FAMILIES[family].num_placeholders > 0


def reader_of(family: str) -> str:
    """The family whose processor a family has."""
    return {"qwen3_5": "qwen3_vl"}.get(family, family)


def has_processor(family: str) -> bool:
    """Whether the processor of a family can be made here."""
    reader = READERS.get(reader_of(family))
    return reader is not None and (is_torchvision_available() or not reader.needs_torchvision)


def small_config(family: str, rows: int = 64, tied: bool | None = None, **fields) -> PreTrainedConfig:
    """The toy configuration of a family, with so many rows in its token tables."""
    fields = {**copy.deepcopy(backbone_config(family)), **fields}
    fields.get("text_config", fields)["vocab_size"] = rows
    if tied is not None:
        fields["tie_word_embeddings"] = tied
    return AutoConfig.for_model(fields.pop("model_type"), **fields)


def write_vlm(folder: Path, family: str, rows: int = 64, tied: bool | None = None, seed: int = 0, **fields) -> PreTrainedModel:
    """Writes a model of a family whose vocabulary of 61 knows nothing of drawing, and returns it as its class loads it."""
    torch.manual_seed(seed)
    auto_class = AutoModelForImageTextToText if reads_images(family) else AutoModelForCausalLM
    model = auto_class.from_config(small_config(family, rows, tied, **fields))
    with torch.no_grad():  # so that every input counts: with fresh weights a wrong position would hardly show
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
    model.save_pretrained(folder)
    if has_processor(family):
        make_reader(reader_of(family), draws=False).save_pretrained(folder)
        return auto_class.from_pretrained(folder).eval()
    tokenizer = make_reader_tokenizer(READERS.get(reader_of(family)), draws=False)
    tokenizer.chat_template = READER_TEMPLATE.replace("IMAGE", "'<image>'") if reads_images(family) else TEXT_TEMPLATE
    tokenizer.save_pretrained(folder)
    if reads_images(family):
        name = "Lfm2VlProcessor" if family == "lfm2_vl" else READERS[reader_of(family)].name
        kind = IMAGE_PROCESSORS.get(name, name.replace("Processor", "ImageProcessor"))
        (folder / "preprocessor_config.json").write_text(json.dumps({"processor_class": name, "image_processor_type": kind}))
    return auto_class.from_pretrained(folder).eval()
