"""The decoding loop behind VARGPT's `generate`: which row writes, waits or draws.

Rows reach image-start at different times. A row that did waits until every other unfinished row has reached one too or has ended; then
all waiting rows of one schedule draw together, in S passes of the language model (drawing_vargpt.py), the others taking masked columns
of its cache (llm_cache_vargpt.py).

Shapes: B rows, P prompt tokens, N images drawn together, L positions of an image, S scales.
"""

from collections.abc import Sequence

import torch
from transformers import GenerationConfig
from transformers.generation.logits_process import LogitsProcessorList
from transformers.generation.stopping_criteria import StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from .drawing_plan_vargpt import DrawingPlan
from .drawing_vargpt import draw_codes
from .image_sampling_vargpt import Generators, KeepCodes, VargptScoresCheck, sample_tokens
from .image_tokenizer_vargpt import NO_CODE
from .llm_cache_vargpt import LLMRows
from .scales_vargpt import ScaleSchedule
from .settings_vargpt import DRAWING_MODES, max_positions


class VargptDecodingLoop:
    """State and steps of rows that decode together; built by `VargptGenerationMixin._sample`, which documents the arguments."""

    def __init__(
        self,
        model,
        llm_rows: LLMRows,
        input_ids: torch.LongTensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        settings: GenerationConfig,
        plan: DrawingPlan,
        streamer: BaseStreamer | None = None,
        outputs_wanted: dict[str, bool] | None = None,
        first_row: int = 0,
    ):
        self.model = model
        self.llm_rows = llm_rows
        self.config = model.config
        self.settings = settings
        self.logits_processor = self._with_limits_of_drawing(logits_processor)
        self.stopping_criteria = stopping_criteria
        self.plan = plan
        self.streamer = streamer
        self.outputs_wanted = outputs_wanted or {}
        self.first_row = first_row
        self.prompt_ids = input_ids
        self.num_rows, self.prompt_length = input_ids.shape
        self.device = input_ids.device
        self.pad_token_id = 0 if settings._pad_token_tensor is None else int(settings._pad_token_tensor)
        self.max_new_tokens = settings.max_length - self.prompt_length
        # Rows as processors and criteria see them: prompt and generated tokens, aligned right, an image as its two tokens.
        self.visible_ids = input_ids
        self.lengths = torch.zeros(self.num_rows, dtype=torch.long, device=self.device)
        self.finished = torch.zeros(self.num_rows, dtype=torch.bool, device=self.device)
        self.waiting = torch.zeros(self.num_rows, dtype=torch.bool, device=self.device)
        self.planned = torch.zeros(self.num_rows, dtype=torch.bool, device=self.device)  # rows whose plan a criterion has stopped
        self.drawings: list[list[tuple[int, torch.LongTensor]]] = [[] for _ in range(self.num_rows)]
        self.recorded: dict[str, list] = {"scores": [], "logits": [], "attentions": [], "hidden_states": []}

    # ---- the loop

    def run(self, outputs) -> None:
        """Decodes until every row has ended, from the model's outputs for the prompts."""
        self._record_states(outputs)
        logits = outputs.logits[: self.num_rows, -1]
        if self.settings.max_output_images > 0 and self.prompt_length:
            self.waiting = self.prompt_ids[:, -1] == self.config.output_image_start_token_id
            self.llm_rows.start_is_fed = self.waiting.clone()
        self._check_room()
        active = ~self.waiting
        while True:
            if active.any():
                self._emit(self._next_tokens(logits, active), active)
                active = ~self.finished & ~self.waiting
            if not active.any():
                drawing = self.waiting.clone()
                if not drawing.any():
                    break
                self._draw(drawing)
                active = drawing & ~self.finished
                if not active.any():
                    break
            outputs = self.llm_rows.feed(torch.where(active, self.visible_ids[:, -1], self.pad_token_id), active, **self.outputs_wanted)
            self._record_states(outputs)
            logits = outputs.logits[: self.num_rows, -1]

    def _check_room(self) -> None:
        """A forced image takes two tokens, or one where the prompt brings its start."""
        needed = 1 + int((~self.waiting).any())
        if self.settings.generation_mode in DRAWING_MODES and self.max_new_tokens < needed:
            raise ValueError(f"`max_new_tokens` leaves {self.max_new_tokens} tokens, but an image takes {needed}: set it to {needed} or more.")
        if self.settings.generation_mode in DRAWING_MODES and self.settings.max_output_images == 0:
            raise ValueError(f"`generation_mode={self.settings.generation_mode!r}` asks for an image, but `max_output_images=0` forbids it.")

    def _next_tokens(self, logits: torch.Tensor, active: torch.BoolTensor) -> torch.LongTensor:
        """Tokens (B,) that follow, from the logits (B, vocabulary) of the text step; padding where a row is not active."""
        raw = logits.to(copy=True, dtype=torch.float32, device=self.device)
        scores = raw.clone()
        for length in self.lengths[active].unique().tolist():
            rows = active & (self.lengths == length)
            scores[rows] = self.logits_processor(self._visible(length), raw.clone())[rows]
        if self.settings.generation_mode == "image":
            scores.fill_(-torch.inf)[:, self.config.output_image_start_token_id] = 0
        elif self.settings.generation_mode == "text_image":
            self._end_plans_by_drawing(scores)
        self._record("scores", scores, self.settings.output_scores)
        self._record("logits", raw, self.settings.output_logits)
        tokens = torch.full((self.num_rows,), self.pad_token_id, device=self.device)
        generators = self._generators_of(active.nonzero().squeeze(1))
        tokens[active] = sample_tokens(scores[active], self.settings.do_sample, generators)
        return tokens

    def _end_plans_by_drawing(self, scores: torch.Tensor) -> None:
        """Gives image-start what the ends of a text score, in place, and all of it in rows that have to draw now."""
        start, ends = self.config.output_image_start_token_id, self.settings.eos_token_id
        ends = torch.tensor(ends if isinstance(ends, list) else [] if ends is None else [ends], dtype=torch.long, device=self.device)
        scores[:, start] = scores[:, torch.cat([ends, ends.new_tensor([start])])].logsumexp(1)
        scores[:, ends] = -torch.inf
        # One more token of the plan would leave no room for image-start and image-end, or for the image's positions.
        too_long = self.lengths + 3 > self.max_new_tokens
        needed = self.model.model.num_positions(self.plan.schedule_ids) + 2
        too_far = self.llm_rows.positions[: self.num_rows] + needed > max_positions(self.config)
        now = self.planned | too_long | too_far
        scores[now] = -torch.inf
        scores[now, start] = 0

    def _with_limits_of_drawing(self, processors: LogitsProcessorList) -> LogitsProcessorList:
        """The processors, with one that rules image-start out where a row may not draw, unless this mode draws anyway.

        It comes after the caller's own, which could undo it, and before the check and the filters: those could leave image-start alone.
        """
        if self.settings.generation_mode in DRAWING_MODES:
            return processors

        def rule_out_images(input_ids: torch.LongTensor, scores: torch.Tensor) -> torch.Tensor:
            scores = scores.clone()
            scores[self._may_not_draw(), self.config.output_image_start_token_id] = -torch.inf
            return scores

        check = next(index for index, processor in enumerate(processors) if isinstance(processor, VargptScoresCheck))
        return LogitsProcessorList([*processors[:check], rule_out_images, *processors[check:]])

    def _may_not_draw(self) -> torch.BoolTensor:
        """Rows (B,) that have drawn all they may, or have no room left for an image's two tokens or its positions."""
        drawn = torch.tensor([len(drawings) for drawings in self.drawings], device=self.device)
        needed = self.model.model.num_positions(self.plan.schedule_ids) + 1  # image-start and the positions
        too_far = self.llm_rows.positions[: self.num_rows] + needed > max_positions(self.config)
        return (drawn >= self.settings.max_output_images) | (self.lengths + 2 > self.max_new_tokens) | too_far

    def _visible(self, length: int) -> torch.LongTensor:
        """What rows of this many generated tokens look like, (B, P + length); other rows hold nothing of meaning."""
        return self.visible_ids[:, self.visible_ids.shape[1] - self.prompt_length - length :]

    def _emit(self, tokens: torch.LongTensor, rows: torch.BoolTensor) -> None:
        """Appends tokens (B,) to the rows, lets those wait that ask for an image, ends those that a criterion stops."""
        padding = torch.full_like(tokens, self.pad_token_id)[:, None]
        longer = torch.cat([self.visible_ids, tokens[:, None]], dim=1)
        if rows.all():
            self.visible_ids = longer
        else:
            self.visible_ids = torch.where(rows[:, None], longer, torch.cat([padding, self.visible_ids], dim=1))
        self.lengths += rows
        if self.streamer is not None:
            self.streamer.put(tokens.cpu())
        self.waiting |= rows & (tokens == self.config.output_image_start_token_id)
        stoppable = rows & ~self.waiting
        for length in self.lengths[stoppable].unique().tolist():
            stopped = self.stopping_criteria(self._visible(length), tuple(self.recorded["scores"]) or None)
            stopped = stoppable & (self.lengths == length) & stopped.to(self.device)
            if self.settings.generation_mode == "text_image":
                self.planned |= stopped
            else:
                self.finished |= stopped
        self.finished |= stoppable & (self.llm_rows.positions[: self.num_rows] >= max_positions(self.config))

    def _generators_of(self, rows: torch.LongTensor) -> Generators:
        """The generators of these rows, where each has its own."""
        generators = self.plan.generators
        return [generators[row] for row in rows.tolist()] if isinstance(generators, list) else generators

    # ---- images

    def _draw(self, drawing: torch.BoolTensor) -> None:
        """Draws one image for each of the rows (B,), those of one schedule together, notes its codes and appends image-end."""
        for schedule_id in self.plan.schedule_ids[drawing].unique().tolist():
            which = (drawing & (self.plan.schedule_ids == schedule_id)).nonzero().squeeze(1)
            codes = self._draw_together(which, self.model.model.schedules[schedule_id])
            self.llm_rows.end_drawing(which)
            for row, image in zip(which.tolist(), codes):
                self.drawings[row].append((int(self.lengths[row]), image))
        self.waiting &= ~drawing
        end = torch.full((self.num_rows,), self.config.output_image_end_token_id, device=self.device)
        self._emit(torch.where(drawing, end, self.pad_token_id), drawing)
        if self.settings.generation_mode in DRAWING_MODES:
            self.finished |= drawing

    def _draw_together(self, which: torch.LongTensor, schedule: ScaleSchedule) -> torch.LongTensor:
        """Codes (N, L) of one image for each of the rows (N,)."""
        plan, rows = self.plan, which + self.first_row
        processors = list(plan.code_processors)
        if plan.kept_codes is not None:
            length = schedule.num_positions
            processors.append(KeepCodes(plan.kept_codes[which, :length], plan.redrawn[which, :length]))

        def on_scale(scale: int, f_hat: torch.Tensor) -> None:
            wanted = plan.image_streamer.wants_pixels
            images = self.model.model.image_tokenizer.decode_latents(f_hat).clamp(-1, 1) if wanted else None
            plan.image_streamer.put(images, rows, scale)

        return draw_codes(
            self.model.model,
            self.llm_rows,
            which,
            schedule,
            plan.guidance,
            processors,
            self.settings.do_sample,
            self._generators_of(which),
            None if plan.image_streamer is None else on_scale,
        )

    # ---- the result

    def _record(self, name: str, value: torch.Tensor | tuple, asked: bool) -> None:
        if asked and self.settings.return_dict_in_generate:
            self.recorded[name].append(value)

    def _record_states(self, outputs) -> None:
        self._record("attentions", outputs.attentions, self.settings.output_attentions)
        self._record("hidden_states", outputs.hidden_states, self.settings.output_hidden_states)

    def sequences(self) -> list[torch.LongTensor]:
        """Each row's prompt and generated tokens, with the placeholders of its images, (length,)."""
        sequences = []
        for row in range(self.num_rows):
            generated = self.visible_ids[row, self.visible_ids.shape[1] - int(self.lengths[row]) :]
            parts, done = [self.prompt_ids[row]], 0
            for length, image in self.drawings[row]:
                parts += [generated[done:length], generated.new_full((len(image),), self.config.output_image_token_id)]
                done = length
            sequences.append(torch.cat([*parts, generated[done:]]))
        return sequences

    def cache(self):
        """The cache, where its columns are those of the sequences: one row or no image, and no unconditional rows."""
        aligned = self.num_rows == 1 or not any(self.drawings)
        return self.llm_rows.cache if aligned and self.llm_rows.mask.shape[0] == self.num_rows else None


