"""What a step learns from, counted: text tokens and codes of all its batches, on all ranks."""

from typing import Any

import torch
from torch import nn

from ..modeling.configuration_vargpt import VargptConfig
from .packing import IGNORE_INDEX


class CountsTargets:
    """Makes each step of a `Trainer` that of all its rows at once, for text and images alike, however they are divided.

        class MyTrainer(CountsTargets, Trainer):
            pass

    Transformers' `Trainer` counts the text targets of the accumulated batches on all ranks, and hands over this one number; but the images'
    loss is a mean over codes, of which there may be any number for each text target. With this class before a trainer among the bases, both
    are counted.

    Raises:
        ValueError: settings that replace the model's own loss.
    """

    loss_is_scaled_for_ga = True  # `Trainer` divides nothing by the number of accumulated batches
    _num_codes_in_batch: torch.Tensor | None = None

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if self.compute_loss_func is not None or self.label_smoother is not None:
            raise ValueError(
                "The loss is the model's own: `compute_loss_func` and `label_smoothing_factor` would replace it, leave them out "
                "(VargptSFTConfig's `label_smoothing` smooths both losses)."
            )

    def get_batch_samples(self, epoch_iterator, num_batches: int, device: torch.device):
        """The batches that are accumulated, and the number of their text targets; counts the codes, too."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        texts = sum(int(text_targets(batch["labels"], self.model.config).sum()) for batch in batches)
        codes = sum(number_of_codes(batch, self.model.config) for batch in batches)
        counts = torch.tensor([[texts, codes]], device=device)
        if self.args.average_tokens_across_devices:
            counts = self.accelerator.gather(counts)
        texts, codes = counts.sum(0).clamp(min=1)
        self._num_codes_in_batch = codes
        return batches, texts

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """The model's loss: over the counted targets while training, over those of the batch otherwise."""
        counts = self._counts(num_items_in_batch)
        outputs = model(**inputs, **counts)
        loss = self._of_all_ranks(outputs.loss, counts)
        return (loss, outputs) if return_outputs else loss

    def _counts(self, num_items_in_batch: torch.Tensor | int | None) -> dict[str, Any]:
        """What the model divides its sums by; {} where each batch stands alone, as in evaluation."""
        if num_items_in_batch is None or not self.model.training:
            return {}
        return {"num_items_in_batch": num_items_in_batch, "num_codes_in_batch": self._num_codes_in_batch}

    def _of_all_ranks(self, loss: torch.Tensor, counts: dict[str, Any]) -> torch.Tensor:
        """DDP averages gradients, while the counts are of all ranks."""
        return loss * self.accelerator.num_processes if counts and self.args.average_tokens_across_devices else loss


def text_targets(labels: torch.LongTensor, config: VargptConfig) -> torch.BoolTensor:
    """Which labels (B, T), shifted by one, are text targets, (B, T - 1): as the model counts, placeholders of images are none."""
    labels = labels[:, 1:]
    return (labels != IGNORE_INDEX) & (labels != config.image_token_id) & (labels != config.output_image_token_id)


def number_of_codes(batch: dict[str, torch.Tensor], config: VargptConfig) -> int:
    """Codes of the images to draw in a batch of model inputs."""
    schedule_ids, num_scales = (batch.get(f"output_image_{name}") for name in ("schedule_ids", "num_scales"))
    ids = [0] * number_of_drawings(batch) if schedule_ids is None else schedule_ids.tolist()
    scales = [None] * len(ids) if num_scales is None else num_scales.tolist()
    return sum(sum(config.schedules[index].areas[:number]) for index, number in zip(ids, scales))


def number_of_drawings(batch: dict[str, torch.Tensor]) -> int:
    """Images to draw in a batch of model inputs."""
    return next((len(batch[name]) for name in ("output_pixel_values", "output_image_codes") if name in batch), 0)
