"""Importing this registers VARGPT's classes with Transformers' Auto classes."""

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoProcessor,
)

from .modeling.configuration_vargpt import VargptConfig, VargptVQConfig
from .modeling.modeling_vargpt import VargptForConditionalGeneration, VargptModel
from .modeling.vq_vargpt import VargptVQModel
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
