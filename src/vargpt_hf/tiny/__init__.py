"""vargpt-tiny: the small VARGPT that comes with this package, and the data it was trained on."""

from pathlib import Path

TINY_NAME = "vargpt-tiny"
TINY_FOLDER = Path(__file__).parent / "weights"

__all__ = ["TINY_FOLDER", "TINY_NAME"]
