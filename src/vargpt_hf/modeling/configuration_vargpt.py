"""Configuration of VARGPT: every number that the model needs, checked when it is built."""

import functools
import math
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig
from transformers.activations import ACT2FN
from transformers.configuration_utils import PreTrainedConfig, SubConfigSpec

VAR_SCALES = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)

# Far beyond any model that there is: numbers above are slips, which would take all memory or the whole day to build.
MOST_LAYERS = 10_000
LARGEST_SIZE = 2**24
# What other kinds of configurations call their sizes; those that a kind does not have are passed over.
_FOREIGN_SIZES = {
    "hidden_size": LARGEST_SIZE,
    "intermediate_size": LARGEST_SIZE,
    "num_hidden_layers": MOST_LAYERS,
    "num_attention_heads": LARGEST_SIZE,
    "num_key_value_heads": LARGEST_SIZE,
    "head_dim": LARGEST_SIZE,
    "vocab_size": LARGEST_SIZE,
    "max_position_embeddings": 2**32,
    "image_size": LARGEST_SIZE,
    "patch_size": LARGEST_SIZE,
    "num_channels": LARGEST_SIZE,
    "projection_dim": LARGEST_SIZE,
}


def in_words(config_class: type) -> type:
    """Decorator of a strict configuration: whatever it refuses, or a library inside of it, is a ValueError or a TypeError."""
    build, assign = config_class.__init__, config_class.__setattr__

    @functools.wraps(build)
    def __init__(self, *args, **kwargs):
        try:
            build(self, *args, **kwargs)
        except Exception as error:  # other kinds of configurations, which are read inside, raise nearly anything at numbers that do not fit
            raise _in_words(error, config_class.__name__) from error

    @functools.wraps(assign)
    def __setattr__(self, name: str, value: Any):
        try:
            assign(self, name, value)
        except StrictDataclassError as error:
            raise _in_words(error, config_class.__name__) from error

    config_class.__init__, config_class.__setattr__ = __init__, __setattr__
    return config_class


def _in_words(error: Exception, what: str) -> ValueError | TypeError:
    if type(error) in (ValueError, TypeError):
        return error if str(error).startswith("Vargpt") else type(error)(f"{what}: {error}")  # else a part of it was wrong, and is named
    if isinstance(error, StrictDataclassError):
        kind = TypeError if isinstance(error.__cause__, TypeError) else ValueError
        return kind(f"{what}: {error.__cause__ or error}")
    return ValueError(f"These fields do not make a {what} ({type(error).__name__}: {error}).")


def _read_in(error: ValueError | TypeError, source: object) -> ValueError | TypeError:
    """The error with the name of the file that it is about, unless it has that already."""
    return error if source is None or "config.json of " in str(error) else type(error)(f"config.json of {source}: {error}")


def check_size(name: str, value: object, largest: int = LARGEST_SIZE, least: int = 1) -> None:
    """Refuses, by a ValueError (TypeError), what is no whole number from `least` to `largest`."""
    if type(value) is not int:
        raise TypeError(f"`{name}` must be a whole number, got {value!r}.")
    if not least <= value <= largest:
        raise ValueError(f"`{name}` must be from {least} to {largest}, got {value}.")


def check_number(name: str, value: float, least: float = 0.0, most: float = math.inf, excluded: tuple[float, ...] = ()) -> None:
    """Refuses, by a ValueError, NaN, infinity and what is not from `least` to `most` or is an `excluded` end."""
    if not math.isfinite(value) or not least <= value <= most or value in excluded:
        begin, end = "(" if least in excluded else "[", ")" if most in (*excluded, math.inf) else "]"
        raise ValueError(f"`{name}` must be in {begin}{least:g}, {most:g}{end}, got {value}.")


