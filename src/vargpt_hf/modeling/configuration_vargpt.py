"""Configuration of VARGPT: which model reads, which image tokenizer and visual decoder draw, and the tokens between them."""

import copy

import transformers
from huggingface_hub.dataclasses import strict
from transformers import CONFIG_MAPPING, AutoConfig
from transformers.activations import ACT2FN
from transformers.configuration_utils import PreTrainedConfig, SubConfigSpec

from .backbone_vargpt import check_vlm_config
from .base_configuration_vargpt import LARGEST_SIZE, MOST_LAYERS, VargptBaseConfig, check_dtype, check_number, check_size, in_words
from .bsq_vargpt import VargptBSQModel, infinity_schedules
from .infinity_decoder_vargpt import VargptInfinityDecoder
from .scales_vargpt import ScaleSchedule
from .var_decoder_vargpt import VargptVARDecoder, VargptVARDecoderConfig
from .vq_vargpt import VargptVQConfig, VargptVQModel

# The parts that can draw, by the model_type of their configurations: a new one is named here.
IMAGE_TOKENIZERS = {part.config_class.model_type: part for part in (VargptVQModel, VargptBSQModel)}
VISUAL_DECODERS = {part.config_class.model_type: part for part in (VargptVARDecoder, VargptInfinityDecoder)}

TOKEN_NAMES = ("image_token_id", "output_image_start_token_id", "output_image_end_token_id", "output_image_token_id")

# What other kinds of configurations call their sizes; those that a kind does not have are passed over.
_FOREIGN_SIZES = {
    **dict.fromkeys(("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim"), LARGEST_SIZE),
    **dict.fromkeys(("vocab_size", "image_size", "patch_size", "num_channels", "projection_dim", "image_seq_length"), LARGEST_SIZE),
    "num_hidden_layers": MOST_LAYERS,
    "max_position_embeddings": 2**32,
}
_ACTIVATIONS = ("hidden_act", "projector_hidden_act")

# LLaVA-1.5-7B, with the five tokens that VARGPT v1 adds to its vocabulary.
LLAVA_7B = {
    "image_token_index": 32000,
    "text_config": {"model_type": "llama", "vocab_size": 32064, "rms_norm_eps": 1e-5},
    "vision_config": {
        "model_type": "clip_vision_model",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 336,
        "patch_size": 14,
        "projection_dim": 768,
    },
}


QWEN2_VL_7B = {
    "model_type": "qwen2_vl",
    "image_token_id": 151655,
    "video_token_id": 151656,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "text_config": {
        "vocab_size": 152064,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1000000.0},
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "pad_token_id": 151643,
    },
    "vision_config": {"hidden_size": 3584},
    "tie_word_embeddings": False,
}


