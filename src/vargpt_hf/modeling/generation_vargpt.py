"""Generation of VARGPT: next-token decoding that switches to next-scale decoding at every image-start token, and back.

Shapes: B rows, R rows in the language model's batch (B, or 2B where unconditional rows ride along), P prompt tokens, N images
drawn together, L codes of an image, l codes of one scale, D width of the language model.
"""

import torch
from transformers import GenerationConfig
from transformers.generation import GenerationMixin
from transformers.generation.candidate_generator import CandidateGenerator
from transformers.generation.configuration_utils import GenerationMode
from transformers.generation.logits_process import LogitsProcessorList
from transformers.generation.stopping_criteria import StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .decoding_vargpt import VargptDecodingLoop, collect
from .drawing_plan_vargpt import DrawingPlan, VargptImageStreamer, checked_generator, guidance_of, kept_codes, schedule_ids_of
from .image_sampling_vargpt import GUIDANCE_TYPES, VargptScoresCheck, filters
from .llm_cache_vargpt import LLMRows
from .outputs_vargpt import VargptGenerateOutput
from .settings_vargpt import (
    DRAWING_MODES,
    IMAGE_GENERATION_DEFAULTS,
    PLAN_TOKENS,
    VargptGenerationConfig,
    check_can_draw,
    check_room,
    check_run_arguments,
    check_settings,
    guided,
    image_tokens,
    max_positions,
    plain_ids,
)