class VargptBaseConfig(PreTrainedConfig):
    """What our configurations share: the file that is wrong is named, and weights have a floating-point format."""

    @classmethod
    def from_dict(cls, config_dict: dict, **kwargs):
        """As in Transformers.

        Raises:
            ValueError, TypeError: fields that do not make this configuration, and where they were read.
        """
        if not isinstance(config_dict, dict):
            raise ValueError(f"A configuration must be an object of fields and values, got {type(config_dict).__name__}.")
        try:
            return super().from_dict(config_dict, **kwargs)
        except (ValueError, TypeError) as error:
            raise _read_in(error, kwargs.get("name_or_path")) from error

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """As in Transformers.

        Raises:
            ValueError, TypeError: as [`from_dict`].
            OSError: no config.json, or one that is not JSON.
        """
        try:
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        except OSError:
            raise
        except Exception as error:  # Transformers takes it for granted that JSON is an object
            raise _read_in(_in_words(error, cls.__name__), pretrained_model_name_or_path) from error

    def __post_init__(self, **kwargs):
        for name in ("dtype", "torch_dtype"):
            wanted = getattr(self, name, None) if name == "dtype" else kwargs.get(name)
            found = getattr(torch, wanted.removeprefix("torch."), None) if isinstance(wanted, str) else wanted
            if wanted is not None and not (isinstance(found, torch.dtype) and found.is_floating_point):
                raise ValueError(f"`{name}` must be a floating-point type like 'float16', 'bfloat16' or 'float32', got {wanted!r}.")
        super().__post_init__(**kwargs)


@in_words
@strict
class VargptVQConfig(VargptBaseConfig):
    r"""Sizes of the image tokenizer, the multi-scale residual VQ-VAE of VAR (arXiv 2404.02905, section 3.2).

    Args:
        image_size (`int`): side of the square pictures in pixels.
        scales (`tuple[int, ...]`): side lengths of the code maps, coarse to fine; the last one is the latent grid.
        codebook_size (`int`): number of codes V.
        latent_channels (`int`): width Cz of one code.
        in_channels (`int`): colour channels of the pictures.
        base_channels (`int`): width of the first level of encoder and decoder.
        channel_multipliers (`tuple[int, ...]`): width of each level over `base_channels`; each level after the first
            halves the side.
        num_res_blocks (`int`): residual blocks per encoder level; a decoder level has one more.
        norm_num_groups (`int`), norm_eps (`float`): GroupNorm of the residual blocks.
        quant_conv_kernel_size (`int`): kernel of the convolutions around the quantiser.
        num_residual_convs (`int`): convolutions φ shared by the scales.
        residual_conv_ratio (`float`): share of the convolution in φ, in [0, 1].
        commitment_weight (`float`): β of the tokenizer's own loss.

    Raises:
        ValueError: scales that do not rise or do not end at `image_size / downsampling`; widths that GroupNorm cannot
            split; values out of range.
    """

    model_type = "vargpt_vq"
    base_config_key = "vq_config"

    image_size: int = 256
    scales: list[int] | tuple[int, ...] = VAR_SCALES
    codebook_size: int = 4096
    latent_channels: int = 32
    in_channels: int = 3
    base_channels: int = 160
    channel_multipliers: list[int] | tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    norm_num_groups: int = 32
    norm_eps: float = 1e-6
    quant_conv_kernel_size: int = 3
    num_residual_convs: int = 4
    residual_conv_ratio: float | int = 0.5
    commitment_weight: float | int = 0.25

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        self.scales = tuple(self.scales)
        self.channel_multipliers = tuple(self.channel_multipliers)
        self._check_numbers()
        if not self.scales or self.scales[0] < 1 or any(a >= b for a, b in zip(self.scales, self.scales[1:])):
            raise ValueError(f"`scales` must be side lengths that rise from 1 or more, got {self.scales}.")
        if self.scales[-1] * self.downsampling != self.image_size:
            raise ValueError(
                f"`scales` end at {self.scales[-1]}, but image_size / downsampling is {self.image_size} / "
                f"{self.downsampling} = {self.image_size / self.downsampling:g}: change the last scale, `image_size`, or the "
                "number of `channel_multipliers` (each after the first halves the side)."
            )
        widths = [self.base_channels * multiplier for multiplier in self.channel_multipliers]
        if any(width % self.norm_num_groups for width in widths):
            raise ValueError(f"Every level's width must be divisible by norm_num_groups={self.norm_num_groups}: {widths}.")
        if self.quant_conv_kernel_size % 2 == 0:
            raise ValueError(f"`quant_conv_kernel_size` must be odd, got {self.quant_conv_kernel_size}.")

    def _check_numbers(self) -> None:
        sizes = ("image_size", "codebook_size", "latent_channels", "in_channels", "base_channels", "norm_num_groups", "quant_conv_kernel_size")
        for name in sizes:
            check_size(name, getattr(self, name))
        for name in ("num_res_blocks", "num_residual_convs"):
            check_size(name, getattr(self, name), MOST_LAYERS)
        if not 1 <= len(self.channel_multipliers) <= 24:  # each after the first halves the side, which has 24 bits at most
            raise ValueError(f"`channel_multipliers` must be 1 to 24 numbers, one a level, got {len(self.channel_multipliers)}.")
        for multiplier in self.channel_multipliers:
            check_size("channel_multipliers", multiplier)
        check_number("residual_conv_ratio", self.residual_conv_ratio, most=1.0)
        check_number("commitment_weight", self.commitment_weight)
        check_number("norm_eps", self.norm_eps)

    @property
    def downsampling(self) -> int:
        """Pixels per latent place, along one side."""
        return 2 ** (len(self.channel_multipliers) - 1)

    @property
    def latent_size(self) -> int:
        """Side of the latent grid."""
        return self.scales[-1]

    @property
    def num_image_tokens(self) -> int:
        """Codes of one picture over all scales (L)."""
        return sum(side * side for side in self.scales)


