"""VAR's visual decoder, the one of VARGPT v1: a block-causal transformer with AdaLN (VAR, arXiv 2404.02905, section 3.3).

Level and position embeddings are learned and added before the language model, so that it draws the one schedule that they were learned for.

Shapes: as in visual_decoder_vargpt.py.
"""

import math

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import initialization as init

from .base_configuration_vargpt import MOST_LAYERS, check_number, check_size, in_words
from .scales_vargpt import ScaleSchedule
from .visual_decoder_vargpt import (
    NULL_CONDITION,
    DecoderCache,
    DrawingState,
    VargptDecoderAttention,
    VargptDecoderLayer,
    VargptDecoderMLP,
    VargptVisualDecoder,
    VargptVisualDecoderConfig,
    block_causal_mask,
)


@in_words
@strict
class VargptVARDecoderConfig(VargptVisualDecoderConfig):
    r"""Sizes of VAR's visual decoder.

    Args:
        hidden_size (`int`), num_hidden_layers (`int`), num_attention_heads (`int`): width C, depth and heads. VAR ties
            them (width 64 · depth, one head per 64); here they are free.
        schedules (`list`, *optional*), latent_channels (`int`, *optional*), num_symbols (`int`, *optional*), num_classes (`int`,
            *optional*): the image tokenizer's, by which they are filled in.
        mlp_ratio (`float`): width of the MLP over `hidden_size`.
        layer_norm_eps (`float`): epsilon of the LayerNorms, which have no weights.
        max_attention_scale (`float`): upper bound of the learned per-head factor on normalized queries.
        drop_path_rate (`float`, *optional*): stochastic depth of the last block, rising linearly from 0; VAR's
            `0.1 · depth / 24` by default.
        condition_dropout (`float`): how often training replaces the condition "generate" by the null condition.
        initializer_range (`float`, *optional*): standard deviation of fresh weights, `sqrt(1 / (3 C))` by default.

    Raises:
        ValueError: a width that the heads do not divide, a probability outside [0, 1), or several schedules.
    """

    model_type = "vargpt_var_decoder"

    hidden_size: int = 1920
    num_hidden_layers: int = 30
    num_attention_heads: int = 30
    schedules: list | tuple | None = None
    latent_channels: int | None = None
    num_symbols: int | None = None
    num_classes: int | None = None
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

    def bind(self, tokenizer_config) -> None:
        super().bind(tokenizer_config)
        if len(self.schedules) > 1:
            raise ValueError(
                f"VAR's decoder learns a position embedding for one schedule, but the image tokenizer has {len(self.schedules)}: leave one in "
                "`image_tokenizer_config.schedules`, or take another visual decoder."
            )

    @property
    def intermediate_size(self) -> int:
        """Width of the MLP's hidden layer."""
        return round(self.hidden_size * self.mlp_ratio)


def picked(modulation: tuple[torch.Tensor, ...], condition_ids: torch.LongTensor) -> tuple[torch.Tensor, ...]:
    """Of tensors (2, 1, C) for both conditions those of images with conditions (N,), each (N, 1, C)."""
    return tuple(part[condition_ids] for part in modulation)


