"""Infinity's visual decoder, the one of VARGPT v1.1: a block-causal transformer that attends to the text before an image.

(Infinity, arXiv 2412.04431, section 3; VARGPT-v1.1, arXiv 2504.02949.) Positions are rotary in two dimensions on a reference grid, so that
it draws any schedule; level embeddings are added after the language model.

Shapes: as in visual_decoder_vargpt.py; D width of the language model.
"""

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import initialization as init
from transformers.masking_utils import create_bidirectional_mask

from .base_configuration_vargpt import MOST_LAYERS, check_number, check_size, in_words
from .scales_vargpt import ScaleSchedule
from .visual_decoder_vargpt import (
    DecoderCache,
    DrawingState,
    RotaryTable,
    VargptAttention,
    VargptDecoderAttention,
    VargptDecoderLayer,
    VargptDecoderMLP,
    VargptVisualDecoder,
    VargptVisualDecoderConfig,
    block_causal_mask,
)


@in_words
@strict
class VargptInfinityDecoderConfig(VargptVisualDecoderConfig):
    r"""Sizes of Infinity's visual decoder; the defaults are those of Infinity-2B.

    Args:
        hidden_size (`int`), num_hidden_layers (`int`), num_attention_heads (`int`): width C, depth and heads.
        intermediate_size (`int`, *optional*): width of the MLP, `round(4 C / 256) · 256` by default.
        schedules (`list`, *optional*), latent_channels (`int`, *optional*), num_symbols (`int`, *optional*), num_classes (`int`,
            *optional*): the image tokenizer's, by which they are filled in.
        reference_grids (`list`, *optional*): for each schedule the grid (height, width) whose rows and columns the rotary positions
            count: the last one of the largest schedule of its aspect ratio; by default its own last one.
        rope_theta (`float`): base of the rotary frequencies.
        max_scales (`int`): rows of the level embedding.
        unconditional_context_size (`int`): rows that stand for the context of an unconditional half; the first one is the null condition.
        layer_norm_eps (`float`): epsilon of all norms.
        max_attention_scale (`float`): upper bound of the learned per-head factor on normalized queries.
        drop_path_rate (`float`): stochastic depth of the last block, rising linearly from 0.
        condition_dropout (`float`): how often training replaces the condition "generate" by the null condition.
        initializer_range (`float`, *optional*): standard deviation of fresh weights, `sqrt(1 / (3 C))` by default.

    Raises:
        ValueError: a width that the heads do not divide, heads whose width is no multiple of 4, a probability outside [0, 1), more scales
            than levels, or reference grids that do not fit the schedules.
    """

    model_type = "vargpt_infinity_decoder"

    hidden_size: int = 2048
    num_hidden_layers: int = 32
    num_attention_heads: int = 16
    intermediate_size: int | None = None
    schedules: list | tuple | None = None
    latent_channels: int | None = None
    num_symbols: int | None = None
    num_classes: int | None = None
    reference_grids: list | None = None
    rope_theta: float | int = 10000.0
    max_scales: int = 15
    unconditional_context_size: int = 512
    layer_norm_eps: float = 1e-6
    max_attention_scale: float | int = 100.0
    drop_path_rate: float | int = 0.1
    condition_dropout: float | int = 0.1
    initializer_range: float | None = None

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        for name in ("hidden_size", "num_attention_heads", "unconditional_context_size"):
            check_size(name, getattr(self, name))
        for name in ("num_hidden_layers", "max_scales"):
            check_size(name, getattr(self, name), MOST_LAYERS)
        if self.intermediate_size is None:
            self.intermediate_size = max(round(4 * self.hidden_size / 256), 1) * 256
        check_size("intermediate_size", self.intermediate_size)
        if self.initializer_range is None:
            self.initializer_range = (1 / (3 * self.hidden_size)) ** 0.5
        if self.hidden_size % self.num_attention_heads or self.head_dim % 4:
            raise ValueError(
                f"The visual decoder's hidden_size {self.hidden_size} must be divisible by its {self.num_attention_heads} attention heads, and "
                "the width of a head by 4, which its rotary positions need."
            )
        for name in ("drop_path_rate", "condition_dropout"):
            check_number(name, getattr(self, name), most=1.0, excluded=(1.0,))
        for name in ("layer_norm_eps", "max_attention_scale", "initializer_range"):
            check_number(name, getattr(self, name))
        check_number("rope_theta", self.rope_theta, excluded=(0.0,))

    def bind(self, tokenizer_config) -> None:
        super().bind(tokenizer_config)
        schedules = self.scale_schedules
        if max(map(len, schedules)) > self.max_scales:
            raise ValueError(
                f"A schedule has {max(map(len, schedules))} scales, but the decoder has {self.max_scales} levels: raise `max_scales`."
            )
        if self.reference_grids is None:
            self.reference_grids = [list(schedule.final_grid) for schedule in schedules]
        grids = [tuple(grid) if isinstance(grid, (list, tuple)) else grid for grid in self.reference_grids]
        if len(grids) != len(schedules) or not all(isinstance(grid, tuple) and len(grid) == 2 and min(grid) >= 1 for grid in grids):
            raise ValueError(
                f"`reference_grids` must be one (height, width) for each of {len(schedules)} schedules, got {self.reference_grids}."
            )

    def reference_grid(self, schedule: ScaleSchedule) -> tuple[int, int]:
        """The grid whose rows and columns positions of this schedule count.

        Raises:
            ValueError: a schedule that is none of the decoder's.
        """
        # Not by `index`, which torch.compile does not trace for schedules.
        grid = next((grid for known, grid in zip(self.scale_schedules, self.reference_grids) if known == schedule), None)
        if grid is None:
            raise ValueError(f"The decoder has no schedule {schedule.to_list()}; `schedules` of the image tokenizer are {self.schedules}.")
        return tuple(grid)


