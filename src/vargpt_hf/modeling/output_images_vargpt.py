"""Images to draw on their way through the model: pixels or codes → embeddings before the language model; hidden states → scores behind it.

Images of several scale schedules may stand in one batch, and such of which only the coarsest scales are there: those with the same positions go
through the parts together.

Shapes: N images to draw, n of one schedule, L positions of the longest image, l of one, M of all, K symbols of a code, V classes of a
symbol, D width of the language model, Cz channels of the image tokenizer's latents.
"""

import torch
from transformers.utils import torch_compilable_check

from .image_tokenizer_vargpt import NO_CODE
from .outputs_vargpt import VargptOutputImages
from .scales_vargpt import ScaleSchedule


def at_least_one(images: torch.Tensor) -> torch.Tensor:
    """What belongs to N images, (N, …), or to one blank image in place of none, on which nothing depends.

    Processes over which the weights of a part are sharded (FSDP, ZeRO) must all run it, forward and backward, in every batch,
    whatever images their rows have: one that skips it would leave the others waiting for its shard forever.
    """
    return images if images.shape[0] else torch.cat([images, images.new_zeros(1, *images.shape[1:])])


def num_inputs(schedule: ScaleSchedule) -> int:
    """Positions of all scales but the first: of which the visual decoder is fed what coarser scales have drawn."""
    return schedule.num_positions - schedule.areas[0]


