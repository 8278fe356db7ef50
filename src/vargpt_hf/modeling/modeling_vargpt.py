"""VARGPT: a causal language model that reads images and draws them (arXiv 2501.12327).

This file is the wiring of a family: which vision-language model reads, and which image tokenizer and visual decoder draw, is the
configuration's choice, and each is met through its face alone (backbone_vargpt.py, image_tokenizer_vargpt.py, visual_decoder_vargpt.py).

Shapes: B rows, T tokens of a row, N images to draw in the whole batch (in reading order, row by row), L positions of one image (of the
longest, where their schedules differ), M positions of all images, K symbols of a code, V classes of a symbol, D width of the language
model, C width of the visual decoder, P tokens of context before an image.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from huggingface_hub import create_repo
from torch import nn
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling
from transformers.modeling_utils import slice_logits_to_keep
from transformers.processing_utils import ProcessorMixin, Unpack
from transformers.utils import TransformersKwargs, logging, torch_compilable_check
from transformers.utils.generic import can_return_tuple

from .backbone_vargpt import VargptBackbone
from .configuration_vargpt import IMAGE_TOKENIZERS, VISUAL_DECODERS, VargptConfig
from .generation_vargpt import VargptGenerationMixin
from .losses_vargpt import IGNORE_INDEX, VargptLossMixin
from .output_images_vargpt import VargptOutputImagesMixin
from .outputs_vargpt import VargptCausalLMOutputWithPast, VargptModelOutputWithPast, VargptOutputImages
from .pretrained_vargpt import VargptPreTrainedModel
from .scales_vargpt import ScaleSchedule
from .visual_decoder_vargpt import VargptProjector

logger = logging.get_logger(__name__)


class VargptModel(VargptPreTrainedModel, VargptOutputImagesMixin):
    """What reads, what draws, and the projectors between them; no head for text."""

    _keys_to_ignore_on_load_unexpected = [r"^lm_head\.weight$"]  # a whole model's checkpoint serves this one too

    def __init__(self, config: VargptConfig):
        super().__init__(config)
        self.vlm = VargptBackbone.build(config.vlm_config)
        width, decoder_width = config.text_config.hidden_size, config.visual_decoder_config.hidden_size
        self.image_tokenizer = IMAGE_TOKENIZERS[config.image_tokenizer_config.model_type](config.image_tokenizer_config)
        self.visual_decoder = VISUAL_DECODERS[config.visual_decoder_config.model_type](config.visual_decoder_config)
        self.projector_to_llm = VargptProjector(decoder_width, width)
        self.projector_to_decoder = VargptProjector(width, decoder_width)
        if not self.backbone.reads_images:
            self.input_modalities = ("text",)
        self.post_init()

    @property
    def backbone(self) -> VargptBackbone:
        """The face of what reads."""
        return VargptBackbone(self.vlm)

    def get_input_embeddings(self) -> nn.Module:
        return self.vlm.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.vlm.set_input_embeddings(value)

    def get_decoder(self) -> nn.Module:
        """The language model inside of what reads."""
        return self.backbone.decoder

    @property
    def get_image_features(self) -> Callable[..., tuple | BaseModelOutputWithPooling]:
        """Features of images that are read: the backbone's own method, from whose signature `generate` sees what goes with the pixels."""
        method = self.vlm.get_image_features
        return method if self.config.return_dict else partial(method, return_dict=False)

    # ---- where images stand

    def get_placeholder_mask(self, input_ids: torch.LongTensor | None, inputs_embeds: torch.Tensor | None, token_id: int) -> torch.BoolTensor:
        """Where `token_id` stands, (B, T); found by its embedding where only `inputs_embeds` are given."""
        if input_ids is not None:
            return input_ids == token_id
        token = torch.full((), token_id, dtype=torch.long, device=inputs_embeds.device)
        return (inputs_embeds == self.get_input_embeddings()(token)).all(-1)

    def _check_placeholders(self, drawn: torch.BoolTensor, images: VargptOutputImages) -> None:
        """Raises a ValueError unless the text has as many placeholders of drawn images as the images have positions."""
        expected = self.num_positions(images.schedule_ids, images.num_scales)
        torch_compilable_check(
            drawn.sum() == expected.sum(),
            lambda: (
                f"The text has {int(drawn.sum())} placeholders of images to draw, but {len(expected)} images were given, which "
                f"fill {int(expected.sum())} ({', '.join(map(str, sorted(set(expected.tolist())))) or '0'} each): let the processor write the "
                "placeholders, and give as many images as the text has."
            ),
        )

    def _check_no_placeholders(self, input_ids: torch.LongTensor, token_id: int | None, kind: str, argument: str) -> None:
        if token_id is not None:
            found = input_ids == token_id
            torch_compilable_check(
                ~found.any(),
                lambda: f"The text has {int(found.sum())} placeholders of images to {kind}, but no images were given: pass {argument}.",
            )

    def _context(
        self,
        hidden_states: torch.Tensor,
        drawn: torch.BoolTensor,
        mask: torch.Tensor | None,
        position_ids: torch.LongTensor | None,
        images: VargptOutputImages,
    ) -> tuple[torch.Tensor, torch.LongTensor]:
        """Hidden states (N, P, D) of all tokens before each image's start, padded on the right, and their mask (N, P).

        Of rows that lie end to end in one, where positions begin anew, each image has those of its own row.
        """
        if not len(images.schedule_ids):
            return hidden_states.new_zeros(0, 1, hidden_states.shape[-1]), drawn.new_zeros(0, 1, dtype=torch.long)
        ends = self.num_positions(images.schedule_ids, images.num_scales).cumsum(0)
        firsts = drawn.flatten().nonzero().squeeze(1)[torch.cat([ends.new_zeros(1), ends[:-1]])]
        rows, columns = firsts // drawn.shape[1], firsts % drawn.shape[1]
        seen = torch.arange(drawn.shape[1], device=drawn.device) < columns[:, None] - 1
        if mask is not None:
            seen &= mask[rows, : drawn.shape[1]].bool()
        elif position_ids is not None and position_ids.ndim == 2:  # by which Transformers' masks keep packed rows apart
            begins = torch.ones_like(drawn)
            begins[:, 1:] = position_ids[:, 1:] != position_ids[:, :-1] + 1
            packed = begins.cumsum(1)
            seen &= packed[rows] == packed[rows, columns][:, None]
        lengths = seen.sum(1, keepdim=True)
        longest = int(lengths.max())
        # One gather for all images: slicing per image would give each slice a gradient as large as the whole batch.
        positions = seen.int().argsort(dim=1, descending=True, stable=True)[:, :longest]
        there = torch.arange(longest, device=drawn.device) < lengths
        context = hidden_states[rows[:, None], positions].masked_fill(~there[..., None], 0)
        return context, there.long()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        output_pixel_values: torch.Tensor | None = None,
        output_image_codes: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        output_image_condition_ids: torch.LongTensor | None = None,
        output_image_schedule_ids: torch.LongTensor | None = None,
        output_image_num_scales: torch.LongTensor | None = None,
        output_image_inputs: torch.Tensor | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        scores_images: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | VargptModelOutputWithPast:
        """Hidden states of a batch in which any row may read images, draw images, both or neither.

        Args:
            input_ids: tokens, (B, T), with placeholders where images stand.
            pixel_values: images that are read, as the backbone's own processor gives them; what else it gives goes into `kwargs`.
            output_pixel_values: images to draw in [-1, 1], (N, channels, height, width), in reading order; padded at the right and bottom
                where their schedules differ.
            output_image_codes: the same images as codes, (N, L), in place of `output_pixel_values`.
            attention_mask: 1 where a token counts, (B, T), padding on either side.
            position_ids: (B, T), or (3, B, T) for backbones with positions in time, height and width; computed by default.
            past_key_values, inputs_embeds: as in every causal model.
            output_image_condition_ids: condition of each image to draw, (N,); drawn by `condition_dropout` by default.
            output_image_schedule_ids: scale schedule of each image to draw, (N,); the first one by default.
            output_image_num_scales: how many scales of each image to draw stand in the text, (N,), the coarsest ones; all by default. What
                is given of an image is whole all the same.
            output_image_inputs: with `output_image_codes`, what is fed for them, (N, L − l₀, Cz), as an earlier call handed it out; made of
                the codes by default.
            mm_encoder_outputs: result of `get_image_features` under "image", in place of `pixel_values`.
            scores_images: whether the caller continues to the scores of images to draw, as the whole model does.

        A tensor of no images, such as `pixel_values` (0, 3, height, width), says what None does, but the parts that images of
        this kind go through run all the same: see `at_least_one` in output_images_vargpt.py. So does `blank_image` among `kwargs`, for any
        backbone: what its processor makes of one image, which no text shows.

        Raises:
            ValueError: placeholders and images that differ in number, for either kind; codes of another image tokenizer;
                pixels of another size; contradicting arguments.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give exactly one of `input_ids` and `inputs_embeds`.")
        if pixel_values is not None and mm_encoder_outputs is not None:
            raise ValueError("Give images to read as `pixel_values` or as `mm_encoder_outputs`, not as both.")
        several = (inputs_embeds if input_ids is None else input_ids).shape[1] > 1
        if several and input_ids is not None and pixel_values is None and not mm_encoder_outputs:
            self._check_no_placeholders(input_ids, self.config.image_token_id, "read", "`pixel_values`")
        prepared = self.prepare_output_images(
            output_pixel_values,
            output_image_codes,
            output_image_schedule_ids,
            output_image_condition_ids,
            output_image_inputs,
            output_image_num_scales,
        )
        drawn, images, embeds = None, None, None
        if prepared is not None:
            images, embeds = prepared
            drawn = self.get_placeholder_mask(input_ids, inputs_embeds, self.config.output_image_token_id)
            self._check_placeholders(drawn, images)
        elif several and input_ids is not None:
            self._check_no_placeholders(input_ids, self.config.output_image_token_id, "draw", "`output_pixel_values` or `output_image_codes`")
        reading = {"pixel_values": pixel_values, "mm_encoder_outputs": mm_encoder_outputs, **kwargs}
        if images is not None and self.training and not scores_images:
            logger.warning_once(
                "Images to draw were given to the inner model, which scores none of them: nothing about drawing is learned from this. TRL's "
                "SFTTrainer trains so unless vargpt_hf.training.targets.CountsTargets stands before it among a subclass's bases; "
                "VargptSFTTrainer trains both."
            )
        outputs = self._read(input_ids, inputs_embeds, drawn, embeds, attention_mask, position_ids, past_key_values, reading)
        if images is not None:
            images.hidden_states = outputs.last_hidden_state[drawn]
            if self.visual_decoder.uses_context:
                images.context, images.context_mask = self._context(outputs.last_hidden_state, drawn, attention_mask, position_ids, images)
        return VargptModelOutputWithPast(
            last_hidden_state=outputs.last_hidden_state,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=getattr(outputs, "image_hidden_states", None),
            output_images=images,
        )

    def _positions(
        self,
        input_ids: torch.LongTensor | None,
        tokens: torch.Tensor,
        attention_mask: torch.Tensor | None,
        past_key_values: Cache | None,
        reading: dict,
    ) -> torch.LongTensor | None:
        """Positions of `tokens` (B, T, …), the last ones of all that the mask covers; None leaves them to the backbone."""
        backbone, past = self.backbone, 0 if past_key_values is None else past_key_values.get_seq_length()
        if self.config.plain_positions:
            input_ids, reading = None, {}
        elif past and backbone.counts_grids:
            raise ValueError(f"A {backbone.model_type!r} model cannot tell where the images before a filled cache end: give `position_ids`.")
        if attention_mask is None and not past:
            attention_mask = torch.ones(tokens.shape[:2], dtype=torch.long, device=tokens.device)
        if not isinstance(attention_mask, torch.Tensor) or attention_mask.ndim != 2:
            return None
        return backbone.positions(None if past else input_ids, attention_mask, **reading)[0][..., -tokens.shape[1] :]

    def _read(
        self,
        input_ids: torch.LongTensor | None,
        inputs_embeds: torch.Tensor | None,
        drawn: torch.BoolTensor | None,
        drawn_embeds: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        position_ids: torch.LongTensor | None,
        past_key_values: Cache | None,
        reading: dict,
    ) -> BaseModelOutputWithPast:
        """One pass of the backbone; `reading` holds what it takes beyond tokens, `None` where something is not given."""
        backbone = self.backbone
        reading = {name: value for name, value in reading.items() if value is not None}
        blank_image = reading.pop("blank_image", None)
        backbone.check_images(reading)
        tokens = inputs_embeds if input_ids is None else input_ids
        if position_ids is None:
            position_ids = self._positions(input_ids, tokens, attention_mask, past_key_values, reading)
        if (pixels := reading.get("pixel_values")) is not None and not len(pixels):
            if needed := backbone.needed_beside_pixels:
                raise ValueError(f"`pixel_values` of no images cannot stand beside {', '.join(sorted(needed))}: leave out all of them.")
            blank_image = {"pixel_values": pixels.new_ones(1, *pixels.shape[1:])}  # of ones, as some models pass over images of zeros
            del reading["pixel_values"]
        if blank_image is not None:
            nothing = backbone.nothing_of(self.get_image_features, blank_image).reshape(0, self.config.text_config.hidden_size)
            if drawn_embeds is None:
                drawn, drawn_embeds = torch.zeros(tokens.shape[:2], dtype=torch.bool, device=tokens.device), nothing
            drawn_embeds = torch.cat([drawn_embeds, nothing.to(drawn_embeds)])
        return backbone.read(
            input_ids,
            inputs_embeds,
            drawn,
            drawn_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            **reading,
        )


class VargptForConditionalGeneration(VargptPreTrainedModel, VargptGenerationMixin, VargptLossMixin):
    """VARGPT with its language-model head: text and images in, text and images out."""

    output_modalities = ("image", "text")
    _tp_plan = {"lm_head": "colwise_gather_output"}
    _pp_plan = {"lm_head": (["hidden_states"], ["logits"])}

    def __init__(self, config: VargptConfig):
        super().__init__(config)
        self.model = VargptModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.input_modalities = self.model.input_modalities
        self._tied_weights_keys = {"lm_head.weight": self._input_embedding_name()}
        self.post_init()

    def _input_embedding_name(self) -> str:
        """Name of the token embedding's weight, whatever the language model calls it."""
        embedding = self.model.get_input_embeddings()
        return next(name for name, module in self.named_modules() if module is embedding) + ".weight"

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, value: nn.Module) -> None:
        self.lm_head = value

    def get_image_features(self, pixel_values: torch.Tensor, **kwargs: Unpack[TransformersKwargs]):
        """See [`VargptModel.get_image_features`]."""
        return self.model.get_image_features(pixel_values, **kwargs)

    def encode_images(self, pixel_values: torch.Tensor, schedule: ScaleSchedule | None = None) -> torch.LongTensor:
        """See [`VargptModel.encode_images`]."""
        return self.model.encode_images(pixel_values, schedule)

    def decode_image_codes(self, codes: torch.LongTensor, schedule: ScaleSchedule | None = None, num_scales: int | None = None) -> torch.Tensor:
        """See [`VargptModel.decode_image_codes`]."""
        return self.model.decode_image_codes(codes, schedule, num_scales)

    def push_to_hub(
        self, repo_id: str, *, private: bool | None = None, token: bool | str | None = None, create_pr: bool = False, **kwargs
    ) -> str:
        """Uploads the model with its code, as in Transformers, and a model card where the repository has none of its own.

        A pull request (`create_pr=True`) or another branch (`revision`) brings no card.
        """
        from .card_vargpt import has_own_card, make_card

        if not create_pr and kwargs.get("revision") is None:
            repo_id = create_repo(repo_id, private=private, token=token, exist_ok=True).repo_id
            if not has_own_card(repo_id, token):
                make_card(self, repo_id).push_to_hub(repo_id, token=token, commit_message="Add model card")
        return super().push_to_hub(repo_id, private=private, token=token, create_pr=create_pr, **kwargs)

    def as_pipeline(self, processor: ProcessorMixin, **kwargs):
        """This model and its processor as a [`VargptPipeline`]; `pipeline("any-to-any", model=...)` makes one of a folder or Hub id."""
        from .pipeline_vargpt import VargptPipeline

        return VargptPipeline(model=self, processor=processor, **kwargs)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        output_pixel_values: torch.Tensor | None = None,
        output_image_codes: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        output_image_condition_ids: torch.LongTensor | None = None,
        output_image_schedule_ids: torch.LongTensor | None = None,
        output_image_num_scales: torch.LongTensor | None = None,
        output_image_inputs: torch.Tensor | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        num_codes_in_batch: torch.Tensor | int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | VargptCausalLMOutputWithPast:
        """Next-token logits, code logits and losses; see [`VargptModel.forward`] for the inputs.

        Args:
            labels: text targets, (B, T), -100 where a token is none; placeholders are ignored wherever they stand. The
                codes are always targets of images that are given to draw.
            logits_to_keep: compute text logits of this many last tokens only (0: all), of the positions (P,) or (B, P), or of the M tokens
                that a mask (B, T) of booleans marks, (M, V) in reading order, as Transformers has them. Text targets of others are ignored.
            num_items_in_batch: text targets in the whole accumulated batch, as Trainer counts them.
            num_codes_in_batch: codes to draw in the whole accumulated batch. Where `num_items_in_batch` comes alone, as from
                Transformers' own Trainer, the images' loss has the weight of this batch's share of the text targets.
            kwargs: what else the backbone reads, and among them `shift_labels`, text targets already at the tokens that predict them,
                (B, T), in place of `labels`: sequence-parallel training shifts before it shards. No argument of its own, because Trainer
                would then expect it, by its name, in every evaluated batch. And `label_smoothing` of both losses, in [0, 1], and
                `output_last_hidden_state`.
        """
        shift_labels, label_smoothing = kwargs.pop("shift_labels", None), kwargs.pop("label_smoothing", 0.0)
        keeps_hidden_state = kwargs.pop("output_last_hidden_state", False)
        if labels is not None or shift_labels is not None:
            kwargs.setdefault("use_cache", False)  # with a cache, Transformers' masks would not keep packed rows apart
        outputs = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            output_pixel_values=output_pixel_values,
            output_image_codes=output_image_codes,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            output_image_condition_ids=output_image_condition_ids,
            output_image_schedule_ids=output_image_schedule_ids,
            output_image_num_scales=output_image_num_scales,
            output_image_inputs=output_image_inputs,
            mm_encoder_outputs=mm_encoder_outputs,
            scores_images=True,
            **kwargs,
        )
        images = outputs.output_images
        logits = self.model.backbone.scale_logits(self.lm_head(slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep)))
        text_loss = image_loss = image_logits = loss = None
        if shift_labels is None and labels is not None:
            shift_labels = F.pad(labels, (0, 1), value=IGNORE_INDEX)[:, 1:]
        if shift_labels is not None:
            targets = slice_logits_to_keep(shift_labels[..., None], logits_to_keep)[..., 0]
            text_loss = self.text_loss(logits, targets, num_items_in_batch, label_smoothing)
            loss = self.config.text_loss_weight * text_loss
        if images is not None and past_key_values is None:
            image_logits = self.model.decode_output_images(images)
            if num_codes_in_batch is None and num_items_in_batch is not None and shift_labels is not None:
                num_codes_in_batch = self._codes_by_share(images.codes, shift_labels, num_items_in_batch)
            image_loss = self.output_image_loss(image_logits, images, num_codes_in_batch, label_smoothing)
            loss = self.config.image_loss_weight * image_loss + (0 if loss is None else loss)
        return VargptCausalLMOutputWithPast(
            loss=loss,
            text_loss=text_loss,
            output_image_loss=image_loss,
            logits=logits,
            output_image_logits=image_logits,
            output_image_codes=None if images is None else images.codes,
            output_image_inputs=None if images is None else images.inputs,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=outputs.image_hidden_states,
            last_hidden_state=outputs.last_hidden_state if keeps_hidden_state else None,
        )


VargptForConditionalGeneration.register_for_auto_class("AutoModelForMultimodalLM")
VargptModel.register_for_auto_class("AutoModel")

__all__ = ["VargptForConditionalGeneration", "VargptModel"]
