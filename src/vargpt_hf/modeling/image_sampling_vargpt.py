"""From code logits to codes: guidance, filters, sampling (VAR, arXiv 2404.02905, section 4; VARGPT, arXiv 2501.12327).

Shapes: N pictures, l codes of one scale, V codebook size.
"""

import torch
import torch.nn.functional as F
from transformers import LogitsProcessor


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


_CAUSES = "Check the prompt's pictures and embeddings and the weights for such values; float16 overflows where bfloat16 and float32 do not."


def check_logits(logits: torch.Tensor, what: str) -> None:
    """Raises a ValueError if logits (N, l, V), of which `what` says whose they are, are NaN or infinite."""
    wrong = ~logits.isfinite()
    if wrong.any():
        picture, place = wrong.any(-1).nonzero()[0].tolist()
        raise ValueError(f"{what} are NaN or infinite, first in picture {picture} at place {place}. {_CAUSES}")


def guidance_strength(scale: float, ramp: bool, scale_index: int, num_scales: int) -> float:
    """Strength t of guidance at one scale: `scale`, or, with a ramp, from 0 at the first scale to `scale` at the last."""
    return scale * scale_index / max(num_scales - 1, 1) if ramp else scale


def guide(logits: torch.Tensor, unconditional_logits: torch.Tensor, strength: float) -> torch.Tensor:
    """Classifier-free guidance: (1 + t) · conditional − t · unconditional, of logits (N, l, V)."""
    return (1 + strength) * logits - strength * unconditional_logits


def filter_logits(logits: torch.Tensor, top_k: int = 0, top_p: float = 0.0) -> torch.Tensor:
    """Sets unlikely codes to -inf.

    Args:
        logits: scores, (..., V).
        top_k: keep this many likeliest codes and all that tie with the last of them; 0 keeps all.
        top_p: then drop the codes whose cumulative probability, counted from the unlikeliest, is at most 1 − top_p, but never
            the likeliest; 0 keeps all.
    """
    if top_k > 0:
        threshold = logits.topk(min(top_k, logits.shape[-1]), dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < threshold, -torch.inf)
    if top_p > 0:
        ascending, order = logits.sort(dim=-1)
        dropped = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - top_p
        dropped[..., -1] = False
        logits = logits.masked_fill(dropped.scatter(-1, order, dropped), -torch.inf)
    return logits


def sample_codes(
    logits: torch.Tensor,
    do_sample: bool,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 0.0,
    generator: torch.Generator | list[torch.Generator] | None = None,
    what: str = "The logits of the codes",
) -> torch.LongTensor:
    """Codes (N, l) of logits (N, l, V), in float32: the likeliest, or a sample of the filtered distribution.

    Args:
        generator: source of randomness; a list has one for each picture, so that a picture does not depend on the others.
        what: whose logits these are, for errors.

    Raises:
        ValueError: logits that are NaN or infinite, which would be a choice of nothing.
    """
    logits = logits.float()
    check_logits(logits, what)
    if not do_sample:
        return logits.argmax(dim=-1)
    probabilities = filter_logits(logits / temperature, top_k, top_p).softmax(dim=-1)
    return torch.cat([part.flatten(0, 1).multinomial(1, generator=own).view(part.shape[:2]) for part, own in _each(probabilities, generator)])


def sample_tokens(scores: torch.Tensor, do_sample: bool, generator: torch.Generator | list[torch.Generator] | None = None) -> torch.LongTensor:
    """Tokens (B,) of processed scores (B, vocabulary): the likeliest, or a sample."""
    if not do_sample:
        return scores.argmax(dim=-1)
    probabilities = F.softmax(scores, dim=-1)
    return torch.cat([part.multinomial(1, generator=own).squeeze(1) for part, own in _each(probabilities, generator)])


def sample_noise(shape: tuple[int, ...], like: torch.Tensor, generator: torch.Generator | list[torch.Generator] | None) -> torch.Tensor:
    """Standard-normal noise of a shape (N, …), in the dtype and on the device of `like`."""
    parts = _each(torch.empty(shape, dtype=like.dtype, device=like.device), generator)
    return torch.cat([part.normal_(generator=own) for part, own in parts])


def _each(values: torch.Tensor, generator: torch.Generator | list[torch.Generator] | None):
    """Pairs of a part of `values` and the generator that serves it: all rows at once, or one by one."""
    if isinstance(generator, list):
        return list(zip(values.split(1), generator, strict=True))
    return [(values, generator)]


__all__ = ["VargptScoresCheck", "check_logits", "filter_logits", "guidance_strength", "guide", "sample_codes", "sample_noise", "sample_tokens"]
