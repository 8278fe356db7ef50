"""What the models and `generate` return.

Shapes: B rows, T tokens of a row, N images to draw in the whole batch (in reading order, row by row), L positions of one image (of the
longest, where their schedules differ), M positions of all images, K symbols of a code, V classes of a symbol, D width of the language
model, P tokens of context before an image.
"""

from dataclasses import dataclass

import torch
from transformers.cache_utils import Cache
from transformers.generation import GenerateDecoderOnlyOutput
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils import ModelOutput


@dataclass
class VargptModelOutputWithPast(BaseModelOutputWithPast):
    """Hidden states of VARGPT.

    Args:
        last_hidden_state (`torch.Tensor` of shape `(B, T, D)`): the language model's, after its final norm.
        image_hidden_states: features of the images that are read, as the backbone hands them back.
        output_images (`VargptOutputImages`): the images to draw, and their hidden states.
    """

    image_hidden_states: torch.Tensor | None = None
    output_images: "VargptOutputImages | None" = None


@dataclass
class VargptOutputImages(ModelOutput):
    """Images to draw, N of them in reading order.

    Args:
        codes (`torch.LongTensor` of shape `(N, L)`): their codes, `NO_CODE` behind those of images with fewer positions.
        inputs (`torch.Tensor` of shape `(N, L − l₀, Cz)`): what the visual decoder is fed after the first scale, zeros behind.
        schedule_ids (`torch.LongTensor` of shape `(N,)`): index of each one's scale schedule.
        num_scales (`torch.LongTensor` of shape `(N,)`): how many scales of each there are, the coarsest ones; None: all.
        condition_ids (`torch.LongTensor` of shape `(N,)`): their conditions.
        hidden_states (`torch.Tensor` of shape `(M, D)`): the language model's, at their positions.
        context (`torch.Tensor` of shape `(N, P, D)`), context_mask (`torch.LongTensor` of shape `(N, P)`): hidden states of the tokens
            before each image, where the visual decoder uses them.
    """

    codes: torch.LongTensor | None = None
    inputs: torch.Tensor | None = None
    schedule_ids: torch.LongTensor | None = None
    num_scales: torch.LongTensor | None = None
    condition_ids: torch.LongTensor | None = None
    hidden_states: torch.Tensor | None = None
    context: torch.Tensor | None = None
    context_mask: torch.LongTensor | None = None


@dataclass
class VargptCausalLMOutputWithPast(ModelOutput):
    """Predictions and losses of VARGPT.

    Args:
        loss (scalar): `text_loss_weight · text_loss + image_loss_weight · output_image_loss`, of the losses that there are.
        text_loss (scalar): cross-entropy of the next token, over labels that are not -100.
        output_image_loss (scalar): cross-entropy of the symbols of the images to draw.
        logits (`torch.Tensor` of shape `(B, T, vocabulary)`): next-token scores.
        output_image_logits (`torch.Tensor` of shape `(N, L, K, V)`): scores of the codes' symbols, each at its own position.
        output_image_codes (`torch.LongTensor` of shape `(N, L)`): codes of the images to draw.
        output_image_inputs (`torch.Tensor` of shape `(N, L − l₀, Cz)`): what was fed for them; where the image tokenizer corrects itself in
            training, codes alone do not tell. With the codes, it makes another pass see the same.
        image_hidden_states: features of the images that are read.
        last_hidden_state (`torch.Tensor` of shape `(B, T, D)`): the language model's, where `output_last_hidden_state=True` asks for it.
    """

    loss: torch.Tensor | None = None
    text_loss: torch.Tensor | None = None
    output_image_loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    output_image_logits: torch.Tensor | None = None
    output_image_codes: torch.LongTensor | None = None
    output_image_inputs: torch.Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    image_hidden_states: torch.Tensor | None = None
    last_hidden_state: torch.Tensor | None = None


@dataclass
class VargptGenerateOutput(GenerateDecoderOnlyOutput):
    """What `generate(return_dict_in_generate=True)` returns.

    Args:
        sequences (`torch.LongTensor` of shape `(B, P + generated)`): prompts as given, then what was generated, padded on the
            right. An image stands as image-start, a placeholder for each position, image-end, so that it can be fed back with its codes.
        output_image_codes (`torch.LongTensor` of shape `(images, L)`): codes of the drawn images, row by row in drawing order; `NO_CODE`
            behind those of images with fewer positions.
        output_image_schedule_ids (`torch.LongTensor` of shape `(images,)`): scale schedule of each image.
        output_image_rows (`torch.LongTensor` of shape `(images,)`): row of each image.
        output_image_positions (`torch.LongTensor` of shape `(images,)`): index of its image-start token in `sequences`.
        output_images (`torch.Tensor` of shape `(images, channels, height, width)`): the images in [-1, 1]; a list where sizes differ.
        past_key_values: the cache, where its columns are those of `sequences` (one row, or no image; no guidance by prompt).
        scores, logits, hidden_states, attentions: of the text steps, as in Transformers; scale passes leave none.
    """

    output_image_codes: torch.LongTensor | None = None
    output_image_schedule_ids: torch.LongTensor | None = None
    output_image_rows: torch.LongTensor | None = None
    output_image_positions: torch.LongTensor | None = None
    output_images: torch.Tensor | list[torch.Tensor] | None = None


__all__ = ["VargptCausalLMOutputWithPast", "VargptGenerateOutput", "VargptModelOutputWithPast", "VargptOutputImages"]
