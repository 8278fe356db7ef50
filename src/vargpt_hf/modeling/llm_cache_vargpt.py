"""Rows in the language model: their mask, positions and cache, and what a decoder that uses context has to know of them.

Rows draw at different times: where some do, the others take masked columns of the cache. A row's positions come from its own mask, so that
its result does not depend on its neighbors.

Shapes: B rows, R rows in the language model's batch (B, or 2B where unconditional rows ride along below them), N images drawn together, M
rows that draw them (N or 2N), l positions of one scale, D width of the language model.
"""

import copy

import torch
from torch.nn.functional import pad
from transformers import GenerationConfig


class LLMRows:
    """Prefilled rows.

    Args:
        model: the model whose `generate` runs.
        mask: 1 where a column of the cache counts, (R, columns).
        positions: next position of each row, (R,).
        cache: the language model's.
        num_rows: B.
        context: the language model's hidden states of all columns, (R, columns, D), where the visual decoder uses them.
    """

    def __init__(self, model, mask: torch.LongTensor, positions: torch.LongTensor, cache, num_rows: int, context: torch.Tensor | None = None):
        self.model = model
        self.mask = mask
        self.positions = positions
        self.cache = cache
        self.num_rows = num_rows
        self.context = context
        self.prompt_columns = mask.shape[1]
        self.start_positions = positions
        self.start_is_fed = torch.zeros(num_rows, dtype=torch.bool, device=mask.device)

    @classmethod
    def prefill(cls, model, input_ids: torch.LongTensor, settings: GenerationConfig, model_kwargs: dict, unconditional: bool):
        """Runs the prompts, and unconditional ones below them where these ride along.

        Returns:
            The rows, and the model's output for all of them.

        Raises:
            ValueError: unconditional rows that cannot ride from the start, or have no prompt.
        """
        num_rows = input_ids.shape[0]
        mask, positions = cls._prompt_state(input_ids, settings, model_kwargs)
        if unconditional:
            input_ids, mask, positions = cls._add_unconditional(model, input_ids, mask, positions, settings, model_kwargs)
        model_kwargs["attention_mask"] = None if mask.all() else mask
        uses_context = model.model.visual_decoder.uses_context and settings.max_output_images > 0
        if uses_context and model_kwargs["past_key_values"].get_seq_length() > 0:
            raise ValueError("The visual decoder attends to the whole prompt, of which a filled cache has no hidden states: give no cache.")
        outputs = model._prefill(input_ids, settings, {**model_kwargs, "output_last_hidden_state": uses_context}, is_first_iteration=True)
        return cls(model, mask, positions, outputs.past_key_values, num_rows, outputs.last_hidden_state if uses_context else None), outputs

    @staticmethod
    def _prompt_state(input_ids: torch.LongTensor, settings: GenerationConfig, model_kwargs: dict) -> tuple[torch.LongTensor, torch.LongTensor]:
        """Mask (B, columns) of what the cache will hold after the prompt, and the next position of each row (B,)."""
        positions = model_kwargs["position_ids"].to(input_ids.device)
        positions = (positions.amax(0) if positions.ndim == 3 else positions).amax(-1) + 1
        positions = positions.expand(input_ids.shape[0])
        mask = model_kwargs.get("attention_mask")
        if mask is None:  # Transformers drops a mask of ones
            mask = torch.ones(input_ids.shape[0], settings._mask_length, dtype=torch.long, device=input_ids.device)
        return mask.to(input_ids.device), positions

    @staticmethod
    def _add_unconditional(
        model,
        input_ids: torch.LongTensor,
        mask: torch.LongTensor,
        positions: torch.LongTensor,
        settings: GenerationConfig,
        model_kwargs: dict,
    ) -> tuple[torch.LongTensor, torch.LongTensor, torch.LongTensor]:
        """Puts B rows with the unconditional prompt below the others, padded on the left; returns tokens, mask, next positions of all."""
        if model_kwargs.get("inputs_embeds") is not None or model_kwargs["past_key_values"].get_seq_length() > 0:
            raise ValueError(
                'Guidance by "prompt" needs the whole prompt as `input_ids`: unconditional rows must ride from the start. '
                'Give `input_ids` without `inputs_embeds` or a filled cache, or set `output_image_guidance_type="none"`.'
            )
        ids = settings.output_image_unconditional_ids
        if ids is None:
            if settings._bos_token_tensor is None:
                raise ValueError('Guidance by "prompt" needs `output_image_unconditional_ids`: the model has no `bos_token_id`.')
            ids = [int(settings._bos_token_tensor)]
        num_rows, length = input_ids.shape
        columns = max(len(ids), length)
        filler = 0 if settings._pad_token_tensor is None else int(settings._pad_token_tensor)

        def below(rows: torch.Tensor, value: int, extra: torch.Tensor) -> torch.Tensor:
            """`rows` (…, B, T) padded on the left to all columns, over `extra` (len(ids),) for each row."""
            extra = extra.expand(*rows.shape[:-2], num_rows, -1)
            return torch.cat([pad(part, (columns - part.shape[-1], 0), value=value) for part in (rows, extra)], dim=-2)

        prompt = torch.tensor(ids, device=input_ids.device)
        ones = torch.ones_like(prompt)
        counted, after = model.model.backbone.positions(prompt[None], ones[None])
        for name, value in model_kwargs.items():
            if name.endswith("token_type_ids") and value is not None:
                model_kwargs[name] = below(value, 0, torch.zeros_like(prompt, dtype=value.dtype))
        positions_of_prompt = model_kwargs["position_ids"]
        model_kwargs["position_ids"] = below(positions_of_prompt.expand(*positions_of_prompt.shape[:-2], num_rows, -1), 0, counted)
        positions = torch.cat([positions, after.expand(num_rows)])
        return below(input_ids, filler, prompt), below(mask, 0, ones), positions

    def singly(self) -> list["LLMRows"]:
        """Each row by itself, with a copy of its cache."""
        parts = []
        for row in range(self.num_rows):
            chosen = torch.tensor([row], device=self.mask.device)
            cache = copy.deepcopy(self.cache)
            cache.reorder_cache(chosen)
            context = None if self.context is None else self.context[chosen]
            parts.append(LLMRows(self.model, self.mask[chosen], self.positions[chosen], cache, 1, context))
        return parts

    def feed(self, tokens: torch.LongTensor, active: torch.BoolTensor, **outputs_wanted):
        """Feeds each active row (B,) one of the tokens (B,); returns the model's output, next-token logits and all."""
        ids = torch.zeros(self.mask.shape[0], 1, dtype=torch.long, device=self.mask.device)
        ids[: self.num_rows, 0] = tokens
        seen = torch.zeros_like(self.positions)
        seen[: self.num_rows] = active.long()
        self.mask = torch.cat([self.mask, seen[:, None]], dim=1)
        inputs = self.model.prepare_inputs_for_generation(
            ids,
            past_key_values=self.cache,
            attention_mask=self.mask,
            position_ids=self.positions[:, None],
            use_cache=True,
            logits_to_keep=1,
            output_last_hidden_state=self.context is not None,
            **outputs_wanted,
        )
        outputs = self.model(**inputs, return_dict=True)
        self._remember(outputs.last_hidden_state)
        self.positions = self.positions + seen
        return outputs

    def begin_drawing(self, which: torch.LongTensor, unconditional: bool) -> tuple[torch.LongTensor, torch.BoolTensor]:
        """The rows (M,) that draw images of the rows `which` (N,), and which of all (R,) are still to be fed image-start."""
        llm_rows = torch.cat([which, which + self.num_rows]) if unconditional else which
        starting = torch.zeros(self.mask.shape[0], dtype=torch.bool, device=self.mask.device)
        starting[llm_rows] = True
        starting[: self.num_rows] &= ~self.start_is_fed
        return llm_rows, starting

    def scale_pass(self, embeds: torch.Tensor, llm_rows: torch.LongTensor, starting: torch.BoolTensor | None = None) -> torch.Tensor:
        """One call of the language model for one scale.

        Args:
            embeds: projected tokens of the scale, (M, l, D).
            llm_rows: their rows in the language model's batch, (M,).
            starting: rows (R,) whose image-start token is fed in front of them.

        Returns:
            Last hidden states of the scale's positions, (M, l, D).
        """
        lead = int(starting is not None and bool(starting.any()))
        inputs = embeds.new_zeros(self.mask.shape[0], lead + embeds.shape[1], embeds.shape[2])
        seen = torch.zeros(inputs.shape[:2], dtype=torch.long, device=embeds.device)
        if lead:
            start = torch.tensor(self.model.config.output_image_start_token_id, device=embeds.device)
            inputs[:, 0] = self.model.get_input_embeddings()(start)
            seen[:, 0] = starting
        inputs[llm_rows, lead:] = embeds
        seen[llm_rows, lead:] = 1
        self.mask = torch.cat([self.mask, seen], dim=1)
        positions = self.positions[:, None] + (seen.cumsum(1) - 1).clamp(min=0)
        following = self.positions + seen.sum(1)
        if self.model.config.plain_positions:
            counted = self.mask.cumsum(1)[:, -seen.shape[1] :]
            positions[:, lead:] = (counted[:, lead:] - 1).clamp(min=0)
            following = torch.where(seen[:, -1].bool(), counted[:, -1], following)
        hidden_states = self.model.model.backbone.draw(inputs, self.mask, positions, self.cache)
        self.positions = following
        self._remember(hidden_states)
        return hidden_states[llm_rows, lead:]

    def _remember(self, hidden_states: torch.Tensor | None) -> None:
        """Keeps hidden states (R, l, D) of the latest columns, where the visual decoder uses them."""
        if self.context is not None:
            self.context = torch.cat([self.context, hidden_states], dim=1)

    def context_of(self, llm_rows: torch.LongTensor) -> tuple[torch.Tensor, torch.LongTensor] | None:
        """Hidden states (M, P, D) of what each row has read before image-start, and their mask (M, P); None where the decoder uses none."""
        if self.context is None:
            return None
        mask = self.mask[llm_rows].clone()
        fed = torch.cat([self.start_is_fed, self.start_is_fed.new_zeros(self.mask.shape[0] - self.num_rows)])[llm_rows]
        last = mask.shape[1] - 1 - mask.flip(1).argmax(1)  # the latest column that counts, image-start where that is fed
        mask[fed, last[fed]] = 0
        return self.context[llm_rows], mask

    def end_drawing(self, which: torch.LongTensor) -> None:
        """After images of the rows `which` (N,): what guided them is forgotten, as every image is guided by the unconditional prompt alone."""
        self.start_is_fed[which] = False
        if self.mask.shape[0] > self.num_rows:
            self.mask[self.num_rows :, self.prompt_columns :] = 0
            self.positions[self.num_rows :] = self.start_positions[self.num_rows :]


__all__ = ["LLMRows"]
