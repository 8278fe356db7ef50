"""Visual decoder of VARGPT and the two projectors between it and the language model.

A block-causal transformer with AdaLN (VAR, arXiv 2404.02905, section 3.3; VARGPT, arXiv 2501.12327, section 3.2).

Shapes: N pictures, L codes of one picture over all scales, l codes of one scale, S scales, V codebook size, Cz latent
channels, C decoder width, D width of the language model.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_vargpt import VargptConfig, VargptVisualDecoderConfig

GENERATE_CONDITION = 0
NULL_CONDITION = 1


class VargptDecoderCache:
    """Keys and values of the visual decoder for one batch of pictures, in memory set aside once for all L places."""

    def __init__(self, config: VargptConfig, num_pictures: int, dtype: torch.dtype, device: torch.device):
        decoder = config.visual_decoder_config
        shape = (num_pictures, decoder.num_attention_heads, config.vq_config.num_image_tokens, decoder.head_dim)
        self.keys = [torch.empty(shape, dtype=dtype, device=device) for _ in range(decoder.num_hidden_layers)]
        self.values = [torch.empty(shape, dtype=dtype, device=device) for _ in range(decoder.num_hidden_layers)]
        self.length = 0

    def update(self, key: torch.Tensor, value: torch.Tensor, layer_index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Writes one scale's keys and values (N, heads, l, head_dim) and returns all up to it, as views."""
        end = self.length + key.shape[2]
        self.keys[layer_index][:, :, self.length : end] = key
        self.values[layer_index][:, :, self.length : end] = value
        return self.keys[layer_index][:, :, :end], self.values[layer_index][:, :, :end]

    def advance(self, num_places: int) -> None:
        """Marks the places of one scale as seen, once all layers have written them."""
        self.length += num_places


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
    """Attention written out: outputs (N, l, heads, head_dim) and float32-normalised weights (N, heads, l, places)."""
    scores = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = F.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = F.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


def picked(modulation: tuple[torch.Tensor, ...], condition_ids: torch.LongTensor) -> tuple[torch.Tensor, ...]:
    """Of tensors (2, 1, C) for both conditions those of pictures with conditions (N,), each (N, 1, C)."""
    return tuple(part[condition_ids] for part in modulation)


class VargptDecoderAttention(nn.Module):
    """Attention over L2-normalised queries and keys, with a learned temperature per head (VAR, appendix A)."""

    is_causal = False
    num_key_value_groups = 1
    scaling = 1.0

    def __init__(self, config: VargptConfig, layer_index: int):
        super().__init__()
        decoder = config.visual_decoder_config
        width = decoder.hidden_size
        self.config = config  # the whole model's, which holds the choice of attention implementation
        self.layer_index = layer_index
        self.head_dim = decoder.head_dim
        self.max_log_scale = math.log(decoder.max_attention_scale)
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)
        self.log_scale = nn.Parameter(torch.full((decoder.num_attention_heads,), math.log(4.0)))

    def forward(self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None, cache: VargptDecoderCache | None) -> torch.Tensor:
        heads = (*hidden_states.shape[:-1], -1, self.head_dim)
        query = F.normalize(self.q_proj(hidden_states).view(heads).transpose(1, 2), dim=-1)
        key = F.normalize(self.k_proj(hidden_states).view(heads).transpose(1, 2), dim=-1)
        value = self.v_proj(hidden_states).view(heads).transpose(1, 2)
        query = query * self.log_scale.clamp(max=self.max_log_scale).exp()[:, None, None].to(query.dtype)
        if cache is not None:
            key, value = cache.update(key, value, self.layer_index)
        attend: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        attended, _ = attend(self, query, key, value, attention_mask, scaling=self.scaling, dropout=0.0)
        return self.out_proj(attended.flatten(2))


class VargptDecoderMLP(nn.Module):
    """Linear, tanh GELU, Linear."""

    def __init__(self, config: VargptVisualDecoderConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.gelu(self.fc1(hidden_states), approximate="tanh"))


