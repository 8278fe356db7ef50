"""Settings of an image tokenizer's training: Transformers' `TrainingArguments`, and what this training adds."""

import json
from dataclasses import dataclass, field
from typing import Any, Literal

from transformers import TrainingArguments

from ...modeling.base_configuration_vargpt import check_number
from ..trainer import AnyMachineDefaults

TERM_WEIGHTS = {"l1": "l1_weight", "l2": "l2_weight", "color": "color_weight", "edge": "edge_weight"}  # settings of the terms' weights
FREEZE = ("none", "encoder", "codes")
_POSITIVE = (
    *TERM_WEIGHTS.values(),
    "perceptual_weight",
    "quantization_weight",
    "adversarial_weight",
    "adaptive_weight_limit",
    "latent_noise",
    "latent_penalty",
    "discriminator_learning_rate",
)
_COUNTS = ("adversarial_start", "continuous_steps", "revive_every", "num_eval_images", "num_sample_images")


@dataclass
class ImageTokenizerArguments:
    """What a tokenizer's YAML says beside the trainer's own settings.

    Args:
        train_data: images to train on: a path, or (in the file) a list of paths and of mappings with the fields of `ImageSource`.
        eval_data: images to evaluate on, in the same form, at the end and as often as `eval_strategy` says.
        kind: of a fresh image tokenizer: "vq" (VAR's) or "bsq" (Infinity's).
        image_tokenizer: fields of its configuration (`VargptVQConfig`, `VargptBSQConfig`) that are not the defaults; on the command line
            as JSON.
        model_name_or_path: an image tokenizer to train further, in place of a fresh one: a folder or Hub id that holds one, or a VARGPT, whose
            image tokenizer is then taken.
        streaming: read images one after the other instead of all ahead; needs `max_steps`.
        allow_upscaling: take images smaller than those to train on, too, and enlarge them.
        resize_factor: how much larger than its final size an image is made before it is cropped, from 1.
        stop_at: share of all steps after which training ends early, on the learning rates of a whole run; a run without it resumes from there.
    """

    train_data: str = ""
    eval_data: str | None = None
    kind: str | None = None
    image_tokenizer: dict | str | None = None
    model_name_or_path: str | None = None
    streaming: bool = False
    allow_upscaling: bool = False
    resize_factor: float = 1.0
    stop_at: float = 1.0

    def __post_init__(self):
        if isinstance(self.image_tokenizer, str):
            self.image_tokenizer = _mapping_of(self.image_tokenizer)