class VargptOutputImagesMixin:
    """The way of images to draw through a [`VargptModel`], which has the parts and the projectors between them."""

    @property
    def schedules(self) -> tuple[ScaleSchedule, ...]:
        """The scale schedules that drawn images may have."""
        return self.config.schedules

    def encode_images(self, pixel_values: torch.Tensor, schedule: ScaleSchedule | None = None) -> torch.LongTensor:
        """Codes (N, L) of images to draw, from pixels (N, channels, height, width) in [-1, 1]."""
        return self.image_tokenizer.encode(pixel_values, schedule)

    def decode_image_codes(self, codes: torch.LongTensor, schedule: ScaleSchedule | None = None, num_scales: int | None = None) -> torch.Tensor:
        """Pixels (N, channels, height, width) in [-1, 1] of codes (N, L), after `num_scales` scales (all by default)."""
        return self.image_tokenizer.decode(codes, schedule, num_scales)

    def schedule_groups(self, schedule_ids: torch.LongTensor) -> list[tuple[ScaleSchedule, torch.LongTensor]]:
        """The schedules among N images, with the indices of their images; one empty group of the default where there are none."""
        if len(self.schedules) == 1 or not len(schedule_ids):
            return [(self.schedules[0], torch.arange(len(schedule_ids), device=schedule_ids.device))]
        return [(self.schedules[index], (schedule_ids == index).nonzero().squeeze(1)) for index in schedule_ids.unique().tolist()]

    def _groups(self, schedule_ids: torch.LongTensor, num_scales: torch.LongTensor | None) -> list[tuple[ScaleSchedule, int, torch.LongTensor]]:
        """The schedules among N images, each with a number of positions that there are, and the indices of the images that have them."""
        groups = self.schedule_groups(schedule_ids)
        if num_scales is None or not len(schedule_ids):
            return [(schedule, schedule.num_positions, chosen) for schedule, chosen in groups]
        return [
            (schedule, sum(schedule.areas[:scales]), chosen[num_scales[chosen] == scales])
            for schedule, chosen in groups
            for scales in num_scales[chosen].unique().tolist()
        ]

    def num_positions(self, schedule_ids: torch.LongTensor, num_scales: torch.LongTensor | None = None) -> torch.LongTensor:
        """Positions (N,) of each image: of its first `num_scales` (N,) scales, or of all."""
        if num_scales is None:
            return torch.tensor([schedule.num_positions for schedule in self.schedules], device=schedule_ids.device)[schedule_ids]
        ends = [torch.tensor((0, *schedule.areas), device=schedule_ids.device).cumsum(0) for schedule in self.schedules]
        return torch.nn.utils.rnn.pad_sequence(ends, batch_first=True)[schedule_ids, num_scales]

    def prepare_output_images(
        self,
        pixel_values: torch.Tensor | None,
        codes: torch.LongTensor | None,
        schedule_ids: torch.LongTensor | None,
        condition_ids: torch.LongTensor | None,
        inputs: torch.Tensor | None = None,
        num_scales: torch.LongTensor | None = None,
    ) -> tuple[VargptOutputImages, torch.Tensor] | None:
        """Images to draw with the embeddings (M, D) of their positions, or None where there are none.

        Raises:
            ValueError: pixels and codes at once, either of other shapes or values than the schedules have, a schedule id or number of scales
                out of range, inputs without codes or of another shape than theirs, or inputs beside a number of scales.
        """
        if pixel_values is not None and codes is not None:
            raise ValueError("Give images to draw as `output_pixel_values` or as `output_image_codes`, not as both.")
        if inputs is not None and codes is None:
            raise ValueError("`output_image_inputs` go with `output_image_codes`: give both as an earlier call handed them out.")
        given = codes if pixel_values is None else pixel_values
        if given is None:
            return None
        if schedule_ids is None:
            schedule_ids = torch.zeros(len(given), dtype=torch.long, device=given.device)
        else:
            self._check_schedule_ids(schedule_ids, len(given))
        if num_scales is not None:
            if inputs is not None:
                raise ValueError("`output_image_inputs` are those of all scales: leave out `output_image_num_scales`.")
            self._check_num_scales(num_scales, schedule_ids)
        if condition_ids is None:
            condition_ids = self.visual_decoder.sample_condition_ids(len(given), given.device)
        groups = self._groups(schedule_ids, num_scales)
        images = VargptOutputImages(schedule_ids=schedule_ids, num_scales=num_scales, condition_ids=condition_ids)
        if len(groups) == 1:
            (schedule, length, _) = groups[0]
            images.codes, images.inputs, embeds = self._embed_output_images(given, codes is None, schedule, length, condition_ids, inputs)
            return images, embeds.flatten(0, 1)
        longest = max(length for _, length, _ in groups)
        images.codes = torch.full((len(given), longest), NO_CODE, dtype=torch.long, device=given.device)
        width = self.config.image_tokenizer_config.latent_channels
        images.inputs = torch.zeros(len(given), max(length - schedule.areas[0] for schedule, length, _ in groups), width, device=given.device)
        embeds_of_image = {}
        for schedule, length, chosen in groups:
            group_inputs = None if inputs is None else inputs[chosen, : length - schedule.areas[0]]
            group_codes, group_inputs, embeds = self._embed_output_images(
                given[chosen], codes is None, schedule, length, condition_ids[chosen], group_inputs
            )
            images.codes[chosen, :length] = group_codes
            images.inputs[chosen, : length - schedule.areas[0]] = group_inputs.to(images.inputs.dtype)
            embeds_of_image |= zip(chosen.tolist(), embeds)
        return images, torch.cat([embeds_of_image[index] for index in range(len(given))])

    def _check_schedule_ids(self, schedule_ids: torch.LongTensor, num_images: int) -> None:
        expected = (
            f"`output_image_schedule_ids` must be ({num_images},) of indices in [0, {len(self.schedules)}), the image tokenizer's schedules"
        )
        if schedule_ids.shape != (num_images,):
            raise ValueError(f"{expected}; got the shape {tuple(schedule_ids.shape)}.")
        torch_compilable_check(
            ((schedule_ids >= 0) & (schedule_ids < len(self.schedules))).all(), lambda: f"{expected}; got {schedule_ids.tolist()}."
        )

    def _check_num_scales(self, num_scales: torch.LongTensor, schedule_ids: torch.LongTensor) -> None:
        expected = f"`output_image_num_scales` must be ({len(schedule_ids)},), from 1 to as many scales as the image's schedule has"
        if num_scales.shape != schedule_ids.shape:
            raise ValueError(f"{expected}; got the shape {tuple(num_scales.shape)}.")
        most = torch.tensor([len(schedule) for schedule in self.schedules], device=schedule_ids.device)[schedule_ids]
        torch_compilable_check(((num_scales >= 1) & (num_scales <= most)).all(), lambda: f"{expected}; got {num_scales.tolist()}.")

    def _embed_output_images(
        self,
        images: torch.Tensor,
        are_pixels: bool,
        schedule: ScaleSchedule,
        length: int,
        condition_ids: torch.LongTensor,
        inputs: torch.Tensor | None = None,
    ) -> tuple[torch.LongTensor, torch.Tensor, torch.Tensor]:
        """Codes (n, l), decoder inputs (n, l − l₀, Cz) and embeddings (n, l, D) of the first `length` positions of n images of one schedule.

        They are given whole, as pixels or as codes, perhaps padded; beside codes the inputs may be given, too.
        """
        num_images = len(images)
        if are_pixels:
            height, width = self.config.image_tokenizer_config.image_size(schedule)
            codes, inputs = self.image_tokenizer.training_pair(at_least_one(images[..., :height, :width]), schedule)
        else:
            images = images[:, : schedule.num_positions] if len(self.schedules) > 1 else images
            self.image_tokenizer.check_codes(images, schedule)
            if inputs is None:
                codes, inputs = self.image_tokenizer.training_pair(None, schedule, codes=at_least_one(images))
            else:
                self._check_inputs(inputs, num_images, schedule)
                codes, inputs = at_least_one(images), at_least_one(inputs)
        codes, inputs = codes[:, :length], inputs[:, : length - schedule.areas[0]]
        embeds = self.projector_to_llm(self.visual_decoder.embed(inputs, at_least_one(condition_ids), schedule))
        return codes[:num_images], inputs[:num_images], embeds[:num_images]

    def _check_inputs(self, inputs: torch.Tensor, num_images: int, schedule: ScaleSchedule) -> None:
        expected = (num_images, num_inputs(schedule), self.config.image_tokenizer_config.latent_channels)
        if tuple(inputs.shape) != expected:
            raise ValueError(f"`output_image_inputs` must have the shape {expected}, as the codes have, got {tuple(inputs.shape)}.")

    def decode_output_images(self, images: VargptOutputImages) -> torch.Tensor:
        """Scores (N, L, K, V) of the codes' symbols of images whose hidden states are known."""
        groups = self._groups(images.schedule_ids, images.num_scales)
        if len(groups) == 1:
            (schedule, _, _) = groups[0]
            hidden_states = images.hidden_states.view(*images.codes.shape, images.hidden_states.shape[-1])
            return self._decode_group(hidden_states, images, slice(None), schedule)
        hidden_of_image = images.hidden_states.split(self.num_positions(images.schedule_ids, images.num_scales).tolist())
        tokenizer = self.config.image_tokenizer_config
        logits = images.hidden_states.new_zeros(*images.codes.shape, tokenizer.num_symbols, tokenizer.num_classes)
        for schedule, length, chosen in groups:
            hidden_states = torch.stack([hidden_of_image[index] for index in chosen.tolist()])
            logits[chosen, :length] = self._decode_group(hidden_states, images, chosen, schedule)
        return logits

    def _decode_group(self, hidden_states: torch.Tensor, images: VargptOutputImages, chosen, schedule: ScaleSchedule) -> torch.Tensor:
        """Scores (n, l, K, V) of images of one schedule, from the language model's hidden states (n, l, D)."""
        context = context_mask = None
        if images.context is not None:
            context = self.projector_to_decoder(at_least_one(images.context[chosen]))
            context_mask = at_least_one(images.context_mask[chosen])
        projected = self.projector_to_decoder(at_least_one(hidden_states))
        condition_ids = at_least_one(images.condition_ids[chosen])
        return self.visual_decoder(projected, condition_ids, schedule, context, context_mask)[: len(hidden_states)]


__all__ = ["VargptOutputImagesMixin"]
