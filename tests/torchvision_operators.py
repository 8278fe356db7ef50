"""A pytest plugin, for runs beside torchvision where torch is the build for CPUs.

torchvision's wheel in the registry is built for CUDA: beside a torch for CPUs its import misses two operators, which nothing here calls.
Declared ahead, the import succeeds: `python -m pytest -p torchvision_operators tests/hub`.
"""

import torch

LIBRARY = torch.library.Library("torchvision", "DEF")
for name in ("nms", "qnms"):
    LIBRARY.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import torchvision  # noqa: E402, F401 - must come after