RUN_ARGUMENTS = (
    "generator",
    "output_image_streamer",
    "output_image_noise",
    "output_image_size",
    "output_image_aspect_ratio",
    "output_image_codes_to_keep",
    "output_image_mask",
)
_OUTPUT_IMAGES = tuple(
    f"output_{name}" for name in ("pixel_values", "image_codes", "image_schedule_ids", "image_num_scales", "image_condition_ids")
)


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
        max_output_images: int | None = None,
        output_image_guidance_type: str | None = None,
        output_image_guidance_scale: float | None = None,
        output_image_guidance_ramp: bool | None = None,
        output_image_temperature: float | None = None,
        output_image_top_k: int | None = None,
        output_image_top_p: float | None = None,
        output_image_unconditional_ids: list[int] | None = None,
        output_image_size: tuple[int, int] | list[tuple[int, int]] | None = None,
        output_image_aspect_ratio: float | list[float] | None = None,
        output_image_codes_to_keep: torch.LongTensor | None = None,
        output_image_mask: torch.Tensor | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_image_streamer: VargptImageStreamer | None = None,
        output_image_noise: list[torch.Tensor] | None = None,
        **kwargs,
    ) -> VargptGenerateOutput | torch.LongTensor:
        """Generates text and images; takes all that Transformers' `generate` takes, and for images what is listed here.

        Args:
            inputs, generation_config, logits_processor, args, kwargs: as in Transformers: `input_ids`, `attention_mask`, `pixel_values`,
                `max_new_tokens`, `do_sample`, ... None leaves a setting to `generation_config`, and that to the model's own.
            generation_mode: "auto" (the model decides; default), "text" (never draws), "image" (draws one image at once and stops;
                needs no `max_new_tokens`), "text_image" (thinks, then draws: writes a plan, and where it would end, or has two of
                `max_new_tokens` left, draws one image and stops; 256 tokens of plan at the most where nothing is said).
            max_output_images: images that a row may draw, from 0 (4).
            output_image_guidance_type: "none" (default), "prompt" (classifier-free guidance against an unconditional prompt; default where
                this call is given a scale or unconditional ids), "noise" (the way VARGPT v1 was released with), "scale" (VARGPT v1.1).
            output_image_guidance_scale: strength of guidance, in [0, 100] (1.5).
            output_image_guidance_ramp: let the strength rise from 0 at the first scale to `output_image_guidance_scale` at the last (True).
            output_image_temperature: of the codes, where `do_sample=True`; at least 1e-5 (1.0).
            output_image_top_k: sample codes among this many likeliest; 0: all (900).
            output_image_top_p: sample codes within this probability mass, in [0, 1]; 0: all (0.96).
            output_image_unconditional_ids: token ids of the unconditional (or negative) prompt of "prompt" guidance; the
                beginning-of-sequence token by default.
            output_image_size: (height, width) in pixels of drawn images, or one for each row: the schedule nearest to it, first in aspect
                ratio, draws. The configuration's first schedule by default.
            output_image_aspect_ratio: in its place height / width, or one for each row: the schedule of the nearest aspect ratio draws.
            output_image_codes_to_keep: codes (B, L) that each row's images start from; positions outside of the mask keep them
                (in-painting by scales).
            output_image_mask: what is drawn anew, (B, height, width) of pixels or (B, L) of positions; see [`redrawn_positions`]. Pixels
                are as many as the images', unless rows of different sizes share the tensor: then each row's mask is fitted to its image.
            generator: source of all randomness of this call, on the prompt's device; a list has one for each row, and then a row's
                result does not depend on its neighbors even where it is sampled.
            output_image_streamer: receives the partial images after every scale.
            output_image_noise: noise of "noise" guidance in place of fresh noise, one tensor (images drawn together, positions of the
                scale, width of the language model) for each scale.

        Rows end at the last position that the language model knows, and draw only where an image has room before it.

        Returns:
            Token ids (B, P + generated); with `return_dict_in_generate=True` a [`VargptGenerateOutput`], which has the images.

        Raises:
            TypeError: a setting of the wrong type.
            ValueError: settings out of range, token ids outside of the vocabulary, ways of decoding that images cannot be drawn in, a
                prompt beyond the model's positions, and scores or code logits that are NaN or infinite.
        """
        if kwargs.get("cache_implementation") == "paged":
            raise ValueError('`cache_implementation="paged"` batches texts without images continuously; take "dynamic" or "static".')
        own = {name: value for name, value in locals().items() if name in (*IMAGE_GENERATION_DEFAULTS, *RUN_ARGUMENTS)}
        given = {name: value for name, value in own.items() if value is not None}
        checked = LogitsProcessorList([*(logits_processor or ()), VargptScoresCheck()])
        return super().generate(inputs, generation_config, checked, *args, **given, **kwargs)

    def _extract_generation_mode_kwargs(self, custom_generate, kwargs, *args, **more) -> dict:
        """Takes what belongs to one call only out of `kwargs`, so that it reaches `_sample`."""
        own = {name: kwargs.pop(name) for name in RUN_ARGUMENTS if name in kwargs}
        extracted = super()._extract_generation_mode_kwargs(custom_generate, kwargs, *args, **more)
        return {**extracted, **{name: value for name, value in own.items() if value is not None}}

    def _validate_model_kwargs(self, model_kwargs: dict) -> None:
        """What the backbone reads is no mistake, unless it is incomplete."""
        self.model.backbone.check_images(model_kwargs)
        super()._validate_model_kwargs({name: v for name, v in model_kwargs.items() if name not in self.model.backbone.reading_inputs})

    def _prepare_generation_config(self, generation_config: GenerationConfig | None, **kwargs) -> tuple[GenerationConfig, dict]:
        """Settings of this call, the images' among them, in a copy: neither the caller's nor the model's are written to."""
        sources = (vars(self.generation_config), {} if generation_config is None else vars(generation_config), kwargs)
        saved, passed, called = ({name: value for name, value in source.items() if value is not None} for source in sources)
        # Pipelines pass a copy of the model's own settings: what differs in it is said in this call.
        said = {name: passed[name] for name in IMAGE_GENERATION_DEFAULTS if name in passed and passed[name] != saved.get(name)}
        given = {**saved, **passed, **guided({**said, **called}, saved)}
        check_settings(given, self.config.text_config.vocab_size)
        for name in IMAGE_GENERATION_DEFAULTS:
            kwargs.pop(name, None)
        generation_config, model_kwargs = super()._prepare_generation_config(generation_config, **kwargs)
        for name, default in IMAGE_GENERATION_DEFAULTS.items():
            setattr(generation_config, name, given.get(name, default))
        for name, ids in plain_ids(vars(generation_config)).items():
            setattr(generation_config, name, ids)
        if generation_config.generation_mode in DRAWING_MODES and not {"max_new_tokens", "max_length"} & given.keys():
            plan = PLAN_TOKENS if generation_config.generation_mode == "text_image" else 0
            generation_config.max_new_tokens = plan + 2  # image-start and image-end
        if generation_config.generation_mode == "text":
            generation_config.max_output_images = 0
        never = [self.config.image_token_id, self.config.output_image_token_id, self.config.output_image_end_token_id]
        if generation_config.generation_mode == "text":
            never.append(self.config.output_image_start_token_id)
        never = {token_id for token_id in never if token_id is not None}
        generation_config.suppress_tokens = sorted({*(generation_config.suppress_tokens or []), *never})
        return generation_config, model_kwargs

    def _validate_generation_mode(self, generation_mode, generation_config, generation_mode_kwargs) -> None:
        if generation_config.generation_mode != "text":
            check_can_draw(generation_mode, generation_config, generation_mode_kwargs)
            guidance = generation_config.output_image_guidance_type
            if GUIDANCE_TYPES[guidance].unconditional_rows and not self.model.backbone.can_wait:
                raise ValueError(
                    f'Guidance by "{guidance}" needs rows that wait, and the layers of this backbone fold every column into a state: set '
                    '`output_image_guidance_type="none"` or "noise".'
                )
        # Noted for `_prepare_cache_for_generation`: Transformers' loop, which writes all other texts, ends all rows with the longest prompt's.
        generation_config._rows_end_by_themselves = (
            generation_config.generation_mode != "text" or generation_mode_kwargs.get("generator") is not None
        )
        unfit = generation_config.use_cache is False or generation_mode_kwargs.get("synced_gpus")
        if unfit and generation_mode_kwargs.get("generator") is not None:
            raise ValueError("`generator` goes with neither `use_cache=False` nor `synced_gpus`: leave one of them out.")
        given = [name for name in RUN_ARGUMENTS if generation_mode_kwargs.get(name) is not None]
        if given and generation_mode not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE):
            raise ValueError(f"{generation_mode.value} does not take `{given[0]}`: leave it out, or decode greedily or by sampling.")
        if generation_config.assistant_early_exit is not None:
            raise ValueError("`assistant_early_exit` needs a language model by itself; give a smaller `assistant_model` instead.")
        super()._validate_generation_mode(generation_mode, generation_config, generation_mode_kwargs)

    def _prepare_position_ids_for_generation(self, inputs_tensor: torch.Tensor, model_kwargs: dict) -> torch.LongTensor:
        """Positions of the prompt, as the backbone counts them."""
        backbone, ids = self.model.backbone, model_kwargs.get("input_ids", inputs_tensor)
        if ids.ndim != 2 or ids.is_floating_point() or not ids.shape[1]:
            ids = None
        mask = model_kwargs.get("attention_mask")
        if mask is None:
            mask = torch.ones((inputs_tensor if ids is None else ids).shape[:2], dtype=torch.long, device=inputs_tensor.device)
        reading = {name: value for name, value in model_kwargs.items() if name in backbone.reading_inputs and value is not None}
        if ids is not None and ids.shape[1] != mask.shape[1]:  # what follows a cache, without what it holds
            ids = None
            if backbone.counts_grids:
                raise ValueError(
                    f"A {backbone.model_type!r} model cannot tell where the images before a filled cache end: give the whole sequence as "
                    "`input_ids`, with `image_grid_thw` of all its images, or `position_ids`."
                )
        return backbone.positions(ids, mask, **reading)[0]

    def _update_model_kwargs_for_generation(self, outputs, model_kwargs: dict, *args, num_new_tokens: int = 1, **kwargs) -> dict:
        """As in Transformers; what is written is of the type that the backbone takes for causal."""
        model_kwargs = super()._update_model_kwargs_for_generation(outputs, model_kwargs, *args, num_new_tokens=num_new_tokens, **kwargs)
        if model_kwargs.get("token_type_ids") is not None:
            model_kwargs["token_type_ids"][:, -num_new_tokens:] = self.model.backbone.causal_type
        return model_kwargs

    def create_masks_for_generate(self, config, **kwargs) -> dict[str, torch.Tensor] | torch.Tensor | None:
        """Called for caches of a fixed size: masks of the backbone's own kind."""
        return self.model.backbone.create_masks(**kwargs)

    def _prepare_generated_length(self, generation_config: GenerationConfig, *args, input_ids_length: int, **kwargs) -> GenerationConfig:
        """Notes how many columns the prompt takes, which `_prepare_cache_for_generation` is not told."""
        prepared = super()._prepare_generated_length(generation_config, *args, input_ids_length=input_ids_length, **kwargs)
        prepared._prompt_columns = input_ids_length
        return prepared

    def _prepare_cache_for_generation(self, generation_config, model_kwargs, generation_mode, batch_size, max_cache_length) -> None:
        """Makes room in fixed-size caches for the images, and for the columns in which rows wait for one another."""
        num_tokens = _num_tokens(model_kwargs)
        if generation_config.generation_mode != "image":  # whose prompt `_sample` checks, room for the image included
            check_room(self.config, num_tokens)
            # Text ends at the last position that the model knows; the last token is fed to no model. In our own loop each row ends at its own.
            counted = _fewest_tokens(model_kwargs) if generation_config._rows_end_by_themselves else num_tokens
            excess = generation_config.max_length - generation_config._prompt_columns - (max_positions(self.config) - counted + 1)
            if excess > 0:
                generation_config.max_length -= excess
                max_cache_length -= excess
        if generation_config.prefill_chunk_size is not None and _has_images(model_kwargs):
            raise ValueError("`prefill_chunk_size` cannot cut a prompt with images into chunks: leave it out.")
        if generation_config.prefill_chunk_size is not None and self.model.visual_decoder.uses_context and generation_config.max_output_images:
            raise ValueError(
                "`prefill_chunk_size` leaves hidden states of the last chunk alone, but this visual decoder attends to the whole prompt: leave "
                'it out, or set `generation_mode="text"`.'
            )
        if generation_config.generation_mode != "text":
            longest = max(schedule.num_positions for schedule in self.model.schedules)
            fitting = max_positions(self.config) // min(schedule.num_positions for schedule in self.model.schedules)
            images = 1 if generation_config.generation_mode in DRAWING_MODES else int(min(generation_config.max_output_images, fitting))
            new_tokens = generation_config.max_length - generation_config._prompt_columns
            rows = batch_size * generation_config.num_return_sequences
            together = len(self.model.schedules) if rows > 1 else 1  # rows of other schedules draw in masked columns
            max_cache_length += images * (longest + 1) * together
            max_cache_length += new_tokens * min(images, rows - 1) + len(generation_config.output_image_unconditional_ids or [0])
            self._check_window(generation_config, max_cache_length, waits=generation_config.generation_mode != "image" or together > 1)
        return super()._prepare_cache_for_generation(generation_config, model_kwargs, generation_mode, batch_size, max_cache_length)

    def _check_window(self, generation_config: GenerationConfig, columns: int, waits: bool) -> None:
        """Notes for `_sample` whether rows may wait for one another: columns in which they do push others out of a window.

        Raises:
            ValueError: unconditional rows, which wait wherever text is written, beyond the window.
        """
        window, guidance = self.model.backbone.window, generation_config.output_image_guidance_type
        generation_config._rows_fit = not waits or columns <= window
        if not generation_config._rows_fit and GUIDANCE_TYPES[guidance].unconditional_rows:
            raise ValueError(
                f'Guidance by "{guidance}" needs rows that wait, but this backbone has layers that look back over {window} columns alone, and '
                f'text and images take up to {columns}: draw at once (`generation_mode="image"`), give smaller `max_new_tokens` and '
                '`max_output_images`, or set `output_image_guidance_type="none"`.'
            )

    def _expand_inputs_for_generation(
        self, expand_size: int = 1, is_encoder_decoder: bool = False, input_ids: torch.LongTensor | None = None, **model_kwargs
    ) -> tuple[torch.LongTensor, dict]:
        """Repeats the rows, and the images that stand in them to be drawn."""
        own = {name: model_kwargs.pop(name) for name in _OUTPUT_IMAGES if model_kwargs.get(name) is not None}
        if own and expand_size > 1:
            images = next(iter(own.values()))
            embeds = model_kwargs.get("inputs_embeds")
            token_id = self.config.output_image_token_id
            placeholders = self.model.get_placeholder_mask(input_ids if embeds is None else None, embeds, token_id).sum(1)
            ids = own.get("output_image_schedule_ids", torch.zeros(len(images), dtype=torch.long, device=images.device))
            ends = self.model.num_positions(ids, own.get("output_image_num_scales")).cumsum(0)
            row_of_image = torch.searchsorted(placeholders.cumsum(0), ends)
            order = [row_of_image.eq(row).nonzero().squeeze(1).repeat(expand_size) for row in range(len(placeholders))]
            own = {name: value[torch.cat(order)] for name, value in own.items()}
        input_ids, model_kwargs = super()._expand_inputs_for_generation(expand_size, is_encoder_decoder, input_ids, **model_kwargs)
        return input_ids, {**model_kwargs, **own}

    def prepare_inputs_for_generation(
        self, *args, inputs_embeds: torch.Tensor | None = None, is_first_iteration: bool | None = False, **kwargs
    ) -> dict:
        """Images in the prompt enter once, with the prompt; with a cache, later calls must not see them again.

        `inputs_embeds` is named because Transformers reads off the signature whether prompts may come as embeddings.
        """
        cache = kwargs.get("past_key_values")
        if cache is not None and cache.get_seq_length() == 0:
            is_first_iteration = True  # an assistant's prompt too, of which Transformers says that it is not
        inputs = super().prepare_inputs_for_generation(*args, inputs_embeds=inputs_embeds, is_first_iteration=is_first_iteration, **kwargs)
        if not is_first_iteration and kwargs.get("use_cache", True):
            for name in (*_OUTPUT_IMAGES, "token_type_ids", "mm_token_type_ids"):
                inputs.pop(name, None)
        return inputs

    def _get_candidate_generator(self, *args, model_kwargs: dict, assistant_model=None, **kwargs) -> CandidateGenerator:
        """Gives an assistant of the prompt's images what it can take. Its drafts are checked, so that only its speed is at stake."""
        given = dict(model_kwargs)
        features = (given.get("mm_encoder_outputs") or {}).get("image")
        if not isinstance(assistant_model, VargptGenerationMixin):
            for name in _OUTPUT_IMAGES:
                given.pop(name, None)
        elif features is not None:
            width = assistant_model.config.text_config.hidden_size
            if width != self.config.text_config.hidden_size:  # blank images instead
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
        output_image_streamer: VargptImageStreamer | None = None,
        output_image_noise: list[torch.Tensor] | None = None,
        output_image_size: tuple[int, int] | list[tuple[int, int]] | None = None,
        output_image_aspect_ratio: float | list[float] | None = None,
        output_image_codes_to_keep: torch.LongTensor | None = None,
        output_image_mask: torch.Tensor | None = None,
        **model_kwargs,
    ) -> VargptGenerateOutput | torch.LongTensor:
        """Greedy and sampled decoding of text and images.

        What it takes beyond Transformers' arguments: see [`generate`].
        """
        num_rows = input_ids.shape[0]
        schedule_ids = schedule_ids_of(self.model, output_image_size, output_image_aspect_ratio, num_rows, input_ids.device)
        check_run_arguments(self.config, generator, output_image_streamer, output_image_noise, schedule_ids)
        if generation_config.generation_mode in DRAWING_MODES:
            starts = (input_ids[:, -1:] == self.config.output_image_start_token_id).all() and input_ids.shape[1] > 0
            check_room(self.config, _num_tokens(model_kwargs), image_tokens(self.config, schedule_ids.tolist(), bool(starts)))
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
            if output_image_streamer is not None:
                output_image_streamer.end()
            if not generation_config.return_dict_in_generate:
                return output
            return VargptGenerateOutput(**output, **self._no_images(input_ids.device))
        kept = kept_codes(self.model, output_image_codes_to_keep, output_image_mask, schedule_ids)
        settings = generation_config
        guidance = guidance_of(settings, output_image_noise)
        generator = checked_generator(generator, num_rows, settings.do_sample, input_ids.device)
        sampling = (settings.output_image_temperature, settings.output_image_top_k, settings.output_image_top_p)
        processors = filters(*sampling) if settings.do_sample else []
        plan = DrawingPlan(guidance, processors, schedule_ids, *kept, generator, output_image_streamer)
        wanted = {name: True for name in ("output_attentions", "output_hidden_states") if model_kwargs.get(name)}
        with self._optimize_model_for_decode():
            unconditional = guidance.unconditional_rows and settings.max_output_images > 0
            rows, outputs = LLMRows.prefill(self, input_ids, settings, model_kwargs, unconditional)
            common = (logits_processor, stopping_criteria, settings)
            if num_rows == 1 or (self.model.backbone.can_wait and (settings.generation_mode == "text" or settings._rows_fit)):
                loops = [VargptDecodingLoop(self, rows, input_ids, *common, plan, streamer, wanted)]
                loops[0].run(outputs)
            else:
                loops = self._decode_singly(rows, outputs, input_ids, common, plan)
        for ending in (streamer, output_image_streamer):
            if ending is not None:
                ending.end()
        result = collect(loops)
        if not settings.return_dict_in_generate:
            return result["sequences"]
        images = self._decode_images(result["output_image_codes"], result["output_image_schedule_ids"])
        return VargptGenerateOutput(**result, output_images=images)

    def _decode_singly(self, rows: LLMRows, outputs, input_ids: torch.LongTensor, common: tuple, plan: DrawingPlan) -> list[VargptDecodingLoop]:
        """Decodes rows that cannot wait for one another, each to its end, from outputs of their common prefill."""
        settings = common[-1]
        if settings.return_dict_in_generate and (settings.output_scores or settings.output_logits or settings.output_hidden_states):
            raise ValueError("Rows of this backbone decode one by one, which leaves no scores or states of the batch: generate row by row.")
        loops = []
        for index, row in enumerate(rows.singly()):
            one = slice(index, index + 1)
            loop = VargptDecodingLoop(self, row, input_ids[one], *common, plan.of_row(index), first_row=index)
            loop.run(type(outputs)(logits=outputs.logits[one]))
            loops.append(loop)
        return loops

    def _decode_images(self, codes: torch.LongTensor, schedule_ids: torch.LongTensor) -> torch.Tensor | list[torch.Tensor]:
        """Pixels (N, channels, height, width) of codes (N, L); a list of (channels, height, width) where sizes differ."""
        groups = self.model.schedule_groups(schedule_ids)
        if len(groups) == 1:
            return self.model.decode_image_codes(codes[:, : groups[0][0].num_positions], groups[0][0])
        images = [None] * len(codes)
        for schedule, chosen in groups:
            for index, image in zip(chosen.tolist(), self.model.decode_image_codes(codes[chosen, : schedule.num_positions], schedule)):
                images[index] = image
        return images

    def _no_images(self, device: torch.device) -> dict[str, torch.Tensor]:
        """Image fields of an output without images, of their usual shapes."""
        codes = torch.empty(0, self.model.schedules[0].num_positions, dtype=torch.long, device=device)
        none = torch.empty(0, dtype=torch.long, device=device)
        return {
            "output_image_codes": codes,
            "output_image_rows": none,
            "output_image_positions": none,
            "output_image_schedule_ids": none,
            "output_images": self._decode_images(codes, none),
        }


def _has_images(model_kwargs: dict) -> bool:
    """Whether the prompts hold images, read or drawn before."""
    return bool(model_kwargs.get("mm_encoder_outputs")) or any(model_kwargs.get(name) is not None for name in ("pixel_values", *_OUTPUT_IMAGES))


def _num_tokens(model_kwargs: dict) -> int:
    """Tokens of the longest prompt, those of a filled cache included."""
    positions = model_kwargs["position_ids"]
    return int(positions[..., -1].max()) + 1 if positions.numel() else 0


def _fewest_tokens(model_kwargs: dict) -> int:
    """Tokens of the shortest prompt, likewise."""
    positions = model_kwargs["position_ids"]
    last = positions[..., -1]
    return int((last.amax(0) if positions.ndim == 3 else last).min()) + 1 if positions.numel() else 0


__all__ = ["VargptGenerationMixin"]
