"""Released checkpoints to ours."""

from .convert import convert_checkpoint

__all__ = ["convert_checkpoint"]