@in_words
@strict
class VargptConfig(VargptBaseConfig):
    r"""Configuration of a model of the VARGPT family: a language model that reads images and draws them.

    The defaults are those of the released 7B+2B model (arXiv 2501.12327): LLaVA-1.5-7B, a decoder of depth 30 and VAR's image tokenizer.

    Args:
        vlm_config: configuration of what reads: a vision-language model that `AutoModel` knows, or a text-only language model.
        image_tokenizer_config: of the image tokenizer; its `model_type` is one of `IMAGE_TOKENIZERS`.
        visual_decoder_config: of the visual decoder; its `model_type` is one of `VISUAL_DECODERS`.
        output_image_start_token_id, output_image_end_token_id (`int`): the tokens around a drawn image.
        output_image_token_id (`int`): placeholder of one position of a drawn image.
        text_loss_weight, image_loss_weight (`float`): weights of the two losses in `loss`.
        image_scale_power (`float`): weighs each position's loss by (area of the last scale / area of its own) to this power, scaled so that
            the mean over an image is 1. 0 weighs all positions alike.
        plain_positions (`bool`): count positions of tokens and drawn images by 0, 1, 2, … on all axes, also where the backbone would place
            images that are read in height and width, as VARGPT v1.1 does in training and while it draws. Prompts of `generate` keep the
            backbone's own.
        tie_word_embeddings (`bool`, *optional*): whether the head shares the token embedding; as `vlm_config` says by default.
        license_note (`str`, *optional*): what users of the weights must know, for the model card.

    Raises:
        ValueError: a `vlm_config` of a model that cannot read here, the `model_type` of another kind of model or part, token ids that
            repeat or lie beyond the vocabulary, a negative weight or power of the losses, parts that contradict each other, or a
            contradiction inside one.
    """

    model_type = "vargpt"
    sub_configs_defaults = {
        "vlm_config": SubConfigSpec(config_class=AutoConfig, model_type="llava", init_kwargs=LLAVA_7B),
        "image_tokenizer_config": SubConfigSpec(config_class=VargptVQConfig),
        "visual_decoder_config": SubConfigSpec(config_class=VargptVARDecoderConfig),
    }

    # Objects before dicts: a type that does not fit costs Transformers' check an error that shows the whole value.
    vlm_config: PreTrainedConfig | dict | None = None
    image_tokenizer_config: PreTrainedConfig | dict | None = None
    visual_decoder_config: PreTrainedConfig | dict | None = None
    output_image_start_token_id: int = 32002
    output_image_end_token_id: int = 32003
    output_image_token_id: int = 32004
    text_loss_weight: float | int = 1.0
    image_loss_weight: float | int = 1.0
    image_scale_power: float | int = 0.0
    plain_positions: bool = False
    tie_word_embeddings: bool | None = None
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
        _check_misplaced(kwargs, self.vlm_config)
        _check_foreign("vlm_config", self.vlm_config)
        self.image_tokenizer_config = _part_config(self.image_tokenizer_config, IMAGE_TOKENIZERS, "image_tokenizer_config")
        self.visual_decoder_config = _part_config(self.visual_decoder_config, VISUAL_DECODERS, "visual_decoder_config")
        super().__post_init__(**kwargs)
        check_vlm_config(self.vlm_config)
        self.visual_decoder_config.bind(self.image_tokenizer_config)
        if self.tie_word_embeddings is None:
            self.tie_word_embeddings = bool(getattr(self.vlm_config, "tie_word_embeddings", False))
        self._check_tokens()
        for name in ("text_loss_weight", "image_loss_weight", "image_scale_power"):
            check_number(name, getattr(self, name))
        for name, activation in self._activations().items():
            if activation not in ACT2FN:
                raise ValueError(f"`{name}` must be one of {', '.join(sorted(ACT2FN))}, got {activation!r}.")
        self._check_vision_layers()

    def _activations(self) -> dict[str, str]:
        """Names of the activations, by the fields that hold them."""
        parts = {"vlm_config": self.vlm_config, "vlm_config.text_config": self.text_config, "vlm_config.vision_config": self.vision_config}
        fields = [(f"{part}.{name}", getattr(config, name, None)) for part, config in parts.items() for name in _ACTIVATIONS]
        return {name: activation for name, activation in fields if isinstance(activation, str)}

    def _check_vision_layers(self) -> None:
        """Of a backbone that takes hidden states of its vision tower by number, those numbers."""
        layers = getattr(self.vlm_config, "vision_feature_layer", None)
        depth = getattr(self.vision_config, "num_hidden_layers", None)
        if layers is None or depth is None:
            return
        layers = [layers] if isinstance(layers, int) else layers
        if not layers or any(not -depth - 1 <= layer <= depth for layer in layers):
            raise ValueError(
                f"`vlm_config.vision_feature_layer` must be one or more of the vision tower's {depth + 1} hidden states, from {-depth - 1} to "
                f"{depth}, got {self.vlm_config.vision_feature_layer}."
            )

    def least_parameters(self) -> int:
        """A lower bound of the model's number of parameters, computed without building it."""
        text, decoder = self.text_config, self.visual_decoder_config
        layers = [
            (part.num_hidden_layers, part.hidden_size, width)
            for part in (text, self.vision_config, decoder)
            if isinstance(width := getattr(part, "intermediate_size", None), int) and hasattr(part, "num_hidden_layers")
        ]
        return (
            sum(2 * depth * width * inner for depth, width, inner in layers)
            + text.vocab_size * text.hidden_size
            + decoder.num_symbols * decoder.num_classes * decoder.hidden_size
        )

    @property
    def text_config(self) -> PreTrainedConfig:
        """Configuration of the language model inside of what reads."""
        return self.vlm_config.get_text_config(decoder=True)

    @property
    def vision_config(self) -> PreTrainedConfig | None:
        """Configuration of the vision tower; None where images are not read."""
        return getattr(self.vlm_config, "vision_config", None)

    @property
    def schedules(self) -> tuple[ScaleSchedule, ...]:
        """The scale schedules that drawn images may have; the first one is the default."""
        return self.image_tokenizer_config.scale_schedules

    @property
    def image_token_id(self) -> int | None:
        """Placeholder of an image that is read; None where images are not read."""
        return getattr(self.vlm_config, "image_token_id", None)

    def _check_tokens(self) -> None:
        ids = {name: getattr(self, name) for name in TOKEN_NAMES if getattr(self, name) is not None}
        for name, token_id in ids.items():
            if not 0 <= token_id < self.text_config.vocab_size and name != "image_token_id":  # which may lie beyond, by a library's choice
                raise ValueError(
                    f"`{name}` is {token_id}, beyond the vocabulary of {self.text_config.vocab_size} in `vlm_config`: "
                    "give the id that the tokenizer has for it, or enlarge `vocab_size`."
                )
        if len(set(ids.values())) < len(ids):
            raise ValueError(f"The image tokens must differ from one another, got {ids}.")

    @classmethod
    def v1(cls, **kwargs) -> "VargptConfig":
        """The 7B+2B model of the paper (arXiv 2501.12327, section 3); `kwargs` replace single fields."""
        return cls(**kwargs)

    @classmethod
    def v1_1(cls, budget: str = "0.25M", square_only: bool = False, **kwargs) -> "VargptConfig":
        """VARGPT v1.1 (arXiv 2504.02949): Qwen2-VL-7B reads, Infinity-2B draws; `kwargs` replace single fields.

        Args:
            budget: pixels of an image, "0.06M" (256×256), "0.25M" (512×512, as released), "0.60M" or "1M".
            square_only: leave out the schedules of other aspect ratios, which the released system has and does not use.
        """
        schedules, reference_grids = infinity_schedules(budget)
        if square_only:
            schedules, reference_grids = schedules[:1], reference_grids[:1]
        fields = {
            "vlm_config": QWEN2_VL_7B,
            "image_tokenizer_config": {"model_type": "vargpt_bsq", "schedules": schedules},
            "visual_decoder_config": {"model_type": "vargpt_infinity_decoder", "reference_grids": reference_grids},
            "output_image_start_token_id": 151657,
            "output_image_end_token_id": 151658,
            "output_image_token_id": 151659,
            "image_loss_weight": 3.0,
            "plain_positions": True,
        }
        return cls(**{**fields, **kwargs})


