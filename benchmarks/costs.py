"""What a case cannot do without: floating-point operations (see `vargpt_hf.operations`), and the bytes of weights and caches that calls read.

Shapes: N images, L codes of one, S scales, T tokens of a row, B rows.
"""

from dataclasses import dataclass

import torch

from vargpt_hf import VargptConfig, VargptForConditionalGeneration
from vargpt_hf.operations import ModelParts, Part, decoder_flops, encoder_flops
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
    """Costs of the parts of a model of VAR's kind, whose numbers have `width` bytes."""

    def __init__(self, config: VargptConfig, width: int):
        with torch.device("meta"):
            self.model = VargptForConditionalGeneration(config)
        self.text, self.decoder, self.vq = config.text_config, config.visual_decoder_config, config.image_tokenizer_config
        self.parts, self.width, self.schedule = ModelParts(self.model), width, config.schedules[0]
        self.sizes = list(self.schedule.areas)

    def weights_bytes(self) -> int:
        """Weights of all that draws: language model with its embeddings and head, projectors, visual decoder, image tokenizer."""
        reading = [parameter for modules in self.parts.reading_modules() for module in modules for parameter in module.parameters()]
        return self.width * (self.model.num_parameters() - sum(parameter.numel() for parameter in reading))

    def cache_bytes(self, llm_rows: int, columns: int, decoder_rows: int) -> int:
        """Keys and values of both caches."""
        return self._llm_cache(llm_rows * columns) + self._decoder_cache(decoder_rows * self.schedule.num_positions)

    # ---- calls

    def llm(self, rows: int, tokens: int, seen: int = 0) -> Cost:
        """One call of the language model on `tokens` tokens of each row after `seen` cached ones, less the head."""
        return self._cost(self.parts.language_model(rows * tokens, seen + tokens)) + Cost(0, self._llm_cache(rows * seen))

    def lm_head(self, tokens: int) -> Cost:
        """The language model's head, once, on this many tokens."""
        return self._cost(self.parts.lm_head(tokens))

    def scale(self, rows: int, index: int) -> Cost:
        """One call of the visual decoder and both projectors for one scale of `rows` images, with a cache."""
        tokens, seen = self.sizes[index], sum(self.sizes[:index])
        projectors = (self.parts.projector_to_llm(rows * tokens), self.parts.projector_to_decoder(rows * tokens))
        decoder = self.parts.visual_decoder(rows * tokens, seen + tokens)
        return sum(map(self._cost, (decoder, *projectors)), Cost(0, self._decoder_cache(rows * seen)))

    def image_start(self) -> Cost:
        """What the visual decoder computes once for all scales: the modulations of both conditions."""
        return self._cost(self.parts.conditions())

    def quantised(self, images: int, scales: int) -> Cost:
        """φ of the first `scales` scales, which takes codes to f̂."""
        return self._product(images * self.sizes[-1], 9 * self.vq.latent_channels, self.vq.latent_channels) * scales

    def vq_encode(self, images: int) -> Cost:
        """Pixels to codes."""
        codebook = self._product(images * self.schedule.num_positions, self.vq.latent_channels, self.vq.codebook_size)
        way = Cost(images * encoder_flops(self.model), self._bytes("encoder", "quant_conv"))
        return way + codebook + self.quantised(images, len(self.sizes))

    def vq_decode(self, images: int) -> Cost:
        """Codes to pixels."""
        way = Cost(images * decoder_flops(self.model), self._bytes("decoder", "post_quant_conv"))
        return way + self.quantised(images, len(self.sizes))

    def drawing(self, llm_rows: int, decoder_rows: int, images: int, prompt: int) -> Cost:
        """One image for each of some rows that stand after `prompt` tokens, from image-start to the codes."""
        cost, seen = self.image_start() + self.quantised(images, len(self.sizes)), prompt
        for index, tokens in enumerate(self.sizes):
            lead = int(index == 0)  # image-start rides with the first scale
            cost += self.llm(llm_rows, lead + tokens, seen) + self.scale(decoder_rows, index)
            if index:  # f̂ is embedded for each row that reads it
                cost += self._cost(self.parts.embedding(llm_rows * tokens))
            seen += lead + tokens
        return cost

    def training_step(self, rows: int, tokens: int) -> Cost:
        """Forward, backward and AdamW of rows that draw one image each, with codes ahead, image tokenizer and vision tower frozen."""
        self.model.requires_grad_(True)
        frozen = [module for modules in self.parts.reading_modules() for module in modules]
        for module in (self.model.model.image_tokenizer, *frozen):
            module.requires_grad_(False)
        budget = estimate_budget(self.model, batch_size=rows, sequence_length=tokens, images_to_draw=1, bf16=self.width == 2)
        # Weights are read forward and backward; AdamW reads weights, gradients and both moments and writes all but the gradients.
        return Cost(budget.flops, (2 + 6) * self.width * budget.trained_parameters) + self.quantised(rows, len(self.sizes) - 1)

    # ---- bytes

    def _cost(self, part: Part) -> Cost:
        return Cost(part.flops, self.width * part.numbers)

    def _product(self, positions: int, inputs: int, outputs: int) -> Cost:
        return Cost(2 * positions * inputs * outputs, self.width * inputs * outputs)

    def _bytes(self, *names: str) -> int:
        modules = [self.model.model.image_tokenizer.get_submodule(name) for name in names]
        return self.width * sum(parameter.numel() for module in modules for parameter in module.parameters())

    def _llm_cache(self, columns: int) -> int:
        return self.width * columns * self.text.num_hidden_layers * 2 * self.text.num_key_value_heads * self.parts.head_dim

    def _decoder_cache(self, columns: int) -> int:
        return self.width * columns * self.decoder.num_hidden_layers * 2 * self.decoder.hidden_size