class VargptVARLayer(VargptDecoderLayer):
    """Attention and MLP, each modulated by the condition (AdaLN) and dropped whole at times (stochastic depth)."""

    def __init__(self, config: VargptVARDecoderConfig, layer_index: int):
        super().__init__(config, layer_index)
        self.normalized_shape = (config.hidden_size,)
        self.self_attn = VargptDecoderAttention(config, layer_index)
        self.mlp = VargptDecoderMLP(config)
        self.modulation = nn.Linear(config.hidden_size, 6 * config.hidden_size)

    def modulate(self, condition: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """γ1, γ2, scale1, scale2, shift1, shift2, each (2, 1, C), from the embeddings of both conditions (2, C)."""
        return self.modulation(F.silu(condition)).unsqueeze(1).chunk(6, dim=-1)

    def _norm(self, hidden_states: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(hidden_states, self.normalized_shape, eps=self.eps) * (1 + scale) + shift

    def forward(
        self,
        hidden_states: torch.Tensor,
        condition_ids: torch.LongTensor | None = None,
        conditions: torch.Tensor | None = None,
        modulation: tuple[torch.Tensor, ...] | None = None,
        attention_mask: torch.Tensor | None = None,
        cache: DecoderCache | None = None,
    ) -> torch.Tensor:
        """Hidden states (N, l, C), from those before.

        Modulated by `modulation`, one entry of [`VargptVARDecoder.modulations`], or else by what [`modulate`] makes of `conditions`
        (2, C) for images of `condition_ids` (N,): here, since weights that are sharded over processes are whole inside this call alone.
        """
        modulation = picked(self.modulate(conditions), condition_ids) if modulation is None else modulation
        gamma1, gamma2, scale1, scale2, shift1, shift2 = modulation
        attended = self.self_attn(self._norm(hidden_states, scale1, shift1), attention_mask, cache)
        hidden_states = hidden_states + self._dropped(gamma1) * attended
        return hidden_states + self._dropped(gamma2) * self.mlp(self._norm(hidden_states, scale2, shift2))


class VargptVARDecoder(VargptVisualDecoder):
    """Scale tokens in, scores of the codes at the same positions out."""

    config: VargptVARDecoderConfig
    _no_split_modules = ["VargptVARLayer"]

    def __init__(self, config: VargptVARDecoderConfig):
        super().__init__(config)
        (schedule,) = config.scale_schedules
        width = config.hidden_size
        self.token_embedding = nn.Linear(config.latent_channels, width)
        self.condition_embedding = nn.Embedding(2, width)
        self.start_embedding = nn.Parameter(torch.empty(schedule.areas[0], width))
        self.position_embedding = nn.Parameter(torch.empty(schedule.num_positions, width))
        self.scale_embedding = nn.Embedding(len(schedule), width)
        self.layers = nn.ModuleList(VargptVARLayer(config, index) for index in range(config.num_hidden_layers))
        self.norm_modulation = nn.Linear(width, 2 * width)
        self.head = nn.Linear(width, config.num_symbols * config.num_classes)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        if module is self:
            for embedding in (self.start_embedding, self.position_embedding, self.condition_embedding.weight, self.scale_embedding.weight):
                init.normal_(embedding, std=std)
            for linear in (self.token_embedding, self.norm_modulation, self.head):
                self.init_linear(linear, std)
        elif isinstance(module, VargptVARLayer):
            self._init_layer(module, std)
        elif isinstance(module, VargptDecoderAttention):
            init.constant_(module.log_scale, math.log(4.0))

    def _init_layer(self, layer: VargptVARLayer, std: float) -> None:
        """Starts a layer as a plain pre-norm transformer layer: γ 1, scale 0, shift 0; branch outputs shrink with depth."""
        attention, mlp = layer.self_attn, layer.mlp
        for linear in (attention.q_proj, attention.k_proj, attention.v_proj, mlp.fc1):
            self.init_linear(linear, std)
        for linear in (attention.out_proj, mlp.fc2):
            self.init_linear(linear, std / (2 * self.config.num_hidden_layers) ** 0.5)
        self.init_linear(layer.modulation, std / 2)
        gammas = torch.arange(layer.modulation.out_features, device=layer.modulation.bias.device) < 2 * self.config.hidden_size
        init.copy_(layer.modulation.bias, gammas.to(layer.modulation.bias.dtype))

    @property
    def embedding_modules(self) -> list[nn.Module]:
        return [self.token_embedding]

    @property
    def condition_modules(self) -> list[nn.Module]:
        return [*(layer.modulation for layer in self.layers), self.norm_modulation]

    # ---- what the language model reads

    def embed_scale(self, inputs: torch.Tensor | None, condition_ids: torch.LongTensor, scale: int, schedule: ScaleSchedule) -> torch.Tensor:
        level = self.scale_embedding(torch.tensor(scale, device=self.position_embedding.device))
        position = schedule.split(self.position_embedding, dim=0)[scale]
        return self._tokens(inputs, condition_ids, scale == 0) + (level + position)

    def embed(self, inputs: torch.Tensor, condition_ids: torch.LongTensor, schedule: ScaleSchedule) -> torch.Tensor:
        levels = self.scale_embedding(schedule.scale_of_position(self.position_embedding.device))
        tokens = torch.cat([self._tokens(None, condition_ids, True), self._tokens(inputs, condition_ids, False)], dim=1)
        return tokens + (levels + self.position_embedding)[: tokens.shape[1]]

    def _tokens(self, inputs: torch.Tensor | None, condition_ids: torch.LongTensor, first: bool) -> torch.Tensor:
        """Tokens (N, l, C) of the first scale or of later ones, less level and position."""
        if first:
            return self.condition_embedding(condition_ids)[:, None] + self.start_embedding
        return self.token_embedding(inputs.to(self.position_embedding.dtype))  # the layer's own weight may be quantized

    # ---- modulation

    def conditions(self) -> torch.Tensor:
        """Embeddings of both conditions, (2, C)."""
        return self.condition_embedding(torch.arange(NULL_CONDITION + 1, device=self.position_embedding.device))

    def modulate_head(self) -> tuple[torch.Tensor, ...]:
        """Scale and shift before the head for both conditions, each (2, 1, C)."""
        return self.norm_modulation(F.silu(self.conditions())).unsqueeze(1).chunk(2, dim=-1)

    def modulations(self, condition_ids: torch.LongTensor) -> list[tuple[torch.Tensor, ...]]:
        """Modulation of every layer, and of the head last, for images of conditions (N,): tensors of shape (N, 1, C).

        There are only two conditions, so both are computed once, each image's is picked, and drawing uses them at all scales.
        """
        parts = [*(layer.modulate(self.conditions()) for layer in self.layers), self.modulate_head()]
        return [picked(part, condition_ids) for part in parts]

    # ---- scores of codes

    def begin(
        self,
        condition_ids: torch.LongTensor,
        schedule: ScaleSchedule,
        context: torch.Tensor | None = None,
        context_mask: torch.Tensor | None = None,
    ) -> DrawingState:
        cache = self.make_cache(len(condition_ids), schedule, self.position_embedding)
        return DrawingState(condition_ids, cache, {"modulations": self.modulations(condition_ids)})

    def forward(
        self,
        hidden_states: torch.Tensor,
        condition_ids: torch.LongTensor,
        schedule: ScaleSchedule,
        context: torch.Tensor | None = None,
        context_mask: torch.Tensor | None = None,
        state: DrawingState | None = None,
    ) -> torch.Tensor:
        mask = block_causal_mask(self.config, hidden_states, schedule) if state is None else None
        cache, modulations = (None, None) if state is None else (state.cache, state.constants["modulations"])
        for index, layer in enumerate(self.layers):
            # Conditions are looked up for each layer anew: reentrant checkpointing walks back through each by itself.
            given = (condition_ids, self.conditions(), None) if modulations is None else (None, None, modulations[index])
            hidden_states = layer(hidden_states, *given, attention_mask=mask, cache=cache)
        if cache is not None:
            cache.advance(hidden_states.shape[1])
        scale, shift = picked(self.modulate_head(), condition_ids) if modulations is None else modulations[-1]
        normed = F.layer_norm(hidden_states, hidden_states.shape[-1:], eps=self.config.layer_norm_eps)
        return self.head(normed * (1 + scale) + shift).unflatten(-1, (self.config.num_symbols, self.config.num_classes))


VargptVARDecoder.register_for_auto_class()
VargptVARDecoderConfig.register_for_auto_class()

__all__ = ["VargptVARDecoder", "VargptVARDecoderConfig", "VargptVARLayer"]
