"""Configuration of VARGPT: every number that the model needs, checked when it is built."""

from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig
from transformers.configuration_utils import PreTrainedConfig, SubConfigSpec

VAR_SCALES = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)


@strict
class VargptVQConfig(PreTrainedConfig):
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
        if not 0 <= self.residual_conv_ratio <= 1:
            raise ValueError(f"`residual_conv_ratio` must be in [0, 1], got {self.residual_conv_ratio}.")
        if self.quant_conv_kernel_size % 2 == 0:
            raise ValueError(f"`quant_conv_kernel_size` must be odd, got {self.quant_conv_kernel_size}.")
        for name in ("codebook_size", "latent_channels", "num_res_blocks", "num_residual_convs"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")

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


@strict
class VargptVisualDecoderConfig(PreTrainedConfig):
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
        if self.drop_path_rate is None:
            self.drop_path_rate = 0.1 * self.num_hidden_layers / 24
        if self.initializer_range is None:
            self.initializer_range = (1 / (3 * self.hidden_size)) ** 0.5
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"The visual decoder's hidden_size {self.hidden_size} is not divisible by its {self.num_attention_heads} attention heads."
            )
        for name in ("drop_path_rate", "condition_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be in [0, 1), got {getattr(self, name)}.")

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def intermediate_size(self) -> int:
        """Width of the MLP's hidden layer."""
        return round(self.hidden_size * self.mlp_ratio)


@strict
class VargptConfig(PreTrainedConfig):
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
    vision_feature_select_strategy: Literal["default", "full"] = "default"
    projector_hidden_act: str = "gelu"
    multimodal_projector_bias: bool = True
    text_loss_weight: float | int = 1.0
    image_loss_weight: float | int = 1.0
    image_scale_power: float | int = 0.0
    tie_word_embeddings: bool = False
    license_note: str | None = None

    @classmethod
    def from_dict(cls, config_dict: dict, **kwargs):
        found = config_dict.get("model_type", cls.model_type)
        if found != cls.model_type:
            raise ValueError(
                f"This is the configuration of a {found!r} model, not of a {cls.model_type!r} one: load it by the Auto classes. A checkpoint "
                "in the released VARGPT format must go through `vargpt convert` first."
            )
        return super().from_dict(config_dict, **kwargs)

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        self.tie_word_embeddings = self.tie_word_embeddings or self.text_config.tie_word_embeddings
        if self.image_seq_length is None:
            self.image_seq_length = self._vision_tower_places()
        self._check_tokens()
        if self.image_seq_length < 1:
            raise ValueError(f"`image_seq_length` must be at least 1, got {self.image_seq_length}.")
        for name in ("text_loss_weight", "image_loss_weight", "image_scale_power"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must not be negative, got {getattr(self, name)}.")

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


VargptVQConfig.register_for_auto_class()
VargptConfig.register_for_auto_class()

__all__ = ["VAR_SCALES", "VargptConfig", "VargptVQConfig", "VargptVisualDecoderConfig"]
