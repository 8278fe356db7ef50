"""VARGPT for the Hugging Face ecosystem: one model that understands and draws.

Importing it registers the classes below with Transformers' Auto classes, and does nothing else.
"""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
)

from .modeling.configuration_vargpt import VargptConfig, VargptVisualDecoderConfig, VargptVQConfig
from .modeling.modeling_vargpt import VargptForConditionalGeneration, VargptModel
from .modeling.vq_vargpt import VargptVQModel

AutoConfig.register("vargpt", VargptConfig)
AutoConfig.register("vargpt_vq", VargptVQConfig)
AutoModel.register(VargptConfig, VargptModel)
AutoModel.register(VargptVQConfig, VargptVQModel)
for auto_class in (AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMultimodalLM):
    auto_class.register(VargptConfig, VargptForConditionalGeneration)

__version__ = "0.1.0"
__all__ = [
    "VargptConfig",
    "VargptForConditionalGeneration",
    "VargptModel",
    "VargptVQConfig",
    "VargptVQModel",
    "VargptVisualDecoderConfig",
]
