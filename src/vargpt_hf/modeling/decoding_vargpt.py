"""The decoding loop behind VARGPT's `generate`: tokens one by one, pictures scale by scale.

Rows reach image-start at different times. A row that did is parked until every other unfinished row has reached one too or has
ended; then all parked rows draw together in S passes of the language model, the others taking masked slots in its cache. A
row's positions come from its own mask, so that its result does not depend on its neighbours.

Shapes: B rows, R rows in the language model's batch (B, or 2B where unconditional rows ride along), P prompt tokens, N pictures
drawn together, M decoder rows of them (N, or 2N under guidance), S scales, L codes of a picture, l codes of one scale, D width
of the language model, C width of the visual decoder.
"""

from abc import ABC, abstractmethod

import torch
from transformers import GenerationConfig
from transformers.generation.logits_process import LogitsProcessorList
from transformers.generation.stopping_criteria import StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from .image_sampling_vargpt import guidance_strength, guide, sample_codes, sample_noise, sample_tokens
from .settings_vargpt import max_positions, picture_tokens
from .visual_decoder_vargpt import GENERATE_CONDITION, NULL_CONDITION, VargptDecoderCache


class VargptImageStreamer(ABC):
    """Receives pictures while they are drawn.

    Attributes:
        wants_pixels: whether `put` is to be given pixels. To decode them after every scale takes longer than to draw the codes, so that
            a progress bar says False, and is given None.
    """

    wants_pixels: bool = True

    @abstractmethod
    def put(self, images: torch.Tensor | None, rows: torch.LongTensor, scale_index: int) -> None:
        """Takes the pictures (N, 3, image_size, image_size) in [-1, 1] of the batch's `rows` (N,) after one scale."""

    @abstractmethod
    def end(self) -> None:
        """Called once, when generation ends."""


