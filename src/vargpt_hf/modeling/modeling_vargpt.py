"""VARGPT: a causal language model that reads pictures and draws them (arXiv 2501.12327).

Shapes: B rows, T tokens of a row, N pictures to generate in the whole batch (in reading order, row by row), L codes of one
picture, V codebook size, D width of the language model, C width of the visual decoder.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from huggingface_hub import create_repo
from torch import nn
from transformers import AutoModel
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling
from transformers.modeling_utils import slice_logits_to_keep
from transformers.processing_utils import ProcessorMixin, Unpack
from transformers.utils import ModelOutput, TransformersKwargs, logging, torch_compilable_check
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import select_hidden_states

from .configuration_vargpt import VargptConfig
from .generation_vargpt import VargptGenerationMixin
from .pretrained_vargpt import VargptPreTrainedModel
from .visual_decoder_vargpt import GENERATE_CONDITION, NULL_CONDITION, VargptGenerationProjector, VargptVisualDecoder
from .vq_vargpt import VargptVQModel

logger = logging.get_logger(__name__)

IGNORE_INDEX = -100


@dataclass
class VargptModelOutputWithPast(BaseModelOutputWithPast):
    """Hidden states of VARGPT.

    Args:
        last_hidden_state (`torch.Tensor` of shape `(B, T, D)`): the language model's, after its final norm.
        image_hidden_states (`torch.Tensor` of shape `(pictures, places, D)`): projected features of pictures to understand.
        image_codes (`torch.LongTensor` of shape `(N, L)`): codes of the pictures to generate.
        image_condition_ids (`torch.LongTensor` of shape `(N,)`): their conditions.
        image_place_hidden_states (`torch.Tensor` of shape `(N, L, D)`): `last_hidden_state` at their places.
    """

    image_hidden_states: torch.Tensor | None = None
    image_codes: torch.LongTensor | None = None
    image_condition_ids: torch.LongTensor | None = None
    image_place_hidden_states: torch.Tensor | None = None


@dataclass
class VargptCausalLMOutputWithPast(ModelOutput):
    """Predictions and losses of VARGPT.

    Args:
        loss (scalar): `text_loss_weight · text_loss + image_loss_weight · image_loss`, of the losses that there are.
        text_loss (scalar): cross-entropy of the next token, over labels that are not -100.
        image_loss (scalar): cross-entropy of the codes of the pictures to generate.
        logits (`torch.Tensor` of shape `(B, T, vocabulary)`): next-token scores.
        image_logits (`torch.Tensor` of shape `(N, L, V)`): scores of the codes, each at its own place.
        image_codes (`torch.LongTensor` of shape `(N, L)`): codes of the pictures to generate.
        image_hidden_states (`torch.Tensor`): projected features of the pictures to understand.
    """

    loss: torch.Tensor | None = None
    text_loss: torch.Tensor | None = None
    image_loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    image_logits: torch.Tensor | None = None
    image_codes: torch.LongTensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    image_hidden_states: torch.Tensor | None = None


class VargptMultiModalProjector(nn.Module):
    """Vision features to the width of the language model: Linear, activation, Linear (as LLaVA-1.5)."""

    def __init__(self, config: VargptConfig):
        super().__init__()
        num_layers = 1 if isinstance(config.vision_feature_layer, int) else len(config.vision_feature_layer)
        width = config.text_config.hidden_size
        bias = config.multimodal_projector_bias
        self.linear_1 = nn.Linear(config.vision_config.hidden_size * num_layers, width, bias=bias)
        self.act = ACT2FN[config.projector_hidden_act]
        self.linear_2 = nn.Linear(width, width, bias=bias)

    def forward(self, image_features: torch.Tensor) -> torch.Tensor:
        return self.linear_2(self.act(self.linear_1(image_features)))


def at_least_one(pictures: torch.Tensor) -> torch.Tensor:
    """What belongs to N pictures, (N, …), or to one blank picture in place of none, on which nothing depends.

    Processes that share the weights of a part out among them (FSDP, ZeRO) must all run it, forward and backward, in every batch,
    whatever pictures their rows have: one that passes it by would leave the others waiting for its share for ever.
    """
    return pictures if pictures.shape[0] else torch.cat([pictures, pictures.new_zeros(1, *pictures.shape[1:])])


class VargptModel(VargptPreTrainedModel):
    """Vision tower, language model, image tokenizer, visual decoder and the projectors between them; no heads for text."""

    _keys_to_ignore_on_load_unexpected = [r"^lm_head\.weight$"]  # a whole model's checkpoint serves this one too

    def __init__(self, config: VargptConfig):
        super().__init__(config)
        width, decoder_width = config.text_config.hidden_size, config.visual_decoder_config.hidden_size
        self.vision_tower = AutoModel.from_config(config.vision_config, trust_remote_code=False)
        self.multi_modal_projector = VargptMultiModalProjector(config)
        self.language_model = AutoModel.from_config(config.text_config, trust_remote_code=False)
        self.vq_model = VargptVQModel(config.vq_config)
        self.visual_decoder = VargptVisualDecoder(config)
        self.generation_projector_in = VargptGenerationProjector(decoder_width, width)
        self.generation_projector_out = VargptGenerationProjector(width, decoder_width)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, VargptMultiModalProjector):
            for linear in (module.linear_1, module.linear_2):
                self._init_linear(linear, linear.in_features**-0.5)

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    @merge_with_config_defaults
    @can_return_tuple
    @select_hidden_states("vision_feature_layer")
    def get_image_features(
        self,
        pixel_values: torch.Tensor,
        vision_feature_layer: int | list[int] | None = None,
        vision_feature_select_strategy: str | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | BaseModelOutputWithPooling:
        """Features of pictures to understand.

        Args:
            pixel_values: normalised pixels, (pictures, 3, height, width).

        Returns:
            The vision tower's output with `pooler_output`: a list of projected features (places, D), one per picture.
        """
        outputs = self.vision_tower(pixel_values.to(self.vision_tower.dtype), return_dict=True, **kwargs)
        layers = [vision_feature_layer] if isinstance(vision_feature_layer, int) else vision_feature_layer
        selected = torch.cat([outputs.hidden_states[layer] for layer in layers], dim=-1)
        if vision_feature_select_strategy == "default":
            selected = selected[:, 1:]
        outputs.pooler_output = list(self.multi_modal_projector(selected))
        return outputs

    def get_image_codes(self, output_pixel_values: torch.Tensor | None, image_codes: torch.LongTensor | None):
        """Codes (N, L) of pictures to generate, given as pixels in [-1, 1] or as codes, or None where there are none."""
        if output_pixel_values is not None and image_codes is not None:
            raise ValueError("Give pictures to generate as `output_pixel_values` or as `image_codes`, not as both.")
        if output_pixel_values is not None:
            return self.vq_model.encode(at_least_one(output_pixel_values))[: len(output_pixel_values)]
        if image_codes is not None:
            self.vq_model.check_codes(image_codes)
        return image_codes

    def get_placeholder_mask(self, input_ids: torch.LongTensor | None, inputs_embeds: torch.Tensor, token_id: int) -> torch.BoolTensor:
        """Where `token_id` stands, (B, T); found by its embedding where only `inputs_embeds` are given."""
        if input_ids is not None:
            return input_ids == token_id
        token = torch.full((), token_id, dtype=torch.long, device=inputs_embeds.device)
        return (inputs_embeds == self.get_input_embeddings()(token)).all(-1)

    def _fill_places(self, inputs_embeds: torch.Tensor, places: torch.BoolTensor, features: torch.Tensor, kind: str) -> torch.Tensor:
        """Writes picture features (pictures, places each, D) over the embeddings of their places, in reading order."""
        pictures, places_each = features.shape[:2]
        torch_compilable_check(
            places.sum() == pictures * places_each,
            lambda: (
                f"The text has {int(places.sum())} places of pictures to {kind}, but {pictures} pictures were given, which "
                f"fill {pictures * places_each} ({places_each} each): let the processor write the places, and give as many "
                "pictures as the text has."
            ),
        )
        features = features.to(inputs_embeds.device, inputs_embeds.dtype)
        return inputs_embeds.masked_scatter(places.unsqueeze(-1), features)

    @staticmethod
    def _check_no_places(places: torch.BoolTensor, kind: str, argument: str) -> None:
        torch_compilable_check(
            ~places.any(),
            lambda: f"The text has {int(places.sum())} places of pictures to {kind}, but no pictures were given: pass {argument}.",
        )

    def sample_condition_ids(self, num_pictures: int, device: torch.device) -> torch.LongTensor:
        """Condition of each picture, (N,): "generate"; in training the null condition with `condition_dropout`."""
        condition_ids = torch.full((num_pictures,), GENERATE_CONDITION, dtype=torch.long, device=device)
        if self.training:
            dropped = torch.rand(num_pictures, device=device) < self.config.visual_decoder_config.condition_dropout
            condition_ids = condition_ids.masked_fill(dropped, NULL_CONDITION)
        return condition_ids

    def embed_image_codes(self, image_codes: torch.LongTensor, condition_ids: torch.LongTensor) -> torch.Tensor:
        """Teacher-forcing embeddings (N, L, D) for the places of pictures with codes (N, L), conditions (N,)."""
        with torch.no_grad():
            vq_inputs = self.vq_model.quantizer.decoder_inputs(at_least_one(image_codes))
        embeds = self.generation_projector_in(self.visual_decoder.embed(vq_inputs, at_least_one(condition_ids)))
        return embeds[: len(image_codes)]

    def decode_image_places(self, hidden_states: torch.Tensor, condition_ids: torch.LongTensor) -> torch.Tensor:
        """Logits (N, L, V) of the codes at the places whose last hidden states (N, L, D) are given."""
        projected = self.generation_projector_out(at_least_one(hidden_states))
        return self.visual_decoder(projected, at_least_one(condition_ids))[: len(hidden_states)]

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        output_pixel_values: torch.Tensor | None = None,
        image_codes: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        image_condition_ids: torch.LongTensor | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | VargptModelOutputWithPast:
        """Hidden states of a batch in which any row may read pictures, draw pictures, both or neither.

        Args:
            input_ids: tokens, (B, T), with `image_token_id` and `image_place_token_id` at the places of pictures.
            pixel_values: pictures to understand, (pictures, 3, height, width), in reading order over the batch.
            output_pixel_values: pictures to generate in [-1, 1], (N, 3, image_size, image_size), in reading order.
            image_codes: the same pictures as codes, (N, L), in place of `output_pixel_values`.
            attention_mask: 1 where a token counts, (B, T), padding on either side.
            position_ids, past_key_values, inputs_embeds: as in every causal model.
            image_condition_ids: condition of each picture to generate, (N,); drawn by `condition_dropout` by default.
            mm_encoder_outputs: result of `get_image_features` under "image", in place of `pixel_values`.

        A tensor of no pictures, such as `pixel_values` (0, 3, height, width), says what None does, but the parts that pictures of
        this kind go through run all the same: see [`at_least_one`].

        Raises:
            ValueError: places and pictures that differ in number, for either kind; codes of another image tokenizer;
                pixels of another size; contradicting arguments.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give exactly one of `input_ids` and `inputs_embeds`.")
        if pixel_values is not None and mm_encoder_outputs is not None:
            raise ValueError("Give pictures to understand as `pixel_values` or as `mm_encoder_outputs`, not as both.")
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        embeds = inputs_embeds

        features = self._understood_features(pixel_values, mm_encoder_outputs)
        places = self.get_placeholder_mask(input_ids, inputs_embeds, self.config.image_token_id)
        if features is not None:
            embeds = self._fill_places(embeds, places, features, "understand")
        elif embeds.shape[1] > 1:
            self._check_no_places(places, "understand", "`pixel_values`")

        codes = self.get_image_codes(output_pixel_values, image_codes)
        places = self.get_placeholder_mask(input_ids, inputs_embeds, self.config.image_place_token_id)
        if codes is not None:
            if image_condition_ids is None:
                image_condition_ids = self.sample_condition_ids(codes.shape[0], codes.device)
            generated = self.embed_image_codes(codes, image_condition_ids)
            embeds = self._fill_places(embeds, places, generated, "generate")
        elif embeds.shape[1] > 1:
            self._check_no_places(places, "generate", "`output_pixel_values` or `image_codes`")

        outputs = self.language_model(
            inputs_embeds=embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            **kwargs,
        )
        return VargptModelOutputWithPast(
            **outputs,
            image_hidden_states=features,
            image_codes=codes,
            image_condition_ids=image_condition_ids,
            image_place_hidden_states=None if codes is None else self._at_places(outputs.last_hidden_state, places, codes.shape),
        )

    def _understood_features(
        self, pixel_values: torch.Tensor | None, mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None
    ) -> torch.Tensor | None:
        """Projected features (pictures, places, D) of the pictures to understand, or None where there are none."""
        if pixel_values is not None:
            features = self.get_image_features(at_least_one(pixel_values), return_dict=True).pooler_output
            return torch.stack(features)[: len(pixel_values)]
        if mm_encoder_outputs is not None and mm_encoder_outputs.get("image") is not None:
            return torch.stack(list(mm_encoder_outputs["image"].pooler_output))
        return None

    @staticmethod
    def _at_places(hidden_states: torch.Tensor, places: torch.BoolTensor, shape: torch.Size) -> torch.Tensor:
        """Hidden states (N, L, D) of the picture places, out of those of all tokens (B, T, D); `shape` is (N, L)."""
        return hidden_states[places].view(*shape, hidden_states.shape[-1])


