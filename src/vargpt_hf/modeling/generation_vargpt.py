"""Generation of VARGPT: next-token decoding that switches to next-scale decoding at every image-start token, and back.

Shapes: B rows, R rows in the language model's batch (B, or 2B where unconditional rows ride along), P prompt tokens, N pictures
drawn together, L codes of a picture, l codes of one scale, D width of the language model.
"""

from dataclasses import dataclass

import torch
from transformers import GenerationConfig
from transformers.generation import GenerateDecoderOnlyOutput, GenerationMixin
from transformers.generation.candidate_generator import CandidateGenerator
from transformers.generation.configuration_utils import GenerationMode
from transformers.generation.logits_process import LogitsProcessorList
from transformers.generation.stopping_criteria import StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .decoding_vargpt import VargptDecodingLoop, VargptImageStreamer
from .image_sampling_vargpt import VargptScoresCheck
from .settings_vargpt import (
    IMAGE_GENERATION_DEFAULTS,
    check_can_draw,
    check_room,
    check_run_arguments,
    check_settings,
    max_positions,
    picture_tokens,
)

_RUN_ARGUMENTS = ("generator", "image_streamer", "image_noise")


class VargptGenerationConfig(GenerationConfig):
    """Settings of `generate`: those of Transformers for text, and these for pictures. None stands for the default.

    Args:
        generation_mode (`str`): "auto" (the model decides; default), "text" (never draws), "image" (draws one picture at
            once and stops).
        max_images (`int`): pictures a row may draw (4).
        image_guidance_type (`str`): "none" (default); "prompt", classifier-free guidance against an unconditional prompt that
            rides in the same batch; "noise", the released system's, against decoder inputs made of noise.
        image_guidance_scale (`float`): strength g of guidance (1.5).
        image_guidance_ramp (`bool`): let the strength rise from 0 at the first scale to g at the last (True).
        image_temperature (`float`), image_top_k (`int`), image_top_p (`float`): sampling of codes where `do_sample=True`
            (1.0, 900, 0.96); 0 switches a filter off.
        image_unconditional_ids (`list[int]`): unconditional (or negative) prompt of "prompt" guidance; by default the
            beginning-of-sequence token alone.
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        for name in IMAGE_GENERATION_DEFAULTS:
            setattr(self, name, kwargs.get(name))

    def to_diff_dict(self) -> dict:
        """What is saved: settings that are not left to their defaults."""
        return {name: value for name, value in super().to_diff_dict().items() if name not in IMAGE_GENERATION_DEFAULTS or value is not None}


@dataclass
class VargptGenerateOutput(GenerateDecoderOnlyOutput):
    """What `generate(return_dict_in_generate=True)` returns.

    Args:
        sequences (`torch.LongTensor` of shape `(B, P + generated)`): prompts as given, then what was generated, padded on the
            right. A picture stands as image-start, L places, image-end, so that it can be fed back with its codes.
        image_codes (`torch.LongTensor` of shape `(pictures, L)`): codes of the drawn pictures, row by row in drawing order.
        image_rows (`torch.LongTensor` of shape `(pictures,)`): row of each picture.
        image_positions (`torch.LongTensor` of shape `(pictures,)`): index of its image-start token in `sequences`.
        images (`torch.Tensor` of shape `(pictures, 3, image_size, image_size)`): the pictures in [-1, 1].
        past_key_values: the cache, where its columns are those of `sequences` (one row, or no picture; no guidance by prompt).
        scores, logits, hidden_states, attentions: of the text steps, as in Transformers; scale passes leave none.
    """

    image_codes: torch.LongTensor | None = None
    image_rows: torch.LongTensor | None = None
    image_positions: torch.LongTensor | None = None
    images: torch.Tensor | None = None


class VargptGenerationMixin(GenerationMixin):
    """`generate` for a model that draws: extends Transformers' preparation and replaces its sampling loop."""

    generation_config_class = VargptGenerationConfig

    def adjust_generation_fn(self, *args, **kwargs) -> None:
        """Called by `from_pretrained`: the saved settings, of our class."""
        super().adjust_generation_fn(*args, **kwargs)
        self.generation_config = VargptGenerationConfig.from_dict(self.generation_config.to_dict())

    @torch.no_grad()
    def generate(
        self,
        inputs: torch.Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        logits_processor: LogitsProcessorList | None = None,
        *args,
        generation_mode: str | None = None,
        max_images: int | None = None,
        image_guidance_type: str | None = None,
        image_guidance_scale: float | None = None,
        image_guidance_ramp: bool | None = None,
        image_temperature: float | None = None,
        image_top_k: int | None = None,
        image_top_p: float | None = None,
        image_unconditional_ids: list[int] | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        image_streamer: VargptImageStreamer | None = None,
        image_noise: list[torch.Tensor] | None = None,
        **kwargs,
    ) -> VargptGenerateOutput | torch.LongTensor:
        """Generates text and pictures; takes all that Transformers' `generate` takes, and for pictures what is listed here.

        Args:
            inputs, generation_config, logits_processor, args, kwargs: as in Transformers: `input_ids`, `attention_mask`, `pixel_values`,
                `max_new_tokens`, `do_sample`, ... None leaves a setting to `generation_config`, and that to the model's own.
            generation_mode: "auto" (the model decides; default), "text" (never draws), "image" (draws one picture at once and stops;
                needs no `max_new_tokens`).
            max_images: pictures that a row may draw, from 0 (4).
            image_guidance_type: "none" (default), "prompt" (classifier-free guidance against an unconditional prompt), "noise" (the
                released system's way).
            image_guidance_scale: strength of guidance, in [0, 100] (1.5).
            image_guidance_ramp: let the strength rise from 0 at the first scale to `image_guidance_scale` at the last (True).
            image_temperature: of the codes, where `do_sample=True`; at least 1e-5 (1.0).
            image_top_k: sample codes among this many likeliest; 0: all (900).
            image_top_p: sample codes within this probability mass, in [0, 1]; 0: all (0.96).
            image_unconditional_ids: token ids of the unconditional (or negative) prompt of "prompt" guidance; the
                beginning-of-sequence token by default.
            generator: source of all randomness of this call, on the prompt's device; a list has one for each row, and then a row's
                result does not depend on its neighbours even where it is sampled.
            image_streamer: receives the partial pictures after every scale.
            image_noise: noise of "noise" guidance in place of fresh noise, one tensor (pictures drawn together, places of the scale,
                width of the language model) for each scale.

        Rows end at the last position that the language model knows, and draw only where a picture's places have room before it.

        Returns:
            Token ids (B, P + generated); with `return_dict_in_generate=True` a [`VargptGenerateOutput`], which has the pictures.

        Raises:
            TypeError: a setting of the wrong type.
            ValueError: settings out of range, token ids outside of the vocabulary, ways of decoding that pictures cannot be drawn in, a
                prompt beyond the model's positions, and scores or code logits that are NaN or infinite.
        """
        if kwargs.get("cache_implementation") == "paged":
            raise ValueError('`cache_implementation="paged"` batches texts without pictures continuously; take "dynamic" or "static".')
        own = {name: value for name, value in locals().items() if name in (*IMAGE_GENERATION_DEFAULTS, *_RUN_ARGUMENTS)}
        given = {name: value for name, value in own.items() if value is not None}
        checked = LogitsProcessorList([*(logits_processor or ()), VargptScoresCheck()])
        return super().generate(inputs, generation_config, checked, *args, **given, **kwargs)

    def _extract_generation_mode_kwargs(self, custom_generate, kwargs, *args, **more) -> dict:
        """Takes what belongs to one call only out of `kwargs`, so that it reaches `_sample`."""
        own = {name: kwargs.pop(name) for name in _RUN_ARGUMENTS if name in kwargs}
        extracted = super()._extract_generation_mode_kwargs(custom_generate, kwargs, *args, **more)
        return {**extracted, **{name: value for name, value in own.items() if value is not None}}

    def _prepare_generation_config(self, generation_config: GenerationConfig | None, **kwargs) -> tuple[GenerationConfig, dict]:
        """Settings of this call, the pictures' among them, in a copy: neither the caller's nor the model's are written to."""
        given = {}
        for source in (vars(self.generation_config), vars(generation_config) if generation_config is not None else {}, kwargs):
            given.update({name: value for name, value in source.items() if value is not None})
        check_settings(given, self.config.text_config.vocab_size)
        for name in IMAGE_GENERATION_DEFAULTS:
            kwargs.pop(name, None)
        generation_config, model_kwargs = super()._prepare_generation_config(generation_config, **kwargs)
        for name, default in IMAGE_GENERATION_DEFAULTS.items():
            setattr(generation_config, name, given.get(name, default))
        if generation_config.generation_mode == "image" and not {"max_new_tokens", "max_length"} & given.keys():
            generation_config.max_new_tokens = 2  # image-start and image-end
        never = [self.config.image_token_id, self.config.image_place_token_id, self.config.image_end_token_id]
        if generation_config.generation_mode == "text":
            never.append(self.config.image_start_token_id)
        generation_config.suppress_tokens = sorted({*(generation_config.suppress_tokens or []), *never})
        return generation_config, model_kwargs

    def _validate_generation_mode(self, generation_mode, generation_config, generation_mode_kwargs) -> None:
        if generation_config.generation_mode != "text":
            check_can_draw(generation_mode, generation_config, generation_mode_kwargs)
        given = [name for name in _RUN_ARGUMENTS if generation_mode_kwargs.get(name) is not None]
        if given and generation_mode not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE):
            raise ValueError(f"{generation_mode.value} does not take `{given[0]}`: leave it out, or decode greedily or by sampling.")
        if generation_config.assistant_early_exit is not None:
            raise ValueError("`assistant_early_exit` needs a language model by itself; give a smaller `assistant_model` instead.")
        super()._validate_generation_mode(generation_mode, generation_config, generation_mode_kwargs)

    def _prepare_generated_length(self, generation_config: GenerationConfig, *args, input_ids_length: int, **kwargs) -> GenerationConfig:
        """Notes how many columns the prompt takes, which `_prepare_cache_for_generation` is not told."""
        prepared = super()._prepare_generated_length(generation_config, *args, input_ids_length=input_ids_length, **kwargs)
        prepared._prompt_columns = input_ids_length
        return prepared

    def _prepare_cache_for_generation(self, generation_config, model_kwargs, generation_mode, batch_size, max_cache_length) -> None:
        """Makes room in fixed-size caches for the pictures, and for the columns in which rows wait for one another."""
        num_tokens = _num_tokens(model_kwargs)
        if generation_config.generation_mode != "image":  # whose prompt `_sample` checks, room for the picture included
            check_room(self.config, num_tokens)
            # Text ends at the last position that the model knows; the last token is fed to no model.
            excess = generation_config.max_length - generation_config._prompt_columns - (max_positions(self.config) - num_tokens + 1)
            if excess > 0:
                generation_config.max_length -= excess
                max_cache_length -= excess
        if generation_config.prefill_chunk_size is not None and _has_pictures(model_kwargs):
            raise ValueError("`prefill_chunk_size` cannot cut a prompt with pictures into chunks: leave it out.")
        if generation_config.generation_mode != "text":
            fitting = max_positions(self.config) // self.config.vq_config.num_image_tokens
            pictures = 1 if generation_config.generation_mode == "image" else int(min(generation_config.max_images, fitting))
            new_tokens = generation_config.max_length - generation_config._prompt_columns
            rows = batch_size * generation_config.num_return_sequences
            max_cache_length += pictures * (self.config.vq_config.num_image_tokens + 1)
            max_cache_length += new_tokens * min(pictures, rows - 1) + len(generation_config.image_unconditional_ids or [0])
        return super()._prepare_cache_for_generation(generation_config, model_kwargs, generation_mode, batch_size, max_cache_length)

    def _expand_inputs_for_generation(
        self, expand_size: int = 1, is_encoder_decoder: bool = False, input_ids: torch.LongTensor | None = None, **model_kwargs
    ) -> tuple[torch.LongTensor, dict]:
        """Repeats the rows, and the codes of the pictures that stand in them."""
        codes = self.model.get_image_codes(model_kwargs.pop("output_pixel_values", None), model_kwargs.pop("image_codes", None))
        if codes is not None and expand_size > 1:
            embeds = model_kwargs.get("inputs_embeds")
            places = self.model.get_placeholder_mask(input_ids if embeds is None else None, embeds, self.config.image_place_token_id)
            places = places.sum(1) // self.config.vq_config.num_image_tokens
            codes = torch.cat([part.repeat(expand_size, 1) for part in codes.split(places.tolist())])
        input_ids, model_kwargs = super()._expand_inputs_for_generation(expand_size, is_encoder_decoder, input_ids, **model_kwargs)
        return input_ids, model_kwargs if codes is None else {**model_kwargs, "image_codes": codes}

    def prepare_inputs_for_generation(
        self, *args, inputs_embeds: torch.Tensor | None = None, is_first_iteration: bool | None = False, **kwargs
    ) -> dict:
        """Pictures in the prompt enter once, with the prompt; with a cache, later calls must not see them again.

        `inputs_embeds` is named because Transformers reads off the signature whether prompts may come as embeddings.
        """
        cache = kwargs.get("past_key_values")
        if cache is not None and cache.get_seq_length() == 0:
            is_first_iteration = True  # an assistant's prompt too, of which Transformers says that it is not
        inputs = super().prepare_inputs_for_generation(*args, inputs_embeds=inputs_embeds, is_first_iteration=is_first_iteration, **kwargs)
        if not is_first_iteration and kwargs.get("use_cache", True):
            inputs.pop("image_codes", None)
        return inputs

    def _get_candidate_generator(self, *args, model_kwargs: dict, assistant_model=None, **kwargs) -> CandidateGenerator:
        """Gives an assistant of the prompt's pictures what it can take. Its drafts are checked, so that only its speed is at stake."""
        given = dict(model_kwargs)
        features = (given.get("mm_encoder_outputs") or {}).get("image")
        if not isinstance(assistant_model, VargptGenerationMixin):
            given.pop("image_codes", None)
        elif features is not None:
            width = assistant_model.config.text_config.hidden_size
            if width != self.config.text_config.hidden_size:  # blank pictures in their places
                blank = [part.new_zeros(len(part), width) for part in features.pooler_output]
                given["mm_encoder_outputs"] = {"image": BaseModelOutputWithPooling(pooler_output=blank)}
        return super()._get_candidate_generator(*args, model_kwargs=given, assistant_model=assistant_model, **kwargs)

    def _sample(
        self,
        input_ids: torch.LongTensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        synced_gpus: bool = False,
        streamer: BaseStreamer | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        image_streamer: VargptImageStreamer | None = None,
        image_noise: list[torch.Tensor] | None = None,
        **model_kwargs,
    ) -> VargptGenerateOutput | torch.LongTensor:
        """Greedy and sampled decoding of text and pictures.

        Beyond Transformers' arguments:

        Args:
            generator, image_streamer, image_noise: see [`generate`].
        """
        check_run_arguments(self.config, generator, image_streamer, image_noise, input_ids.device)
        if generation_config.generation_mode == "image":
            starts = (input_ids[:, -1:] == self.config.image_start_token_id).all() and input_ids.shape[1] > 0
            check_room(self.config, _num_tokens(model_kwargs), picture_tokens(self.config, bool(starts)))
        if generation_config.generation_mode == "text" and generator is None:
            output = super()._sample(
                input_ids,
                logits_processor,
                stopping_criteria,
                generation_config,
                synced_gpus=synced_gpus,
                streamer=streamer,
                **model_kwargs,
            )
            if image_streamer is not None:
                image_streamer.end()
            if not generation_config.return_dict_in_generate:
                return output
            return VargptGenerateOutput(**output, **self._no_pictures(input_ids.device))
        loop = VargptDecodingLoop(
            self,
            input_ids,
            logits_processor,
            stopping_criteria,
            generation_config,
            model_kwargs,
            streamer=streamer,
            generator=generator,
            image_streamer=image_streamer,
            image_noise=image_noise,
        )
        with self._optimize_model_for_decode():
            loop.run()
        result = loop.result()
        if not generation_config.return_dict_in_generate:
            return result["sequences"]
        images = self._decode_images(result["image_codes"])
        return VargptGenerateOutput(**result, images=images)

    def _decode_images(self, codes: torch.LongTensor) -> torch.Tensor:
        """Pixels (N, 3, image_size, image_size) of codes (N, L), also of none."""
        vq_config = self.config.vq_config
        if codes.shape[0] == 0:
            return torch.empty(0, vq_config.in_channels, vq_config.image_size, vq_config.image_size, device=codes.device)
        return self.model.vq_model.decode(codes)

    def _no_pictures(self, device: torch.device) -> dict[str, torch.Tensor]:
        """Picture fields of an output without pictures, of their usual shapes."""
        codes = torch.empty(0, self.config.vq_config.num_image_tokens, dtype=torch.long, device=device)
        none = torch.empty(0, dtype=torch.long, device=device)
        return {"image_codes": codes, "image_rows": none, "image_positions": none, "images": self._decode_images(codes)}


def _has_pictures(model_kwargs: dict) -> bool:
    """Whether the prompts hold pictures, to understand or drawn before."""
    return bool(model_kwargs.get("mm_encoder_outputs")) or model_kwargs.get("image_codes") is not None


def _num_tokens(model_kwargs: dict) -> int:
    """Tokens of the longest prompt, those of a filled cache included."""
    positions = model_kwargs["position_ids"]
    return int(positions[..., -1].max()) + 1 if positions.numel() else 0


__all__ = ["VargptGenerateOutput", "VargptGenerationConfig", "VargptGenerationMixin"]
