"""What a run will do, printed before it starts."""

import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import psutil
import torch
from datasets import Dataset
from torch import nn
from transformers import TrainerCallback, TrainingArguments

from ..hardware import product_rate, slowness
from ..modeling.image_tokenizer_vargpt import VargptImageTokenizer
from ..peft import backbone_of
from .budget import estimate_budget
from .codes import NO_SELF_CORRECTION
from .collator import VargptDataCollator
from .data import DataSource, describe_mixture, kinds_of, measure_rows
from .readers import AnyDataset

if TYPE_CHECKING:
    from ..processing.processing_vargpt import VargptProcessor
    from .trainer import VargptSFTTrainer

_MEASURED_ROWS = 256
_UTILISATION = 0.4  # of what a device can compute, as training on GPUs commonly reaches


@dataclass(frozen=True)
class RowShape:
    """What rows hold on average.

    Args:
        tokens: of a row, placeholders of images among them.
        longest: tokens of the longest row that was measured.
        measured: how many rows were.
        images: images to read.
        drawings: images to draw.
    """

    tokens: float
    longest: int
    measured: int
    images: float
    drawings: float


def measure_shape(rows: AnyDataset, processor: "VargptProcessor") -> RowShape:
    """The shape of rows, measured on some of them: of a dataset spread over it, of a stream the first. A pair counts by its chosen answer."""
    names = ["prompt", "chosen"] if "chosen" in (rows.column_names or ()) else ["messages"]
    rows = rows.select_columns(names)
    if isinstance(rows, Dataset):
        rows = rows.select(np.linspace(0, len(rows) - 1, min(len(rows), _MEASURED_ROWS)).astype(int))
    conversations = [[message for name in names for message in row[name]] for row in rows.take(_MEASURED_ROWS)]
    lengths = measure_rows(conversations, processor)
    kinds = Counter(kind for messages in conversations for kind in kinds_of(messages))
    count = len(conversations)
    return RowShape(float(np.mean(lengths)), max(lengths), count, kinds["image"] / count, kinds["output_image"] / count)


def as_collated(shape: RowShape, collator: VargptDataCollator) -> RowShape:
    """The shape of what the collator makes of such rows on average: an image that is left without its finer scales counts by what is left.

    Images are taken to be of the first schedule. The longest row may be one whose images are whole.
    """
    areas = [height * width for height, width in collator.processor.output_image_processor.grids[0]]
    lost = collator.scale_dropout * sum(areas[collator.coarse_scales :])
    return replace(shape, tokens=shape.tokens - shape.drawings * lost, drawings=shape.drawings * (1 - lost / sum(areas)))


