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

from .modeling.configuration_vargpt import IMAGE_TOKENIZERS, VISUAL_DECODERS, VargptConfig
from .modeling.modeling_vargpt import VargptForConditionalGeneration, VargptModel
from .processing.image_processing_vargpt import VargptImageProcessor
from .processing.processing_vargpt import VargptProcessor

AutoConfig.register("vargpt", VargptConfig)
AutoModel.register(VargptConfig, VargptModel)
for part in (*IMAGE_TOKENIZERS.values(), *VISUAL_DECODERS.values()):
    AutoConfig.register(part.config_class.model_type, part.config_class)
    AutoModel.register(part.config_class, part)
for auto_class in (AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMultimodalLM):
    auto_class.register(VargptConfig, VargptForConditionalGeneration)
AutoImageProcessor.register(VargptConfig, image_processor_classes={"pil": VargptImageProcessor})
AutoProcessor.register(VargptConfig, VargptProcessor)
