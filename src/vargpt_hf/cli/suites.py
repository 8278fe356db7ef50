"""The suites of `vargpt evaluate`: each opens what it was given, measures and reports."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from ..tiny import TINY_NAME
from .options import check_device, check_model, load, model_folder, needs_extra


@dataclass(frozen=True)
class Asked:
    """What `vargpt evaluate` was asked, see there."""

    suite: str
    model: str | None
    number: int
    seed: int
    output: Path | None
    images: Path | None
    references: Path | None
    prompts: Path | None
    features: str | None
    classes: str | None
    clip: str | None
    lpips: Path | None
    lpips_net: str
    judge: str | None
    judge_model: str | None
    judge_text: Path | None
    resamples: int
    batch_size: int
    device: str
    dtype: str


def shapes_and_digits(asked: Asked) -> None:
    """The suite of vargpt-tiny: drawings under its judges, answers."""
    with needs_extra("The judges need", "evaluate"):
        from ..evaluation.shapes_and_digits import evaluate
        from ..tiny.digits import load_split

        load_split("train")
    begun = _begin(asked)
    model = asked.model or TINY_NAME
    vargpt, processor = load(model, asked.device, asked.dtype)
    from ..evaluation.provenance import of_generation, of_model, of_prompts

    result = evaluate(vargpt, processor, asked.number, asked.seed, asked.batch_size)
    made = {"model": of_model(vargpt, *model_folder(model)), "prompts": of_prompts(processor)}
    begun.finish(result, asked.output, **made, generate=of_generation(vargpt, {"max_new_tokens": 2}), device=vargpt.device)


def emoji(asked: Asked) -> None:
    """The suite of vargpt-emoji: drawings by the nearest real picture, answers."""
    with needs_extra("The judges need", "evaluate"):
        import sklearn  # noqa: F401
    begun = _begin(asked)
    from ..emoji.pictures import read_pictures
    from ..evaluation.emoji import Judges, evaluate
    from ..evaluation.provenance import of_generation, of_model, of_prompts

    judges = Judges(read_pictures(asked.references), device=check_device(asked.device))
    vargpt, processor = load(asked.model, asked.device, asked.dtype)
    result = evaluate(vargpt, processor, asked.references, asked.number, asked.seed, asked.batch_size, judges=judges)
    made = {"model": of_model(vargpt, *model_folder(asked.model)), "prompts": of_prompts(processor)}
    begun.finish(result, asked.output, **made, generate=of_generation(vargpt, {"max_new_tokens": 2}), device=vargpt.device)


def sets(asked: Asked) -> None:
    """Two folders of images: FID, KID, precision, recall; IS."""
    with needs_extra("Metrics of sets need", "evaluate"):
        import prdc  # noqa: F401
        import torchmetrics  # noqa: F401
    begun, device = _begin(asked), check_device(asked.device)
    from ..evaluation.image_suites import evaluate_sets
    from ..evaluation.networks import class_network, feature_network, inception_network

    def network(given: str, of_folder: Callable, output: str) -> Any:
        return inception_network(given, output, device) if given.endswith(".pth") else of_folder(given, device)

    logits = None if asked.classes is None else network(asked.classes, class_network, "logits")
    result = evaluate_sets(
        asked.images,
        asked.references,
        network(asked.features, feature_network, "features"),
        _named(asked.features),
        logits=logits,
        classes=None if asked.classes is None else _named(asked.classes),
        resamples=asked.resamples,
        batch_size=asked.batch_size,
        seed=asked.seed,
    )
    _finish(begun, asked, result, device)


def pairs(asked: Asked) -> None:
    """Images and references of the same names: PSNR, SSIM, LPIPS."""
    with needs_extra("Metrics of pairs need", "evaluate"):
        import torchmetrics  # noqa: F401
    begun, device = _begin(asked), check_device(asked.device)
    from ..evaluation.image_suites import evaluate_pairs
    from ..evaluation.networks import lpips_network

    lpips = None if asked.lpips is None else lpips_network(asked.lpips_net, asked.lpips)
    network = None if lpips is None else f"{asked.lpips_net}, {_named(str(asked.lpips))}"
    _finish(begun, asked, evaluate_pairs(asked.images, asked.references, lpips, network), device)


def prompts(asked: Asked) -> None:
    """Images that `vargpt draw` drew, and their prompts: CLIP-score."""
    begun, device = _begin(asked), check_device(asked.device)
    from ..evaluation.image_suites import evaluate_prompts
    from ..evaluation.networks import clip_network

    result = evaluate_prompts(asked.images, clip_network(asked.clip, device), _named(asked.clip), asked.batch_size)
    _finish(begun, asked, result, device)


def judged(asked: Asked) -> None:
    """A benchmark's images, scored by a judge."""
    begun, device = _begin(asked), check_device(asked.device)
    from ..evaluation.judged_suites import JUDGED
    from ..evaluation.judges import make_judge

    answers = None
    if asked.output is not None:
        asked.output.mkdir(parents=True, exist_ok=True)
        answers = asked.output / "answers.jsonl"
    judge = make_judge(asked.judge, asked.judge_model, device)
    result = JUDGED[asked.suite](asked.images, asked.prompts, judge, text=asked.judge_text, images=asked.references, answers=answers)
    _finish(begun, asked, result, device)


def paper_understanding(asked: Asked) -> None:
    """The understanding benchmarks of VARGPT's paper, by lmms-eval."""
    model, dtype = check_model(asked.model, asked.dtype, asked.device)
    from ..evaluation.paper import run_paper

    typer.echo(run_paper(model, dtype, check_device(asked.device), asked.output, asked.batch_size), nl=False)


# Each with the options that it cannot do without.
SUITES: dict[str, tuple[Callable[[Asked], None], tuple[str, ...]]] = {
    "shapes-and-digits": (shapes_and_digits, ()),
    "emoji": (emoji, ("references",)),
    "sets": (sets, ("images", "references", "features")),
    "pairs": (pairs, ("images", "references")),
    "prompts": (prompts, ("images", "clip")),
    "wise": (judged, ("images", "prompts", "judge")),
    "imgedit": (judged, ("images", "references", "prompts", "judge")),
    "gedit": (judged, ("images", "prompts", "judge")),
    "paper-understanding": (paper_understanding, ("output",)),
}


def _begin(asked: Asked) -> Any:
    with needs_extra("Intervals need", "evaluate"):
        import scipy  # noqa: F401

        from ..evaluation.started import Started
    return Started(asked.suite)


def _finish(begun: Any, asked: Asked, result: Any, device: str) -> None:
    """Reports on a folder of images, made as it says itself."""
    from ..evaluation.image_suites import made_of

    begun.finish(result, asked.output, **made_of(asked.images), device=device)


def _named(network: str) -> str:
    """Name and fingerprint of a file or folder."""
    import hashlib

    from ..inference.prompts import model_fingerprint

    if Path(network).is_file():
        return f"{Path(network).name}, sha256 {hashlib.sha256(Path(network).read_bytes()).hexdigest()[:16]}"
    return f"{Path(network).name if Path(network).is_dir() else network}, fingerprint {model_fingerprint(network)}"


__all__ = ["SUITES", "Asked"]
