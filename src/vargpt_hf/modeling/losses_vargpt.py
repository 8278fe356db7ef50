"""The losses of VARGPT: of the next token, and of the symbols of images to draw.

Shapes: B rows, T tokens of a row, N images to draw, L positions of the longest, K symbols of a code, V classes of a symbol.
"""

import torch
import torch.nn.functional as F
from transformers.utils import logging

from .image_tokenizer_vargpt import NO_CODE, code_log_probs
from .outputs_vargpt import VargptOutputImages
from .scales_vargpt import position_weights

logger = logging.get_logger(__name__)

IGNORE_INDEX = -100


class VargptLossMixin:
    """Losses of a [`VargptForConditionalGeneration`], whose configuration weighs them."""

    def text_loss(
        self,
        logits: torch.Tensor,
        targets: torch.LongTensor,
        num_items_in_batch: torch.Tensor | int | None = None,
        label_smoothing: float = 0.0,
    ) -> torch.Tensor:
        """Sum of next-token cross-entropies over their number, here or (`num_items_in_batch`) in the accumulated batch; float32.

        `targets` (…), of the shape of `logits` (…, V) without V, such as (B, T), stand at the tokens that predict them. Placeholders are never
        targets; a batch without targets gives 0.
        """
        targets = targets.to(logits.device)
        for token_id in (self.config.image_token_id, self.config.output_image_token_id):
            if token_id is not None:
                targets = targets.masked_fill(targets == token_id, IGNORE_INDEX)
        if num_items_in_batch is None:
            num_items_in_batch = (targets != IGNORE_INDEX).sum().clamp(min=1)
        if label_smoothing:  # which the loss of Transformers does not know
            flat = logits.flatten(0, -2).float()
            total = F.cross_entropy(flat, targets.flatten(), ignore_index=IGNORE_INDEX, reduction="sum", label_smoothing=label_smoothing)
            return total / num_items_in_batch
        return self.loss_function(
            logits=logits, labels=None, shift_labels=targets, vocab_size=logits.shape[-1], num_items_in_batch=num_items_in_batch
        )

    def output_image_loss(
        self,
        logits: torch.Tensor,
        images: VargptOutputImages,
        num_codes_in_batch: torch.Tensor | int | None = None,
        label_smoothing: float = 0.0,
    ) -> torch.Tensor:
        """Sum over codes of the mean cross-entropy of their symbols, over the number of codes here or in the accumulated batch; float32.

        Weighted by `config.image_scale_power`, with weights whose mean over a whole image is 1.
        """
        losses = -code_log_probs(logits, images.codes, label_smoothing).mean(-1)
        if power := self.config.image_scale_power:
            losses = losses * position_weights(self.model.schedules, images.schedule_ids, power)[:, : losses.shape[1]]
        if num_codes_in_batch is None:
            num_codes_in_batch = (images.codes != NO_CODE).sum().clamp(min=1)
        return losses.sum() / num_codes_in_batch

    @staticmethod
    def _codes_by_share(codes: torch.LongTensor, targets: torch.LongTensor, num_items_in_batch: torch.Tensor | int) -> torch.Tensor:
        """Codes of the accumulated batch, if all its parts have as many for each text target as this one: codes (N, L), targets (B, T).

        So the weights of all parts add up to one, however many there are, and nothing grows with their number.
        """
        logger.warning_once(
            "Only the text targets of the accumulated batch were counted (`num_items_in_batch`): the images' loss of each part is weighed by "
            "its share of these, which is exact where all parts have as many codes for each. VargptSFTTrainer counts the codes, too, as "
            "does any trainer with vargpt_hf.training.targets.CountsTargets before it among its bases."
        )
        return (codes != NO_CODE).sum() * num_items_in_batch / (targets != IGNORE_INDEX).sum().clamp(min=1)


__all__ = ["IGNORE_INDEX", "VargptLossMixin"]