class VargptDecoderLayer(GradientCheckpointingLayer):
    """Attention and MLP, each modulated by the condition (AdaLN) and dropped whole at times (stochastic depth)."""

    def __init__(self, config: VargptConfig, layer_index: int):
        super().__init__()
        decoder = config.visual_decoder_config
        self.normalized_shape = (decoder.hidden_size,)
        self.eps = decoder.layer_norm_eps
        self.drop_path_rate = decoder.drop_path_rate * layer_index / max(decoder.num_hidden_layers - 1, 1)
        self.self_attn = VargptDecoderAttention(config, layer_index)
        self.mlp = VargptDecoderMLP(decoder)
        self.modulation = nn.Linear(decoder.hidden_size, 6 * decoder.hidden_size)

    def modulate(self, condition: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """γ1, γ2, scale1, scale2, shift1, shift2, each (2, 1, C), from the embeddings of both conditions (2, C)."""
        return self.modulation(F.silu(condition)).unsqueeze(1).chunk(6, dim=-1)

    def _dropped(self, gamma: torch.Tensor) -> torch.Tensor:
        """γ (N, 1, C) of a branch, in training 0 for the pictures whose branch is dropped, and larger for the others."""
        if not self.training or self.drop_path_rate == 0:
            return gamma
        keep = 1 - self.drop_path_rate
        kept = torch.empty(gamma.shape[0], 1, 1, dtype=gamma.dtype, device=gamma.device).bernoulli_(keep)
        return gamma * (kept / keep)

    def _norm(self, hidden_states: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(hidden_states, self.normalized_shape, eps=self.eps) * (1 + scale) + shift

    def forward(
        self,
        hidden_states: torch.Tensor,
        condition_ids: torch.LongTensor | None = None,
        conditions: torch.Tensor | None = None,
        modulation: tuple[torch.Tensor, ...] | None = None,
        attention_mask: torch.Tensor | None = None,
        cache: VargptDecoderCache | None = None,
    ) -> torch.Tensor:
        """Hidden states (N, l, C), from those before.

        Modulated by `modulation`, one entry of [`VargptVisualDecoder.modulations`], or else by what [`modulate`] makes of `conditions`
        (2, C) for pictures of `condition_ids` (N,): here, since weights that are sharded over processes are whole inside this call alone.
        """
        modulation = picked(self.modulate(conditions), condition_ids) if modulation is None else modulation
        gamma1, gamma2, scale1, scale2, shift1, shift2 = modulation
        attended = self.self_attn(self._norm(hidden_states, scale1, shift1), attention_mask, cache)
        hidden_states = hidden_states + self._dropped(gamma1) * attended
        return hidden_states + self._dropped(gamma2) * self.mlp(self._norm(hidden_states, scale2, shift2))


class VargptVisualDecoder(nn.Module):
    """Scale tokens in, logits over the codes of the same places out."""

    def __init__(self, config: VargptConfig):
        super().__init__()
        decoder, vq = config.visual_decoder_config, config.vq_config
        self.config = config
        self.layer_norm_eps = decoder.layer_norm_eps
        self.sizes = [side * side for side in vq.scales]
        self.token_embedding = nn.Linear(vq.latent_channels, decoder.hidden_size)
        self.condition_embedding = nn.Embedding(2, decoder.hidden_size)
        self.start_embedding = nn.Parameter(torch.empty(self.sizes[0], decoder.hidden_size))
        self.position_embedding = nn.Parameter(torch.empty(vq.num_image_tokens, decoder.hidden_size))
        self.scale_embedding = nn.Embedding(len(vq.scales), decoder.hidden_size)
        self.layers = nn.ModuleList(VargptDecoderLayer(config, index) for index in range(decoder.num_hidden_layers))
        self.norm_modulation = nn.Linear(decoder.hidden_size, 2 * decoder.hidden_size)
        self.head = nn.Linear(decoder.hidden_size, vq.codebook_size)

    def scale_indices(self, device: torch.device) -> torch.LongTensor:
        """Scale of each of the L places: 0 1 1 1 1 2 2 … for sides 1, 2, 3, …"""
        sizes = torch.tensor(self.sizes, device=device)
        return torch.repeat_interleave(torch.arange(len(self.sizes), device=device), sizes, output_size=sum(self.sizes))

    def place_weights(self, power: float, device: torch.device) -> torch.Tensor:
        """Weights (L,) of the places, (area of the last scale / area of the place's scale) ** power over their mean; float32."""
        areas = torch.tensor(self.sizes, dtype=torch.float32, device=device)[self.scale_indices(device)]
        weights = (self.sizes[-1] / areas) ** power
        return weights / weights.mean()

    def place_embeddings(self) -> torch.Tensor:
        """Scale plus position embedding of every place, (L, C)."""
        return self.scale_embedding(self.scale_indices(self.position_embedding.device)) + self.position_embedding

    def embed_start(self, condition: torch.Tensor) -> torch.Tensor:
        """Tokens (N, p₀², C) of the first scale, less place embeddings, from condition embeddings (N, C)."""
        return condition[:, None] + self.start_embedding

    def embed(self, vq_inputs: torch.Tensor, condition_ids: torch.LongTensor) -> torch.Tensor:
        """Tokens (N, L, C) of whole pictures for teacher forcing.

        Args:
            vq_inputs: f̂ of the coarser scales on the grids of scales 1…S−1, (N, L − p₀², Cz).
            condition_ids: GENERATE_CONDITION or NULL_CONDITION of each picture, (N,).
        """
        start = self.embed_start(self.condition_embedding(condition_ids))
        following = self.token_embedding(vq_inputs.to(start.dtype))  # the layer's own weight may be quantised
        return torch.cat([start, following], dim=1) + self.place_embeddings()

    def conditions(self) -> torch.Tensor:
        """Embeddings of both conditions, (2, C)."""
        return self.condition_embedding(torch.arange(NULL_CONDITION + 1, device=self.position_embedding.device))

    def modulate_head(self) -> tuple[torch.Tensor, ...]:
        """Scale and shift before the head for both conditions, each (2, 1, C)."""
        return self.norm_modulation(F.silu(self.conditions())).unsqueeze(1).chunk(2, dim=-1)

    def modulations(self, condition_ids: torch.LongTensor) -> list[tuple[torch.Tensor, ...]]:
        """Modulation of every layer, and of the head last, for pictures of conditions (N,): tensors of shape (N, 1, C).

        There are only two conditions, so both are computed once, each picture's is picked, and drawing uses them at all scales.
        """
        parts = [*(layer.modulate(self.conditions()) for layer in self.layers), self.modulate_head()]
        return [picked(part, condition_ids) for part in parts]

    def block_causal_mask(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        """Mask in which a place sees its own and all coarser scales, in the form that the attention in use takes.

        For sides 1, 2 (■ seen, · not)::

            scale 0  ■ · · · ·
            scale 1  ■ ■ ■ ■ ■
                     ■ ■ ■ ■ ■
                     ■ ■ ■ ■ ■
                     ■ ■ ■ ■ ■
        """
        scale_indices = self.scale_indices(hidden_states.device).expand(hidden_states.shape[0], -1)
        return create_causal_mask(self.config, hidden_states, None, None, block_sequence_ids=scale_indices)

    def forward(
        self,
        hidden_states: torch.Tensor,
        condition_ids: torch.LongTensor,
        cache: VargptDecoderCache | None = None,
        modulations: list[tuple[torch.Tensor, ...]] | None = None,
    ) -> torch.Tensor:
        """Logits over the codes.

        Args:
            hidden_states: decoder inputs, (N, L, C); with a cache those of the next scale only, (N, l, C).
            condition_ids: condition of each picture, (N,).
            cache: keys and values of the coarser scales; makes a mask needless, since a scale sees all that came.
            modulations: result of [`modulations`] for these conditions, to compute them once for many calls; made here by default.

        Returns:
            Logits (N, L or l, V).
        """
        mask = self.block_causal_mask(hidden_states) if cache is None else None
        for index, layer in enumerate(self.layers):
            # Conditions are looked up for each layer anew: reentrant checkpointing walks back through each by itself.
            given = (condition_ids, self.conditions(), None) if modulations is None else (None, None, modulations[index])
            hidden_states = layer(hidden_states, *given, attention_mask=mask, cache=cache)
        if cache is not None:
            cache.advance(hidden_states.shape[1])
        scale, shift = picked(self.modulate_head(), condition_ids) if modulations is None else modulations[-1]
        normed = F.layer_norm(hidden_states, hidden_states.shape[-1:], eps=self.layer_norm_eps)
        return self.head(normed * (1 + scale) + shift)


class VargptGenerationProjector(nn.Module):
    """Linear to its own width, exact GELU, Linear to the other side's width."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__()
        self.fc1 = nn.Linear(in_features, in_features)
        self.fc2 = nn.Linear(in_features, out_features)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.gelu(self.fc1(hidden_states)))


__all__ = [
    "GENERATE_CONDITION",
    "NULL_CONDITION",
    "VargptDecoderCache",
    "VargptGenerationProjector",
    "VargptVisualDecoder",
]
