"""The face of image tokenizers: pixels ⇄ codes, whatever a code is made of.

An image tokenizer writes an image as one code for each position of a scale schedule. A code is a whole number that stands for K symbols
of V classes each: K = 1 and V = 4096 for VAR's VQ-VAE, K = 32 and V = 2 for the bits of Infinity's tokenizer.

Shapes: N images, L positions of one image over all scales, l positions of one scale, Cz latent channels, H W the latent grid (the
last scale), K symbols of a code, V classes of a symbol. Codes run coarse to fine, row by row inside a scale.
"""

import hashlib
from abc import abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from transformers.utils import ModelOutput, torch_compilable_check
from transformers.utils.generic import can_return_tuple

from .base_configuration_vargpt import VargptBaseConfig
from .base_modeling_vargpt import VargptBaseModel
from .scales_vargpt import ScaleSchedule, schedules_of

# A batch goes through the convolutions in parts of so many pixels: four images of 256×256, which keep any machine busy.
PIXELS_AT_ONCE = 4 * 256**2
NO_CODE = -1  # pads the codes of an image to those of one with more positions


def to_symbols(codes: torch.LongTensor, num_symbols: int, num_classes: int) -> torch.LongTensor:
    """Symbols (…, K) in [0, V) of codes (…), the first symbol counting least: code = Σ symbol_k · V^k."""
    if num_symbols == 1:
        return codes[..., None]
    return codes[..., None] // num_classes ** torch.arange(num_symbols, device=codes.device) % num_classes


def from_symbols(symbols: torch.LongTensor, num_classes: int) -> torch.LongTensor:
    """Codes (…) of symbols (…, K) in [0, V): the inverse of [`to_symbols`]."""
    if symbols.shape[-1] == 1:
        return symbols[..., 0]
    return (symbols * num_classes ** torch.arange(symbols.shape[-1], device=symbols.device)).sum(-1)


def code_log_probs(logits: torch.Tensor, codes: torch.LongTensor, label_smoothing: float = 0.0) -> torch.Tensor:
    """Log-probabilities (N, L, K) of each code's symbols, float32; 0 where a code is [`NO_CODE`].

    Their negated mean is the loss of the images, their sum the log-probability of an image.

    Args:
        logits: scores of every symbol's classes, (N, L, K, V).
        codes: (N, L).
        label_smoothing: share, in [0, 1], of the target that is spread evenly over the classes.
    """
    num_symbols, num_classes = logits.shape[-2:]
    symbols = to_symbols(codes.clamp(min=0), num_symbols, num_classes).masked_fill((codes == NO_CODE)[..., None], NO_CODE)
    losses = F.cross_entropy(
        logits.flatten(0, -2).float(), symbols.flatten(), reduction="none", ignore_index=NO_CODE, label_smoothing=label_smoothing
    )
    return -losses.view(symbols.shape)


class VargptImageTokenizerConfig(VargptBaseConfig):
    """What configurations of image tokenizers share; a subclass has the fields `schedules`, `in_channels` and `latent_channels`."""

    base_config_key = "image_tokenizer_config"

    @property
    def scale_schedules(self) -> tuple[ScaleSchedule, ...]:
        """The schedules that images may have; the first one is the default."""
        return schedules_of(tuple(tuple(map(_hashable, scales)) for scales in self.schedules))

    @property
    def downsampling(self) -> int:
        """Pixels per latent position, along one side."""
        raise NotImplementedError

    @property
    def num_symbols(self) -> int:
        """Symbols K of one code."""
        raise NotImplementedError

    @property
    def num_classes(self) -> int:
        """Classes V of one symbol."""
        raise NotImplementedError

    def image_size(self, schedule: ScaleSchedule | None = None) -> tuple[int, int]:
        """Height and width in pixels of images of a schedule, the default one by default."""
        rows, columns = (schedule or self.scale_schedules[0]).final_grid
        return rows * self.downsampling, columns * self.downsampling

    def check_schedules(self) -> None:
        """Brings `schedules` into the form that is saved. Raises a ValueError where one is none, or there is none."""
        if not self.schedules or not all(isinstance(scales, (list, tuple)) for scales in self.schedules):
            raise ValueError(f"`schedules` must be a list of one or more lists of scales, got {self.schedules!r}.")
        self.schedules = [ScaleSchedule.of(scales).to_list() for scales in self.schedules]


