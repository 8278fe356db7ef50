"""What reads: any vision-language model of Transformers, or a text-only language model, behind one face.

Training and prefill go through the whole model, since several make their masks and positions of all inputs at once or feed features into
more than one layer. Scale passes and what follows them go through its decoder alone. Positions are always given: some models would take
them from padded columns, others from a state that an earlier call left behind.

Shapes: B rows, T tokens of a row, M drawn positions of the whole batch in reading order, D width of the language model.
"""

import inspect
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.masking_utils import create_masks_for_generate
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_MULTIMODAL_LM_MAPPING,
)

# The library's models with a head, by the class of their configuration.
LANGUAGE_MODELS = (MODEL_FOR_MULTIMODAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING)
# Models that count positions from another number than 0.
FIRST_POSITIONS = {"paligemma": 1}
# Models in which tokens of another type than this see what follows them. Everywhere else type 0 is causal, and so are tokens without a type.
CAUSAL_TYPES = {"paligemma": 1}
# Models whose own forward defeats what a drawing needs, with the reason.
REFUSED = {
    "mllama": "its images enter by cross-attention in every pass, which scale passes through the decoder alone would leave out",
    "gemma3n": "its layers read an embedding of every token id, and added ids are taken for audio",
    "gemma4": "its layers read an embedding of every token id",
    "kosmos-2": "its images enter by an embedding of its own",
    "kosmos-2.5": "its images enter by an embedding of its own",
    "llama4": "it returns no hidden states after the final norm",
    "phi4_multimodal": "its images enter by an embedding of its own",
}
# Models whose head multiplies its logits by a field of the text configuration, to this power.
LOGIT_FACTORS = {
    "cohere": ("logit_scale", 1),
    "cohere2": ("logit_scale", 1),
    "falcon_h1": ("lm_head_multiplier", 1),
    "granite": ("logits_scaling", -1),
    "granitemoe": ("logits_scaling", -1),
    "granitemoeshared": ("logits_scaling", -1),
    "granitemoehybrid": ("logits_scaling", -1),
}
# What the families call the modules that turn features of images which are read into embeddings of the language model.
PROJECTORS = ("multi_modal_projector", "connector", "visual.merger", "visual.deepstack_merger_list")
# What scale passes give a decoder.
DECODER_INPUTS = {"inputs_embeds", "attention_mask", "position_ids", "past_key_values"}
# Layers whose cache can hide a column; others, such as linear attention or convolutions, fold it into a state.
ATTENTION_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}


@lru_cache
def reading_inputs(vlm_class: type[PreTrainedModel]) -> frozenset[str]:
    """Names of what a model's forward takes beyond tokens, masks, positions and cache: pixels, grids, token types."""
    own = {"self", "input_ids", "inputs_embeds", "attention_mask", "position_ids", "past_key_values", "use_cache", "labels"}
    own |= {"output_attentions", "output_hidden_states", "return_dict", "cache_position", "logits_to_keep", "kwargs", "lm_kwargs"}
    return frozenset(inspect.signature(vlm_class.forward).parameters) - own


@lru_cache
def needed_beside_pixels(vlm_class: type[PreTrainedModel]) -> frozenset[str]:
    """Names of what a model needs with pixels to make features of them: sizes, grids, masks."""
    parameters = inspect.signature(vlm_class.get_image_features).parameters.values()
    needed = {one.name for one in parameters if one.kind is one.POSITIONAL_OR_KEYWORD and one.default is one.empty}
    return frozenset(needed | ({"image_grid_thw"} & reading_inputs(vlm_class))) - {"self", "pixel_values"}


def check_vlm_config(config: PreTrainedConfig) -> None:
    """Raises a ValueError with the reason where a model of this configuration cannot be the reading side."""
    kind, text_config = type(config), config.get_text_config(decoder=True)
    reason = REFUSED.get(config.model_type)
    if reason is None and config.is_encoder_decoder:
        reason = "it has an encoder, and drawing needs a causal decoder alone"
    if reason is None and not any(kind in mapping for mapping in LANGUAGE_MODELS):
        reason = "it is no language model"
    if reason is None and kind in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False):
        reason = "its tokens see what follows them, and drawing needs a causal language model"
    if reason is None and not hasattr(text_config, "vocab_size"):
        reason = "it has no language model of its own"
    if reason is None and getattr(text_config, "hidden_size_per_layer_input", None):
        reason = "its layers read an embedding of every token id"
    if reason is not None:
        _refuse(config.model_type, reason)


