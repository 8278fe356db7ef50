"""Supervised fine-tuning of text and images together, on TRL's trainer."""

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn
from trl import SFTConfig, SFTTrainer

from ..hardware import is_fast, warn_if_slow
from ..modeling.image_tokenizer_vargpt import NO_CODE, code_log_probs, to_symbols
from .collator import ROW_NUMBER, VargptDataCollator
from .compiling import compile_layers
from .guards import TrainingGuard
from .optimizer import MuonOption
from .packing import num_tokens
from .readers import for_trainer, to_rows
from .targets import CountsTargets, text_targets

CODE_COLUMNS = ("output_image_codes", "output_image_schedule_ids", "image_tokenizer_fingerprint")
ROW_COLUMNS = ("messages", "images", "output_images", *CODE_COLUMNS, "source", ROW_NUMBER)
GROUPING = ("group_by_length", "batch_rebalance")
_LARGEST_EXPONENT = 709.0  # of e, in a float
_NUM_TOKENS = 3  # place among the sums behind the logged metrics


@dataclass
class AnyMachineDefaults:
    """Defaults of training, for a configuration of TRL to stand after it among the bases.

    Gradient checkpointing is off unless asked for (TRL: on), rows have no limit of length (TRL: cut at 1024 tokens, also inside an image),
    nothing is reported to services. Without a GPU, training is on the CPU.

    Args:
        bf16: compute in bfloat16: True, False, or "auto", which is True where the device has units for it. Afterwards True or False.
        gradient_checkpointing: another name of `activation_checkpointing`, which Transformers prefers.
        compile_layers: compile every layer of language model, vision tower and visual decoder, see `compiling.compile_layers`; `torch_compile`
            compiles the whole model, which takes longer and starts anew for batches of other contents.
        muon: train the linear layers inside these layers and projectors by Muon and all else by AdamW, see `optimizer.MuonWithAdamW`.
        muon_learning_rate: of Muon; None: `learning_rate`, which is AdamW's. Without `muon` nothing reads it.

    Raises:
        ValueError: another `bf16`.
    """

    gradient_checkpointing: bool | None = None
    # With "true" and "false" as on a command line, where `--bf16` alone means "true".
    bf16: Literal["auto", "true", "false", True, False] = field(
        default="auto", metadata={"help": "Compute in bfloat16: true, false or auto.", "nargs": "?", "const": "true"}
    )
    max_length: int | None = None
    compile_layers: bool = False
    muon: bool = False
    muon_learning_rate: float | None = None
    report_to: list[str] = field(default_factory=list)
    logging_steps: float = 20
    logging_nan_inf_filter: bool = False  # such a loss stops the run; looking for it in every step would wait for the device

    def __post_init__(self):
        self._choose_device_and_format()
        for old in ("gradient_checkpointing", "gradient_checkpointing_kwargs"):  # by the old names Transformers would warn
            new = old.replace("gradient", "activation")
            if getattr(self, new) is None:
                setattr(self, new, getattr(self, old))
                setattr(self, old, None)
        super().__post_init__()

    def _choose_device_and_format(self) -> None:
        self.use_cpu = self.use_cpu or not torch.accelerator.is_available()
        if self.use_cpu:
            self.dataloader_pin_memory = False  # memory from which a GPU reads
        device, asked = "cpu" if self.use_cpu else torch.accelerator.current_accelerator().type, str(self.bf16).lower()
        if asked not in ("auto", "none", "true", "false"):
            raise ValueError(f"`bf16` must be True, False or 'auto', got {self.bf16!r}.")
        if asked == "true":
            warn_if_slow(device, torch.bfloat16, "bf16=True", "leave it out, or give 'auto'")
        self.bf16 = asked == "true" or (asked != "false" and not self.fp16 and is_fast(device, torch.bfloat16))


@dataclass
class VargptSFTConfig(AnyMachineDefaults, SFTConfig):
    """TRL's `SFTConfig` with [`AnyMachineDefaults`], and `label_smoothing` of both losses, in [0, 1), while training.

    `max_length` never cuts inside an image; `packing` lays the rows of a batch end to end (see `VargptDataCollator`).
    """

    label_smoothing: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"`label_smoothing` must be in [0, 1), got {self.label_smoothing}.")


