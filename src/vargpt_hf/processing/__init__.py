"""Images and chats to tensors and back; flat files that a Hub repository can carry."""

from .. import registration as _registration  # noqa: F401  (whoever imports a part has the Auto classes know it)
from .chat_vargpt import RELEASED_SYSTEM_PROMPT, make_chat_template
from .image_processing_vargpt import VargptCLIPImageProcessor, VargptImageProcessor
from .processing_vargpt import VargptProcessor

__all__ = ["RELEASED_SYSTEM_PROMPT", "VargptCLIPImageProcessor", "VargptImageProcessor", "VargptProcessor", "make_chat_template"]
