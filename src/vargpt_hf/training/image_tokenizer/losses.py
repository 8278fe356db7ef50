"""Loss terms of an image tokenizer's training, each a scalar.

Pixels are (N, channels, height, width) in [-1, 1]; scores of a discriminator have any shape, higher meaning "real".
"""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F

_LEAST_NORM = 1e-4  # keeps the adaptive weight finite where the discriminator has no opinion


def reconstruction_terms(reconstruction: torch.Tensor, pixels: torch.Tensor, weights: Mapping[str, float]) -> dict[str, torch.Tensor]:
    """The reconstruction terms whose weight is not 0, each times its weight; float32 whatever the reconstruction is.

    | name | what it is the mean of |
    |---|---|
    | `l1` | absolute errors |
    | `l2` | squared errors |
    | `color` | squared errors of each pixel's channels after their mean has been taken off |
    | `edge` | squared errors of the differences between neighbors, of rows plus of columns |

    An absolute error keeps images of photographs sharp, but settles for one average color on drawings of few colors, where squares do not.
    `edge` does in a small way what a perceptual network does better.

    Args:
        weights: weight of each term by its name.
    """
    error = reconstruction.float() - pixels.float()
    compute: dict[str, Callable[[], torch.Tensor]] = {
        "l1": lambda: error.abs().mean(),
        "l2": lambda: error.square().mean(),
        "color": lambda: (error - error.mean(1, keepdim=True)).square().mean(),
        "edge": lambda: error.diff(dim=2).square().mean() + error.diff(dim=3).square().mean(),
    }
    return {name: weights[name] * term() for name, term in compute.items() if weights.get(name)}


def generator_loss(fake: torch.Tensor) -> torch.Tensor:
    """What the decoder is trained by: minus the mean score of its reconstructions."""
    return -fake.float().mean()


def hinge_loss(real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
    """What the discriminator is trained by: how far scores of images fall below 1 and those of reconstructions rise above -1, halved."""
    return (F.relu(1 - real.float()).mean() + F.relu(1 + fake.float()).mean()) / 2


def adaptive_weight(
    reconstruction_loss: torch.Tensor,
    adversarial_loss: torch.Tensor,
    last_layer: torch.nn.Parameter,
    most: float,
    mean_over_processes: Callable[[torch.Tensor], torch.Tensor] = lambda gradient: gradient,
) -> torch.Tensor:
    """How much the adversarial loss must weigh to pull as hard as the reconstruction does (VQGAN, arXiv 2012.09841, equation 7).

    Ratio of the norms of both losses' gradients at the decoder's last layer, from 0 to `most`; a constant (no gradient flows through it).

    Args:
        last_layer: the decoder's last weight.
        most: what the ratio is clipped to.
        mean_over_processes: of a gradient. With it, processes that share a batch find the weight of the whole batch.
    """
    norms = []
    for loss in (reconstruction_loss, adversarial_loss):
        (gradient,) = torch.autograd.grad(loss, last_layer, retain_graph=True)
        norms.append(mean_over_processes(gradient.detach().float()).norm())
    return (norms[0] / (norms[1] + _LEAST_NORM)).clamp(0, most)


__all__ = ["adaptive_weight", "generator_loss", "hinge_loss", "reconstruction_terms"]