@in_words
@strict
class VargptVisualDecoderConfig(VargptBaseConfig):
    r"""Sizes of the visual decoder, a block-causal transformer with AdaLN (VAR, arXiv 2404.02905, section 3.3).

    Args:
        hidden_size (`int`), num_hidden_layers (`int`), num_attention_heads (`int`): width C, depth and heads. VAR ties
            them (width 64 · depth, one head per 64); here they are free.
        mlp_ratio (`float`): width of the MLP over `hidden_size`.
        layer_norm_eps (`float`): epsilon of the LayerNorms, which have no weights.
        max_attention_scale (`float`): upper bound of the learned per-head factor on normalised queries.
        drop_path_rate (`float`, *optional*): stochastic depth of the last block, rising linearly from 0; VAR's
            `0.1 · depth / 24` by default.
        condition_dropout (`float`): how often training replaces the condition "generate" by the null condition.
        initializer_range (`float`, *optional*): standard deviation of fresh weights, `sqrt(1 / (3 C))` by default.

    Raises:
        ValueError: a width that the heads do not divide, or a probability outside [0, 1].
    """

    model_type = "vargpt_visual_decoder"
    base_config_key = "visual_decoder_config"

    hidden_size: int = 1920
    num_hidden_layers: int = 30
    num_attention_heads: int = 30
    mlp_ratio: float | int = 4.0
    layer_norm_eps: float = 1e-6
    max_attention_scale: float | int = 100.0
    drop_path_rate: float | int | None = None
    condition_dropout: float | int = 0.1
    initializer_range: float | None = None

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        check_size("hidden_size", self.hidden_size)
        check_size("num_attention_heads", self.num_attention_heads)
        check_size("num_hidden_layers", self.num_hidden_layers, MOST_LAYERS)
        check_number("mlp_ratio", self.mlp_ratio, most=1024.0, excluded=(0.0,))
        if self.drop_path_rate is None:
            self.drop_path_rate = 0.1 * self.num_hidden_layers / 24
        if self.initializer_range is None:
            self.initializer_range = (1 / (3 * self.hidden_size)) ** 0.5
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"The visual decoder's hidden_size {self.hidden_size} is not divisible by its {self.num_attention_heads} attention heads."
            )
        check_size("hidden_size · mlp_ratio, rounded,", self.intermediate_size)
        for name in ("drop_path_rate", "condition_dropout"):
            check_number(name, getattr(self, name), most=1.0, excluded=(1.0,))
        for name in ("layer_norm_eps", "max_attention_scale", "initializer_range"):
            check_number(name, getattr(self, name))

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def intermediate_size(self) -> int:
        """Width of the MLP's hidden layer."""
        return round(self.hidden_size * self.mlp_ratio)


