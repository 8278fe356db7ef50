"""What a case cannot do without: floating-point operations (see `vargpt_hf.operations`), and the bytes of weights and caches that calls read.

Shapes: N images, L codes of one, S scales, P tokens before an image, T tokens of a row, B rows.
"""

from dataclasses import dataclass

import torch
from torch import nn

from vargpt_hf import VargptConfig, VargptForConditionalGeneration
from vargpt_hf.operations import CONDITIONS, ModelParts, Part, decoder_flops, encoder_flops
from vargpt_hf.training.budget import estimate_budget


@dataclass(frozen=True)
class Cost:
    """Operations and bytes of a piece of work; adds up."""

    flops: float = 0
    bytes: float = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.flops + other.flops, self.bytes + other.bytes)

    def __mul__(self, times: float) -> "Cost":
        return Cost(self.flops * times, self.bytes * times)


class Costs:
    """Costs of the parts of a model, whose numbers have `width` bytes."""

    def __init__(self, config: VargptConfig, width: int):
        with torch.device("meta"):
            self.model = VargptForConditionalGeneration(config)
        self.text, self.decoder, self.tokenizer = config.text_config, config.visual_decoder_config, config.image_tokenizer_config
        self.parts, self.width, self.schedule = ModelParts(self.model), width, config.schedules[0]
        self.areas = list(self.schedule.areas)

    def weights_bytes(self) -> int:
        """Weights of all that draws: language model with its embeddings and head, projectors, visual decoder, image tokenizer."""
        reading = [parameter for modules in self.parts.reading_modules() for module in modules for parameter in module.parameters()]
        return self.width * (self.model.num_parameters() - sum(parameter.numel() for parameter in reading))

    def cache_bytes(self, llm_rows: int, columns: int, decoder_rows: int, prompt: int) -> int:
        """Keys and values of both caches, and of the context of a decoder that uses it."""
        own = self._decoder_cache(decoder_rows * self.schedule.num_positions)
        return self._llm_cache(llm_rows * columns) + own + self._context_cache(decoder_rows * prompt)

    # ---- calls

    def llm(self, rows: int, tokens: int, seen: int = 0) -> Cost:
        """One call of the language model on `tokens` tokens of each row after `seen` cached ones, less the head."""
        return self._cost(self.parts.language_model(rows * tokens, seen + tokens)) + Cost(0, self._llm_cache(rows * seen))

    def lm_head(self, tokens: int) -> Cost:
        """The language model's head, once, on this many tokens."""
        return self._cost(self.parts.lm_head(tokens))

    def scale(self, rows: int, index: int, prompt: int) -> Cost:
        """One call of the visual decoder and both projectors for one scale of `rows` images after `prompt` tokens, with a cache."""
        tokens, seen, context = self.areas[index], sum(self.areas[:index]), self._context(prompt)
        projectors = (self.parts.projector_to_llm(rows * tokens), self.parts.projector_to_decoder(rows * tokens))
        decoder = self.parts.visual_decoder(rows * tokens, seen + tokens + context)
        return sum(map(self._cost, (decoder, *projectors)), Cost(0, self._decoder_cache(rows * seen) + self._context_cache(rows * context)))

    def image_start(self, rows: int, read_rows: int, prompt: int) -> Cost:
        """What is computed once for all scales of `rows` images: the conditions' modulations, and of a decoder that uses context its keys.

        Args:
            read_rows: rows whose `prompt` tokens the language model has read, and whose states are projected.
        """
        context = self._context(prompt)
        projected, keys = self.parts.projector_to_decoder(read_rows * context), self.parts.decoder_context(rows * context)
        return self._cost(self.parts.conditions()) + (self._cost(projected) + self._cost(keys) if context else Cost())

    def embedded(self, rows: int, index: int) -> Cost:
        """What the language model is fed at a scale of each row: f̂, or at the first scale a condition."""
        return self._cost(self.parts.embedding(rows * self.areas[index])) if index else self.first_embedded()

    def first_embedded(self) -> Cost:
        """Vectors of both conditions, of a decoder that computes them."""
        named = self.model.model.visual_decoder.named_children()
        return self._cost(Part([m for name, m in named if name.startswith("condition_") and isinstance(m, nn.Linear)], CONDITIONS))

    def quantised(self, images: int, scales: int) -> Cost:
        """What takes codes of the first `scales` scales to f̂: φ, of a tokenizer that has it."""
        if not getattr(self.tokenizer, "num_residual_convs", 0):
            return Cost()
        return self._product(images * self.areas[-1], 9 * self.tokenizer.latent_channels, self.tokenizer.latent_channels) * scales

    def encode(self, images: int) -> Cost:
        """Pixels to codes: the convolutions, and the search in a codebook where there is one."""
        rows = getattr(self.tokenizer, "codebook_size", 0)
        found = self._product(images * self.schedule.num_positions, self.tokenizer.latent_channels, rows)
        way = Cost(images * encoder_flops(self.model), self._bytes("encoder", "quant_conv"))
        return way + found + self.quantised(images, len(self.areas))

    def decode(self, images: int) -> Cost:
        """Codes to pixels."""
        way = Cost(images * decoder_flops(self.model), self._bytes("decoder", "post_quant_conv"))
        return way + self.quantised(images, len(self.areas))

    def drawing(self, llm_rows: int, images: int, prompt: int, alone: int = 0) -> Cost:
        """One image for each of some rows that stand after `prompt` tokens, from image-start to the codes.

        Args:
            llm_rows: rows of the language model that read the images' positions, unconditional prompts among them.
            alone: rows that read each scale alone, as guidance by "scale" has them.
        """
        cost, seen = self.image_start(llm_rows + alone, llm_rows, prompt) + self.quantised(images, len(self.areas)), prompt
        for index, tokens in enumerate(self.areas):
            lead = int(index == 0)  # image-start rides with the first scale
            cost += self.llm(llm_rows, lead + tokens, seen) + self.scale(llm_rows + alone, index, prompt) + self.embedded(llm_rows, index)
            if alone:
                cost += self.llm(alone, tokens) + self.embedded(alone, index)
            seen += lead + tokens
        return cost

    def training_step(self, rows: int, tokens: int) -> Cost:
        """Forward, backward and AdamW of rows that draw one image each, with codes ahead, image tokenizer and what reads frozen."""
        self.model.requires_grad_(True)
        frozen = [module for modules in self.parts.reading_modules() for module in modules]
        for module in (self.model.model.image_tokenizer, *frozen):
            module.requires_grad_(False)
        budget = estimate_budget(self.model, batch_size=rows, sequence_length=tokens, images_to_draw=1, bf16=self.width == 2)
        # Weights are read forward and backward; AdamW reads weights, gradients and both moments and writes all but the gradients.
        step = Cost(budget.flops, (2 + 6) * self.width * budget.trained_parameters)
        return step + self.first_embedded() * 3 + self.quantised(rows, len(self.areas) - 1)

    # ---- bytes

    def _cost(self, part: Part) -> Cost:
        return Cost(part.flops, self.width * part.numbers)

    def _product(self, positions: int, inputs: int, outputs: int) -> Cost:
        return Cost(2 * positions * inputs * outputs, self.width * inputs * outputs)

    def _bytes(self, *names: str) -> int:
        modules = [module for name, module in self.model.model.image_tokenizer.named_children() if name in names]
        return self.width * sum(parameter.numel() for module in modules for parameter in module.parameters())

    def _context(self, prompt: int) -> int:
        """Tokens that the visual decoder attends to before an image."""
        return prompt if self.model.model.visual_decoder.uses_context else 0

    def _llm_cache(self, columns: int) -> int:
        return self.width * columns * self.text.num_hidden_layers * 2 * self.text.num_key_value_heads * self.parts.head_dim

    def _decoder_cache(self, columns: int) -> int:
        return self.width * columns * self.decoder.num_hidden_layers * 2 * self.decoder.hidden_size

    def _context_cache(self, tokens: int) -> int:
        return self.width * tokens * sum(module.out_features for module in self.model.model.visual_decoder.context_modules)
