"""Released checkpoints to ours."""

from .compose import compose_checkpoint
from .compose_infinity import compose_v1_1
from .convert import convert_checkpoint

__all__ = ["compose_checkpoint", "compose_v1_1", "convert_checkpoint"]
