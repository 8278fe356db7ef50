"""Released checkpoints to ours."""

from .compose import compose_checkpoint
from .convert import convert_checkpoint

__all__ = ["compose_checkpoint", "convert_checkpoint"]