@lru_cache(maxsize=64)
def rotary_table(
    schedule: ScaleSchedule, grid: tuple[int, int], head_dim: int, theta: float, device: torch.device, dtype: torch.dtype
) -> RotaryTable:
    """Cosines and sines (L, head_dim / 2) of all positions of a schedule.

    Position (i, j) of a scale h×w has the row round(i · R_h / h) and the column round(j · R_w / w) of the reference `grid` (R_h, R_w), halves
    to even. The first half of the pairs turns with the row, the second with the column.
    """
    with torch.inference_mode(False):  # training cannot use what is made in inference mode, and would find it here
        rows, columns = [], []
        for height, width in schedule.grids:
            row = (torch.arange(height, dtype=torch.float64) * grid[0] / height).round()
            column = (torch.arange(width, dtype=torch.float64) * grid[1] / width).round()
            rows.append(row.repeat_interleave(width))
            columns.append(column.repeat(height))
        pairs = head_dim // 4
        frequencies = theta ** (-torch.arange(pairs, dtype=torch.float32) / pairs)
        angles = torch.cat([torch.cat(axis).float()[:, None] * frequencies for axis in (rows, columns)], dim=1)
        return angles.cos().to(device, dtype), angles.sin().to(device, dtype)


class VargptInfinityCrossAttention(VargptAttention):
    """Attention to the text before an image, without positions."""

    def __init__(self, config: VargptInfinityDecoderConfig):
        super().__init__(config)
        self.scaling = self.head_dim**-0.5

    def keys_and_values(self, context: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values, each (N, heads, P, head_dim), of a context (N, P, C)."""
        heads = (*context.shape[:-1], -1, self.head_dim)
        return self.k_proj(context).view(heads).transpose(1, 2), self.v_proj(context).view(heads).transpose(1, 2)

    def forward(
        self, hidden_states: torch.Tensor, keys_and_values: tuple[torch.Tensor, torch.Tensor], attention_mask: torch.Tensor | None
    ) -> torch.Tensor:
        query = self.q_proj(hidden_states).view(*hidden_states.shape[:-1], -1, self.head_dim).transpose(1, 2)
        return self.attend(query, *keys_and_values, attention_mask)


class VargptInfinityLayer(VargptDecoderLayer):
    """Self-attention, cross-attention, MLP; the first and the last modulated by the condition and dropped whole at times."""

    def __init__(self, config: VargptInfinityDecoderConfig, layer_index: int):
        super().__init__(config, layer_index)
        self.modulation = nn.Parameter(torch.empty(6, config.hidden_size))  # what this layer adds to the shared one
        self.self_attn = VargptDecoderAttention(config, layer_index)
        self.cross_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.cross_attn = VargptInfinityCrossAttention(config)
        self.mlp = VargptDecoderMLP(config)

    def _norm(self, hidden_states: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        normed = F.layer_norm(hidden_states.float(), hidden_states.shape[-1:], eps=self.eps).to(hidden_states.dtype)
        return normed * (1 + scale) + shift

    def forward(
        self,
        hidden_states: torch.Tensor,
        shared: torch.Tensor,
        table: RotaryTable,
        attention_mask: torch.Tensor | None = None,
        context: torch.Tensor | None = None,
        context_mask: torch.Tensor | None = None,
        cross: tuple[torch.Tensor, torch.Tensor] | None = None,
        cache: DecoderCache | None = None,
    ) -> torch.Tensor:
        """Hidden states (N, l, C), from those before.

        Args:
            shared: shared modulation, (N, 6, C).
            table: of these positions.
            context, context_mask: text before each image, (N, P, C), and its mask in the form that attention takes.
            cross: keys and values of the context, where they were made before.
        """
        gamma1, gamma2, scale1, scale2, shift1, shift2 = (shared + self.modulation).unsqueeze(2).unbind(1)
        attended = self.self_attn(self._norm(hidden_states, scale1, shift1), attention_mask, cache, table)
        hidden_states = hidden_states + self._dropped(gamma1) * attended
        if context is not None or cross is not None:
            cross = self.cross_attn.keys_and_values(context) if cross is None else cross
            hidden_states = hidden_states + self.cross_attn(self.cross_norm(hidden_states), cross, context_mask)
        return hidden_states + self._dropped(gamma2) * self.mlp(self._norm(hidden_states, scale2, shift2))


class VargptInfinityDecoder(VargptVisualDecoder):
    """Projected hidden states and the text before an image in, scores of bits out."""

    config: VargptInfinityDecoderConfig
    uses_context = True
    _no_split_modules = ["VargptInfinityLayer"]

    def __init__(self, config: VargptInfinityDecoderConfig):
        super().__init__(config)
        width = config.hidden_size
        self.token_embedding = nn.Linear(config.latent_channels, width)
        self.condition_embedding = nn.Parameter(torch.empty(1, width))
        self.unconditional_context = nn.Parameter(torch.empty(config.unconditional_context_size, width))
        self.condition_norm = nn.RMSNorm(width, eps=config.layer_norm_eps)
        self.condition_value = nn.Linear(width, width)
        self.condition_proj = nn.Linear(width, width)
        self.start_embedding = nn.Parameter(torch.empty(width))
        self.scale_embedding = nn.Embedding(config.max_scales, width)
        self.shared_modulation = nn.Linear(width, 6 * width)
        self.layers = nn.ModuleList(VargptInfinityLayer(config, index) for index in range(config.num_hidden_layers))
        self.norm_modulation = nn.Linear(width, 2 * width)
        self.head = nn.Linear(width, config.num_symbols * config.num_classes)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        if module is self:
            for embedding in (self.condition_embedding, self.unconditional_context, self.start_embedding, self.scale_embedding.weight):
                init.normal_(embedding, std=std)
            init.ones_(self.condition_norm.weight)
            for linear in (
                self.token_embedding,
                self.condition_value,
                self.condition_proj,
                self.shared_modulation,
                self.norm_modulation,
                self.head,
            ):
                self.init_linear(linear, std)
        elif isinstance(module, VargptInfinityLayer):
            self._init_layer(module, std)
        elif isinstance(module, VargptDecoderAttention):
            init.constant_(module.log_scale, math.log(4.0))

    def _init_layer(self, layer: VargptInfinityLayer, std: float) -> None:
        """Starts a layer as a plain pre-norm transformer layer: γ 1, scale 0, shift 0; branch outputs shrink with depth."""
        for linear in layer.modules():
            if isinstance(linear, nn.Linear):
                self.init_linear(linear, std)
        for linear in (layer.self_attn.out_proj, layer.cross_attn.out_proj, layer.mlp.fc2):
            self.init_linear(linear, std / (2 * self.config.num_hidden_layers) ** 0.5)
        init.ones_(layer.cross_norm.weight)
        init.zeros_(layer.cross_norm.bias)
        gammas = (torch.arange(6, device=layer.modulation.device) < 2)[:, None].expand_as(layer.modulation)
        init.copy_(layer.modulation, gammas.to(layer.modulation.dtype))

    @property
    def embedding_modules(self) -> list[nn.Module]:
        return [self.token_embedding]

    @property
    def condition_modules(self) -> list[nn.Module]:
        return [self.condition_value, self.condition_proj, self.shared_modulation, self.norm_modulation]

    @property
    def context_modules(self) -> list[nn.Module]:
        return [module for layer in self.layers for module in (layer.cross_attn.k_proj, layer.cross_attn.v_proj)]

    # ---- conditions

    def conditions(self) -> torch.Tensor:
        """Condition vectors (2, C), "generate" and null.

        The released system pools each row by attention; over one row the softmax is 1, so that value and output projection remain.
        """
        rows = torch.cat([self.condition_embedding, self.unconditional_context[:1]])
        return self.condition_proj(self.condition_value(self.condition_norm(rows)))

    def unconditional_source(self, mask: torch.LongTensor) -> torch.Tensor:
        """Context (N, P, C) of unconditional halves: stored rows in place of as many tokens as `mask` (N, P) has; repeated beyond them."""
        order = (mask.cumsum(1) - 1).clamp(min=0) % len(self.unconditional_context)
        return self.unconditional_context[order]

    # ---- what the language model reads

    def embed_scale(self, inputs: torch.Tensor | None, condition_ids: torch.LongTensor, scale: int, schedule: ScaleSchedule) -> torch.Tensor:
        if scale == 0:
            start = self.conditions()[condition_ids] + self.start_embedding
            return start[:, None].expand(-1, schedule.areas[0], -1)
        return self.token_embedding(inputs.to(self.start_embedding.dtype))

    def embed(self, inputs: torch.Tensor, condition_ids: torch.LongTensor, schedule: ScaleSchedule) -> torch.Tensor:
        return torch.cat([self.embed_scale(None, condition_ids, 0, schedule), self.embed_scale(inputs, condition_ids, 1, schedule)], dim=1)

    # ---- scores of codes

    def begin(
        self,
        condition_ids: torch.LongTensor,
        schedule: ScaleSchedule,
        context: torch.Tensor | None = None,
        context_mask: torch.Tensor | None = None,
    ) -> DrawingState:
        cache = self.make_cache(len(condition_ids), schedule, self.start_embedding)
        constants = {
            "modulation": self._modulation(condition_ids),
            "cross": [None if context is None else layer.cross_attn.keys_and_values(context) for layer in self.layers],
            "context_mask": context_mask,
        }
        return DrawingState(condition_ids, cache, constants)

    def _modulation(self, condition_ids: torch.LongTensor) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        """Shared modulation (N, 6, C), and scale and shift before the head, each (N, 1, C), of images of conditions (N,)."""
        conditions = F.silu(self.conditions())
        shared = self.shared_modulation(conditions).unflatten(-1, (6, -1))[condition_ids]
        scale, shift = self.norm_modulation(conditions)[condition_ids].unsqueeze(1).chunk(2, dim=-1)
        return shared, (scale, shift)

    def _cross_mask(self, hidden_states: torch.Tensor, context_mask: torch.Tensor | None) -> torch.Tensor | None:
        """The mask of the context (N, P), in the form that the attention in use takes."""
        if context_mask is None:
            return None
        context = hidden_states.new_empty(*context_mask.shape, 0)
        return create_bidirectional_mask(self.config, hidden_states, context_mask, encoder_hidden_states=context)

    def forward(
        self,
        hidden_states: torch.Tensor,
        condition_ids: torch.LongTensor,
        schedule: ScaleSchedule,
        context: torch.Tensor | None = None,
        context_mask: torch.Tensor | None = None,
        state: DrawingState | None = None,
    ) -> torch.Tensor:
        config, start = self.config, 0 if state is None else state.cache.length
        end = start + hidden_states.shape[1]
        levels = schedule.scale_of_position(hidden_states.device)[start:end]
        hidden_states = hidden_states + self.scale_embedding(levels)
        table = rotary_table(
            schedule, config.reference_grid(schedule), config.head_dim, config.rope_theta, hidden_states.device, hidden_states.dtype
        )
        table = tuple(part[start:end] for part in table)
        if state is None:
            (shared, head), cross, cache = self._modulation(condition_ids), [None] * len(self.layers), None
            mask = block_causal_mask(config, hidden_states, schedule)
        else:
            (shared, head), cross, cache = state.constants["modulation"], state.constants["cross"], state.cache
            mask, context_mask = None, state.constants["context_mask"]
        cross_mask = self._cross_mask(hidden_states, context_mask)
        for layer, keys_and_values in zip(self.layers, cross):
            hidden_states = layer(hidden_states, shared, table, mask, context, cross_mask, keys_and_values, cache)
        if cache is not None:
            cache.advance(hidden_states.shape[1])
        scale, shift = head
        normed = F.layer_norm(hidden_states.float(), hidden_states.shape[-1:], eps=config.layer_norm_eps).to(hidden_states.dtype)
        return self.head(normed * (1 + scale) + shift).unflatten(-1, (config.num_symbols, config.num_classes))


VargptInfinityDecoder.register_for_auto_class()
VargptInfinityDecoderConfig.register_for_auto_class()

__all__ = ["VargptInfinityDecoder", "VargptInfinityDecoderConfig", "rotary_table"]
