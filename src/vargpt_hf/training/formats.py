"""How weights are loaded for training: whole, what is frozen in formats that take little room, what is trained in float32."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers import BitsAndBytesConfig, TrainingArguments
from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config
from trl import ModelConfig

from ..hardware import default_device, loading_dtype
from ..modeling.configuration_vargpt import VargptConfig
from ..modeling.modeling_vargpt import VargptForConditionalGeneration
from ..peft import unquantized_modules

_NARROW = (torch.bfloat16, torch.float16)


def loading_options(model_config: ModelConfig, config: VargptConfig) -> dict[str, object]:
    """How `from_pretrained` loads the weights for training.

    Args:
        model_config: `dtype`: float32 by default; "auto" is the format in which the weights are stored, where the device has units for it, else
            float32. `load_in_8bit`, `load_in_4bit`: the linear layers of the language model are quantized by bitsandbytes, and nothing else is.
        config: of the model.
    """
    dtype = loading_dtype(model_config.dtype or "float32", config.dtype, default_device())
    options = {"dtype": dtype, "attn_implementation": model_config.attn_implementation}
    if model_config.load_in_8bit or model_config.load_in_4bit:
        with torch.device("meta"):
            names = unquantized_modules(None, VargptForConditionalGeneration(config))
        computes = torch.float32 if dtype == "float32" else torch.bfloat16
        four = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": computes}
        bits = four if model_config.load_in_4bit else {"load_in_8bit": True}
        options["quantization_config"] = BitsAndBytesConfig(**bits, llm_int8_skip_modules=names)
    return options


@contextmanager
def loaded_whole(args: TrainingArguments) -> Iterator[None]:
    """Within it models are loaded whole, where Transformers would shard each weight at once as DeepSpeed's stage 3 asks.

    What a stage trains, and whose codes fit the image tokenizer, is read off whole weights; DeepSpeed shards them when training starts. Until
    then they stay mapped from their files, which all processes of a machine share.
    """
    if args.deepspeed_plugin is None:
        yield
        return
    kept = args.hf_deepspeed_config if args.deepspeed else args.deepspeed_plugin.dschf
    unset_hf_deepspeed_config()
    try:
        yield
    finally:
        set_hf_deepspeed_config(kept)


def widen_trained(model: nn.Module, args: TrainingArguments) -> int:
    """Holds trained weights in float32, where they were loaded in fewer bits and the computation is cast to bfloat16; returns how many.

    AdamW's steps are mostly smaller than what bfloat16 can tell apart. What is frozen stays as it was loaded. Engines that shard weights have
    masters of their own, and are left alone. Of a quantized model always, since TRL's trainers make bfloat16 of what is trained beside it.
    """
    quantized = any(getattr(model, f"is_loaded_in_{bits}bit", False) for bits in (4, 8))
    engines = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED")
    sharded = args.fsdp or args.deepspeed or any(os.environ.get(name, "false").lower() in ("1", "true") for name in engines)
    if sharded or not (args.bf16 or quantized):
        return 0
    narrow = [p for p in model.parameters() if p.requires_grad and p.dtype in _NARROW]
    for parameter in narrow:
        parameter.data = parameter.data.float()
    return sum(parameter.numel() for parameter in narrow)


__all__ = ["loaded_whole", "loading_options", "widen_trained"]
