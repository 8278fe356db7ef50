"""Importing this registers VARGPT's classes with Transformers' Auto classes and pipelines."""

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoProcessor,
)
from transformers.pipelines import PIPELINE_REGISTRY

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

# Named, since to import pipelines takes a while. What is there stands for all other models. (`register_pipeline` would warn of replacing it.)
for task, name in (("any-to-any", "AnyToAnyOfAll"), ("image-text-to-text", "ImageTextToTextOfAll")):
    stock = PIPELINE_REGISTRY.supported_tasks[task]
    PIPELINE_REGISTRY.supported_tasks[task] = {**stock, "impl": f"{__package__}.modeling.pipeline_vargpt.{name}"}