class VargptForConditionalGeneration(VargptPreTrainedModel, VargptGenerationMixin):
    """VARGPT with its language-model head: text and pictures in, text and pictures out."""

    output_modalities = ("image", "text")
    _tp_plan = {"lm_head": "colwise_gather_output"}
    _pp_plan = {"lm_head": (["hidden_states"], ["logits"])}

    def __init__(self, config: VargptConfig):
        super().__init__(config)
        self.model = VargptModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
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

    def push_to_hub(
        self, repo_id: str, *, private: bool | None = None, token: bool | str | None = None, create_pr: bool = False, **kwargs
    ) -> str:
        """Uploads the model with its code, as in Transformers, and a model card where the repository has none of its own.

        A pull request (`create_pr=True`) brings no card.
        """
        from .card_vargpt import has_own_card, make_card

        if not create_pr:
            repo_id = create_repo(repo_id, private=private, token=token, exist_ok=True).repo_id
            if not has_own_card(repo_id, token):
                make_card(self, repo_id).push_to_hub(repo_id, token=token, commit_message="Add model card")
        return super().push_to_hub(repo_id, private=private, token=token, create_pr=create_pr, **kwargs)

    def as_pipeline(self, processor: ProcessorMixin, **kwargs):
        """This model and its processor as a [`VargptPipeline`]; `pipeline("any-to-any", model=...)` makes one of a folder or Hub id."""
        from .pipeline_vargpt import VargptPipeline

        return VargptPipeline(model=self, processor=processor, **kwargs)

    def text_loss(
        self,
        logits: torch.Tensor,
        targets: torch.LongTensor,
        num_items_in_batch: torch.Tensor | int | None = None,
        label_smoothing: float = 0.0,
    ) -> torch.Tensor:
        """Sum of next-token cross-entropies over their number, here or (`num_items_in_batch`) in the accumulated batch; float32.

        `targets` (B, T) stand at the tokens that predict them. Picture places are never targets; a batch without targets gives 0.
        """
        targets = targets.to(logits.device)
        placeholders = (targets == self.config.image_token_id) | (targets == self.config.image_place_token_id)
        targets = targets.masked_fill(placeholders, IGNORE_INDEX)
        if num_items_in_batch is None:
            num_items_in_batch = (targets != IGNORE_INDEX).sum().clamp(min=1)
        if label_smoothing:  # which the loss of Transformers does not know
            flat = logits.flatten(0, 1).float()
            total = F.cross_entropy(flat, targets.flatten(), ignore_index=IGNORE_INDEX, reduction="sum", label_smoothing=label_smoothing)
            return total / num_items_in_batch
        return self.loss_function(
            logits=logits, labels=None, shift_labels=targets, vocab_size=logits.shape[-1], num_items_in_batch=num_items_in_batch
        )

    def image_loss(
        self,
        image_logits: torch.Tensor,
        codes: torch.LongTensor,
        num_codes_in_batch: torch.Tensor | int | None = None,
        label_smoothing: float = 0.0,
    ) -> torch.Tensor:
        """Sum of code cross-entropies, unshifted, over their number here or in the accumulated batch; float32.

        Weighted by `config.image_scale_power`, with weights whose mean over a picture is 1.
        """
        weighted, power = self.config.image_scale_power != 0, self.config.image_scale_power
        losses = F.cross_entropy(
            image_logits.flatten(0, 1).float(),
            codes.flatten(),
            reduction="none" if weighted else "sum",
            label_smoothing=label_smoothing,
        )
        if weighted:
            losses = losses.view_as(codes) * self.model.visual_decoder.place_weights(power, losses.device)
        return losses.sum() / (max(codes.numel(), 1) if num_codes_in_batch is None else num_codes_in_batch)

    @staticmethod
    def _codes_by_share(codes: torch.LongTensor, targets: torch.LongTensor, num_items_in_batch: torch.Tensor | int) -> torch.Tensor:
        """Codes of the accumulated batch, if all its parts have as many for each text target as this one: codes (N, L), targets (B, T).

        So the weights of all parts add up to one, however many there are, and nothing grows with their number.
        """
        logger.warning_once(
            "Only the text targets of the accumulated batch were counted (`num_items_in_batch`): the images' loss of each part is weighed by "
            "its share of these, which is exact where all parts have as many codes for each. VargptSFTTrainer counts the codes, too."
        )
        return codes.numel() * num_items_in_batch / (targets != IGNORE_INDEX).sum().clamp(min=1)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        output_pixel_values: torch.Tensor | None = None,
        image_codes: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        image_condition_ids: torch.LongTensor | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        num_codes_in_batch: torch.Tensor | int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | VargptCausalLMOutputWithPast:
        """Next-token logits, code logits and losses; see [`VargptModel.forward`] for the inputs.

        Args:
            labels: text targets, (B, T), -100 where a token is none; picture places are ignored wherever they stand. The
                codes are always targets of pictures that are given to generate.
            logits_to_keep: compute text logits of this many last tokens only (0: all).
            num_items_in_batch: text targets in the whole accumulated batch, as Trainer counts them.
            num_codes_in_batch: codes to generate in the whole accumulated batch. Where `num_items_in_batch` comes alone, as from
                Transformers' own Trainer, the images' loss has the weight of this batch's share of the text targets.
            kwargs: among them `shift_labels`, text targets already at the tokens that predict them, (B, T), in place of
                `labels`: sequence-parallel training shifts before it shards. No argument of its own, because Trainer would
                then expect it, by its name, in every evaluated batch. And `label_smoothing` of both losses, in [0, 1].
        """
        shift_labels, label_smoothing = kwargs.pop("shift_labels", None), kwargs.pop("label_smoothing", 0.0)
        if labels is not None or shift_labels is not None:
            kwargs.setdefault("use_cache", False)  # with a cache, Transformers' masks would not keep packed rows apart
        outputs = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            output_pixel_values=output_pixel_values,
            image_codes=image_codes,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            image_condition_ids=image_condition_ids,
            mm_encoder_outputs=mm_encoder_outputs,
            **kwargs,
        )
        logits = self.lm_head(slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep))
        text_loss = image_loss = image_logits = loss = None
        if shift_labels is None and labels is not None:
            shift_labels = F.pad(labels, (0, 1), value=IGNORE_INDEX)[:, 1:]
        if shift_labels is not None:
            text_loss = self.text_loss(logits, shift_labels, num_items_in_batch, label_smoothing)
            loss = self.config.text_loss_weight * text_loss
        if outputs.image_codes is not None and past_key_values is None:
            image_logits = self.model.decode_image_places(outputs.image_place_hidden_states, outputs.image_condition_ids)
            if num_codes_in_batch is None and num_items_in_batch is not None and shift_labels is not None:
                num_codes_in_batch = self._codes_by_share(outputs.image_codes, shift_labels, num_items_in_batch)
            image_loss = self.image_loss(image_logits, outputs.image_codes, num_codes_in_batch, label_smoothing)
            loss = self.config.image_loss_weight * image_loss + (0 if loss is None else loss)
        return VargptCausalLMOutputWithPast(
            loss=loss,
            text_loss=text_loss,
            image_loss=image_loss,
            logits=logits,
            image_logits=image_logits,
            image_codes=outputs.image_codes,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=outputs.image_hidden_states,
        )


VargptForConditionalGeneration.register_for_auto_class("AutoModelForMultimodalLM")
VargptModel.register_for_auto_class("AutoModel")

__all__ = [
    "VargptCausalLMOutputWithPast",
    "VargptForConditionalGeneration",
    "VargptModel",
    "VargptModelOutputWithPast",
]