class VargptSFTTrainer(TrainingGuard, CountsTargets, MuonOption, SFTTrainer):
    """TRL's `SFTTrainer` for rows in which images are read and drawn.

    TRL computes the loss from hidden states and leaves the model's own forward out, and with it the images' loss: this trainer
    calls the model itself, once. Both losses are sums over their targets in the whole accumulated batch, on all ranks, so
    that accumulation, padding and the spread over ranks cannot change them. How they are weighed is in the model's configuration
    (`text_loss_weight`, `image_loss_weight`, `image_scale_power`).

    What is random in the model (bits that a bitwise image tokenizer inverts in what is fed forward, conditions that are dropped, layers that
    are skipped) is so while training alone, and a run that resumes draws what an uninterrupted one does.

    Logged are `text_loss`, `output_image_loss`, `text_accuracy`, `image_accuracy` (shares of right tokens and codes), `image_accuracy_PxP`
    of each grid by its side, `code_perplexity` (e to the plain cross-entropy of a code's symbol) and `num_tokens`, each over all targets
    since the last log; for evaluation over the whole dataset, with the prefix `eval_`, where `eval_loss` is the weighted sum of the losses.

    Of a mixture whose rows have a `source`, its number, `rows_of_NAME` tells how many rows of each of `source_names` have been trained on.

    Takes the arguments of `SFTTrainer`; datasets may have rows of any form that `readers.to_rows` knows, or be lists of dicts. The processor
    is needed as `processing_class`, and `data_collator` is a [`VargptDataCollator`] by default. Evaluation uses it without what is random in
    it.

    Raises:
        ValueError: settings of `SFTConfig` that this loss does not know.
    """

    def __init__(
        self, model, args=None, data_collator=None, train_dataset=None, eval_dataset=None, processing_class=None, source_names=(), **kwargs
    ):
        args = VargptSFTConfig("trainer_output") if args is None else args
        if args.loss_type != "nll":
            raise ValueError(f"The loss is cross-entropy: loss_type={args.loss_type!r} is not supported, leave it out.")
        if args.label_smoothing_factor:
            raise ValueError("`label_smoothing_factor` is for text alone: give `label_smoothing`, which is for both losses.")
        self.label_smoothing = args.label_smoothing if isinstance(args, VargptSFTConfig) else 0.0
        if args.padding_free:
            raise ValueError("`padding_free` is not supported: give `packing`, with which rows are padded as little as can be.")
        if args.completion_only_loss is False:
            raise ValueError("`completion_only_loss` is not supported: VargptDataCollator's `assistant_only=False` labels every token.")
        if args.pad_to_multiple_of:
            raise ValueError("`pad_to_multiple_of` is not supported: rows are padded to the longest of their batch. Leave it out.")
        if processing_class is not None and data_collator is None:
            data_collator = VargptDataCollator(processing_class, max_length=args.max_length, seed=args.seed)
        if args.packing:
            if not isinstance(data_collator, VargptDataCollator):
                raise ValueError(f"`packing` is done by VargptDataCollator, not by a {type(data_collator).__name__}: leave one of them out.")
            data_collator.packing, args.packing = True, False  # TRL's own packing knows no images
        args.dataset_kwargs = {**(args.dataset_kwargs or {}), "skip_prepare_dataset": True}
        super().__init__(
            model,
            args=args,
            data_collator=data_collator,
            train_dataset=for_trainer(train_dataset, to_rows),
            eval_dataset=for_trainer(eval_dataset, to_rows),
            processing_class=processing_class,
            **kwargs,
        )
        self.model.register_forward_hook(keep_in_graph)
        if isinstance(args, AnyMachineDefaults) and args.compile_layers:
            compile_layers(self.model)
        if isinstance(self.data_collator, VargptDataCollator):
            self.data_collator.bind(self.model, sharded=self.is_fsdp_enabled or self.is_deepspeed_enabled)
            if self.args.dataloader_persistent_workers:
                self.data_collator.share_epoch()
        self.source_names = list(source_names)
        self._rows_of_sources = torch.zeros(len(self.source_names), dtype=torch.long, device=self.args.device)
        self._sums: dict[str, torch.Tensor | None] = {"train": None, "eval": None}

    def _set_signature_columns_if_needed(self) -> None:
        if self._signature_columns is None:
            lengths = [self.args.length_column_name] if self.args.train_sampling_strategy in GROUPING else []
            self._signature_columns = [*ROW_COLUMNS, *lengths]

    def get_eval_dataloader(self, eval_dataset=None):
        """As in `Trainer`, with nothing random."""
        collator = self.data_collator
        if isinstance(collator, VargptDataCollator):
            self.data_collator = collator.for_evaluation()
        try:
            return super().get_eval_dataloader(for_trainer(eval_dataset, to_rows))
        finally:
            self.data_collator = collator

    def _run_epoch(self, *args, **kwargs) -> None:
        if isinstance(self.data_collator, VargptDataCollator):
            self.data_collator.set_epoch(kwargs["epoch"])
        super()._run_epoch(*args, **kwargs)

    def _counted(self) -> dict[str, Any]:
        sums = self._sums["train"]  # since the last log
        tokens = 0 if sums is None else int(self.accelerator.gather(sums[None, _NUM_TOKENS]).sum())
        return {"num_tokens": self._num_tokens + tokens, **self._rows_of_names()}

    @property
    def _num_tokens(self) -> int:
        """Tokens of the whole run up to the last log."""
        return self.counts_of_run.before.get("num_tokens", 0) + self._total_train_tokens

    def _rows_of_names(self) -> dict[str, int]:
        """How many rows of each source all processes have trained on in the whole run."""
        rows = self.accelerator.gather(self._rows_of_sources[None]).sum(0).tolist() if self.source_names else []
        names = [f"rows_of_{name}" for name in self.source_names]
        return {name: self.counts_of_run.before.get(name, 0) + count for name, count in zip(names, rows)}

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch=None
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        inputs = dict(inputs)
        sources = inputs.pop("source", None)
        if self.source_names and sources is not None and model.training:
            self._rows_of_sources.index_add_(0, sources, torch.ones_like(sources))  # nothing waits for the device
        counts = self._counts(num_items_in_batch)
        smoothing = self.label_smoothing if model.training else 0.0
        targets = text_targets(inputs["labels"], self.model.config)
        to_keep: int | torch.Tensor = 0
        if not return_outputs and "shift_labels" not in inputs:
            # Most tokens are prompts and placeholders of images, and with a large vocabulary their logits would take the most memory of all.
            to_keep = F.pad(targets, (0, 1))
        outputs = model(**inputs, **counts, use_cache=False, label_smoothing=smoothing, logits_to_keep=to_keep)
        self._add_up(inputs, outputs, counts, targets)
        loss = self._of_all_ranks(outputs.loss, counts)
        return (loss, outputs) if return_outputs else loss

    @torch.no_grad()
    def _add_up(self, inputs: dict[str, Any], outputs, counts: dict[str, torch.Tensor], targets: torch.BoolTensor) -> None:
        """Adds this batch to the sums behind the logged metrics; nothing waits for the device, nothing is gathered yet."""
        labels = inputs["labels"][:, 1:]
        num_texts = targets.sum()
        text_loss = outputs.text_loss.detach() * counts.get("num_items_in_batch", num_texts.clamp(min=1))
        predicted = outputs.logits.argmax(-1)
        hits = ((predicted[:, :-1][targets] if predicted.ndim == 2 else predicted) == labels[targets]).sum()
        image = torch.zeros(3 + 2 * len(self._grids), device=labels.device)
        if outputs.output_image_codes is not None:
            codes, scores = outputs.output_image_codes, outputs.output_image_logits
            num_codes = (codes != NO_CODE).sum().float()
            output_image_loss = outputs.output_image_loss.detach() * counts.get("num_codes_in_batch", num_codes)
            is_plain = not self.model.config.image_scale_power and not (self.label_smoothing and self.model.training)
            entropy = output_image_loss if is_plain else -code_log_probs(scores, codes).mean(-1).sum()
            right = (scores.argmax(-1) == to_symbols(codes.clamp(min=0), *scores.shape[-2:])).float().mean(-1)
            of_grids = self._of_grids(right, codes != NO_CODE, inputs.get("output_image_schedule_ids"))
            image = torch.cat([torch.stack([output_image_loss, entropy, num_codes]), of_grids.flatten()])
        text = torch.stack([value.float() for value in (text_loss, hits, num_texts, num_tokens(inputs))])
        sums = torch.cat([text, image])
        mode = "train" if self.model.training else "eval"
        before = self._sums[mode]
        self._sums[mode] = sums if before is None else before + sums

    @cached_property
    def _grids(self) -> list[tuple[int, int]]:
        """The grids of all schedules, coarse ones first; one may come in several schedules, and again in one."""
        grids = {grid for schedule in self.model.config.schedules for grid in schedule.grids}
        return sorted(grids, key=lambda grid: (grid[0] * grid[1], grid))

    @cached_property
    def _grids_of_positions(self) -> torch.Tensor:
        """The index of the grid of each position (S, L) of each schedule; behind a schedule's last position, the number of grids."""
        rows = [
            torch.tensor([self._grids.index(grid) for grid, area in zip(one.grids, one.areas) for _ in range(area)])
            for one in self.model.config.schedules
        ]
        return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=len(self._grids)).to(self.args.device)

    def _of_grids(self, right: torch.Tensor, are_codes: torch.Tensor, schedule_ids: torch.Tensor | None) -> torch.Tensor:
        """Sums of right codes and numbers of codes (2, G) of each grid, of images (N, L), each with the positions of its own schedule."""
        ids = torch.zeros(len(right), dtype=torch.long, device=right.device) if schedule_ids is None else schedule_ids
        grids = self._grids_of_positions[ids, : right.shape[1]]
        both = torch.stack([right * are_codes, are_codes.float()])
        return both.new_zeros(2, len(self._grids) + 1).index_add_(1, grids.flatten(), both.flatten(1))[:, :-1]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As in `Trainer`, with the metrics since the last log; every rank gathers the same numbers."""
        mode = "train" if self.model.training else "eval"
        figures = self._figures(mode)
        if mode == "eval" and figures:
            # `Trainer` averages the batches' losses, whatever they hold; "eval_loss", or "eval_NAME_loss" of one of several datasets.
            key = next((key for key in logs if key.endswith("_loss")), "eval_loss")
            config = self.model.config
            weights = {"text_loss": config.text_loss_weight, "output_image_loss": config.image_loss_weight}
            logs[key] = sum(weight * figures.get(name, 0.0) for name, weight in weights.items())
            figures = {key.removesuffix("loss") + name: value for name, value in figures.items()}
        logs.update(figures)
        super().log(logs, start_time)

    def _figures(self, mode: str) -> dict[str, float]:
        """The metrics of the sums so far, which are reset; {} where nothing was added."""
        sums, self._sums[mode] = self._sums[mode], None
        if sums is None:
            return {}
        sums = self.accelerator.gather(sums[None]).sum(0).tolist()
        figures = {}
        text_loss, hits, num_texts, tokens, output_image_loss, entropy, num_codes, *of_grids = sums
        hits_of_grids, codes_of_grids = of_grids[: len(of_grids) // 2], of_grids[len(of_grids) // 2 :]
        if num_texts:
            figures |= {"text_loss": text_loss / num_texts, "text_accuracy": hits / num_texts}
        if num_codes:
            figures |= {"output_image_loss": output_image_loss / num_codes, "image_accuracy": sum(hits_of_grids) / num_codes}
            figures["code_perplexity"] = math.exp(min(entropy / num_codes, _LARGEST_EXPONENT))  # a NaN stays one
            for (rows, columns), right, number in zip(self._grids, hits_of_grids, codes_of_grids):
                if number:
                    figures[f"image_accuracy_{rows}x{columns}"] = right / number
        if mode == "train":
            self._total_train_tokens += int(tokens)
            figures |= self._rows_of_names()
        return {**figures, "num_tokens": self._num_tokens}


def keep_in_graph(module: nn.Module, args: tuple, outputs: Any) -> Any:
    """Forward hook: ties a loss to the trained parameters, with gradients of zero, where a batch does not reach any.

    Such is a batch without drawings in a stage that trains the drawing side alone. Inside the module's call, so that
    `DistributedDataParallel` around it sees the tie.
    """
    if torch.is_grad_enabled() and outputs.loss is not None and not outputs.loss.requires_grad:
        outputs.loss = outputs.loss + sum(0.0 * p.sum() for p in module.parameters() if p.requires_grad)
    return outputs
