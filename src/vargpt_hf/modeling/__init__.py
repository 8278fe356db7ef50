"""The model: what a Hub repository carries beside the processor."""

from .. import registration as _registration  # noqa: F401  (whoever imports a part has the Auto classes know it)
