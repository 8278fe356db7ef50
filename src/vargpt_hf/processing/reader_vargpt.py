"""The processor of what reads: the backbone's own, of Transformers, saved as a few settings beside our own."""

from typing import Any

import transformers
from transformers.processing_utils import ProcessorMixin

# Readers whose answers are a text of their own (`suffix`), since their models read the whole prompt in both directions.
PREFIX_READERS = ("PaliGemmaProcessor",)
TORCHVISION_HINT = "Install it in the build of your torch: `pip install torchvision`, or see https://pytorch.org/get-started."


def build_reader(settings: dict[str, Any], image_processor: Any, tokenizer: Any) -> ProcessorMixin:
    """The processor that `settings` describe, around an image processor and a tokenizer.

    Args:
        settings: `processor_class`, the name of a processor of Transformers; its further options; and by their names further processors,
            such as a `video_processor`, as dicts with the name of their class.

    Raises:
        ValueError: a class that Transformers does not have, or options that it does not take.
        ImportError: a class that needs a package which is not installed.
    """
    options = dict(settings)
    name = options.pop("processor_class", None)
    reader_class = getattr(transformers, name, None) if isinstance(name, str) and name.endswith("Processor") else None
    if not (isinstance(reader_class, type) and hasattr(reader_class, "get_attributes")):
        raise ValueError(f"The reader of images needs a `processor_class` of Transformers, such as 'LlavaProcessor', got {name!r}.")
    try:
        for attribute in set(reader_class.get_attributes()) - {"image_processor", "tokenizer"}:
            given = dict(options.get(attribute) or {})
            kind = given.pop(next((key for key in given if key.endswith("_type")), ""), None)
            part_class = getattr(transformers, kind, None) if isinstance(kind, str) and kind.endswith("Processor") else None
            if part_class is None:
                raise ValueError(f"A {name} needs the settings and class of its `{attribute}`, got {options.get(attribute)!r}.")
            options[attribute] = part_class(**given)
        return reader_class(image_processor=image_processor, tokenizer=tokenizer, **options)
    except ImportError as error:
        raise ImportError(
            f"This model reads images by {name} of Transformers, which needs a package that is not installed: {_in_one_line(error)}"
            + (f" {TORCHVISION_HINT}" if "orchvision" in str(error) else "")
        ) from error
    except (AttributeError, TypeError) as error:
        raise ValueError(
            f"The settings {sorted(options)} do not make a {name} of this image processor ({type(image_processor).__name__}) and this "
            f"tokenizer ({type(tokenizer).__name__}): {_in_one_line(error)}"
        ) from error


def llava_settings(vlm_config: Any) -> dict[str, Any]:
    """The reader of a LLaVA with a tower of CLIP, which is that of VARGPT v1, by its configuration."""
    return {
        "processor_class": "LlavaProcessor",
        "patch_size": vlm_config.vision_config.patch_size,
        "vision_feature_select_strategy": vlm_config.vision_feature_select_strategy,
        "num_additional_image_tokens": 1,  # CLIP's class token
    }


def reader_settings(reader: ProcessorMixin) -> dict[str, Any]:
    """What [`build_reader`] needs to make this processor again.

    Raises:
        ValueError: a processor that is none of Transformers' own.
    """
    name = type(reader).__name__
    if getattr(transformers, name, None) is not type(reader):
        raise ValueError(f"The reader of images must be a processor of Transformers itself, got {type(reader).__module__}.{name}.")
    settings = reader.to_dict()
    return {key: value for key, value in settings.items() if key not in ("image_processor", "auto_map")}


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split())
