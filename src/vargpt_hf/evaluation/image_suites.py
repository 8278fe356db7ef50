"""Suites of folders of images, whoever drew them: two sets, pairs, and images with their prompts."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..inference.prompts import MANIFEST as PROMPTS_MANIFEST
from ..inference.prompts import RESULTS
from .drawn_suites import DRAWN, read_drawn
from .drawn_suites import MANIFEST as BENCHMARK_MANIFEST
from .image_files import as_pixels, files_of_images, read_image
from .image_metrics import clip_scores, compare_sets, features_of, inception_score, lpips_of_pairs, psnr_of_pairs, ssim_of_pairs
from .intervals import SET_RESAMPLES, library, mean, set_metrics
from .networks import ClipNetwork
from .suites import Example, SuiteResult, data_hash

Network = Callable[[torch.Tensor], torch.Tensor]


def evaluate_sets(
    images: Path,
    references: Path,
    features: Network,
    network: str,
    *,
    logits: Network | None = None,
    classes: str | None = None,
    neighbors: int = 3,
    resamples: int = SET_RESAMPLES,
    batch_size: int = 32,
    seed: int = 0,
) -> SuiteResult:
    """FID, KID, precision, recall, density and coverage of a folder of drawn images against one of real ones; IS of the drawn.

    Args:
        images, references: folders; all images in them and below count.
        features: see `networks.feature_network`.
        network: its name and fingerprint, for the report: numbers of different networks do not compare.
        logits: of classes, for IS; None leaves it out.
        classes: name and fingerprint of the network that gives them, for the report.
        neighbors, resamples, seed: see `image_metrics.compare_sets`.
        batch_size: images that go through the network together.

    Raises:
        ValueError: folders without images, or too few of them.
        OSError: what cannot be read.
    """
    drawn, real = files_of_images(images), files_of_images(references)
    found = compare_sets(
        *(_features(files, features, batch_size) for files in (drawn, real)), neighbors=neighbors, resamples=resamples, seed=seed
    )
    if logits is not None:
        of_classes = _features(drawn, logits, batch_size)
        fields = {"IS": {"library": library("torchmetrics")}}
        found |= set_metrics(lambda some: {"IS": inception_score(some, seed=seed)}, (of_classes,), fields, resamples, seed)
    return SuiteResult(
        metrics=found,
        samples=[],
        data={"name": references.name, "rows": len(real), "sha256": _hash(real)},
        seeds={"halves": seed},
        settings={"network": network, "classes": classes, "neighbors": neighbors, "resamples": resamples},
        examples=_examples(drawn[:8]),
    )


def evaluate_pairs(
    images: Path, references: Path, lpips: Callable | None = None, network: str | None = None, batch_size: int = 32
) -> SuiteResult:
    """PSNR, SSIM and, where a network is given, LPIPS of images against references of the same names.

    Args:
        images, references: folders.
        lpips: see `networks.lpips_network`.
        network: its name, for the report.
        batch_size: images that are compared together.

    Raises:
        ValueError: an image without its reference, or of another size.
        OSError: what cannot be read.
    """
    drawn = files_of_images(images)
    real = [references / file.relative_to(images) for file in drawn]
    if missing := [file for file in real if not file.is_file()]:
        raise ValueError(f"{len(missing)} of {len(real)} images have no reference: {missing[0]} is not there.")
    samples = []
    for ours, theirs in zip(drawn, real):
        name = ours.relative_to(images).as_posix()
        pair = [read_image(file) for file in (ours, theirs)]
        if pair[0].size != pair[1].size:
            raise ValueError(f"{name} is {pair[0].width} × {pair[0].height}, its reference {pair[1].width} × {pair[1].height}.")
        pixels = [as_pixels([image]) for image in pair]
        values = {"PSNR": psnr_of_pairs(*pixels), "SSIM": ssim_of_pairs(*pixels)}
        if lpips is not None:
            values["LPIPS"] = lpips_of_pairs(*pixels, lpips)
        samples.append({"id": name, "metrics": {metric: value.item() for metric, value in values.items()}})
    fields = {"PSNR": {"unit": "dB"}, "SSIM": {}, "LPIPS": {"higher_is_better": False}}
    named = samples[0]["metrics"]
    metrics = {name: mean([one["metrics"][name] for one in samples], library=library("torchmetrics"), **fields[name]) for name in named}
    data = {"name": references.name, "rows": len(real), "sha256": _hash(real)}
    return SuiteResult(metrics, samples, data, {"bootstrap": 0}, {"network": network}, _examples(drawn[:8]))


def evaluate_prompts(images: Path, clip: ClipNetwork, network: str, batch_size: int = 32) -> SuiteResult:
    """CLIP-score of images that `vargpt draw --prompts` or `--benchmark` drew, each with its prompt.

    Args:
        images: folder with results.jsonl or drawn.jsonl.
        clip: see `networks.clip_network`.
        network: its name and fingerprint, for the report.
        batch_size: images that are read together.

    Raises:
        ValueError: a folder without the prompts of its images.
        OSError: what cannot be read.
    """
    rows = prompts_of(images)
    found: list[float] = []
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        found += clip_scores([read_image(images / row["file"]) for row in batch], [row["prompt"] for row in batch], clip, batch_size).tolist()
    notes = [f"{clip.cut} of {len(rows)} prompts are longer than this model reads, and were cut."] if clip.cut else []
    return SuiteResult(
        metrics={"CLIP-score": mean(found, unit="points", library=library("transformers"))},
        samples=[{"id": row["file"], "prompt": row["prompt"], "metrics": {"CLIP-score": score}} for row, score in zip(rows, found)],
        data={"name": "prompts", "rows": len(rows), "sha256": data_hash([row["file"], row["prompt"]] for row in rows)},
        seeds={"bootstrap": 0},
        settings={"network": network},
        examples=[
            Example(row["file"].replace("/", "-").removesuffix(".png"), read_image(images / row["file"]), row["prompt"]) for row in rows[:8]
        ],
        notes=notes,
    )


def prompts_of(folder: Path) -> list[Mapping[str, Any]]:
    """Rows with "file" and "prompt" of a folder that was drawn by `vargpt draw`.

    Raises:
        ValueError: another folder, or one whose drawing has not ended.
    """
    if (folder / DRAWN).is_file():
        return read_drawn(folder)[1]
    if not (folder / RESULTS).is_file():
        raise ValueError(f"{folder} does not say its images' prompts: draw them by `vargpt draw --prompts` or `--benchmark`.")
    return [row for row in map(json.loads, (folder / RESULTS).read_text().splitlines()) if row["file"] is not None]


def made_of(folder: Path) -> dict[str, dict[str, Any]]:
    """Model, prompts and settings that a folder's images were drawn with, as far as it says so.

    Returns:
        Arguments of `report.make_report`: "model", "prompts" and "generate".
    """
    for name in (BENCHMARK_MANIFEST, PROMPTS_MANIFEST):
        if (folder / name).is_file():
            note = json.loads((folder / name).read_text())
            model = note["model"] if isinstance(note["model"], dict) else {"name": folder.name, "fingerprint": note["model"]}
            prompts = note["prompts"] if isinstance(note["prompts"], dict) else {"sha256": note["prompts"]}
            return {"model": {**model, "dtype": note["dtype"]}, "prompts": prompts, "generate": note["settings"]}
    return {"model": {"name": folder.name, "fingerprint": "unknown"}, "prompts": {}, "generate": {}}


def _features(files: Sequence[Path], network: Network, batch_size: int) -> torch.Tensor:
    """Features of files, read batch by batch."""
    batches = [files[start : start + batch_size] for start in range(0, len(files), batch_size)]
    return torch.cat([features_of([read_image(file) for file in batch], network, batch_size) for batch in batches])


def _hash(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def _examples(files: Sequence[Path]) -> list[Example]:
    return [Example(f"{number}-{file.stem}", read_image(file), file.stem) for number, file in enumerate(files)]


__all__ = ["evaluate_pairs", "evaluate_prompts", "evaluate_sets", "made_of", "prompts_of"]
