"""Quantizers that tests try, by name: each makes a `quantization_config` from what to leave alone."""

from transformers import BitsAndBytesConfig, TorchAoConfig


def torchao_config(skip, kind="Int8WeightOnlyConfig"):
    import torchao.quantization

    return TorchAoConfig(getattr(torchao.quantization, kind)(), modules_to_not_convert=skip)


QUANTISERS = {
    "bitsandbytes, 8 bits": lambda skip: BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skip),
    "bitsandbytes, 4 bits": lambda skip: BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", llm_int8_skip_modules=skip),
    "torchao, 8 bits": torchao_config,
    "torchao, 8 bits, activations too": lambda skip: torchao_config(skip, "Int8DynamicActivationInt8WeightConfig"),
}