def parameters_of_parts(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Trained and frozen parameters of each part of the model, such as "visual_decoder" or "vlm.vision_tower".

    Those of adapters count to their part.

    Where PEFT trains a copy of a whole module, the module itself, which rests meanwhile, does not count.
    """
    counts: dict[str, list[int]] = {}
    reads_images = backbone_of(model).reads_images
    for name, parameter in model.named_parameters():
        if "original_module" in name.split("."):
            continue
        part, *inner = name.removeprefix("base_model.model.").removeprefix("model.").split(".")
        part = f"{part}.{inner[0]}" if part == "vlm" and reads_images else part
        counts.setdefault(part, [0, 0])[0 if parameter.requires_grad else 1] += parameter.numel()
    return {part: tuple(count) for part, count in counts.items()}


def describe_plan(trainer: "VargptSFTTrainer", stage: str, sources: Sequence[DataSource], args: TrainingArguments) -> str:
    """The plan of a run: what trains, what is frozen, the data, tokens of a step, steps, memory and time.

    Args:
        stage: name and description of the stage.
        args: of the run that is planned; those of a trial of it may be others.
    """
    rows = trainer.train_dataset
    shape = measure_shape(rows, trainer.processing_class)
    collated = as_collated(shape, trainer.data_collator) if isinstance(trainer.data_collator, VargptDataCollator) else shape
    parts = parameters_of_parts(trainer.model)
    total, trained = sum(map(sum, parts.values())), sum(count for count, _ in parts.values())
    rows_each_step = rows_of_a_step(args)
    lines = {
        "stage": stage,
        "trains": f"{trained:,} of {total:,} parameters: {_listed(parts, 0)}",
        "frozen": _listed(parts, 1) or "nothing",
        "data": _describe_data(rows, sources),
        "a row": f"{shape.tokens:,.0f} tokens (of {shape.measured} rows the longest {shape.longest:,}), "
        f"{shape.images:.2f} images to read, {shape.drawings:.2f} to draw",
        "a step": f"{rows_each_step:,} rows ({args.train_batch_size} × {args.gradient_accumulation_steps} accumulated × {args.world_size} "
        f"{'processes' if args.world_size > 1 else 'process'}), about {rows_each_step * collated.tokens:,.0f} tokens",
        "steps": f"{_describe_steps(args, rows)}{', by Muon and AdamW' if trainer.muon else ''}",
        **_describe_drawings(trainer.model, rows, shape),
        "format": _describe_format(args),
        **_describe_cost(trainer, args, shape, collated),
        "saves": f"in {args.output_dir}{_describe_saving(args)}",
    }
    return "\n".join(f"{name:<8}{text}" for name, text in lines.items())


def _listed(parts: dict[str, tuple[int, int]], index: int) -> str:
    return ", ".join(f"{part} {counts[index]:,}" for part, counts in parts.items() if counts[index])


def _describe_data(rows: AnyDataset, sources: Sequence[DataSource]) -> str:
    if not isinstance(rows, Dataset):
        return f"a stream of rows from {', '.join(source.path for source in sources)}"
    return f"{len(rows):,} rows from {describe_mixture(rows, sources)}"


def _describe_drawings(model: nn.Module, rows: AnyDataset, shape: RowShape) -> dict[str, str]:
    """Whether images to draw are trained with self-correction, where the image tokenizer knows of it."""
    tokenizer = next(module for module in model.modules() if isinstance(module, VargptImageTokenizer))
    if not shape.drawings or not tokenizer.corrects_itself:
        return {}
    if {"output_image_codes", "chosen_codes"} & set(rows.column_names or ()):
        return {"draws": NO_SELF_CORRECTION}
    return {"draws": "with self-correction: in every step the image tokenizer inverts other bits in what is fed forward"}


def rows_of_a_step(args: TrainingArguments) -> int:
    """Rows of one optimizer step, accumulated and over all processes."""
    return args.train_batch_size * args.gradient_accumulation_steps * args.world_size


def num_steps(args: TrainingArguments, rows: AnyDataset) -> int:
    """Optimiser steps of the whole run, in which an epoch's last batch and last step may be smaller."""
    if args.max_steps > 0:
        return args.max_steps
    batches = np.ceil(len(rows) / (args.train_batch_size * args.world_size))
    return int(np.ceil(args.num_train_epochs * np.ceil(batches / args.gradient_accumulation_steps)))


def _describe_steps(args: TrainingArguments, rows: AnyDataset) -> str:
    epochs = f", {args.num_train_epochs:g} epochs" if args.max_steps <= 0 else ""
    return f"{num_steps(args, rows):,}{epochs}, learning rate {args.learning_rate:g} ({args.lr_scheduler_type.value})"


def _describe_format(args: TrainingArguments) -> str:
    """The number format of the computation, and why it is that one."""
    cost = slowness(args.device, torch.bfloat16)
    if args.bf16:
        return "bfloat16" if cost is None else f"bfloat16, as asked for; {cost}: leave `bf16` out, or set it to auto"
    return "float16" if args.fp16 else "float32" if cost is None else f"float32: {cost}"


def _describe_cost(trainer: "VargptSFTTrainer", args: TrainingArguments, shape: RowShape, collated: RowShape) -> dict[str, str]:
    """Estimates of memory, for the longest rows, and of time, for what the collator makes of all."""
    answers = 2 if "chosen" in (trainer.train_dataset.column_names or ()) else 1  # of a pair; what the reference takes is not counted
    settings = {
        "batch_size": args.train_batch_size * answers,
        "images_to_read": shape.images,
        "num_processes": args.world_size,
        "bf16": bool(args.bf16),
        "gradient_checkpointing": bool(args.gradient_checkpointing),
        "sharded": trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled,
        "muon": trainer.muon,
    }
    around = 2 * shape.drawings  # the tokens before and after an image
    largest, average = (
        estimate_budget(trainer.model, sequence_length=math.ceil(tokens + around), images_to_draw=drawings, **settings)
        for tokens, drawings in ((shape.longest, shape.drawings), (collated.tokens, collated.drawings))
    )
    rate = product_rate(args.device, torch.bfloat16 if args.bf16 else torch.float32)
    hours = average.hours(num_steps(args, trainer.train_dataset) * rows_of_a_step(args) * answers, rate, _UTILISATION)
    return {
        "memory": f"about {largest.memory / 2**30:.2g} GiB on each device, by estimate",
        "time": f"at least {describe_seconds(3600 * hours)} at {_UTILISATION:.0%} of the {rate / 1e12:.2g} TFLOP/s of a matrix product here",
    }


def describe_seconds(seconds: float) -> str:
    """A span of time in the unit that fits."""
    if seconds < 90:
        return f"{seconds:.1f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


def _describe_saving(args: TrainingArguments) -> str:
    if args.save_strategy.value == "no":
        return ", at the end"
    return f", at the end and as checkpoints every {'epoch' if args.save_strategy.value == 'epoch' else f'{args.save_steps:g} steps'}"


class StepTimer(TrainerCallback):
    """Takes the time of the first step and the peak of memory."""

    def __init__(self):
        self.seconds = 0.0

    def on_step_begin(self, args, state, control, **kwargs):
        self._start = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds = time.perf_counter() - self._start

    def describe(self, steps: int) -> str:
        """What the step took, and what `steps` such steps would."""
        if torch.cuda.is_available():
            memory = f"{torch.cuda.max_memory_allocated() / 2**30:.2f} GiB of GPU memory at its peak"
        else:
            memory = f"{psutil.Process().memory_info().rss / 2**30:.2f} GiB of memory"
        whole = describe_seconds(self.seconds * steps)
        return (
            f"The step took {self.seconds:.2f} s, with what a first step costs more, and {memory}; {steps:,} such steps take at most {whole}."
        )
