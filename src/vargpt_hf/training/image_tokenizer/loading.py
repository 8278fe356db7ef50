"""Image tokenizers: fresh ones by their kind, saved ones, and those inside a VARGPT."""

from pathlib import Path
from typing import Any

from transformers import AutoConfig

from ...modeling.checkpoint_vargpt import headers_of, open_safetensors
from ...modeling.configuration_vargpt import IMAGE_TOKENIZERS, VargptConfig
from ...modeling.image_tokenizer_vargpt import VargptImageTokenizer
from ...shipped import folder_of

_PREFIX = "model.image_tokenizer."
_FAMILY = "vargpt_"


def kinds() -> list[str]:
    """The kinds that there are, in the words of a training file: "vq", "bsq", …"""
    return [model_type.removeprefix(_FAMILY) for model_type in IMAGE_TOKENIZERS]


def fresh_image_tokenizer(kind: str, fields: dict[str, Any] | None = None) -> VargptImageTokenizer:
    """A fresh image tokenizer, its weights drawn from torch's global generator.

    Args:
        kind: see `kinds`.
        fields: of its configuration, over the defaults.

    Raises:
        ValueError: an unknown kind or field, or a field out of range.
        TypeError: a field of the wrong type.
    """
    name = kind if kind in IMAGE_TOKENIZERS else f"{_FAMILY}{kind}"
    if name not in IMAGE_TOKENIZERS:
        raise ValueError(f"There is no kind {kind!r} of image tokenizers: give one of {', '.join(kinds())}.")
    config_class = IMAGE_TOKENIZERS[name].config_class
    fields = {key: value for key, value in (fields or {}).items() if key != "model_type"}
    if unknown := set(fields) - set(config_class.__dataclass_fields__):
        raise ValueError(
            f"An image tokenizer of kind {kind!r} has no field {', '.join(sorted(unknown))}: see {config_class.__name__} for those that it has."
        )
    return IMAGE_TOKENIZERS[name](config_class(**fields))


def load_image_tokenizer(name: str | Path) -> VargptImageTokenizer:
    """The image tokenizer of a folder or Hub id, in float32; of a VARGPT, also of one that comes with this package, it alone is read.

    Raises:
        ValueError: a model that neither is nor has an image tokenizer, or weights that are missing, unknown or of other shapes.
        OSError: a folder or Hub id that cannot be read, or a file that is cut short.
    """
    name = folder_of(name)
    config, prefix = AutoConfig.from_pretrained(name, trust_remote_code=False), ""
    if isinstance(config, VargptConfig):
        config, prefix = config.image_tokenizer_config, _PREFIX
    if config.model_type not in IMAGE_TOKENIZERS:
        raise ValueError(
            f"{name} holds a model of type {config.model_type!r}: give an image tokenizer ({', '.join(IMAGE_TOKENIZERS)}) or a VARGPT."
        )
    headers = {key.removeprefix(prefix): header for key, header in headers_of(name).items() if key.startswith(prefix)}
    model = IMAGE_TOKENIZERS[config.model_type](config)
    wanted = {key: tuple(weight.shape) for key, weight in model.state_dict().items()}
    if different := {key for key in wanted.keys() | headers.keys() if wanted.get(key) != (headers[key].shape if key in headers else None)}:
        key = min(different)
        found, should = headers[key].shape if key in headers else "missing", wanted.get(key, "absent")
        raise ValueError(f"{name} does not hold the weights of its image tokenizer: {key} is {found}, and should be {should}.")
    weights = {}
    for file in {header.file for header in headers.values()}:
        with open_safetensors(file) as tensors:
            weights |= {key: tensors.get_tensor(f"{prefix}{key}").float() for key, header in headers.items() if header.file == file}
    model.load_state_dict(weights)
    return model


__all__ = ["fresh_image_tokenizer", "kinds", "load_image_tokenizer"]
