"""Networks that metrics look through: each of a file or folder that the user gives, since none is downloaded here.

| metric | network | made by |
|---|---|---|
| FID, KID, precision, recall | images (n, 3, height, width) uint8 → features (n, D) | `feature_network`, `inception_network` |
| IS | the same → logits of classes (n, classes) | `class_network`, `inception_network` |
| CLIP-score | images and texts → features of one space | `clip_network` |
| LPIPS | two batches of images in [-1, 1] → distances (n,) | `lpips_network` |
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image

INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
LPIPS_FILES = {"alex": "alexnet-owt-7be5be79.pth", "vgg": "vgg16-397923af.pth"}
_INCEPTION_LAYERS = {"features": "2048", "logits": "logits_unbiased"}


@dataclass
class ClipNetwork:
    """Any model of Transformers with features of images and of texts in one space: CLIP, SigLIP, ….

    Attributes:
        model, processor: of Transformers.
        cut: texts so far that were longer than the model reads, and were cut.
    """

    model: Any
    processor: Any
    cut: int = field(default=0, init=False)

    @torch.no_grad()
    def images(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Features (N, D) of images, on the CPU."""
        inputs = self.processor(images=[image.convert("RGB") for image in images], return_tensors="pt").to(self.model.device)
        return self.model.get_image_features(pixel_values=inputs["pixel_values"].to(self.model.dtype)).pooler_output.float().cpu()

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Features (N, D) of texts, on the CPU; what is beyond the model's positions is cut, and counted in `cut`."""
        longest = self.model.config.text_config.max_position_embeddings
        self.cut += sum(len(ids) > longest for ids in self.processor.tokenizer(list(texts))["input_ids"])
        # SigLIP was trained on texts padded to the full length, and has no mask.
        padding = "max_length" if self.model.config.model_type.startswith("siglip") else True
        inputs = self.processor(text=list(texts), padding=padding, truncation=True, max_length=longest, return_tensors="pt")
        return self.model.get_text_features(**inputs.to(self.model.device)).pooler_output.float().cpu()


def clip_network(folder: str | Path, device: str = "cpu") -> ClipNetwork:
    """The model of a CLIP-score.

    Args:
        folder: of a CLIP, SigLIP or other model for zero-shot classification of images, with its processor; or its Hub id.

    Raises:
        ValueError: a model of another kind.
        OSError: a folder or Hub id that cannot be read.
    """
    from transformers import AutoModelForZeroShotImageClassification, AutoProcessor

    _check_folder(folder, "CLIP-score", "a CLIP, such as a download of openai/clip-vit-large-patch14")
    model = AutoModelForZeroShotImageClassification.from_pretrained(folder, dtype="float32", trust_remote_code=False)
    return ClipNetwork(model.to(device).eval(), AutoProcessor.from_pretrained(folder, trust_remote_code=False))


def feature_network(folder: str | Path, device: str = "cpu") -> Callable[[torch.Tensor], torch.Tensor]:
    """Features of a vision model of Transformers, for FID and its like.

    Args:
        folder: of a VARGPT (its reading side, mean of all positions), a CLIP (image features), or a vision model with a pooled output
            (DINOv2, ViT, …), with its image processor; or a Hub id.

    Raises:
        ValueError: a model of another kind.
        OSError: a folder or Hub id that cannot be read.
    """
    from transformers import AutoConfig, AutoImageProcessor, AutoModel
    from transformers.models.auto.modeling_auto import MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES

    _check_folder(folder, "FID with features of a Transformers model", "a vision model, such as a download of facebook/dinov2-large")
    kind = AutoConfig.from_pretrained(folder, trust_remote_code=False).model_type
    if kind == "vargpt":
        return _vargpt_features(folder, device)
    model = AutoModel.from_pretrained(folder, dtype="float32", trust_remote_code=False).to(device).eval()
    processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)
    read = model.get_image_features if kind in MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES else model

    @torch.no_grad()
    def features(images: torch.Tensor) -> torch.Tensor:
        inputs = processor(images=list(images.cpu()), return_tensors="pt").to(device)
        pooled = read(pixel_values=inputs["pixel_values"]).get("pooler_output")
        if pooled is None:
            raise ValueError(f"A {kind!r} model gives no pooled features: take a CLIP, DINOv2 or ViT.")
        return pooled.flatten(1)

    return features


def _vargpt_features(folder: str | Path, device: str) -> Callable[[torch.Tensor], torch.Tensor]:
    from ..modeling.modeling_vargpt import VargptForConditionalGeneration
    from ..processing.processing_vargpt import VargptProcessor

    model = VargptForConditionalGeneration.from_pretrained(folder, dtype="float32").to(device).eval()
    processor = VargptProcessor.from_pretrained(folder)
    if processor.reader is None:
        raise ValueError(f"{folder} holds a VARGPT that reads no images: it has no features of them.")

    @torch.no_grad()
    def features(images: torch.Tensor) -> torch.Tensor:
        images = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images.cpu()]
        inputs = processor(images=images, return_tensors="pt").to(device)
        found = model.get_image_features(**inputs).pooler_output
        return torch.stack([positions.flatten(0, -2).mean(0) for positions in found])

    return features