@in_words
@strict
class VargptConfig(VargptBaseConfig):
    r"""Configuration of VARGPT (arXiv 2501.12327): one language model that reads pictures and draws them.

    The defaults are those of the released 7B+2B model: LLaVA-1.5-7B, a decoder of depth 30 and VAR's image tokenizer.

    Args:
        text_config: config of the language model, any causal model that `AutoModel` knows.
        vision_config: config of the vision tower that reads pictures, any that `AutoModel` knows.
        vq_config ([`VargptVQConfig`]): image tokenizer of drawn pictures.
        visual_decoder_config ([`VargptVisualDecoderConfig`]): decoder that turns hidden states into codes.
        image_token_id (`int`): place of a picture to understand.
        image_start_token_id, image_end_token_id (`int`): the tokens around a drawn picture.
        image_place_token_id (`int`): place of one code of a drawn picture.
        image_seq_length (`int`, *optional*): places of one picture to understand; by default what the vision tower gives.
        vision_feature_layer (`int` or list of `int`): hidden states of the vision tower that are used.
        vision_feature_select_strategy (`str`): "default" drops the class token, "full" keeps it.
        projector_hidden_act (`str`), multimodal_projector_bias (`bool`): projector of pictures to understand.
        text_loss_weight, image_loss_weight (`float`): weights of the two losses in `loss`.
        image_scale_power (`float`): weighs each code's loss by (area of the last scale / area of its own) to this power, scaled so that
            the mean over a picture is 1. 0 weighs all codes alike; 0.5 helps coarse scales as VARGPT-v1.1 does (arXiv 2504.02949).
        license_note (`str`, *optional*): what users of the weights must know, for the model card.

    Raises:
        ValueError: the `model_type` of another kind of model, token ids that repeat or lie beyond the vocabulary, a negative weight or
            power of the losses, a number of picture places that the vision tower cannot fill, or a contradiction inside a sub-config.
    """

    model_type = "vargpt"
    sub_configs_defaults = {
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="llama", init_kwargs={"vocab_size": 32064, "rms_norm_eps": 1e-5}),
        "vision_config": SubConfigSpec(
            config_class=AutoConfig,
            model_type="clip_vision_model",
            init_kwargs={
                "hidden_size": 1024,
                "intermediate_size": 4096,
                "num_hidden_layers": 24,
                "num_attention_heads": 16,
                "image_size": 336,
                "patch_size": 14,
                "projection_dim": 768,
            },
        ),
        "vq_config": VargptVQConfig,
        "visual_decoder_config": VargptVisualDecoderConfig,
    }

    text_config: dict | PreTrainedConfig | None = None
    vision_config: dict | PreTrainedConfig | None = None
    vq_config: dict | PreTrainedConfig | None = None
    visual_decoder_config: dict | PreTrainedConfig | None = None
    image_token_id: int = 32000
    image_start_token_id: int = 32002
    image_end_token_id: int = 32003
    image_place_token_id: int = 32004
    image_seq_length: int | None = None
    vision_feature_layer: int | list[int] = -2
    vision_feature_select_strategy: str = "default"
    projector_hidden_act: str = "gelu"
    multimodal_projector_bias: bool = True
    text_loss_weight: float | int = 1.0
    image_loss_weight: float | int = 1.0
    image_scale_power: float | int = 0.0
    tie_word_embeddings: bool = False
    license_note: str | None = None

    @property
    def custom_pipelines(self) -> dict:
        """Pipelines that a repository brings as code of its own; none where this package is installed, which registers them itself.

        Transformers' `pipeline` would ask for `trust_remote_code` otherwise. What is saved names them always.
        """
        return vars(self).get("custom_pipelines", {}) if type(self).__module__.startswith("transformers_modules.") else {}

    @custom_pipelines.setter
    def custom_pipelines(self, value: dict) -> None:
        vars(self)["custom_pipelines"] = value

    @classmethod
    def from_dict(cls, config_dict: dict, **kwargs):
        found = config_dict.get("model_type", cls.model_type) if isinstance(config_dict, dict) else cls.model_type
        if found != cls.model_type:
            raise ValueError(
                f"This is the configuration of a {found!r} model, not of a {cls.model_type!r} one: load it by the Auto classes. A checkpoint "
                "in the released VARGPT format must go through `vargpt convert` first."
            )
        return super().from_dict(config_dict, **kwargs)

    def __post_init__(self, **kwargs):
        for part in ("text_config", "vision_config"):
            _check_foreign(part, getattr(self, part))
        super().__post_init__(**kwargs)
        if self.vision_feature_select_strategy not in ("default", "full"):
            raise ValueError(f"`vision_feature_select_strategy` must be 'default' or 'full', got {self.vision_feature_select_strategy!r}.")
        self._check_vision_layers()
        for name, activation in self._activations().items():
            if activation is not None and activation not in ACT2FN:
                raise ValueError(f"`{name}` must be one of {', '.join(sorted(ACT2FN))}, got {activation!r}.")
        self.tie_word_embeddings = self.tie_word_embeddings or self.text_config.tie_word_embeddings
        if self.image_seq_length is None:
            self.image_seq_length = self._vision_tower_places()
        self._check_tokens()
        check_size("image_seq_length", self.image_seq_length)
        for name in ("text_loss_weight", "image_loss_weight", "image_scale_power"):
            check_number(name, getattr(self, name))

    def _activations(self) -> dict[str, str | None]:
        """Names of the activations, by the fields that hold them."""
        parts = {f"{part}.hidden_act": getattr(getattr(self, part), "hidden_act", None) for part in ("text_config", "vision_config")}
        return {name: act for name, act in parts.items() if isinstance(act, str)} | {"projector_hidden_act": self.projector_hidden_act}

    def _check_vision_layers(self) -> None:
        layers = [self.vision_feature_layer] if isinstance(self.vision_feature_layer, int) else self.vision_feature_layer
        states = self.vision_config.num_hidden_layers + 1
        if not layers or any(not -states <= layer < states for layer in layers):
            raise ValueError(
                f"`vision_feature_layer` must be one or more of the vision tower's {states} hidden states, from {-states} to {states - 1}, "
                f"got {self.vision_feature_layer}."
            )

    def least_parameters(self) -> int:
        """A number of parameters that the model has at least, worked out without building it."""
        text, vision, vq, decoder = self.text_config, self.vision_config, self.vq_config, self.visual_decoder_config
        layers = [
            (part.num_hidden_layers, part.hidden_size, width)
            for part in (text, vision, decoder)
            if isinstance(width := getattr(part, "intermediate_size", None), int)
        ]
        return (
            sum(2 * depth * width * inner for depth, width, inner in layers)
            + text.vocab_size * text.hidden_size
            + self._vision_tower_places() * vision.hidden_size
            + vq.codebook_size * vq.latent_channels
            + vq.num_image_tokens * decoder.hidden_size
            + sum((vq.base_channels * multiplier) ** 2 for multiplier in vq.channel_multipliers) * 9 * vq.num_res_blocks
            + 6 * decoder.num_hidden_layers * decoder.hidden_size**2
        )

    def _vision_tower_places(self) -> int:
        """Places of one picture: patches, and the class token where "full" keeps it."""
        patches = (self.vision_config.image_size // self.vision_config.patch_size) ** 2
        return patches + (self.vision_feature_select_strategy == "full")

    def _check_tokens(self) -> None:
        names = ("image_token_id", "image_start_token_id", "image_end_token_id", "image_place_token_id")
        ids = {name: getattr(self, name) for name in names}
        for name, token_id in ids.items():
            if not 0 <= token_id < self.text_config.vocab_size:
                raise ValueError(
                    f"`{name}` is {token_id}, beyond the vocabulary of {self.text_config.vocab_size} in `text_config`: "
                    "give the id that the tokenizer has for it, or enlarge `vocab_size`."
                )
        if len(set(ids.values())) < len(ids):
            raise ValueError(f"The picture tokens must differ from one another, got {ids}.")

    @classmethod
    def paper(cls, **kwargs) -> "VargptConfig":
        """The 7B+2B model of the paper (arXiv 2501.12327, section 3); `kwargs` replace single fields."""
        return cls(**kwargs)


def _check_foreign(part: str, config: dict | PreTrainedConfig | None) -> None:
    """Refuses sizes of another kind of configuration, by the names that it has in ours."""
    for name, largest in _FOREIGN_SIZES.items():
        value = config.get(name) if isinstance(config, dict) else getattr(config, name, None)
        if value is not None:
            check_size(f"{part}.{name}", value, largest)


VargptVQConfig.register_for_auto_class()
VargptConfig.register_for_auto_class()

__all__ = ["VAR_SCALES", "VargptConfig", "VargptVQConfig", "VargptVisualDecoderConfig"]