class VargptDecodingLoop:
    """State and steps of one `generate` call; built by `VargptGenerationMixin._sample`, which documents the arguments."""

    def __init__(
        self,
        model,
        input_ids: torch.LongTensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        model_kwargs: dict,
        streamer: BaseStreamer | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        image_streamer: VargptImageStreamer | None = None,
        image_noise: list[torch.Tensor] | None = None,
    ):
        self.model = model
        self.config = model.config
        self.settings = generation_config
        self.logits_processor = logits_processor
        self.stopping_criteria = stopping_criteria
        self.streamer = streamer
        self.image_streamer = image_streamer
        self.image_noise = image_noise
        self.model_kwargs = model_kwargs
        self.prompt_ids = input_ids
        self.num_rows, self.prompt_length = input_ids.shape
        self.device = input_ids.device
        self.pad_token_id = 0 if generation_config._pad_token_tensor is None else int(generation_config._pad_token_tensor)
        self.generator = self._check_generator(generator)
        self.max_new_tokens = generation_config.max_length - self.prompt_length
        self.guided_by_prompt = generation_config.image_guidance_type == "prompt" and generation_config.max_images > 0
        # Rows as processors and criteria see them: prompt and generated tokens, aligned right, a picture as its two tokens.
        self.visible_ids = input_ids
        self.lengths = torch.zeros(self.num_rows, dtype=torch.long, device=self.device)
        self.finished = torch.zeros(self.num_rows, dtype=torch.bool, device=self.device)
        self.parked = torch.zeros(self.num_rows, dtype=torch.bool, device=self.device)
        self.start_is_fed = torch.zeros(self.num_rows, dtype=torch.bool, device=self.device)
        self.drawings: list[list[tuple[int, torch.LongTensor]]] = [[] for _ in range(self.num_rows)]
        self.recorded: dict[str, list] = {"scores": [], "logits": [], "attentions": [], "hidden_states": []}

    def _check_generator(self, generator):
        if isinstance(generator, list) and len(generator) != self.num_rows:
            raise ValueError(f"`generator` has {len(generator)} generators for {self.num_rows} rows: give one, or one for each row.")
        if generator is None and not self.settings.do_sample:
            # Noise guidance still draws noise: without sampling it must depend neither on global state nor on other rows.
            return [torch.Generator(self.device).manual_seed(0) for _ in range(self.num_rows)]
        return generator

    # ---- the loop

    def run(self) -> None:
        """Decodes until every row has ended."""
        logits = self._prefill()
        if self.settings.max_images > 0 and self.prompt_length:
            self.parked = self.prompt_ids[:, -1] == self.config.image_start_token_id
            self.start_is_fed = self.parked.clone()
        self._check_room()
        active = ~self.parked
        while True:
            if active.any():
                self._emit(self._next_tokens(logits, active), active)
                active = ~self.finished & ~self.parked
            if not active.any():
                drawing = self.parked.clone()
                if not drawing.any():
                    break
                self._draw(drawing.nonzero().squeeze(1))
                active = drawing & ~self.finished
                if not active.any():
                    break
            logits = self._feed(active)
        for streamer in (self.streamer, self.image_streamer):
            if streamer is not None:
                streamer.end()

    def _check_room(self) -> None:
        """A forced picture takes two tokens, or one where the prompt brings its start."""
        needed = 1 + int((~self.parked).any())
        if self.settings.generation_mode == "image" and self.max_new_tokens < needed:
            raise ValueError(f"`max_new_tokens` leaves {self.max_new_tokens} tokens, but a picture takes {needed}: set it to {needed} or more.")
        if self.settings.generation_mode == "image" and self.settings.max_images == 0:
            raise ValueError('`generation_mode="image"` asks for a picture, but `max_images=0` forbids it.')

    def _next_tokens(self, logits: torch.Tensor, active: torch.BoolTensor) -> torch.LongTensor:
        """Tokens (B,) that follow, from the logits (B, vocabulary) of the text step; padding where a row is not active."""
        raw = logits.to(copy=True, dtype=torch.float32, device=self.device)
        scores = raw.clone()
        for length in self.lengths[active].unique().tolist():
            rows = active & (self.lengths == length)
            scores[rows] = self.logits_processor(self._visible(length), raw.clone())[rows]
        start = self.config.image_start_token_id
        if self.settings.generation_mode == "image":
            scores.fill_(-torch.inf)[:, start] = 0
        else:
            scores[self._may_not_draw(), start] = -torch.inf
        self._record("scores", scores, self.settings.output_scores)
        self._record("logits", raw, self.settings.output_logits)
        tokens = torch.full((self.num_rows,), self.pad_token_id, device=self.device)
        generator = self._generator_of(active.nonzero().squeeze(1))
        tokens[active] = sample_tokens(scores[active], self.settings.do_sample, generator)
        return tokens

    def _may_not_draw(self) -> torch.BoolTensor:
        """Rows (B,) that have drawn all they may, or have no room left for a picture's two tokens or its positions."""
        drawn = torch.tensor([len(drawings) for drawings in self.drawings], device=self.device)
        too_far = self.positions[: self.num_rows] + picture_tokens(self.config) > max_positions(self.config)
        return (drawn >= self.settings.max_images) | (self.lengths + 2 > self.max_new_tokens) | too_far

    def _visible(self, length: int) -> torch.LongTensor:
        """What rows of this many generated tokens look like, (B, P + length); other rows hold nothing of meaning."""
        return self.visible_ids[:, self.visible_ids.shape[1] - self.prompt_length - length :]

    def _emit(self, tokens: torch.LongTensor, rows: torch.BoolTensor) -> None:
        """Appends tokens (B,) to the rows, parks those that ask for a picture, ends those that a criterion stops."""
        padding = torch.full_like(tokens, self.pad_token_id)[:, None]
        longer = torch.cat([self.visible_ids, tokens[:, None]], dim=1)
        if rows.all():
            self.visible_ids = longer
        else:
            self.visible_ids = torch.where(rows[:, None], longer, torch.cat([padding, self.visible_ids], dim=1))
        self.lengths += rows
        if self.streamer is not None:
            self.streamer.put(tokens.cpu())
        self.parked |= rows & (tokens == self.config.image_start_token_id)
        stoppable = rows & ~self.parked
        for length in self.lengths[stoppable].unique().tolist():
            stopped = self.stopping_criteria(self._visible(length), tuple(self.recorded["scores"]) or None)
            self.finished |= stoppable & (self.lengths == length) & stopped.to(self.device)
        self.finished |= stoppable & (self.positions[: self.num_rows] >= max_positions(self.config))

    # ---- the language model

    def _prefill(self) -> torch.Tensor:
        """Runs the prompts, and the unconditional ones below them; returns the next-token logits (B, vocabulary)."""
        kwargs, ids = self.model_kwargs, self.prompt_ids
        self.mask, self.positions = self._prompt_mask()
        if self.guided_by_prompt:
            ids = self._add_unconditional_rows()
        self.prompt_columns = self.mask.shape[1]
        kwargs["attention_mask"] = None if self.mask.all() else self.mask
        outputs = self.model._prefill(ids, self.settings, kwargs, is_first_iteration=True)
        self.cache = outputs.past_key_values
        self.start_positions = self.positions.clone()
        self._record_states(outputs)
        return outputs.logits[: self.num_rows, -1]

    def _prompt_mask(self) -> tuple[torch.LongTensor, torch.LongTensor]:
        """Mask (B, columns) of what the cache will hold after the prompt, and the next position of each row (B,)."""
        mask = self.model_kwargs.get("attention_mask")
        positions = self.model_kwargs["position_ids"][:, -1].to(self.device) + 1
        if mask is None:  # Transformers drops a mask of ones
            mask = torch.ones(self.num_rows, self.settings._mask_length, dtype=torch.long, device=self.device)
        return mask.to(self.device), positions

    def _add_unconditional_rows(self) -> torch.LongTensor:
        """Puts B rows with the unconditional prompt below the others, padded on the left; returns all prompts (2B, columns)."""
        kwargs = self.model_kwargs
        if kwargs.get("inputs_embeds") is not None or kwargs["past_key_values"].get_seq_length() > 0:
            raise ValueError(
                'Guidance by "prompt" needs the whole prompt as `input_ids`: unconditional rows must ride from the start. '
                'Give `input_ids` without `inputs_embeds` or a filled cache, or set `image_guidance_type="none"`.'
            )
        ids = self.settings.image_unconditional_ids
        if ids is None:
            if self.settings._bos_token_tensor is None:
                raise ValueError('Guidance by "prompt" needs `image_unconditional_ids`: the model has no `bos_token_id`.')
            ids = [int(self.settings._bos_token_tensor)]
        columns = max(len(ids), self.prompt_length)

        def pad(rows: torch.LongTensor, value: int) -> torch.LongTensor:
            return torch.nn.functional.pad(rows, (columns - rows.shape[1], 0), value=value)

        unconditional = torch.tensor(ids, device=self.device).expand(self.num_rows, -1)
        self.mask = torch.cat([pad(self.mask, 0), pad(torch.ones_like(unconditional), 0)])
        kwargs["position_ids"] = (self.mask.cumsum(1) - 1).clamp(min=0)
        self.positions = torch.cat([self.positions, torch.full_like(self.positions, len(ids))])
        return torch.cat([pad(self.prompt_ids, self.pad_token_id), pad(unconditional, self.pad_token_id)])

    def _feed(self, active: torch.BoolTensor) -> torch.Tensor:
        """Feeds each active row its last token; returns next-token logits (B, vocabulary)."""
        tokens = torch.full((self.mask.shape[0], 1), self.pad_token_id, device=self.device)
        tokens[: self.num_rows] = torch.where(active[:, None], self.visible_ids[:, -1:], self.pad_token_id)
        seen = torch.zeros_like(self.positions)
        seen[: self.num_rows] = active.long()
        self.mask = torch.cat([self.mask, seen[:, None]], dim=1)
        inputs = self.model.prepare_inputs_for_generation(
            tokens,
            past_key_values=self.cache,
            attention_mask=self.mask,
            position_ids=self.positions[:, None],
            use_cache=True,
            logits_to_keep=1,
            **{name: True for name in ("output_attentions", "output_hidden_states") if self.model_kwargs.get(name)},
        )
        outputs = self.model(**inputs, return_dict=True)
        self.positions = self.positions + seen
        self._record_states(outputs)
        return outputs.logits[: self.num_rows, -1]

    def _scale_pass(self, embeds: torch.Tensor, rows: torch.LongTensor, starting: torch.BoolTensor) -> torch.Tensor:
        """One call of the language model for one scale.

        Args:
            embeds: projected tokens of the scale, (M, l, D).
            rows: their rows in the language model's batch, (M,).
            starting: rows (R,) whose image-start token is fed in front of them.

        Returns:
            Last hidden states of the scale's places, (M, l, D).
        """
        length, lead = embeds.shape[1], int(starting.any())
        inputs = embeds.new_zeros(self.mask.shape[0], lead + length, embeds.shape[2])
        if lead:
            start = torch.tensor(self.config.image_start_token_id, device=self.device)
            inputs[:, 0] = self.model.get_input_embeddings()(start)
        inputs[rows, lead:] = embeds
        seen = torch.zeros(inputs.shape[:2], dtype=torch.long, device=self.device)
        seen[rows, lead:] = 1
        seen[:, :lead] = starting[:, None]
        self.mask = torch.cat([self.mask, seen], dim=1)
        outputs = self.model.model.language_model(
            inputs_embeds=inputs,
            attention_mask=self.mask,
            position_ids=self.positions[:, None] + (seen.cumsum(1) - 1).clamp(min=0),
            past_key_values=self.cache,
            use_cache=True,
        )
        self.positions = self.positions + seen.sum(1)
        return outputs.last_hidden_state[rows, lead:]

    # ---- pictures

    def _draw(self, rows: torch.LongTensor) -> None:
        """Draws one picture for each of the rows (N,), notes its codes and appends image-end."""
        codes = self._draw_codes(rows)
        if self.guided_by_prompt:  # every picture is guided by the unconditional prompt alone
            self.mask[self.num_rows :, self.prompt_columns :] = 0
            self.positions[self.num_rows :] = self.start_positions[self.num_rows :]
        drawn = torch.zeros_like(self.parked)
        drawn[rows] = True
        for row, picture in zip(rows.tolist(), codes):
            self.drawings[row].append((int(self.lengths[row]), picture))
        self.parked &= ~drawn
        self.start_is_fed &= ~drawn
        end = torch.full((self.num_rows,), self.config.image_end_token_id, device=self.device)
        self._emit(torch.where(drawn, end, self.pad_token_id), drawn)
        if self.settings.generation_mode == "image":
            self.finished |= drawn

    def _draw_codes(self, rows: torch.LongTensor) -> torch.LongTensor:
        """Codes (N, L) of one picture for each of the rows (N,), scale by scale."""
        model = self.model.model
        decoder, quantizer, num_pictures = model.visual_decoder, model.vq_model.quantizer, len(rows)
        conditions = self._conditions(num_pictures)
        cache = VargptDecoderCache(self.config, len(conditions), self.model.dtype, self.device)
        modulations, place_embeddings = decoder.modulations(conditions), decoder.place_embeddings().split(decoder.sizes)
        llm_rows, starting = self._drawing_rows(rows)
        tokens = decoder.embed_start(decoder.condition_embedding(conditions[: len(llm_rows)]))
        f_hat, codes = 0, []
        for index, place_embedding in enumerate(place_embeddings):
            hidden = self._scale_pass(model.generation_projector_in(tokens + place_embedding), llm_rows, starting)
            starting = torch.zeros_like(starting)
            if len(conditions) > len(llm_rows):
                hidden = torch.cat([hidden, self._noise_rows(hidden, index, rows)])
            logits = decoder(model.generation_projector_out(hidden), conditions, cache, modulations).float()
            codes.append(self._choose_codes(logits, num_pictures, index, rows))
            f_hat = f_hat + quantizer.contribution(codes[-1], index)
            if self.image_streamer is not None:
                wanted = self.image_streamer.wants_pixels
                self.image_streamer.put(model.vq_model.decode_latents(f_hat).clamp(-1, 1) if wanted else None, rows, index)
            if index + 1 < len(place_embeddings):
                tokens = decoder.token_embedding(quantizer.next_scale_input(f_hat, index + 1).to(tokens.dtype))
                tokens = tokens.repeat(len(llm_rows) // num_pictures, 1, 1)
        return torch.cat(codes, dim=1)

    def _conditions(self, num_pictures: int) -> torch.LongTensor:
        """Condition of each decoder row, (M,): the pictures', then those of their unconditional halves."""
        kind, scale = self.settings.image_guidance_type, self.settings.image_guidance_scale
        halves = {"none": [GENERATE_CONDITION], "prompt": [GENERATE_CONDITION, NULL_CONDITION], "noise": [NULL_CONDITION] * 2}
        # Guidance of strength 0 leaves the conditional half alone, so the other one need not be computed.
        chosen = halves[kind][:1] if kind == "noise" and scale == 0 else halves[kind]
        return torch.tensor(chosen, device=self.device).repeat_interleave(num_pictures)

    def _drawing_rows(self, rows: torch.LongTensor) -> tuple[torch.LongTensor, torch.BoolTensor]:
        """The language model's rows (N or 2N,) that draw, and which of all (R,) still have to be fed image-start."""
        llm_rows = torch.cat([rows, rows + self.num_rows]) if self.guided_by_prompt else rows
        starting = torch.zeros(self.mask.shape[0], dtype=torch.bool, device=self.device)
        starting[llm_rows] = True
        starting[: self.num_rows] &= ~self.start_is_fed
        return llm_rows, starting

    def _noise_rows(self, hidden: torch.Tensor, index: int, rows: torch.LongTensor) -> torch.Tensor:
        """Noise (N, l, D) of the released guidance, in place of the hidden states of unconditional rows."""
        if self.image_noise is not None:
            if self.image_noise[index].shape != hidden.shape:
                raise ValueError(
                    f"`image_noise[{index}]` is for {len(self.image_noise[index])} pictures, but {len(hidden)} are drawn together."
                )
            return self.image_noise[index].to(hidden)
        return sample_noise(hidden.shape, hidden, self._generator_of(rows))

    def _generator_of(self, rows: torch.LongTensor) -> torch.Generator | list[torch.Generator] | None:
        """The generators of these rows, where each has its own."""
        return [self.generator[row] for row in rows.tolist()] if isinstance(self.generator, list) else self.generator

    def _choose_codes(self, logits: torch.Tensor, num_pictures: int, index: int, rows: torch.LongTensor) -> torch.LongTensor:
        """Codes (N, l) from logits (M, l, V): guidance, then sampling."""
        settings = self.settings
        if logits.shape[0] > num_pictures:
            strength = guidance_strength(settings.image_guidance_scale, settings.image_guidance_ramp, index, len(self.config.vq_config.scales))
            logits = guide(*logits.chunk(2), strength)
        return sample_codes(
            logits,
            settings.do_sample,
            settings.image_temperature,
            settings.image_top_k,
            settings.image_top_p,
            self._generator_of(rows),
            what=f"The logits of the codes of scale {index}",
        )

    # ---- the result

    def _record(self, name: str, value: torch.Tensor | tuple, asked: bool) -> None:
        if asked and self.settings.return_dict_in_generate:
            self.recorded[name].append(value)

    def _record_states(self, outputs) -> None:
        self._record("attentions", outputs.attentions, self.settings.output_attentions)
        self._record("hidden_states", outputs.hidden_states, self.settings.output_hidden_states)

    def result(self) -> dict:
        """Fields of `VargptGenerateOutput`, pixels apart."""
        codes, rows, positions = [], [], []
        width = self.config.vq_config.num_image_tokens
        sequences = []
        for row in range(self.num_rows):
            generated = self.visible_ids[row, self.visible_ids.shape[1] - int(self.lengths[row]) :]
            parts, done = [self.prompt_ids[row]], 0
            for length, picture in self.drawings[row]:
                parts += [generated[done:length], generated.new_full((width,), self.config.image_place_token_id)]
                codes.append(picture)
                rows.append(row)
                positions.append(sum(map(len, parts)) - width - 1)
                done = length
            sequences.append(torch.cat([*parts, generated[done:]]))
        sequences = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True, padding_value=self.pad_token_id)
        aligned = self.num_rows == 1 or not codes
        recorded = {name: tuple(values) if values else None for name, values in self.recorded.items()}
        return {
            **recorded,
            "sequences": sequences,
            "past_key_values": self.cache if aligned and not self.guided_by_prompt else None,
            "image_codes": torch.stack(codes) if codes else sequences.new_empty(0, width),
            "image_rows": torch.tensor(rows, dtype=torch.long, device=self.device),
            "image_positions": torch.tensor(positions, dtype=torch.long, device=self.device),
        }