def class_network(folder: str | Path, device: str = "cpu") -> Callable[[torch.Tensor], torch.Tensor]:
    """Logits of an image classifier of Transformers, for IS.

    Args:
        folder: of a model for image classification with its image processor; or a Hub id.

    Raises:
        ValueError: a model of another kind.
        OSError: a folder or Hub id that cannot be read.
    """
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    _check_folder(folder, "IS with classes of a Transformers model", "an image classifier")
    model = AutoModelForImageClassification.from_pretrained(folder, dtype="float32", trust_remote_code=False).to(device).eval()
    processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)

    @torch.no_grad()
    def logits(images: torch.Tensor) -> torch.Tensor:
        return model(processor(images=list(images.cpu()), return_tensors="pt").to(device)["pixel_values"]).logits

    return logits


def inception_network(weights: str | Path | None, output: str = "features", device: str = "cpu") -> Callable[[torch.Tensor], torch.Tensor]:
    """The network of published FIDs: Inception v3 with the weights of TensorFlow's, by torch-fidelity.

    Args:
        weights: file `weights-inception-2015-12-05-6726825d.pth`.
        output: "features" (2048, for FID, KID, precision, recall) or "logits" (for IS).

    Raises:
        ValueError: no weights, another output, or no torch-fidelity with a torchvision that can be imported.
        OSError: a file that cannot be read.
    """
    if output not in _INCEPTION_LAYERS:
        raise ValueError(f'`output` must be "features" or "logits", got {output!r}.')
    if weights is None:
        raise ValueError(
            f"FID, KID and IS by Inception v3 need its weights: give {INCEPTION_FILE}, from the releases of torch-fidelity; or the folder "
            "of a vision model of Transformers, whose FID compares with no published one."
        )
    if not Path(weights).is_file():
        raise FileNotFoundError(f"There is no file {weights}: give {INCEPTION_FILE}, from the releases of torch-fidelity.")
    try:
        from torch_fidelity import FeatureExtractorInceptionV3
    except (ImportError, RuntimeError) as error:  # a torchvision built for another torch raises a RuntimeError
        raise ValueError(f"Inception v3 comes with torch-fidelity and torchvision, which cannot be imported ({error}).") from error
    try:
        network = FeatureExtractorInceptionV3("inception-v3-compat", [_INCEPTION_LAYERS[output]], str(weights)).to(device)
    except Exception as error:  # unpickling and loading raise errors of many kinds
        raise ValueError(f"{weights} does not hold the weights of {INCEPTION_FILE} ({type(error).__name__}).") from error
    return lambda images: network(images.to(device))[0]


def lpips_network(net: str, weights: str | Path | None, device: str = "cpu") -> torch.nn.Module:
    """LPIPS as torchmetrics computes it, with the heads that it ships.

    Args:
        net: "alex" or "vgg".
        weights: torchvision's file of that network: `alexnet-owt-7be5be79.pth` or `vgg16-397923af.pth`; or a .safetensors of the same
            tensors.

    Raises:
        ValueError: another network, no weights, or a file of other weights.
        OSError: a file that cannot be read.
    """
    from .perceptual import build_lpips

    if net not in LPIPS_FILES:
        raise ValueError(f"`net` must be one of {', '.join(LPIPS_FILES)}, got {net!r}.")
    if weights is None:
        raise ValueError(f'LPIPS by "{net}" needs the weights of its network: give {LPIPS_FILES[net]}, as torchvision downloads it.')
    return build_lpips(net, _tensors(Path(weights), LPIPS_FILES[net])).to(device)


def _tensors(file: Path, expected: str) -> dict[str, torch.Tensor]:
    if not file.is_file():
        raise FileNotFoundError(f"There is no file {file}: give {expected}, as torchvision downloads it.")
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(file)
        loaded = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # both readers raise errors of many kinds
        if isinstance(error, OSError):
            raise
        raise ValueError(f"{file} is no file of weights ({type(error).__name__}): give {expected}.") from error
    if not isinstance(loaded, dict):
        raise ValueError(f"{file} holds no tensors by name: give {expected}.")
    return loaded


def _check_folder(folder: str | Path | None, metric: str, example: str) -> None:
    if folder is None:
        raise ValueError(f"{metric} needs a network: give the folder of {example}.")
    if not Path(folder).exists() and (str(folder).startswith((".", "/", "~")) or str(folder).count("/") > 1):
        raise ValueError(f"{metric} needs a network, but there is no folder {folder}: give that of {example}.")


__all__ = [
    "ClipNetwork",
    "class_network",
    "clip_network",
    "feature_network",
    "inception_network",
    "lpips_network",
]