def collect(loops: Sequence[VargptDecodingLoop]) -> dict:
    """Fields of `VargptGenerateOutput`, pixels apart, of rows that decoded together or one by one."""
    first = loops[0]
    sequences = [sequence for loop in loops for sequence in loop.sequences()]
    drawings = [drawings for loop in loops for drawings in loop.drawings]
    images, rows, positions, schedule_ids = [], [], [], []
    schedule_of_row = torch.cat([loop.plan.schedule_ids for loop in loops]).tolist()
    for row, of_row in enumerate(drawings):
        grown = first.prompt_length
        for length, image in of_row:
            images.append(image)
            rows.append(row)
            schedule_ids.append(schedule_of_row[row])
            positions.append(grown + length - 1)
            grown += len(image)
    pad_sequence = torch.nn.utils.rnn.pad_sequence
    recorded = {name: tuple(values) if values else None for name, values in first.recorded.items()}
    longest = first.model.model.schedules[0].num_positions

    def ids(values: list[int]) -> torch.LongTensor:
        return torch.tensor(values, dtype=torch.long, device=first.device)

    return {
        **recorded,
        "sequences": pad_sequence(sequences, batch_first=True, padding_value=first.pad_token_id),
        "past_key_values": first.cache() if len(loops) == 1 else None,
        "output_image_codes": pad_sequence(images, batch_first=True, padding_value=NO_CODE) if images else ids([]).view(0, longest),
        "output_image_rows": ids(rows),
        "output_image_positions": ids(positions),
        "output_image_schedule_ids": ids(schedule_ids),
    }


__all__ = ["VargptDecodingLoop", "collect"]