def _refuse(model_type: str, reason: str) -> None:
    raise ValueError(f"A {model_type!r} model cannot be the reading side: {reason}. Give another `vlm_config`.")


class VargptBackbone:
    """Reads by the whole of a model and continues by its decoder.

    Args:
        vlm: what [`build`] gives.
    """

    def __init__(self, vlm: PreTrainedModel):
        self.vlm = vlm
        self.model_type = vlm.config.model_type
        self.decoder = vlm.get_decoder().base_model

    @classmethod
    def build(cls, config: PreTrainedConfig) -> PreTrainedModel:
        """A fresh model that can be the reading side.

        Raises:
            ValueError: a model that cannot, with the reason; fields that Transformers cannot build it from.
        """
        check_vlm_config(config)
        try:
            backbone = cls(AutoModel.from_config(config))
        except (ImportError, MemoryError, NotImplementedError):
            raise
        except Exception as error:  # a model of Transformers raises nearly anything at fields that do not fit
            raise ValueError(
                f"Transformers cannot build a {config.model_type!r} model from `vlm_config` ({type(error).__name__}: {error}). "
                "Check the fields that it is about."
            ) from error
        if backbone.reads_images and backbone.vlm.get_decoder() is backbone.vlm:
            _refuse(config.model_type, "it has no language model of its own")
        for part, name in ((backbone.vlm, "it"), (backbone.decoder, "its language model")):
            if lacking := DECODER_INPUTS - set(inspect.signature(part.forward).parameters):
                _refuse(config.model_type, f"{name} takes no {', '.join(sorted(lacking))}")
        return backbone.vlm

    @property
    def reads_images(self) -> bool:
        """Whether the model takes pixels; a text-only language model does not."""
        return "pixel_values" in self.reading_inputs

    @property
    def decoder_name(self) -> str:
        """Name of the language model inside the model; empty where it is all of it."""
        return next(name for name, module in self.vlm.named_modules() if module is self.decoder)

    @property
    def projector_names(self) -> tuple[str, ...]:
        """Names of the modules that turn features of images which are read into embeddings of the language model."""
        modules, names = dict(self.vlm.named_modules()), []
        for name in PROJECTORS:
            if isinstance(found := modules.get(name), nn.ModuleList):
                names += [f"{name}.{index}" for index in range(len(found))]
            elif found is not None:
                names.append(name)
        return tuple(names)

    @property
    def tower_names(self) -> tuple[str, ...]:
        """Names of the parts outside the language model and the projectors, which make features of images; also of what holds a projector."""
        others = {*self.projector_names, self.decoder_name.split(".")[0]}
        return tuple(name for name, _ in self.vlm.named_children() if self.decoder_name and name not in others)

    @property
    def reading_inputs(self) -> frozenset[str]:
        """Names of the inputs that pass through unread."""
        return reading_inputs(type(self.vlm))

    @property
    def needed_beside_pixels(self) -> frozenset[str]:
        """Names of the reading inputs without which pixels have no features."""
        return needed_beside_pixels(type(self.vlm))

    def nothing_of(self, features: Callable, image: dict[str, torch.Tensor]) -> torch.Tensor:
        """A tensor of no numbers, from which gradients run into all that makes features of an image: `features` is the model's method, `image`
        what its processor makes of one."""
        found = features(**{name: value for name, value in image.items() if name in self.reading_inputs}, return_dict=True)
        return torch.cat([tensor.flatten()[:0] for tensor in _tensors_in(found) if tensor.is_floating_point()])

    def check_images(self, inputs: dict) -> None:
        """Raises a ValueError where images to read are given that the model cannot take, or without what it needs beside their pixels."""
        given = {name for name, value in inputs.items() if value is not None}
        if not self.reads_images and (images := {"pixel_values", "mm_encoder_outputs"} & given):
            raise ValueError(f"A {self.model_type!r} model reads no images: leave out {', '.join(sorted(images))}.")
        if "pixel_values" in given and (lacking := self.needed_beside_pixels - given):
            names = ", ".join(f"`{name}`" for name in sorted(lacking))
            raise ValueError(f"A {self.model_type!r} model needs {names} beside `pixel_values`: pass on all that its processor gives.")

    @property
    def can_wait(self) -> bool:
        """Whether a row can skip columns of the cache while its neighbors draw: not where layers fold every column into a state."""
        layers = getattr(self.decoder.config, "layer_types", None) or ["full_attention"]
        return set(layers) <= ATTENTION_LAYERS and not self.decoder._is_stateful

    @property
    def window(self) -> float:
        """Columns of the cache that every layer looks back over; a column in which a row waits counts like any other."""
        config = self.decoder.config
        layers = getattr(config, "layer_types", None) or ["sliding_attention"]  # of all layers, where there is a width at all
        widths = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}
        found = [getattr(config, width, None) for kind, width in widths.items() if kind in layers]
        return min(filter(None, found), default=math.inf)

    @property
    def causal_type(self) -> int:
        """Token type of what is written and drawn."""
        return CAUSAL_TYPES.get(self.model_type, 0)

    def positions(
        self, input_ids: torch.LongTensor | None, attention_mask: torch.Tensor, **inputs: torch.Tensor
    ) -> tuple[torch.LongTensor, torch.LongTensor]:
        """Positions of whole rows.

        Args:
            input_ids: (B, T); None where only embeddings are known, which is enough for models whose positions count tokens.
            attention_mask: 1 where a token counts, (B, T).
            inputs: reading inputs.

        Returns:
            Positions, (B, T), or (3, B, T) for models with positions in time, height and width; the next position of each row, (B,).
        """
        counted = (attention_mask.long().cumsum(-1) - 1).clamp(min=0) + FIRST_POSITIONS.get(self.model_type, 0)
        if self.counts_grids:
            counted = self._positions_by_grids(counted, input_ids, attention_mask, inputs)
        seen = attention_mask.bool()
        last = (counted.amax(0) if counted.ndim == 3 else counted).masked_fill(~seen, -1)
        return counted, F.pad(last, (1, 0), value=-1).amax(-1) + 1  # also of an empty row

    @property
    def counts_grids(self) -> bool:
        """Whether images take positions in height and width, which their tokens alone do not tell."""
        return hasattr(self.vlm, "get_rope_index")

    def _positions_by_grids(
        self, counted: torch.LongTensor, input_ids: torch.LongTensor | None, attention_mask: torch.Tensor, inputs: dict[str, torch.Tensor]
    ) -> torch.LongTensor:
        """Positions (3, B, T) of rows with images; `counted` (B, T), in which every token takes one, where there are none."""
        grids = {name: grid for name, grid in inputs.items() if name.endswith("_grid_thw") and grid is not None}
        images = None if input_ids is None else input_ids == self.vlm.config.image_token_id
        if grids and input_ids is not None:
            types = inputs.get("mm_token_type_ids")
            types = images.int() if types is None else types
            try:
                return self.vlm.get_rope_index(input_ids, mm_token_type_ids=types, attention_mask=attention_mask, **grids)[0]
            except (StopIteration, RuntimeError) as error:
                raise ValueError(
                    f"The text has {int(types.bool().sum())} placeholders of images to read, which {', '.join(sorted(grids))} "
                    f"({', '.join(str(grid.tolist()) for grid in grids.values())}) do not fill: let the processor write the placeholders."
                ) from error
        if grids or {"pixel_values", "mm_encoder_outputs"} & inputs.keys() or images is not None and images.any():
            raise ValueError(
                f"Positions of a {self.model_type!r} model follow from `input_ids` and the grids of their images: give both, with "
                "`image_grid_thw` wherever the text has images, or `position_ids`."
            )
        return counted

    def read(
        self,
        input_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        drawn: torch.BoolTensor | None = None,
        drawn_embeds: torch.Tensor | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPast:
        """One pass of the whole model.

        Args:
            input_ids, inputs_embeds: exactly one of tokens (B, T) and their embeddings (B, T, D).
            drawn: positions of drawn images, (B, T), over whose embeddings `drawn_embeds` (M, D) are written.
            kwargs: mask, positions, cache and reading inputs.
        """
        kwargs |= self._token_types(inputs_embeds if input_ids is None else input_ids, drawn, kwargs)
        if drawn_embeds is None:
            return self.vlm(input_ids=input_ids, inputs_embeds=inputs_embeds, **kwargs)
        if torch.compiler.is_compiling() and input_ids is not None:  # a hook would break the graph
            input_ids, inputs_embeds = None, self.vlm.get_input_embeddings()(input_ids)
        if input_ids is None:
            written = inputs_embeds.masked_scatter(drawn.unsqueeze(-1), drawn_embeds.to(inputs_embeds))
            return self.vlm(inputs_embeds=written, **kwargs)
        # Token ids must stay: models find images, make masks and positions by them, and compare embeddings only where there are none.
        with written_over(self.vlm.get_input_embeddings(), drawn, drawn_embeds):
            return self.vlm(input_ids=input_ids, **kwargs)

    def _token_types(self, tokens: torch.Tensor, drawn: torch.BoolTensor | None, inputs: dict) -> dict[str, torch.LongTensor]:
        """Token types (B, T) that must be given and are not. Those that are given must let drawn images be causal."""
        for name in {"token_type_ids", "mm_token_type_ids"} & inputs.keys() if drawn is not None else ():
            wanted = self.causal_type if name == "token_type_ids" else 0
            if (inputs[name][drawn] != wanted).any():
                raise ValueError(
                    f"Placeholders of images to draw have other `{name}` than {wanted}, by which a {self.model_type!r} model would see the "
                    "scales that follow, or take them for images that are read."
                )
        if self.model_type in CAUSAL_TYPES and inputs.get("token_type_ids") is None:
            return {"token_type_ids": torch.full(tokens.shape[:2], self.causal_type, device=tokens.device)}
        return {}

    def scale_logits(self, logits: torch.Tensor) -> torch.Tensor:
        """Next-token logits (..., vocabulary) as the library's own head would scale and cap what its linear layer gives."""
        text_config = self.vlm.config.get_text_config(decoder=True)
        if self.model_type in LOGIT_FACTORS:
            field, power = LOGIT_FACTORS[self.model_type]
            logits = logits * getattr(text_config, field) ** power
        cap = getattr(text_config, "final_logit_softcapping", None)
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def create_masks(self, **kwargs) -> dict[str, torch.Tensor] | torch.Tensor | None:
        """Masks for caches of a fixed size, as the library's own `generate` would make them."""
        head = next(mapping[type(self.vlm.config)] for mapping in LANGUAGE_MODELS if type(self.vlm.config) in mapping)
        return getattr(head, "create_masks_for_generate", create_masks_for_generate)(config=self.vlm.config, **kwargs)

    def draw(self, embeds: torch.Tensor, attention_mask: torch.Tensor, position_ids: torch.LongTensor, past_key_values: Cache) -> torch.Tensor:
        """Last hidden states (B, l, D) of embeddings (B, l, D) at positions (B, l), by the decoder alone.

        `attention_mask` (B, columns) covers all of the cache.
        """
        return self.decoder(
            inputs_embeds=embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=True,
        ).last_hidden_state

    def read_alone(self, embeds: torch.Tensor) -> torch.Tensor:
        """Last hidden states (B, l, D) of embeddings (B, l, D) by the decoder alone, with nothing before them, at positions from 0."""
        positions = torch.arange(embeds.shape[1], device=embeds.device).expand(len(embeds), -1)
        return self.decoder(inputs_embeds=embeds, position_ids=positions, use_cache=False).last_hidden_state


def _tensors_in(value: object) -> Iterator[torch.Tensor]:
    """The tensors of an output of the library, however they are nested."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (dict, list, tuple)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _tensors_in(part)


@contextmanager
def written_over(embedding: nn.Module, mask: torch.BoolTensor, values: torch.Tensor) -> Iterator[None]:
    """Inside, what this thread gets from `embedding` has `values` (M, D) at the positions of `mask` (B, T)."""
    caller = threading.get_ident()  # the module may serve other threads meanwhile

    def write(module: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor | None:
        if threading.get_ident() != caller or output.shape[:-1] != mask.shape:
            return None
        return output.masked_scatter(mask.unsqueeze(-1).to(output.device), values.to(output.device, output.dtype))

    handle = embedding.register_forward_hook(write)
    try:
        yield
    finally:
        handle.remove()


__all__ = ["VargptBackbone", "check_vlm_config", "reading_inputs"]
