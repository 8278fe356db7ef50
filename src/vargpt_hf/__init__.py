"""VARGPT for the Hugging Face ecosystem: one model that understands and draws.

Importing it registers the classes below with Transformers' Auto classes and pipelines, and does nothing else.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .modeling.configuration_vargpt import VargptConfig
    from .modeling.drawing_plan_vargpt import VargptImageStreamer
    from .modeling.modeling_vargpt import VargptForConditionalGeneration, VargptModel
    from .modeling.outputs_vargpt import VargptGenerateOutput
    from .modeling.pipeline_vargpt import VargptPipeline
    from .modeling.scales_vargpt import ScaleSchedule
    from .modeling.settings_vargpt import VargptGenerationConfig
    from .modeling.var_decoder_vargpt import VargptVARDecoder, VargptVARDecoderConfig
    from .modeling.vq_vargpt import VargptVQConfig, VargptVQModel
    from .processing.image_processing_vargpt import VargptImageProcessor
    from .processing.processing_vargpt import VargptProcessor

__version__ = "0.1.0"
__all__ = [
    "ScaleSchedule",
    "VargptConfig",
    "VargptForConditionalGeneration",
    "VargptGenerateOutput",
    "VargptGenerationConfig",
    "VargptImageProcessor",
    "VargptImageStreamer",
    "VargptModel",
    "VargptPipeline",
    "VargptProcessor",
    "VargptVARDecoder",
    "VargptVARDecoderConfig",
    "VargptVQConfig",
    "VargptVQModel",
]
_HOMES = {
    "modeling.configuration_vargpt": ("VargptConfig",),
    "modeling.drawing_plan_vargpt": ("VargptImageStreamer",),
    "modeling.modeling_vargpt": ("VargptForConditionalGeneration", "VargptModel"),
    "modeling.outputs_vargpt": ("VargptGenerateOutput",),
    "modeling.pipeline_vargpt": ("VargptPipeline",),
    "modeling.scales_vargpt": ("ScaleSchedule",),
    "modeling.settings_vargpt": ("VargptGenerationConfig",),
    "modeling.var_decoder_vargpt": ("VargptVARDecoder", "VargptVARDecoderConfig"),
    "modeling.vq_vargpt": ("VargptVQConfig", "VargptVQModel"),
    "processing.image_processing_vargpt": ("VargptImageProcessor",),
    "processing.processing_vargpt": ("VargptProcessor",),
}


def __getattr__(name: str):
    """A public class, imported when it is first asked for."""
    home = next((home for home, names in _HOMES.items() if name in names), None)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{home}", __name__), name)


def __dir__() -> list[str]:
    """The public names alone, without modules that happen to be imported."""
    return [*__all__, "__version__"]


# The `vargpt` command postpones this: see vargpt_hf_command.py.
_command = sys.modules.get("vargpt_hf_command")
if _command is None or not _command.starting:
    from . import registration as _registration  # noqa: F401
