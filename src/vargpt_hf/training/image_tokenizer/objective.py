"""What a step of training computes: one module of all that learns, so that one checkpoint and one optimizer hold it.

Shapes: N images, V codebook size.
"""

from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.func import functional_call
from torch.optim.swa_utils import AveragedModel

from ...modeling.image_tokenizer_vargpt import VargptImageTokenizer
from ...modeling.vq_vargpt import VargptVQModel
from .arguments import ImageTokenizerTrainingConfig
from .discriminator import PatchDiscriminator
from .losses import adaptive_weight, generator_loss, hinge_loss, reconstruction_terms

_EARLY = 10  # steps over which the average forgets the start


def make_average(decay: float) -> Callable[[Sequence[torch.Tensor], Sequence[torch.Tensor], torch.Tensor | int], None]:
    """The exponential moving average of that decay, as `torch.optim.swa_utils.AveragedModel` takes it.

    Early steps decay by (1 + n) / (10 + n) at the most, so that an average does not remember the fresh weights for 1 / (1 − decay) steps.
    """

    def average(averaged: Sequence[torch.Tensor], current: Sequence[torch.Tensor], number: torch.Tensor | int) -> None:
        number = int(number)
        share = 1 - min(decay, (1 + number) / (_EARLY + number))
        for mean, weight in zip(averaged, current):
            mean.lerp_(weight, share)

    return average


class TokenizerObjective(nn.Module):
    """An image tokenizer with its discriminator, the average of its weights and its codes' hits, and the loss of a batch.

    Args:
        image_tokenizer: what is trained.
        settings: weights of the terms, and what there is besides.
        perceptual: network that gives distances (N,) of two batches of images; it belongs to no checkpoint.
    """

    accepts_loss_kwargs = False  # the loss is a mean over the batch, which the trainer divides by the batches of a step

    def __init__(self, image_tokenizer: VargptImageTokenizer, settings: ImageTokenizerTrainingConfig, perceptual: nn.Module | None = None):
        super().__init__()
        self.image_tokenizer, self.settings = image_tokenizer, settings
        self.discriminator = None
        if settings.adversarial_weight:
            channels = image_tokenizer.config.in_channels
            self.discriminator = PatchDiscriminator(channels, settings.discriminator_channels, settings.discriminator_layers)
        self.average = None
        if settings.ema_decay:
            self.average = AveragedModel(image_tokenizer, multi_avg_fn=make_average(settings.ema_decay)).requires_grad_(False)
        self.hits: torch.Tensor | None
        codes = image_tokenizer.config.num_classes if isinstance(image_tokenizer, VargptVQModel) else 0
        self.register_buffer("hits", torch.zeros(codes, dtype=torch.long) if codes else None)  # of each code since codes were last revived
        self.unsaved = (perceptual,)  # in a tuple, a module is none of this one's
        self.mean_over_processes: Callable[[torch.Tensor], torch.Tensor] = lambda gradient: gradient

    @property
    def best(self) -> VargptImageTokenizer:
        """The image tokenizer to evaluate and to save: the average of its weights, where there is one."""
        return self.image_tokenizer if self.average is None else self.average.module

    def forward(
        self, pixel_values: torch.Tensor, num_scales: torch.LongTensor | None = None, adversarial: bool = False, continuous: bool = False
    ) -> dict[str, torch.Tensor]:
        """The loss of a batch of images.

        Args:
            pixel_values: (N, channels, height, width) in [-1, 1], of the size of one of the schedules.
            num_scales: from how many scales, (N,), each image is decoded; all by default.
            adversarial: whether the discriminator learns, and its scores count.
            continuous: whether latents are decoded without the quantizer.

        Returns:
            `loss`; its terms, each with its weight in it, without gradients; `codes` (N, L) unless `continuous`.
        """
        if continuous:
            return self._continuous(pixel_values)
        outputs = self.image_tokenizer(pixel_values, num_scales=num_scales)
        reconstruction = outputs.reconstruction
        terms = self._compare(reconstruction, pixel_values)
        extra: dict[str, torch.Tensor] = {}
        if adversarial and self.discriminator is not None:
            terms["adversarial"], terms["discriminator"], extra = self._adversarial(reconstruction, pixel_values, sum(terms.values()))
        terms["quantization"] = self.settings.quantization_weight * outputs.quantization_loss
        return {"loss": sum(terms.values()), "codes": outputs.codes, **_logged(terms | extra)}

    def _compare(self, reconstruction: torch.Tensor, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        terms = reconstruction_terms(reconstruction, pixels, self.settings.term_weights)
        (perceptual,) = self.unsaved
        if perceptual is not None and self.settings.perceptual_weight:
            terms["perceptual"] = self.settings.perceptual_weight * perceptual(reconstruction, pixels).float().mean()
        return terms

    def _adversarial(
        self, reconstruction: torch.Tensor, pixels: torch.Tensor, compared: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        """The decoder's term, the discriminator's, and what is logged besides.

        Both are trained by one backward pass: the decoder's term sees the discriminator's weights as constants, the discriminator's
        the reconstruction.
        """
        settings = self.settings
        constants = {name: weight.detach() for name, weight in self.discriminator.named_parameters()}
        generated = generator_loss(functional_call(self.discriminator, constants, (reconstruction,)))
        weight = torch.ones((), device=pixels.device)
        if settings.adaptive_weight:
            last, limit = self.image_tokenizer.last_layer, settings.adaptive_weight_limit
            weight = adaptive_weight(compared, generated, last, limit, self.mean_over_processes)
        real, fake = self.discriminator(pixels), self.discriminator(reconstruction.detach())
        extra = {"adaptive_weight": weight, "real_score": real.mean(), "fake_score": fake.mean()}
        return settings.adversarial_weight * weight * generated, hinge_loss(real, fake), extra

    def _continuous(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """The loss of latents that nothing quantizes; noise and a penalty on large ones leave only differences that a codebook can keep."""
        latents = self.image_tokenizer.encode_latents(pixels).float()
        noisy = latents + self.settings.latent_noise * torch.randn_like(latents)
        terms = self._compare(self.image_tokenizer.decode_latents(noisy), pixels)
        terms["latents"] = self.settings.latent_penalty * latents.square().mean()
        return {"loss": sum(terms.values()), **_logged(terms)}

    @torch.no_grad()
    def update_average(self) -> None:
        """Takes the weights of this step into their average."""
        if self.average is not None:
            self.average.update_parameters(self.image_tokenizer)


def _logged(terms: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: term.detach().float() for name, term in terms.items()}


def frozen_modules(image_tokenizer: VargptImageTokenizer, what: str) -> tuple[str, ...]:
    """Names of the modules that stay as they are, see `freeze` of `ImageTokenizerTrainingConfig`."""
    return {"none": (), "encoder": image_tokenizer.encoding_modules, "codes": image_tokenizer.code_modules}[what]


def freeze(image_tokenizer: VargptImageTokenizer, what: str) -> None:
    """Lets only those weights learn that `frozen_modules` leaves."""
    image_tokenizer.requires_grad_(True)
    for name in frozen_modules(image_tokenizer, what):
        image_tokenizer.get_submodule(name).requires_grad_(False)


__all__ = ["TokenizerObjective", "freeze", "frozen_modules", "make_average"]
