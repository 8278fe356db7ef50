"""VARGPT for the Hugging Face ecosystem: one model that understands and draws.

Importing it registers the classes below with Transformers' Auto classes, and does nothing else.
"""

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoProcessor,
)

from .modeling.configuration_vargpt import VargptConfig
from .modeling.decoding_vargpt import VargptImageStreamer
from .modeling.generation_vargpt import VargptGenerateOutput, VargptGenerationConfig
from .modeling.modeling_vargpt import VargptForConditionalGeneration, VargptModel
from .modeling.scales_vargpt import ScaleSchedule
from .modeling.var_decoder_vargpt import VargptVARDecoder, VargptVARDecoderConfig
from .modeling.vq_vargpt import VargptVQConfig, VargptVQModel
from .processing.image_processing_vargpt import VargptImageProcessor
from .processing.processing_vargpt import VargptProcessor

AutoConfig.register("vargpt", VargptConfig)
AutoConfig.register("vargpt_vq", VargptVQConfig)
AutoModel.register(VargptConfig, VargptModel)
AutoModel.register(VargptVQConfig, VargptVQModel)
for auto_class in (AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMultimodalLM):
    auto_class.register(VargptConfig, VargptForConditionalGeneration)
AutoImageProcessor.register(VargptConfig, image_processor_classes={"pil": VargptImageProcessor})
AutoProcessor.register(VargptConfig, VargptProcessor)

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


def __getattr__(name: str):
    """The pipeline, on demand: Transformers' pipelines take a while to import."""
    if name != "VargptPipeline":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .modeling.pipeline_vargpt import VargptPipeline

    return VargptPipeline