def _hashable(scale):
    return tuple(scale) if isinstance(scale, list) else scale


@dataclass
class VargptImageTokenizerOutput(ModelOutput):
    """What a training pass of an image tokenizer gives.

    Args:
        reconstruction (`torch.Tensor` of shape `(N, channels, height, width)`): decoded pixels, not clamped.
        codes (`torch.LongTensor` of shape `(N, L)`): codes of the images.
        quantization_loss (`torch.Tensor`, scalar): the quantizer's own terms, mean over the scales.
    """

    reconstruction: torch.Tensor | None = None
    codes: torch.LongTensor | None = None
    quantization_loss: torch.Tensor | None = None


class VargptImageTokenizer(VargptBaseModel):
    """Base of image tokenizers.

    A subclass has a configuration of its own `model_type` and supplies [`encode_latents`], [`decode_latents`], [`quantize`],
    [`contribution`], [`next_input`], [`quantize_to_train`], [`fingerprint_tensors`], [`last_layer`], and the names of its
    `encoding_modules` and `code_modules`; the rest follows.
    """

    main_input_name = "pixel_values"
    input_modalities = ("image",)
    encoding_modules: tuple[str, ...] = ()  # modules that turn pixels into latents
    code_modules: tuple[str, ...] = ()  # modules on which codes and their fingerprint depend: where they stay as they are, codes stay valid

    # ---- what a kind supplies

    @abstractmethod
    def encode_latents(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Continuous latents (N, Cz, H, W) of pixels (N, channels, height, width) in [-1, 1]."""

    @abstractmethod
    def decode_latents(self, f_hat: torch.Tensor) -> torch.Tensor:
        """Pixels (N, channels, height, width), not clamped, of latents (N, Cz, H, W)."""

    @abstractmethod
    def quantize(self, latents: torch.Tensor, schedule: ScaleSchedule) -> torch.LongTensor:
        """Codes (N, L) of latents (N, Cz, H, W), scale by scale, in float32."""

    @abstractmethod
    def contribution(self, codes: torch.LongTensor, scale: int, schedule: ScaleSchedule) -> torch.Tensor:
        """What one scale adds to f̂, float32 (N, Cz, H, W), from its codes (N, l)."""

    @abstractmethod
    def next_input(self, f_hat: torch.Tensor, scale: int, schedule: ScaleSchedule) -> torch.Tensor:
        """What the visual decoder is given for `scale`: f̂ (N, Cz, H, W) of the coarser ones on its grid, as (N, l, Cz)."""

    @abstractmethod
    def quantize_to_train(
        self, latents: torch.Tensor, schedule: ScaleSchedule, num_scales: torch.LongTensor | None
    ) -> tuple[torch.LongTensor, torch.Tensor, torch.Tensor]:
        """Codes (N, L), f̂ (N, Cz, H, W) and the quantization loss (scalar) of latents (N, Cz, H, W).

        Args:
            num_scales: after how many scales, (N,) in [1, S], the f̂ of each image is wanted; all by default.
        """

    @abstractmethod
    def fingerprint_tensors(self) -> dict[str, torch.Tensor]:
        """The tensors that the meaning of codes depends on, by name."""

    @property
    @abstractmethod
    def last_layer(self) -> torch.nn.Parameter:
        """The decoder's last weight: by the gradients there, training balances its losses."""

    # ---- what follows

    @property
    def default_schedule(self) -> ScaleSchedule:
        return self.config.scale_schedules[0]

    @property
    def corrects_itself(self) -> bool:
        """Whether [`training_pair`] of pixels in training mode feeds forward faults for the decoder to mend, which codes alone cannot give."""
        return False

    def check_pixels(self, pixel_values: torch.Tensor, schedule: ScaleSchedule) -> None:
        """Raises a TypeError or ValueError unless the pixels are a tensor (N, channels, height, width) of images of this schedule."""
        if not isinstance(pixel_values, torch.Tensor):
            raise TypeError(f"The image tokenizer takes a tensor of pixels, got {type(pixel_values).__name__}: the processor makes one.")
        height, width = self.config.image_size(schedule)
        if pixel_values.ndim != 4 or tuple(pixel_values.shape[1:]) != (self.config.in_channels, height, width):
            raise ValueError(
                f"The image tokenizer takes pixels of shape (batch, {self.config.in_channels}, {height}, {width}), got "
                f"{tuple(pixel_values.shape)}: resize and crop the images (the processor does)."
            )

    def schedule_of(self, pixel_values: torch.Tensor) -> ScaleSchedule:
        """The schedule whose images have the size of these pixels (N, channels, height, width).

        Raises:
            TypeError, ValueError: as [`check_pixels`], where no schedule has.
        """
        size = tuple(pixel_values.shape[-2:]) if isinstance(pixel_values, torch.Tensor) else None
        fitting = (schedule for schedule in self.config.scale_schedules if self.config.image_size(schedule) == size)
        schedule = next(fitting, self.default_schedule)
        self.check_pixels(pixel_values, schedule)
        return schedule

    def images_at_once(self, schedule: ScaleSchedule) -> int:
        """How many images of a schedule go through the convolutions together."""
        height, width = self.config.image_size(schedule)
        return max(PIXELS_AT_ONCE // (height * width), 1)

    @torch.no_grad()
    def encode(self, pixel_values: torch.Tensor, schedule: ScaleSchedule | None = None) -> torch.LongTensor:
        """Codes (N, L) of pixels (N, channels, height, width) in [-1, 1].

        Args:
            schedule: of these images; the configuration's first one by default.

        Raises:
            TypeError: pixels that are no tensor.
            ValueError: pixels of another shape than images of the schedule have.
        """
        schedule = schedule or self.default_schedule
        self.check_pixels(pixel_values, schedule)
        with torch.autocast(pixel_values.device.type, enabled=False):  # codes are targets: the same with and without autocast
            latents = [self.encode_latents(part) for part in pixel_values.split(self.images_at_once(schedule))]
            return self.quantize(torch.cat(latents), schedule)

    @torch.no_grad()
    def training_pair(
        self, images: torch.Tensor, schedule: ScaleSchedule | None = None, codes: torch.LongTensor | None = None
    ) -> tuple[torch.LongTensor, torch.Tensor]:
        """What a training step needs of images: their codes (N, L), and the decoder's inputs (N, L − l₀, Cz) after the first scale.

        Args:
            images: pixels (N, channels, height, width) in [-1, 1], or None where `codes` are given.
            codes: codes (N, L) made ahead.
        """
        schedule = schedule or self.default_schedule
        codes = self.encode(images, schedule) if codes is None else codes
        return codes, self.decoder_inputs(codes, schedule)

    def accumulate(self, codes: torch.LongTensor, schedule: ScaleSchedule | None = None, num_scales: int | None = None) -> torch.Tensor:
        """f̂ (N, Cz, H, W) after `num_scales` scales (all by default), from at least their codes (N, ≥ l…)."""
        schedule = schedule or self.default_schedule
        areas = schedule.areas[:num_scales]
        f_hat = None
        for scale, scale_codes in enumerate(codes[:, : sum(areas)].split(areas, dim=1)):
            addition = self.contribution(scale_codes, scale, schedule)
            f_hat = addition if f_hat is None else f_hat + addition
        return f_hat

    def decoder_inputs(self, codes: torch.LongTensor, schedule: ScaleSchedule) -> torch.Tensor:
        """Teacher-forcing inputs of scales 1…S−1, (N, L − l₀, Cz): f̂ of all coarser scales on each scale's grid."""
        f_hat = 0
        inputs = [torch.zeros(codes.shape[0], 0, self.config.latent_channels, device=codes.device)]
        for scale, scale_codes in enumerate(schedule.split(codes)[:-1]):
            f_hat = f_hat + self.contribution(scale_codes, scale, schedule)
            inputs.append(self.next_input(f_hat, scale + 1, schedule))
        return torch.cat(inputs, dim=1)

    @torch.no_grad()
    def decode(self, codes: torch.LongTensor, schedule: ScaleSchedule | None = None, num_scales: int | None = None) -> torch.Tensor:
        """Pixels (N, channels, height, width) in [-1, 1] of codes (N, L).

        Args:
            codes: codes of the images, coarse to fine; those of scales after `num_scales` may be absent.
            schedule: of these images; the configuration's first one by default.
            num_scales: how many scales to use (all by default); fewer give the coarse images on the way.

        Raises:
            ValueError: codes of another length or value than the schedule and the tokenizer have, or `num_scales` out of range.
        """
        schedule = schedule or self.default_schedule
        self.check_codes(codes, schedule, num_scales)
        if not len(codes):
            height, width = self.config.image_size(schedule)
            return torch.empty(0, self.config.in_channels, height, width, device=codes.device)
        f_hat = self.accumulate(codes, schedule, num_scales)
        return torch.cat([self.decode_latents(part) for part in f_hat.split(self.images_at_once(schedule))]).clamp(-1, 1)

    def to_symbols(self, codes: torch.LongTensor) -> torch.LongTensor:
        """Symbols (…, K) of codes (…)."""
        return to_symbols(codes, self.config.num_symbols, self.config.num_classes)

    def from_symbols(self, symbols: torch.LongTensor) -> torch.LongTensor:
        """Codes (…) of symbols (…, K)."""
        return from_symbols(symbols, self.config.num_classes)

    def check_codes(self, codes: torch.LongTensor, schedule: ScaleSchedule | None = None, num_scales: int | None = None) -> None:
        """Raises a ValueError unless `codes` is (N, ≥ positions of the scales asked for) of values in [0, V^K)."""
        schedule = schedule or self.default_schedule
        num_scales = len(schedule) if num_scales is None else num_scales
        if not 1 <= num_scales <= len(schedule):
            raise ValueError(f"`num_scales` must be between 1 and {len(schedule)}, got {num_scales}.")
        needed = sum(schedule.areas[:num_scales])
        if codes.ndim != 2 or not needed <= codes.shape[1] <= schedule.num_positions:
            raise ValueError(
                f"Codes of {num_scales} scales must have shape (batch, {needed}), at most (batch, {schedule.num_positions}); "
                f"got {tuple(codes.shape)}."
            )
        if codes.dtype != torch.long:
            raise ValueError(f"Codes must be int64, got {codes.dtype}.")
        bound = self.config.num_classes**self.config.num_symbols
        torch_compilable_check(
            ((codes >= 0) & (codes < bound)).all(),
            lambda: (
                f"Codes must lie in [0, {bound}), got values from {codes.min()} to {codes.max()}: were they made by another image tokenizer?"
            ),
        )

    def fingerprint(self) -> str:
        """What the meaning of codes depends on, as 16 hexadecimal digits: the schedules, and what turns latents into codes and back."""
        schedules = tuple(tuple(map(_hashable, scales)) for scales in self.config.schedules)
        digest = hashlib.sha256(repr(schedules[0] if len(schedules) == 1 else schedules).encode())
        for name, tensor in sorted(self.fingerprint_tensors().items()):
            digest.update(name.encode() + tensor.float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    # ---- the tokenizer's own training

    @can_return_tuple
    def forward(self, pixel_values: torch.Tensor, num_scales: torch.LongTensor | None = None, **kwargs) -> tuple | VargptImageTokenizerOutput:
        """Encodes, quantizes with a straight-through gradient, and decodes pixels (N, channels, height, width) of one of the schedules.

        Args:
            num_scales: from how many scales, (N,) in [1, S], each image is decoded; all by default.
        """
        schedule = self.schedule_of(pixel_values)
        latents = self.encode_latents(pixel_values)
        codes, f_hat, loss = self.quantize_to_train(latents, schedule, num_scales)
        straight_through = latents + (f_hat - latents).detach()
        return VargptImageTokenizerOutput(reconstruction=self.decode_latents(straight_through), codes=codes, quantization_loss=loss)


def after_scale(wanted: torch.Tensor | None, f_hat: torch.Tensor, scale: int, num_scales: torch.LongTensor | None) -> torch.Tensor:
    """The f̂ (N, Cz, H, W) wanted so far: that after `scale`, but for images whose `num_scales` (N,) end before it."""
    if wanted is None or num_scales is None:
        return f_hat
    return torch.where((num_scales > scale)[:, None, None, None], f_hat, wanted)


def channels_last_on_cpu(pixels: torch.Tensor) -> torch.Tensor:
    """The same pixels or latents (N, channels, H, W), laid out as CPUs convolve them fastest, in bfloat16 twice as fast.

    Without gradients only: training of the image tokenizer itself rounds as it always has.
    """
    wanted = pixels.device.type == "cpu" and not torch.is_grad_enabled()
    return pixels.contiguous(memory_format=torch.channels_last) if wanted else pixels


__all__ = [
    "NO_CODE",
    "VargptImageTokenizer",
    "VargptImageTokenizerConfig",
    "VargptImageTokenizerOutput",
    "after_scale",
    "channels_last_on_cpu",
    "code_log_probs",
    "from_symbols",
    "to_symbols",
]
