"""From scores of codes to codes: guidance, processors of scores, sampling (VAR, arXiv 2404.02905, section 4; VARGPT, arXiv 2501.12327).

Shapes: N images, M decoder rows of them (N, or 2N under guidance), l positions of one scale, L of all, K symbols of a code, V classes of a
symbol, C decoder width, D width of the language model.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from transformers.generation.logits_process import (
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from .image_tokenizer_vargpt import from_symbols, to_symbols
from .scales_vargpt import ScaleSchedule
from .visual_decoder_vargpt import GENERATE_CONDITION, NULL_CONDITION

Generators = torch.Generator | list[torch.Generator] | None
# Takes scores (N, l, K, V) of one scale, its index and the schedule, and returns scores of the same shape.
CodeProcessor = Callable[[torch.Tensor, int, ScaleSchedule], torch.Tensor]


_CAUSES = "Check the prompt's images and embeddings and the weights for such values; float16 overflows where bfloat16 and float32 do not."


class VargptScoresCheck(LogitsProcessor):
    """Raises where a choice of the next token would have no meaning; the last processor before sampling's filters."""

    def __call__(self, input_ids: torch.LongTensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores (B, vocabulary) unchanged; ValueError if any is NaN or +inf, or if a row has none above -inf."""
        best = scores.amax(dim=-1)  # NaN where any score is
        if not best.isfinite().all():
            row = int((~best.isfinite()).nonzero()[0])
            where = f"of row {row}, after {input_ids.shape[1]} tokens"
            if best[row] == -torch.inf:
                raise ValueError(f"No token may follow: the settings and logits processors forbid every one {where}.")
            raise ValueError(f"The scores of the next token {where}, are NaN or infinite. {_CAUSES}")
        return scores


def check_logits(logits: torch.Tensor, what: str) -> None:
    """Raises a ValueError if logits (N, l, K, V), of which `what` says whose they are, are NaN or infinite."""
    if torch.stack(logits.aminmax()).isfinite().all():  # NaN where any is; one pass over what has megabytes, where looking at each takes five
        return
    image, position = (~logits.isfinite()).flatten(2).any(-1).nonzero()[0].tolist()
    raise ValueError(f"{what} are NaN or infinite, first in image {image} at position {position}. {_CAUSES}")


class Guidance:
    """Drawing without guidance, and the face of its kinds.

    Args:
        scale: strength g of guidance.
        ramp: let the strength rise from 0 at the first scale to g at the last.
    """

    unconditional_rows = False  # whether rows with an unconditional prompt ride along in the language model
    takes_noise = False  # whether `noise` can be given in place of what it draws

    def __init__(self, scale: float = 0.0, ramp: bool = False):
        self.scale = scale
        self.ramp = ramp

    def conditions(self) -> list[int]:
        """Conditions of an image's decoder rows: its own, then those of its unconditional half, if any."""
        return [GENERATE_CONDITION]

    def unconditional(self, step: "ScaleStep") -> torch.Tensor | None:
        """Hidden states (N, l, D) of unconditional halves that no row of the language model gives; None where there are none."""
        return None

    def context(self, decoder, context: torch.Tensor, mask: torch.LongTensor) -> tuple[torch.Tensor, torch.LongTensor]:
        """Context (M, P, C) and mask (M, P) of all decoder rows, from those of the language model's rows that draw."""
        return context, mask

    def combine(self, logits: torch.Tensor, scale: int, num_scales: int) -> torch.Tensor:
        """Scores (N, l, K, V) of images from those of their decoder rows (M, l, K, V)."""
        if len(self.conditions()) == 1:
            return logits
        return guide(*logits.chunk(2), guidance_strength(self.scale, self.ramp, scale, num_scales))


class PromptGuidance(Guidance):
    """Classifier-free guidance against an unconditional (or negative) prompt."""

    unconditional_rows = True

    def __init__(self, scale: float = 0.0, ramp: bool = False):
        super().__init__(scale, ramp)
        self.unconditional_rows = scale != 0  # guidance of strength 0 leaves the conditional half alone: no row rides along for nothing

    def conditions(self) -> list[int]:
        return [GENERATE_CONDITION, NULL_CONDITION] if self.unconditional_rows else [GENERATE_CONDITION]


class NoiseGuidance(Guidance):
    """The guidance that VARGPT v1 was released with: against decoder inputs made of noise.

    Args:
        noise: standard-normal (N, l, D) of each scale; drawn by default.
    """

    takes_noise = True

    def __init__(self, scale: float, ramp: bool, noise: Sequence[torch.Tensor] | None = None):
        super().__init__(scale, ramp)
        self.noise = noise

    def conditions(self) -> list[int]:
        # Guidance of strength 0 leaves the conditional half alone, so the other one need not be computed.
        return [NULL_CONDITION] if self.scale == 0 else [NULL_CONDITION, NULL_CONDITION]

    def unconditional(self, step: "ScaleStep") -> torch.Tensor | None:
        hidden_states = step.hidden_states
        if self.scale == 0:
            return None
        if self.noise is None:
            return sample_noise(hidden_states.shape, hidden_states, step.generators)
        if self.noise[step.scale].shape != hidden_states.shape:
            raise ValueError(
                f"`output_image_noise[{step.scale}]` is for {len(self.noise[step.scale])} images, but {len(hidden_states)} are drawn together."
            )
        return self.noise[step.scale].to(hidden_states)

    def context(self, decoder, context: torch.Tensor, mask: torch.LongTensor) -> tuple[torch.Tensor, torch.LongTensor]:
        halves = len(self.conditions())
        return context.repeat(halves, 1, 1), mask.repeat(halves, 1)


class ScaleAloneGuidance(Guidance):
    """The guidance that VARGPT v1.1 was released with: against each scale alone.

    The unconditional half reads the scale's tokens without prompt and without coarser scales, at positions from 0, and its decoder attends
    to as many stored rows as the image's context has tokens (VARGPT-v1.1, arXiv 2504.02949, as released).
    """

    def conditions(self) -> list[int]:
        # Guidance of strength 0 leaves the conditional half alone, so the other one need not be computed.
        return [GENERATE_CONDITION] if self.scale == 0 else [GENERATE_CONDITION, NULL_CONDITION]

    def unconditional(self, step: "ScaleStep") -> torch.Tensor | None:
        if self.scale == 0:
            return None
        model, hidden_states = step.model, step.hidden_states
        conditions = torch.full((len(hidden_states),), NULL_CONDITION, device=hidden_states.device)
        embeds = model.projector_to_llm(model.visual_decoder.embed_scale(step.inputs, conditions, step.scale, step.schedule))
        return model.backbone.read_alone(embeds)

    def context(self, decoder, context: torch.Tensor, mask: torch.LongTensor) -> tuple[torch.Tensor, torch.LongTensor]:
        if self.scale == 0:
            return context, mask
        return torch.cat([context, decoder.unconditional_source(mask).to(context)]), mask.repeat(2, 1)


@dataclass
class ScaleStep:
    """One scale of a drawing, as guidance sees it.

    Args:
        model: the `VargptModel` that draws.
        scale: index of the scale.
        schedule: of the images.
        inputs: f̂ of the coarser scales on this one's grid, (N, l, Cz); None at the first scale.
        hidden_states: the language model's, of the images themselves, (N, l, D).
        generators: source of randomness; a list has one for each image.
    """

    model: torch.nn.Module
    scale: int
    schedule: ScaleSchedule
    inputs: torch.Tensor | None
    hidden_states: torch.Tensor
    generators: Generators


GUIDANCE_TYPES = {"none": Guidance, "prompt": PromptGuidance, "noise": NoiseGuidance, "scale": ScaleAloneGuidance}


def guidance_strength(scale: float, ramp: bool, scale_index: int, num_scales: int) -> float:
    """Strength t of guidance at one scale: `scale`, or, with a ramp, from 0 at the first scale to `scale` at the last."""
    return scale * scale_index / max(num_scales - 1, 1) if ramp else scale


def guide(logits: torch.Tensor, unconditional_logits: torch.Tensor, strength: float) -> torch.Tensor:
    """Classifier-free guidance: (1 + t) · conditional − t · unconditional, of scores (N, l, K, V)."""
    return (1 + strength) * logits - strength * unconditional_logits


# ---- processors of scores


def filters(temperature: float = 1.0, top_k: int = 0, top_p: float = 0.0) -> list[CodeProcessor]:
    """Transformers' temperature, top-k and top-p, in this order, on the scores of codes.

    Args:
        temperature: positive; 1 changes nothing.
        top_k: keep this many likeliest classes and all that tie with the last of them; 0 keeps all.
        top_p: then drop the classes whose cumulative probability, counted from the unlikeliest, is at most 1 − top_p, but never
            the likeliest; 0 keeps all.
    """
    warpers = LogitsProcessorList()
    if temperature != 1:
        warpers.append(TemperatureLogitsWarper(float(temperature)))
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p:
        warpers.append(TopPLogitsWarper(float(top_p)))

    def process(logits: torch.Tensor, scale: int, schedule: ScaleSchedule) -> torch.Tensor:
        return warpers(None, logits.flatten(0, -2)).view(logits.shape)

    return [process] if warpers else []


class KeepCodes:
    """Leaves given codes where they are, so that only the other positions are drawn anew: in-painting by scales.

    Args:
        codes: codes (N, L) of the images as they are.
        redrawn: which positions may change, (N, L); see [`redrawn_positions`].
    """

    def __init__(self, codes: torch.LongTensor, redrawn: torch.BoolTensor):
        self.codes = codes
        self.redrawn = redrawn

    def __call__(self, logits: torch.Tensor, scale: int, schedule: ScaleSchedule) -> torch.Tensor:
        codes, redrawn = (schedule.split(values)[scale].to(logits.device) for values in (self.codes, self.redrawn))
        certain = F.one_hot(to_symbols(codes, *logits.shape[-2:]), logits.shape[-1]).to(logits).log()  # 0 for the given symbol, else -inf
        return torch.where(redrawn[..., None, None], logits, certain)


def redrawn_positions(mask: torch.Tensor, schedule: ScaleSchedule, coverage: float = 0.5) -> torch.BoolTensor:
    """Positions (N, L) of all scales that a mask of pixels covers.

    At coarse scales a cell is much of the image, so that redrawing one changes what lies outside the mask, too: a high coverage keeps to
    the finer scales, where cells lie inside the mask, and a low one lets more of the image follow.

    Args:
        mask: True (or not 0) where an image is to be drawn anew, (N, height, width).
        coverage: share of a position's cell, in (0, 1], that must be masked for the position to be redrawn.

    Raises:
        ValueError: a mask of another shape, or a coverage out of range.
    """
    if mask.ndim != 3:
        raise ValueError(f"A mask of pixels has the shape (images, height, width), got {tuple(mask.shape)}.")
    if not 0 < coverage <= 1:
        raise ValueError(f"`coverage` must be in (0, 1], got {coverage}.")
    masked = (mask != 0).float()[:, None]
    shares = torch.cat([F.adaptive_avg_pool2d(masked, grid).flatten(1) for grid in schedule.grids], dim=1)
    return shares >= coverage - 1e-6  # sums of shares round


def process_scores(logits: torch.Tensor, processors: Iterable[CodeProcessor], scale: int, schedule: ScaleSchedule) -> torch.Tensor:
    """Scores (N, l, K, V), in float32, after all processors.

    Raises:
        ValueError: scores that are NaN or infinite, which would be a choice of nothing.
    """
    logits = logits.float()
    check_logits(logits, f"The logits of the codes of scale {scale}")
    for processor in processors:
        logits = processor(logits, scale, schedule)
    return logits


# ---- sampling


def sample_codes(logits: torch.Tensor, do_sample: bool, generators: Generators = None) -> torch.LongTensor:
    """Codes (N, l) of scores (N, l, K, V): the likeliest symbols, or a sample of their distribution.

    Args:
        generators: source of randomness; a list has one for each image, so that an image does not depend on the others.
    """
    if not do_sample:
        return from_symbols(logits.argmax(dim=-1), logits.shape[-1])
    parts = [part.flatten(0, -2).multinomial(1, generator=own).view(part.shape[:-1]) for part, own in _each(logits.softmax(dim=-1), generators)]
    return from_symbols(torch.cat(parts), logits.shape[-1])


def sample_tokens(scores: torch.Tensor, do_sample: bool, generators: Generators = None) -> torch.LongTensor:
    """Tokens (B,) of processed scores (B, vocabulary): the likeliest, or a sample."""
    if not do_sample:
        return scores.argmax(dim=-1)
    probabilities = F.softmax(scores, dim=-1)
    return torch.cat([part.multinomial(1, generator=own).squeeze(1) for part, own in _each(probabilities, generators)])


def sample_noise(shape: tuple[int, ...], like: torch.Tensor, generators: Generators) -> torch.Tensor:
    """Standard-normal noise of a shape (N, …), in the dtype and on the device of `like`."""
    parts = _each(torch.empty(shape, dtype=like.dtype, device=like.device), generators)
    return torch.cat([part.normal_(generator=own) for part, own in parts])


def _each(values: torch.Tensor, generators: Generators):
    """Pairs of a part of `values` and the generator that serves it: all rows at once, or one by one."""
    if isinstance(generators, list):
        return list(zip(values.split(1), generators, strict=True))
    return [(values, generators)]


__all__ = [
    "GUIDANCE_TYPES",
    "Guidance",
    "KeepCodes",
    "NoiseGuidance",
    "PromptGuidance",
    "ScaleAloneGuidance",
    "ScaleStep",
    "VargptScoresCheck",
    "check_logits",
    "filters",
    "guidance_strength",
    "guide",
    "process_scores",
    "redrawn_positions",
    "sample_codes",
    "sample_noise",
    "sample_tokens",
]
