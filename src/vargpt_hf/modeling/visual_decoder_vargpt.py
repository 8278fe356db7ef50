"""The face of visual decoders: hidden states of the language model in, scores of codes out, scale by scale.

A visual decoder also makes what the language model is fed at the positions of an image ([`embed`], [`embed_scale`]); the two projectors
between it and the language model belong to the model that holds both.

Shapes: N images, L positions of one image over all scales, l positions of one scale, l₀ those of the first, S scales, Cz latent channels,
C decoder width, K symbols of a code, V classes of a symbol, P tokens of context.
"""

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.configuration_utils import PreTrainedConfig
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .base_configuration_vargpt import VargptBaseConfig
from .base_modeling_vargpt import VargptBaseModel
from .scales_vargpt import ScaleSchedule, schedules_of

GENERATE_CONDITION = 0
NULL_CONDITION = 1

RotaryTable = tuple[torch.Tensor, torch.Tensor]  # cosines and sines, each (L or l, head_dim / 2)


class DecoderCache:
    """Keys and values of a visual decoder for one batch of images, in memory set aside once for all L positions.

    Args:
        shape: (N, heads, L, head_dim).
    """

    def __init__(self, num_layers: int, shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device):
        self.keys = [torch.empty(shape, dtype=dtype, device=device) for _ in range(num_layers)]
        self.values = [torch.empty(shape, dtype=dtype, device=device) for _ in range(num_layers)]
        self.length = 0

    def update(self, key: torch.Tensor, value: torch.Tensor, layer_index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Writes one scale's keys and values (N, heads, l, head_dim) and returns all up to it, as views."""
        end = self.length + key.shape[2]
        self.keys[layer_index][:, :, self.length : end] = key
        self.values[layer_index][:, :, self.length : end] = value
        return self.keys[layer_index][:, :, :end], self.values[layer_index][:, :, :end]

    def advance(self, num_positions: int) -> None:
        """Marks the positions of one scale as seen, once all layers have written them."""
        self.length += num_positions


@dataclass
class DrawingState:
    """What is computed once for a batch of images that is drawn scale by scale; made by [`VargptVisualDecoder.begin`].

    Args:
        condition_ids: condition of each image, (N,).
        cache: keys and values of the coarser scales.
        constants: what else the decoder computes once, such as modulations or cross-attention keys; its own affair.
    """

    condition_ids: torch.LongTensor
    cache: DecoderCache
    constants: dict = field(default_factory=dict)


class VargptVisualDecoderConfig(VargptBaseConfig):
    """What configurations of visual decoders share; a subclass has the fields named here.

    Args:
        hidden_size (`int`), num_hidden_layers (`int`), num_attention_heads (`int`): width C, depth and heads.
        schedules (`list`, *optional*): scale schedules that it draws; of the image tokenizer by default, as are the next three.
        latent_channels (`int`, *optional*): width Cz of its inputs.
        num_symbols (`int`, *optional*), num_classes (`int`, *optional*): symbols K of a code and their classes V.
        condition_dropout (`float`): how often training replaces the condition "generate" by the null condition.
    """

    base_config_key = "visual_decoder_config"

    @property
    def scale_schedules(self) -> tuple[ScaleSchedule, ...]:
        """The schedules that images may have; the first one is the default."""
        return schedules_of(tuple(tuple(tuple(scale) if isinstance(scale, list) else scale for scale in scales) for scales in self.schedules))

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    def bind(self, tokenizer_config) -> None:
        """Takes what is left open from the configuration of the image tokenizer.

        Raises:
            ValueError: something given that contradicts it.
        """
        for name in ("schedules", "latent_channels", "num_symbols", "num_classes"):
            wanted = getattr(tokenizer_config, name)
            if getattr(self, name) is None:
                setattr(self, name, wanted)
            elif _as_lists(getattr(self, name)) != _as_lists(wanted):
                raise ValueError(
                    f"`visual_decoder_config.{name}` is {getattr(self, name)}, but the image tokenizer has {wanted}: the decoder draws in the "
                    "tokenizer's codes, so leave it out or give the same."
                )


def _as_lists(value):
    """Schedules that are written as tuples are the same as lists of lists."""
    return [_as_lists(each) for each in value] if isinstance(value, (list, tuple)) else value


class VargptVisualDecoder(VargptBaseModel):
    """Base of visual decoders.

    A subclass has a configuration of its own `model_type` and supplies [`embed_scale`], [`begin`] and [`forward`].
    """

    main_input_name = "hidden_states"
    input_modalities = ("image",)
    uses_context = False  # whether it attends to hidden states of the text before an image
    supports_gradient_checkpointing = True
    _skip_keys_device_placement = ["state"]

    @abstractmethod
    def embed_scale(self, inputs: torch.Tensor | None, condition_ids: torch.LongTensor, scale: int, schedule: ScaleSchedule) -> torch.Tensor:
        """What the language model reads at the positions of one scale, before the projector, (N, l, C).

        Args:
            inputs: f̂ of the coarser scales on this one's grid, (N, l, Cz); None at the first scale.
            condition_ids: GENERATE_CONDITION or NULL_CONDITION of each image, (N,).
        """

    @abstractmethod
    def embed(self, inputs: torch.Tensor, condition_ids: torch.LongTensor, schedule: ScaleSchedule) -> torch.Tensor:
        """The same for all scales at once, (N, L, C), or the coarsest, from the inputs (N, L − l₀, Cz) of those after the first."""

    @abstractmethod
    def begin(
        self,
        condition_ids: torch.LongTensor,
        schedule: ScaleSchedule,
        context: torch.Tensor | None = None,
        context_mask: torch.Tensor | None = None,
    ) -> DrawingState:
        """Sets up drawing of one batch of images, scale by scale.

        Args:
            condition_ids: condition of each image, (N,).
            context: projected hidden states of the text before each image, (N, P, C), where `uses_context`.
            context_mask: 1 where these count, (N, P).
        """

    @abstractmethod
    def forward(
        self,
        hidden_states: torch.Tensor,
        condition_ids: torch.LongTensor,
        schedule: ScaleSchedule,
        context: torch.Tensor | None = None,
        context_mask: torch.Tensor | None = None,
        state: DrawingState | None = None,
    ) -> torch.Tensor:
        """Scores of the codes, (N, L or l, K, V).

        Args:
            hidden_states: projected hidden states of the language model at the positions of the images, (N, L, C), or at those of the
                coarsest scales alone; with a `state` those of the next scale only, (N, l, C).
            condition_ids: condition of each image, (N,).
            schedule: of these images.
            context, context_mask: see [`begin`]; not needed beside a `state`.
            state: result of [`begin`]; makes a mask needless, since a scale sees all that came.
        """

    @property
    def embedding_modules(self) -> list[nn.Module]:
        """Modules inside that embed what coarser scales have drawn, before the language model."""
        return []

    @property
    def condition_modules(self) -> list[nn.Module]:
        """Modules inside that see each condition, not each position."""
        return []

    @property
    def context_modules(self) -> list[nn.Module]:
        """Modules inside that see the tokens of the context, not each position."""
        return []

    def sample_condition_ids(self, num_images: int, device: torch.device) -> torch.LongTensor:
        """Condition of each image, (N,): "generate"; in training the null condition with `condition_dropout`."""
        condition_ids = torch.full((num_images,), GENERATE_CONDITION, dtype=torch.long, device=device)
        if self.training:
            dropped = torch.rand(num_images, device=device) < self.config.condition_dropout
            condition_ids = condition_ids.masked_fill(dropped, NULL_CONDITION)
        return condition_ids

    def make_cache(self, num_images: int, schedule: ScaleSchedule, like: torch.Tensor) -> DecoderCache:
        """Room for keys and values of images of a schedule, in the type and on the device of `like`."""
        config = self.config
        shape = (num_images, config.num_attention_heads, schedule.num_positions, config.head_dim)
        return DecoderCache(config.num_hidden_layers, shape, like.dtype, like.device)

    @staticmethod
    def init_linear(linear: nn.Linear, std: float) -> None:
        """Fresh weights of a linear layer: normal, biases 0; nothing is written over what was loaded."""
        init.normal_(linear.weight, std=std)
        if linear.bias is not None:
            init.zeros_(linear.bias)


def block_causal_mask(config: PreTrainedConfig, hidden_states: torch.Tensor, schedule: ScaleSchedule) -> torch.Tensor | None:
    """Mask in which a position sees its own and all coarser scales, in the form that the attention of `config` takes.

    For grids 1×1, 2×2 (■ seen, · not)::

        scale 0  ■ · · · ·
        scale 1  ■ ■ ■ ■ ■
                 ■ ■ ■ ■ ■
                 ■ ■ ■ ■ ■
                 ■ ■ ■ ■ ■
    """
    scales = schedule.scale_of_position(hidden_states.device)[: hidden_states.shape[1]].expand(hidden_states.shape[0], -1)
    return create_causal_mask(config, hidden_states, None, None, block_sequence_ids=scales)


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention written out: outputs (N, l, heads, head_dim) and float32-normalized weights (N, heads, l, positions)."""
    scores = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = F.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = F.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


def rotate(values: torch.Tensor, table: RotaryTable) -> torch.Tensor:
    """Queries or keys (N, heads, l, head_dim) with each pair of neighbors (2t, 2t + 1) turned by its angle."""
    cosines, sines = table
    first, second = values[..., 0::2], values[..., 1::2]
    return torch.stack([first * cosines - second * sines, first * sines + second * cosines], dim=-1).flatten(-2)


class VargptAttention(nn.Module):
    """Projections of an attention, and the implementation that the configuration chooses.

    Attention of every visual decoder inherits from here: Transformers lets an implementation be chosen for a model whose module either
    defines no attention from scratch or looks it up itself.
    """

    is_causal = False
    num_key_value_groups = 1
    scaling = 1.0

    def __init__(self, config: VargptVisualDecoderConfig):
        super().__init__()
        width = config.hidden_size
        self.config = config  # which holds the choice of attention implementation
        self.head_dim = config.head_dim
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        """Outputs (N, l, C), projected, of queries (N, heads, l, head_dim) over keys and values (N, heads, positions, head_dim)."""
        chosen: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        attended, _ = chosen(self, query, key, value, attention_mask, scaling=self.scaling, dropout=0.0)
        return self.out_proj(attended.flatten(2))


class VargptDecoderAttention(VargptAttention):
    """Attention over L2-normalized queries and keys, with a learned temperature per head (VAR, appendix A)."""

    def __init__(self, config: VargptVisualDecoderConfig, layer_index: int):
        super().__init__(config)
        self.layer_index = layer_index
        self.max_log_scale = math.log(config.max_attention_scale)
        self.log_scale = nn.Parameter(torch.full((config.num_attention_heads,), math.log(4.0)))

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None,
        cache: DecoderCache | None,
        table: RotaryTable | None = None,
    ) -> torch.Tensor:
        """Outputs (N, l, C); with a `table` queries and keys are rotated by their positions."""
        heads = (*hidden_states.shape[:-1], -1, self.head_dim)
        query = F.normalize(self.q_proj(hidden_states).view(heads).transpose(1, 2), dim=-1)
        key = F.normalize(self.k_proj(hidden_states).view(heads).transpose(1, 2), dim=-1)
        value = self.v_proj(hidden_states).view(heads).transpose(1, 2)
        query = query * self.log_scale.clamp(max=self.max_log_scale).exp()[:, None, None].to(query.dtype)
        if table is not None:
            query, key = rotate(query, table), rotate(key, table)
        if cache is not None:
            key, value = cache.update(key, value, self.layer_index)
        return self.attend(query, key, value, attention_mask)


class VargptDecoderMLP(nn.Module):
    """Linear, tanh GELU, Linear."""

    def __init__(self, config: VargptVisualDecoderConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.gelu(self.fc1(hidden_states), approximate="tanh"))


class VargptDecoderLayer(GradientCheckpointingLayer):
    """What layers of visual decoders share: branches that are dropped whole at times (stochastic depth)."""

    def __init__(self, config: VargptVisualDecoderConfig, layer_index: int):
        super().__init__()
        self.eps = config.layer_norm_eps
        self.drop_path_rate = config.drop_path_rate * layer_index / max(config.num_hidden_layers - 1, 1)

    def _dropped(self, gamma: torch.Tensor) -> torch.Tensor:
        """γ (N, 1, C) of a branch, in training 0 for the images whose branch is dropped, and larger for the others."""
        if not self.training or self.drop_path_rate == 0:
            return gamma
        keep = 1 - self.drop_path_rate
        kept = torch.empty(gamma.shape[0], 1, 1, dtype=gamma.dtype, device=gamma.device).bernoulli_(keep)
        return gamma * (kept / keep)


class VargptProjector(nn.Module):
    """Between language model and visual decoder: Linear to its own width, exact GELU, Linear to the other side's width."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__()
        self.fc1 = nn.Linear(in_features, in_features)
        self.fc2 = nn.Linear(in_features, out_features)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.gelu(self.fc1(hidden_states)))


__all__ = [
    "GENERATE_CONDITION",
    "NULL_CONDITION",
    "DecoderCache",
    "DrawingState",
    "RotaryTable",
    "VargptAttention",
    "VargptDecoderAttention",
    "VargptDecoderLayer",
    "VargptDecoderMLP",
    "VargptProjector",
    "VargptVisualDecoder",
    "VargptVisualDecoderConfig",
    "block_causal_mask",
    "eager_attention_forward",
    "rotate",
]
