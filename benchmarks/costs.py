"""What a case cannot do without: floating-point operations and bytes, counted from the configuration.

Operations are those of matrix products, convolutions and attention, two for each multiply-add, attention over all pairs of a call's
queries and keys, as torch's `FlopCounterMode` counts them; what else there is (norms, activations, interpolation) takes memory's time
rather than arithmetic's, and counts as nothing. Bytes are the weights that each call of a part reads, and caches.

Shapes: N images, L codes of one, S scales, T tokens of a row, B rows.
"""

import math
from dataclasses import dataclass

from vargpt_hf import VargptConfig, VargptVQConfig

ATTENTION = 4  # operations of one pair of query and key and one channel: a product each for scores and for values, two operations each


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
    """Costs of the parts of one model, whose numbers have `width` bytes."""

    def __init__(self, config: VargptConfig, width: int):
        self.text, self.decoder, self.vq = config.text_config, config.visual_decoder_config, config.image_tokenizer_config
        self.width = width
        self.schedule = config.schedules[0]
        self.sizes = list(self.schedule.areas)

    def weights_bytes(self) -> int:
        """Weights of all that draws: language model with its embeddings and head, projectors, visual decoder, image tokenizer."""
        embeddings = self.text.vocab_size * self.text.hidden_size * (1 if self.text.tie_word_embeddings else 2)
        decoder = self._decoder_layers() + self._modulations() + self.decoder.hidden_size * self.vq.codebook_size
        vq = self.vq_encoder(1).bytes + self.vq_decoder(1).bytes + 4 * self.vq.codebook_size * self.vq.latent_channels
        return self.width * (embeddings + self._llm_layers() + decoder + self._projectors()) + int(vq)

    def cache_bytes(self, llm_rows: int, columns: int, decoder_rows: int) -> int:
        """Keys and values of both caches."""
        llm = llm_rows * columns * self.text.num_hidden_layers * 2 * self.text.num_key_value_heads * self._head_dim()
        decoder = decoder_rows * self.schedule.num_positions * self.decoder.num_hidden_layers * 2 * self.decoder.hidden_size
        return self.width * (llm + decoder)

    # ---- calls

    def llm(self, rows: int, tokens: int, seen: int = 0) -> Cost:
        """One call of the language model on `tokens` tokens of each row after `seen` cached ones, less the head."""
        pairs, channels = rows * tokens * (seen + tokens), self.text.num_attention_heads * self._head_dim()
        flops = 2 * rows * tokens * self._llm_layers() + ATTENTION * pairs * channels * self.text.num_hidden_layers
        cached = 2 * rows * seen * self.text.num_hidden_layers * self.text.num_key_value_heads * self._head_dim()
        return Cost(flops, self.width * (self._llm_layers() + cached))

    def lm_head(self, tokens: int) -> Cost:
        """The language model's head, once, on this many tokens."""
        return self._linear(tokens, self.text.hidden_size, self.text.vocab_size)

    def scale(self, rows: int, index: int) -> Cost:
        """One call of the visual decoder and both projectors for one scale of `rows` images, with a cache."""
        tokens, seen = self.sizes[index], sum(self.sizes[:index])
        return self._decoder_call(rows, tokens, seen + tokens)

    def image_start(self) -> Cost:
        """What the visual decoder computes once for all scales: the modulations of both conditions."""
        return Cost(2 * 2 * self._modulations(), self.width * self._modulations())

    def quantised(self, images: int, scales: int) -> Cost:
        """φ of the first `scales` scales, which takes codes to f̂."""
        positions = images * self.sizes[-1]
        return self._conv(positions, self.vq.latent_channels, self.vq.latent_channels, 3) * scales

    def vq_encode(self, images: int) -> Cost:
        """Pixels to codes."""
        codebook = self._linear(images * self.schedule.num_positions, self.vq.latent_channels, self.vq.codebook_size)
        return self.vq_encoder(images) + codebook + self.quantised(images, len(self.sizes))

    def vq_decode(self, images: int) -> Cost:
        """Codes to pixels."""
        return self.quantised(images, len(self.sizes)) + self.vq_decoder(images)

    def drawing(self, llm_rows: int, decoder_rows: int, images: int, prompt: int) -> Cost:
        """One image for each of some rows that stand after `prompt` tokens, from image-start to the codes."""
        cost, seen = self.image_start() + self.quantised(images, len(self.sizes)), prompt
        for index, tokens in enumerate(self.sizes):
            lead = int(index == 0)  # image-start rides with the first scale
            cost += self.llm(llm_rows, lead + tokens, seen) + self.scale(decoder_rows, index)
            if index:  # f̂ is embedded for each row that reads it
                cost += self._linear(llm_rows * tokens, self.vq.latent_channels, self.decoder.hidden_size)
            seen += lead + tokens
        return cost

    def training_step(self, rows: int, tokens: int) -> Cost:
        """Forward, backward and AdamW of rows that draw one image each, with codes ahead, image tokenizer and vision tower frozen.

        A backward pass is two products for each of the forward pass; but f̂ needs no gradient, so its embedding has one only.
        """
        positions = self.schedule.num_positions
        parts = self.llm(rows, tokens) + self.lm_head(rows * tokens) + self._decoder_call(rows, positions, positions) + self.image_start()
        embedded = self._linear(rows * (positions - self.sizes[0]), self.vq.latent_channels, self.decoder.hidden_size)
        flops = 3 * parts.flops + 2 * embedded.flops + self.quantised(rows, len(self.sizes) - 1).flops
        # Weights are read forward and backward; AdamW reads weights, gradients and both moments and writes all but the gradients.
        trained = parts.bytes + self.width * self.text.vocab_size * self.text.hidden_size
        return Cost(flops, 2 * parts.bytes + 6 * trained)

    # ---- layers

    def _head_dim(self) -> int:
        return getattr(self.text, "head_dim", None) or self.text.hidden_size // self.text.num_attention_heads

    def _llm_layers(self) -> int:
        """Weights of all layers of the language model."""
        width, heads = self.text.hidden_size, self.text.num_attention_heads + self.text.num_key_value_heads
        return self.text.num_hidden_layers * (2 * width * heads * self._head_dim() + 3 * width * self.text.intermediate_size)

    def _decoder_layers(self) -> int:
        width = self.decoder.hidden_size
        return self.decoder.num_hidden_layers * (4 * width**2 + 2 * width * self.decoder.intermediate_size)

    def _modulations(self) -> int:
        return (6 * self.decoder.num_hidden_layers + 2) * self.decoder.hidden_size**2

    def _projectors(self) -> int:
        narrow, wide = self.decoder.hidden_size, self.text.hidden_size
        return narrow**2 + wide**2 + 2 * narrow * wide

    def _decoder_call(self, rows: int, tokens: int, keys: int) -> Cost:
        """Layers, head and projectors on `tokens` positions of each row, each of which sees `keys` positions."""
        weights = self._decoder_layers() + self.decoder.hidden_size * self.vq.codebook_size + self._projectors()
        attention = ATTENTION * rows * tokens * keys * self.decoder.hidden_size * self.decoder.num_hidden_layers
        cached = 2 * rows * (keys - tokens) * self.decoder.hidden_size * self.decoder.num_hidden_layers
        return Cost(2 * rows * tokens * weights + attention, self.width * (weights + cached))

    def _linear(self, tokens: int, inputs: int, outputs: int) -> Cost:
        return Cost(2 * tokens * inputs * outputs, self.width * inputs * outputs)

    def _conv(self, positions: int, inputs: int, outputs: int, kernel: int) -> Cost:
        return self._linear(positions, kernel**2 * inputs, outputs)

    # ---- image tokenizer

    def vq_encoder(self, images: int) -> Cost:
        """Pixels to latents."""
        vq, widths, last = self.vq, _widths(self.vq), len(self.vq.channel_multipliers) - 1
        positions = images * math.prod(vq.image_size())
        cost, inputs = self._conv(positions, vq.in_channels, widths[0], 3), widths[0]
        for level, width in enumerate(widths):
            for _ in range(vq.num_res_blocks):
                cost, inputs = cost + self._block(positions, inputs, width), width
                cost += self._attention(images, width) if level == last else Cost()
            if level < last:
                positions //= 4
                cost += self._conv(positions, width, width, 3)
        return cost + self._middle(images, inputs) + self._conv(positions, inputs, vq.latent_channels, 3) + self._quant_conv(positions)

    def vq_decoder(self, images: int) -> Cost:
        """Latents to pixels."""
        vq, widths, last = self.vq, _widths(self.vq), len(self.vq.channel_multipliers) - 1
        positions, inputs = images * self.sizes[-1], widths[-1]
        cost = self._quant_conv(positions) + self._conv(positions, vq.latent_channels, inputs, 3) + self._middle(images, inputs)
        for level, width in reversed(list(enumerate(widths))):
            for _ in range(vq.num_res_blocks + 1):
                cost, inputs = cost + self._block(positions, inputs, width), width
                cost += self._attention(images, width) if level == last else Cost()
            if level:
                positions *= 4
                cost += self._conv(positions, width, width, 3)
        return cost + self._conv(positions, inputs, vq.in_channels, 3)

    def _quant_conv(self, positions: int) -> Cost:
        return self._conv(positions, self.vq.latent_channels, self.vq.latent_channels, self.vq.quant_conv_kernel_size)

    def _block(self, positions: int, inputs: int, width: int) -> Cost:
        shortcut = Cost() if inputs == width else self._conv(positions, inputs, width, 1)
        return self._conv(positions, inputs, width, 3) + self._conv(positions, width, width, 3) + shortcut

    def _attention(self, images: int, width: int) -> Cost:
        positions = self.sizes[-1]
        projections = self._conv(images * positions, width, 4 * width, 1)
        return projections + Cost(ATTENTION * images * positions**2 * width)

    def _middle(self, images: int, width: int) -> Cost:
        return self._block(images * self.sizes[-1], width, width) * 2 + self._attention(images, width)


def _widths(vq: VargptVQConfig) -> list[int]:
    return [vq.base_channels * multiplier for multiplier in vq.channel_multipliers]