def _part_config(given: dict | PreTrainedConfig | None, parts: dict, name: str) -> PreTrainedConfig:
    """The configuration of a part, made by its `model_type`, the first of `parts` by default."""
    if isinstance(given, PreTrainedConfig):
        return copy.deepcopy(given)  # into which the visual decoder's takes what it has in common with the image tokenizer's
    if given is not None and not isinstance(given, dict):
        raise TypeError(f"`{name}` must be a configuration or its fields, got {type(given).__name__}.")
    fields = dict(given or {})
    kind = fields.pop("model_type", next(iter(parts)))
    if kind not in parts:
        raise ValueError(f"`{name}` has the model_type {kind!r}; known are {', '.join(map(repr, parts))}.")
    return parts[kind].config_class(**fields)


def _check_misplaced(fields: dict, vlm_config: dict | PreTrainedConfig | None) -> None:
    """Refuses fields of the model that reads where they would be stored and never looked at; and a kind of model that nobody knows."""
    kind = type(vlm_config)
    if not isinstance(vlm_config, PreTrainedConfig):
        model_type = (vlm_config or {}).get("model_type", "llava")
        if model_type not in CONFIG_MAPPING:
            raise ValueError(f"`vlm_config.model_type` is {model_type!r}, which is none that Transformers {transformers.__version__} knows.")
        kind = CONFIG_MAPPING[model_type]
    own = {"image_token_id"} | kind.__dataclass_fields__.keys() - PreTrainedConfig.__dataclass_fields__.keys()
    for name in sorted(own & fields.keys() - {"use_cache"}):  # which trainers write into any configuration
        raise ValueError(f"`{name}` belongs into `vlm_config`, the configuration of the model that reads.")


def _check_foreign(part: str, config: dict | PreTrainedConfig | None) -> None:
    """Refuses sizes and formats of another kind of configuration, by the names that it has in ours, and inside of it."""
    check_dtype(f"{part}.dtype", config.get("dtype") if isinstance(config, dict) else getattr(config, "dtype", None))
    fields = config if isinstance(config, dict) else {} if config is None else config.to_dict()
    check_dtype(f"{part}.torch_dtype", fields.get("torch_dtype"))
    for name, largest in _FOREIGN_SIZES.items():
        value = fields.get(name)
        if value is not None and not (isinstance(value, (list, tuple, dict)) and value):  # some kinds have a number for each layer or axis
            check_size(f"{part}.{name}", value, largest)
    for name in ("text_config", "vision_config"):
        if isinstance(fields.get(name), (dict, PreTrainedConfig)):
            _check_foreign(f"{part}.{name}", fields[name])


VargptConfig.register_for_auto_class()

__all__ = ["IMAGE_TOKENIZERS", "VISUAL_DECODERS", "VargptConfig"]