def _mapping_of(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ValueError(f"`image_tokenizer` must be a mapping; on the command line it is JSON, which {text!r} is not ({error}).") from error
    if not isinstance(found, dict):
        raise ValueError(f"`image_tokenizer` must be a mapping of fields, got {text!r}.")
    return found


@dataclass
class ImageTokenizerTrainingConfig(AnyMachineDefaults, TrainingArguments):
    """Transformers' `TrainingArguments` with defaults for any machine (see `AnyMachineDefaults`), and the settings of this training.

    Args:
        l1_weight, l2_weight, color_weight, edge_weight: of the reconstruction's terms, see `losses.reconstruction_terms`.
        perceptual_network: a network that compares images, see `networks`; None: no such term.
        perceptual_weight: of its distance.
        quantization_weight: of the quantizer's own loss: commitment (VQ), entropy (BSQ), whose parts are weighed in the model's configuration.
        adversarial_weight: of the adversarial loss; 0: no discriminator.
        adversarial_start: step from which on the discriminator learns and its scores count.
        adaptive_weight: multiply that weight by how much harder the reconstruction pulls at the decoder's last layer.
        adaptive_weight_limit: what this factor is clipped to.
        discriminator_channels, discriminator_layers: its size, see `PatchDiscriminator`.
        discriminator_learning_rate: by default as `learning_rate`; it follows the same schedule.
        ema_decay: of the exponential moving average of the weights, in [0, 1), which is what is evaluated and saved; 0: none.
        revive_every: steps after which codes that nothing used are put where something is left to code; 0: never. By default 100 where
            there is a codebook.
        revive_until: share of all steps after which no code is revived.
        coarse_share: share of the images that is decoded from a random number of their first scales.
        continuous_steps: steps at the start in which latents are decoded without the quantizer, which is then fitted to them.
        latent_noise, latent_penalty: of those steps: noise added to latents, and weight of their mean square.
        freeze: what stays as it is: "none"; "encoder"; "codes", the encoder and all else that gives images their codes: codes made ahead
            stay valid, and the decoder alone learns.
        random_crop, random_flip: cut images at a random place; mirror every other image.
        num_eval_images: how many images an evaluation looks at; 0: all.
        num_sample_images: how many of them are drawn beside their reconstructions.

    Raises:
        ValueError: a setting out of range.
    """

    l1_weight: float = 1.0
    l2_weight: float = 0.0
    color_weight: float = 0.0
    edge_weight: float = 0.0
    perceptual_network: str | None = None
    perceptual_weight: float = 1.0
    quantization_weight: float = 1.0
    adversarial_weight: float = 0.0
    adversarial_start: int = 0
    adaptive_weight: bool = True
    adaptive_weight_limit: float = 1e4
    discriminator_channels: int = 64
    discriminator_layers: int = 3
    discriminator_learning_rate: float | None = None
    ema_decay: float = 0.0
    revive_every: int | None = None
    revive_until: float = 0.8
    coarse_share: float = 0.0
    continuous_steps: int = 0
    latent_noise: float = 0.25
    latent_penalty: float = 0.02
    freeze: Literal["none", "encoder", "codes"] = "none"
    random_crop: bool = True
    random_flip: bool = False
    num_eval_images: int = 256
    num_sample_images: int = 8
    learning_rate: float = 1e-4
    adam_beta2: float = 0.95
    lr_scheduler_type: str = "cosine"
    save_total_limit: int | None = field(default=2)

    def __post_init__(self):
        self._check()
        super().__post_init__()
        self.remove_unused_columns = False  # rows are images, of no columns
        self.ddp_broadcast_buffers = False  # all processes compute the same ones
        # The discriminator before its start, the quantizer in continuous steps, φ's convolutions that no scale of few uses.
        self.ddp_find_unused_parameters = True

    def _check(self) -> None:
        for name in _POSITIVE:
            if (value := getattr(self, name)) is not None:
                check_number(name, value)
        for name in ("revive_until", "coarse_share"):
            check_number(name, getattr(self, name), most=1.0)
        check_number("ema_decay", self.ema_decay, most=1.0, excluded=(1.0,))
        for name in _COUNTS:
            if (value := getattr(self, name)) is not None and value < 0:
                raise ValueError(f"`{name}` must be at least 0, got {value}.")
        if self.freeze not in FREEZE:
            raise ValueError(f"`freeze` is {self.freeze!r}; it must be one of {', '.join(FREEZE)}.")
        if not any(getattr(self, name) for name in TERM_WEIGHTS.values()):
            raise ValueError(f"Nothing compares images with their reconstructions: give one of {', '.join(TERM_WEIGHTS.values())}.")
        if self.freeze == "codes" and (self.continuous_steps or self.revive_every):
            raise ValueError("`freeze: codes` leaves the quantizer as it is: leave `continuous_steps` and `revive_every` out.")
        for name in ("max_length", "gradient_checkpointing", "activation_checkpointing", "muon", "muon_learning_rate", "compile_layers"):
            if getattr(self, name):
                raise ValueError(f"`{name}` means nothing to an image tokenizer: leave it out.")

    @property
    def term_weights(self) -> dict[str, float]:
        """Weight of each term of the reconstruction by its name."""
        return {term: getattr(self, name) for term, name in TERM_WEIGHTS.items()}


__all__ = ["FREEZE", "ImageTokenizerArguments", "ImageTokenizerTrainingConfig"]
