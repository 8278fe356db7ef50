"""The trainer of image tokenizers, on Transformers' `Trainer`."""

import copy
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast, broadcast_object_list
from datasets import Dataset, IterableDataset
from torch import nn
from torch.nn.utils import clip_grad_norm_
from transformers import Trainer, TrainerCallback

from ...evaluation.image_tokenizers import measure
from ...evaluation.metrics import codebook_use
from ...modeling.image_tokenizer_vargpt import VargptImageTokenizer
from ...modeling.vq_vargpt import VargptVQModel
from ...processing.image_processing_vargpt import VargptImageProcessor
from ..guards import TrainingGuard, TrainingStopped, error_text
from .arguments import ImageTokenizerTrainingConfig
from .codebook import fit_quantizer, revive_codes
from .discriminator import PatchDiscriminator
from .images import Images, PixelCollator, batches_of, read_images
from .networks import perceptual_network
from .objective import TokenizerObjective, freeze
from .sheets import SAMPLES, save_sheet

TOKENIZER = "image_tokenizer"  # folder in every checkpoint that `from_pretrained` loads
_REVIVE_EVERY = 100
_FITTED_TO = 2000  # images whose latents the quantizer is fitted to


class VargptImageTokenizerTrainer(TrainingGuard, Trainer):
    """Trains an image tokenizer: reconstruction, the quantizer's own loss, and what `ImageTokenizerTrainingConfig` adds.

    Logged are all terms, each times its weight, as means since the last log; of a discriminator the scores it gives; where there is a
    codebook, the share of it that is in use. Every checkpoint holds all that a run resumes from, and a folder `image_tokenizer` with the
    image tokenizer itself.

    Args:
        model: the image tokenizer.
        args: settings.
        train_dataset: images: `Images`, any dataset of torch with rows `{"image"}`, or a `datasets.Dataset` with images in it.
        eval_dataset: the same, of images to evaluate on.
        processing_class: resizes and crops images; by default without margin, for the model's schedules.
        allow_upscaling: take images smaller than the schedules' ones, too.

    Raises:
        ValueError: settings that do not fit the model, or a sharded model.
        TrainingStopped: a loss that is not finite, or an image that cannot be used; see `TrainingGuard`, too.
    """

    def __init__(
        self,
        model: VargptImageTokenizer,
        args: ImageTokenizerTrainingConfig,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: VargptImageProcessor | None = None,
        allow_upscaling: bool = False,
        callbacks: Sequence[TrainerCallback] = (),
    ):
        args = copy.copy(args)  # the norms of both networks are clipped apart, by a callback
        self._max_grad_norm, args.max_grad_norm = args.max_grad_norm, 0.0
        _check_fits(model, args)
        processor = processing_class or processor_of(model)
        name = args.perceptual_network
        objective = TokenizerObjective(model, args, None if name is None else perceptual_network(name, args.device))
        freeze(model, args.freeze)
        super().__init__(
            objective,
            args,
            data_collator=PixelCollator(processor, args.random_crop, args.random_flip, args.seed, allow_upscaling),
            train_dataset=_as_images(train_dataset),
            eval_dataset=_as_images(eval_dataset),
            processing_class=processor,
            callbacks=[_Steps(self), *callbacks],
        )
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ValueError("An image tokenizer is small: train it by DDP or in one process, not sharded by FSDP or DeepSpeed.")
        objective.mean_over_processes = lambda gradient: self.accelerator.reduce(gradient, "mean")
        self._sums: dict[str, torch.Tensor] = {}
        self._used: torch.Tensor | None = None if objective.hits is None else torch.zeros_like(objective.hits)
        self._last_pixels: torch.Tensor | None = None

    @property
    def image_tokenizer(self) -> VargptImageTokenizer:
        """What is trained."""
        return self.model.image_tokenizer

    # ---- a step

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """As in `Trainer`, with a learning rate of the discriminator's own."""
        if self.optimizer is not None:
            return self.optimizer
        optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
        decayed, rate = set(self.get_decay_parameter_names(self.model)), self.args.discriminator_learning_rate
        groups = []
        for own_rate, is_discriminator in ((None, False), (rate, True)):
            for decays in (True, False):
                chosen = [
                    weight
                    for name, weight in self.model.named_parameters()
                    if weight.requires_grad and name.startswith("discriminator.") == is_discriminator and (name in decayed) == decays
                ]
                group = {"params": chosen, "weight_decay": self.args.weight_decay if decays else 0.0}
                groups.append(group if own_rate is None else {**group, "lr": own_rate})
        self.optimizer = optimizer_class([group for group in groups if group["params"]], **options)
        return self.optimizer

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch=None):
        pixels, step = inputs["pixel_values"], self.state.global_step
        outputs = model(
            pixels,
            num_scales=self._num_scales(pixels),
            adversarial=step >= self.args.adversarial_start,
            continuous=step < self.args.continuous_steps,
        )
        loss = outputs.pop("loss")
        if not loss.isfinite():  # before it has touched any weight
            found = ", ".join(f"{name} {value.item():g}" for name, value in outputs.items() if value.ndim == 0)
            raise TrainingStopped(f"The loss is {loss.item():g} at step {step + 1} ({found}). {self._causes()}")
        self._count(outputs.pop("codes", None))
        for name, value in outputs.items():
            self._sums[name] = self._sums.get(name, 0) + torch.stack([value, torch.ones_like(value)])
        self._last_pixels = pixels
        return (loss, outputs) if return_outputs else loss

    def _count(self, codes: torch.Tensor | None) -> None:
        """Adds the codes of a batch, in all processes, to how often each has been used."""
        if codes is None or self.model.hits is None:
            return
        counts = self.accelerator.reduce(torch.bincount(codes.flatten(), minlength=len(self.model.hits)), "sum")
        self.model.hits += counts
        self._used += counts

    def _num_scales(self, pixels: torch.Tensor) -> torch.LongTensor | None:
        """From how many scales each image is decoded, (N,)."""
        if not self.args.coarse_share:
            return None
        total = len(self.image_tokenizer.schedule_of(pixels))
        coarse = torch.randint(1, max(total, 2), (len(pixels),), device=pixels.device)
        return torch.where(torch.rand(len(pixels), device=pixels.device) < self.args.coarse_share, coarse, total)

    def clip_gradients(self) -> None:
        """Clips the gradients of the image tokenizer and of the discriminator, each to `max_grad_norm`; 0: not at all."""
        if self._max_grad_norm:
            for part in filter(None, (self.model.image_tokenizer, self.model.discriminator)):
                clip_grad_norm_(part.parameters(), self._max_grad_norm)

    @torch.no_grad()
    def revive(self) -> None:
        """Puts codes that nothing has used since the last time where the last batch left something to code; the same in all processes."""
        tokenizer, pixels = self.image_tokenizer, self._last_pixels
        dead = self.model.hits == 0
        revive_codes(tokenizer.quantizer, tokenizer.schedule_of(pixels), dead, tokenizer.encode_latents(pixels).float())
        weight = tokenizer.quantizer.codebook.weight
        weight.copy_(broadcast(weight.detach()))
        if self.model.average is not None:  # the mean of a code's old and new place would be no code at all
            self.model.best.quantizer.codebook.weight[dead] = weight[dead]
        self.model.hits.zero_()

    def fit_quantizer(self) -> None:
        """Fits the quantizer to latents of the first images to train on, after the steps without it; the same in all processes."""
        tokenizer = self.image_tokenizer
        fit_quantizer(tokenizer.quantizer, tokenizer.default_schedule, self._latents())
        with torch.no_grad():
            for weight in tokenizer.quantizer.parameters():
                weight.copy_(broadcast(weight.detach()))
        if self.model.average is not None:
            self.model.best.quantizer.load_state_dict(tokenizer.quantizer.state_dict())

    @torch.no_grad()
    def _latents(self) -> torch.Tensor:
        tokenizer = self.image_tokenizer
        size = tokenizer.config.image_size()
        batches = self._batches(self.train_dataset, _FITTED_TO)
        return torch.cat([tokenizer.encode_latents(pixels).float() for pixels in batches if tuple(pixels.shape[2:]) == size])

    def _batches(self, images: Any, number: int, batch_size: int | None = None) -> Iterator[torch.Tensor]:
        """Pixels of the first images of a dataset, nothing random about them."""
        collate = PixelCollator(self.processing_class, allow_upscaling=self.data_collator.allow_upscaling)
        for pixels in batches_of(images, collate, batch_size or self.args.per_device_eval_batch_size, number):
            yield pixels.to(self.args.device)

    # ---- logs, evaluation, saving

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As in `Trainer`, with the means of all terms since the last log."""
        if "loss" in logs and self._sums:
            sums = self.accelerator.reduce(torch.stack(list(self._sums.values())), "sum")
            logs |= {name: (total / number).item() for name, (total, number) in zip(self._sums, sums)}
            self._sums = {}
        if "loss" in logs and self._used is not None and self._used.any():
            logs["codes_in_use"] = codebook_use(self._used)
            self._used.zero_()
        super().log(logs, start_time)

    def evaluate(self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """PSNR (dB), perceptual distance, use and perplexity of codes over the first `num_eval_images` images, in the first process; saves
        some of them beside their reconstructions in `samples/`.

        Raises:
            ValueError: no images to evaluate on.
        """
        images = _as_images(eval_dataset) if eval_dataset is not None else self.eval_dataset
        if images is None:
            raise ValueError("There are no images to evaluate on: give an `eval_dataset`.")
        found = [None]
        if self.is_world_process_zero():
            self.save_samples(images)
            (perceptual,) = self.model.unsaved
            report = measure(self.model.best, self._batches(images, self.args.num_eval_images), perceptual)
            found = [{f"{metric_key_prefix}_{name}": value for name, value in report.means().items()}]
        (metrics,) = broadcast_object_list(found)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def save_samples(self, images: Any) -> None:
        """Saves `samples/step-N.png`: the first images of a dataset, and below each its reconstruction."""
        if number := self.args.num_sample_images:
            file = Path(self.args.output_dir) / SAMPLES / f"step-{self.state.global_step}.png"
            save_sheet(self.model.best, next(self._batches(images, number, number)), self.processing_class, file)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            self._write(Path(output_dir or self.args.output_dir) / TOKENIZER)

    def save_image_tokenizer(self, output_dir: str | Path) -> None:
        """Saves the image tokenizer (the average of its weights, where there is one) and its processor; to be called by every process.

        Files appear when all are written.

        Raises:
            TrainingStopped: weights that are not finite, or files that cannot be written.
        """
        if self._has_broken_weights():
            raise TrainingStopped(f"Weights are not finite after step {self.state.global_step}, and are not saved. {self._causes()}")
        if not self.args.should_save:
            return
        output_dir = Path(output_dir)
        output_dir.mkdir(parents=True, exist_ok=True)
        try:
            with tempfile.TemporaryDirectory(prefix=".saving-", dir=output_dir) as folder:
                self._write(Path(folder))
                for file in sorted(Path(folder).iterdir()):
                    os.replace(file, output_dir / file.name)
        except OSError as error:
            raise TrainingStopped(
                f"The image tokenizer could not be written: {error_text(error)} {self._room(output_dir)} {self._kept()}"
            ) from error

    def _write(self, folder: Path) -> None:
        self.model.best.save_pretrained(folder)
        self.processing_class.save_pretrained(folder)

    def _remove_unused_columns(self, dataset: Any, description: str | None = None) -> Any:
        return dataset  # rows are images, of no columns that a model could miss


class _Steps(TrainerCallback):
    """What happens around steps of the optimizer, the same in every process."""

    def __init__(self, trainer: VargptImageTokenizerTrainer):
        self.trainer = trainer

    def on_epoch_begin(self, args, state, control, **kwargs):
        if isinstance(self.trainer.train_dataset, Images):  # accelerate tells the dataset in some cases only, of a resumed run not
            self.trainer.train_dataset.set_epoch(int(state.epoch or 0))

    def on_step_begin(self, args, state, control, **kwargs):
        if args.continuous_steps and state.global_step == args.continuous_steps:
            self.trainer.fit_quantizer()

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.trainer.clip_gradients()

    def on_step_end(self, args, state, control, **kwargs):
        step = state.global_step
        self.trainer.model.update_average()
        if args.revive_every and step % args.revive_every == 0 and args.continuous_steps < step <= args.revive_until * state.max_steps:
            self.trainer.revive()


def _check_fits(model: VargptImageTokenizer, args: ImageTokenizerTrainingConfig) -> None:
    """Refuses settings that do not fit the image tokenizer, and fills in what depends on it."""
    has_codebook = isinstance(model, VargptVQModel)
    if not has_codebook and (args.revive_every or args.continuous_steps):
        raise ValueError(
            f"An image tokenizer of model_type {model.config.model_type!r} has no codebook: leave `revive_every` and `continuous_steps` out."
        )
    if args.revive_every is None:
        args.revive_every = _REVIVE_EVERY if has_codebook and args.freeze != "codes" else 0
    if model.config.in_channels != 3:
        raise ValueError(f"Images are trained on in RGB: `in_channels` must be 3, got {model.config.in_channels}.")
    least = PatchDiscriminator(3, 8, args.discriminator_layers).least_side if args.adversarial_weight else 1
    for size in map(model.config.image_size, model.config.scale_schedules):
        if min(size) < least:
            raise ValueError(
                f"A discriminator of {args.discriminator_layers} layers looks at {least} pixels or more, images are {size[0]}×{size[1]}: set "
                "`discriminator_layers` lower."
            )


def processor_of(model: VargptImageTokenizer, resize_factor: float = 1.0) -> VargptImageProcessor:
    """The processor that makes images of an image tokenizer's sizes."""
    config = model.config
    return VargptImageProcessor(config.schedules, config.downsampling, resize_factor)


def _as_images(dataset: Any) -> Any:
    """Images as the trainer takes them, of what it was given."""
    if isinstance(dataset, Dataset):
        return Images([read_images(dataset)])
    is_stream = isinstance(dataset, (IterableDataset, torch.utils.data.IterableDataset))
    return dataset if dataset is None or is_stream or isinstance(dataset, Images) else Images([dataset])


__all__ = ["TOKENIZER", "VargptImageTokenizerTrainer", "processor_of"]
