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

from .modeling.configuration_vargpt import IMAGE_TOKENIZERS, VISUAL_DECODERS, VargptConfig
from .modeling.modeling_vargpt import VargptForConditionalGeneration, VargptModel
from .modeling.vq_vargpt import VargptVQConfig
from .processing.image_processing_vargpt import VargptCLIPImageProcessor, VargptImageProcessor
from .processing.processing_vargpt import VargptProcessor

AutoConfig.register("vargpt", VargptConfig)
AutoModel.register(VargptConfig, VargptModel)
for part in (*IMAGE_TOKENIZERS.values(), *VISUAL_DECODERS.values()):
    AutoConfig.register(part.config_class.model_type, part.config_class)
    AutoModel.register(part.config_class, part)
for auto_class in (AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMultimodalLM):
    auto_class.register(VargptConfig, VargptForConditionalGeneration)
AutoImageProcessor.register(VargptConfig, image_processor_classes={"pil": VargptCLIPImageProcessor})
# Of images to draw, for folders of models that read none: what an image tokenizer takes.
AutoImageProcessor.register(VargptVQConfig, image_processor_classes={"pil": VargptImageProcessor})
AutoProcessor.register(VargptConfig, VargptProcessor)

# Named, since to import pipelines takes a while. What is there stands for all other models. (`register_pipeline` would warn of replacing it.)
for task, name in (("any-to-any", "AnyToAnyOfAll"), ("image-text-to-text", "ImageTextToTextOfAll")):
    stock = PIPELINE_REGISTRY.supported_tasks[task]
    PIPELINE_REGISTRY.supported_tasks[task] = {**stock, "impl": f"{__package__}.modeling.pipeline_vargpt.{name}"}
