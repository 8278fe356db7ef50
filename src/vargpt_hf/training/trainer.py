"""Supervised fine-tuning of text and pictures together, on TRL's trainer."""

from typing import Any

import torch
from torch import nn
from trl import SFTTrainer

from .collator import IGNORE_INDEX, VargptDataCollator

ROW_COLUMNS = ["messages", "images", "output_images", "image_codes"]


class VargptSFTTrainer(SFTTrainer):
    """TRL's `SFTTrainer` for rows in which pictures are read and drawn.

    TRL computes the loss from hidden states and leaves the model's own forward out, and with it the pictures' loss: this trainer
    calls the model itself, once. Both losses are sums over their targets in the whole accumulated batch, on all ranks, so
    that accumulation, padding and the spread over ranks cannot change them. Logged are `text_loss`, `image_loss`,
    `text_accuracy`, `image_accuracy` (shares of right tokens and codes) and `num_tokens`.

    Takes the arguments of `SFTTrainer`; the processor is needed as `processing_class`, and `data_collator` is a
    [`VargptDataCollator`] by default.
    """

    loss_is_scaled_for_ga = True

    def __init__(self, model, args=None, data_collator=None, train_dataset=None, eval_dataset=None, processing_class=None, **kwargs):
        if processing_class is not None and data_collator is None:
            data_collator = VargptDataCollator(processing_class)
        if args is not None:
            args.max_length = None  # TRL's default cuts rows at 1024 tokens, also inside a picture
            args.dataset_kwargs = {**(args.dataset_kwargs or {}), "skip_prepare_dataset": True}
        super().__init__(
            model,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **kwargs,
        )
        self._num_codes_in_batch: torch.Tensor | None = None

    def _set_signature_columns_if_needed(self) -> None:
        if self._signature_columns is None:
            self._signature_columns = list(ROW_COLUMNS)

    def get_batch_samples(self, epoch_iterator, num_batches: int, device: torch.device):
        """Counts the targets of both losses over the batches that are accumulated, on all ranks."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        codes_each = self.accelerator.unwrap_model(self.model).config.vq_config.num_image_tokens
        texts = sum(int((batch["labels"][:, 1:] != IGNORE_INDEX).sum()) for batch in batches)
        codes = sum(number_of_drawings(batch) for batch in batches) * codes_each
        counts = torch.tensor([[texts, codes]], device=device)
        if self.args.average_tokens_across_devices:
            counts = self.accelerator.gather(counts)
        texts, codes = counts.sum(0).clamp(min=1)
        self._num_codes_in_batch = codes
        return batches, texts

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch=None
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        counts = {}
        if num_items_in_batch is not None:
            counts = {"num_items_in_batch": num_items_in_batch, "num_codes_in_batch": self._num_codes_in_batch}
        outputs = model(**inputs, **counts, use_cache=False)
        loss = outputs.loss
        if counts and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes  # DDP averages gradients, the counts are of all ranks
        self._note_metrics(inputs, outputs, counts)
        return (loss, outputs) if return_outputs else loss

    @torch.no_grad()
    def _note_metrics(self, inputs: dict[str, Any], outputs, counts: dict[str, torch.Tensor]) -> None:
        """Adds up what is logged; every rank gathers the same eight numbers, whatever its batch holds."""
        mode = "train" if self.model.training else "eval"
        labels, tokens = inputs["labels"][:, 1:], outputs.logits[:, :-1].argmax(-1)
        targets = labels != IGNORE_INDEX
        num_texts = targets.sum()
        text_loss = outputs.text_loss.detach() * counts.get("num_items_in_batch", num_texts.clamp(min=1))
        nothing = torch.zeros((), device=labels.device)
        image = [nothing, nothing, nothing]
        if outputs.image_codes is not None:
            num_codes = torch.tensor(float(outputs.image_codes.numel()), device=labels.device)
            image_loss = outputs.image_loss.detach() * counts.get("num_codes_in_batch", num_codes)
            image = [image_loss, (outputs.image_logits.argmax(-1) == outputs.image_codes).sum(), num_codes]
        sums = [text_loss, (tokens[targets] == labels[targets]).sum(), num_texts, *image, inputs["attention_mask"].sum()]
        sums = self.accelerator.gather(torch.stack([value.float() for value in sums])[None]).sum(0).tolist()
        for name, total, count in (
            ("text_loss", sums[0], sums[2]),
            ("text_accuracy", sums[1], sums[2]),
            ("image_loss", sums[3], sums[5]),
            ("image_accuracy", sums[4], sums[5]),
        ):
            if count:
                self._metrics[mode][name].append(total / count)
        if mode == "train":
            self._total_train_tokens += int(sums[6])
        self._metrics[mode]["num_tokens"] = [self._total_train_tokens]


def number_of_drawings(batch: dict[str, torch.Tensor]) -> int:
    """Pictures to generate in a batch of model inputs."""
    return next((len(batch[name]) for name in ("output_pixel_values", "image_codes") if name in batch), 0)
