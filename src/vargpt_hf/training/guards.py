"""Checkpoints that can be trusted, and runs that stop with the cause and the last good state kept."""

import json
import math
import shutil
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_callback import ExportableState, TrainerControl, TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..modeling.checkpoint_vargpt import read_headers
from ..processing.processing_vargpt import VargptProcessor
from .collator import ROW_NUMBER
from .readers import image_columns, undecoded

_STATE = "trainer_state.json"
_LOSSES = ("loss", "text_loss", "output_image_loss")


class TrainingStopped(ValueError):
    """A run that cannot continue: the message says why, where the last complete checkpoint is, and what to do."""


def is_whole(folder: str | Path) -> bool:
    """Whether a checkpoint folder has everything that a run resumes from, with no file truncated.

    The trainer's state, which is written last, must be readable; safetensors files as long as their heads say; files of torch must have
    their ends. So are folders told that a run left behind which was killed while it wrote or deleted them.
    """
    folder = Path(folder)
    try:
        json.loads((folder / _STATE).read_text())
        weights = list(folder.glob("*.safetensors"))
        parts = [part for part in folder.iterdir() if part.is_dir()]  # weights in shards
        archives = [file for file in folder.iterdir() if file.suffix in (".pt", ".pth", ".bin") and file.name != "training_args.bin"]
        return bool(weights or parts) and all(map(_is_whole_safetensors, weights)) and all(map(zipfile.is_zipfile, archives))
    except (OSError, ValueError):
        return False


def _is_whole_safetensors(file: Path) -> bool:
    try:
        read_headers(file)
    except OSError:
        return False
    return True


def checkpoints_of(output_dir: str | Path) -> list[Path]:
    """The checkpoint folders of a run, by rising step."""
    folders = [folder for folder in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*") if folder.name.rsplit("-", 1)[1].isdigit()]
    return sorted(folders, key=lambda folder: int(folder.name.rsplit("-", 1)[1]))


def last_complete_checkpoint(output_dir: str | Path) -> str | None:
    """The complete checkpoint with the highest step, or None."""
    return next((str(folder) for folder in reversed(checkpoints_of(output_dir)) if is_whole(folder)), None)


def remove_half_checkpoints(output_dir: str | Path) -> None:
    """Deletes checkpoints that are not whole: `save_total_limit` could take one for the newest, and delete whole ones in its favour."""
    for folder in checkpoints_of(output_dir):
        if not is_whole(folder):
            shutil.rmtree(folder)


class NamedRows(torch.utils.data.Dataset):
    """The rows of a dataset, with their images opened and their numbers as `row_number`; one that cannot be read is named in the error.

    Args:
        rows: the dataset, whose images are not opened yet (`readers.undecoded`).
        open_images: makes RGB of a list of those, such as `VargptImageProcessor.fetch_images`, whose limits and checks then hold.
        sources: names of a mixture's sources, which a column `source` counts.
    """

    def __init__(self, rows: Dataset, open_images: Callable[[Any, str], Any], sources: Sequence[str] = ()):
        self.rows, self.open_images, self.sources = undecoded(rows), open_images, list(sources)
        self._images = image_columns(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        try:
            return self._opened(index, self.rows[index])
        except Exception as error:
            source = ""
            if self.sources and "source" in self.rows.column_names:
                source = f" of the mixture, which comes from {self.sources[self.rows.select_columns('source')[index]['source']]},"
            raise TrainingStopped(
                f"Row {index}{source} cannot be read: {error_text(error)} Mend the row or leave it out; `vargpt data "
                "check` looks through a whole dataset."
            ) from error

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        try:
            batch = self.rows[indices]
            return [self._opened(index, dict(zip(batch, values))) for index, values in zip(indices, zip(*batch.values()))]
        except Exception:  # which row it was, reading them one by one tells
            return [self[index] for index in indices]

    def _opened(self, index: int, row: dict[str, Any]) -> dict[str, Any]:
        return {**row, **{name: self.open_images(row[name], name) for name in self._images if row[name]}, ROW_NUMBER: index}


class TrainingGuard:
    """Makes a trainer of Transformers stop where a run has gone wrong, and never save what went wrong; first among its bases.

    Raises:
        TrainingStopped: a loss that is not finite, when it is logged; trained weights that are not finite, before they are saved; a
            checkpoint that cannot be written, of which nothing is left; a row that cannot be read or made into a batch. The message names
            the step, the cause and the last complete checkpoint.
    """

    source_names: Sequence[str] = ()

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if isinstance(self.processing_class, VargptProcessor):
            self.processing_class.check_fits(self.accelerator.unwrap_model(self.model).config)
        self.counts_of_run = CountsOfRun()
        self.add_callback(self.counts_of_run)
        self._exact: dict[str, torch.Tensor] = {}
        if self.is_deepspeed_enabled and self.args.should_save:
            # DeepSpeed rounds all weights to the format that it computes in. Those of the image tokenizer must stay to the last bit: rounded,
            # it would give other codes to the same images, and refuse those made ahead.
            frozen = [(name, p) for name, p in self.model.named_parameters() if ".image_tokenizer." in name and not p.requires_grad]
            self._exact = {name: parameter.detach().to("cpu", copy=True) for name, parameter in frozen}

    def _counted(self) -> dict[str, int]:
        """What has been counted since the run began, over all processes; called by each of them."""
        return {}

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As in `Trainer`; then stops, where a loss that was trained on is not finite."""
        super().log(logs, start_time)
        losses = {name: float(logs[name]) for name in _LOSSES if name in logs}
        if self.model.training and not all(map(math.isfinite, losses.values())):
            found = ", ".join(f"{name} {value}" for name, value in losses.items())
            raise TrainingStopped(
                f"The loss is not finite at step {self.state.global_step}: {found} (all steps since the last log together). {self._causes()}"
            )

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As in `Trainer`, of finite weights only."""
        if self._has_broken_weights():
            raise TrainingStopped(f"Weights are not finite after step {self.state.global_step}, and are not saved. {self._causes()}")
        super().save_model(output_dir, _internal_call)

    def save_whole_model(self, output_dir: str) -> None:
        """Saves a folder that `from_pretrained` loads, also where checkpoints are written in shards; to be called by every process."""
        if self.is_fsdp_enabled:
            self.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
        try:
            self.save_model(output_dir)
        except TrainingStopped:
            raise
        except Exception as error:
            if self.args.should_save:
                for file in Path(output_dir).glob("*.safetensors"):
                    if not _is_whole_safetensors(file):
                        file.unlink()
            raise TrainingStopped(f"The model could not be written: {error_text(error)} {self._room(output_dir)} {self._kept()}") from error

    def _room(self, folder: str | Path) -> str:
        """How much may still be written."""
        return f"{shutil.disk_usage(folder).free / 2**30:.1f} GiB are free in {folder}."

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        if state_dict:
            state_dict = {name: self._exact.get(name, value) for name, value in state_dict.items()}
        super()._save(output_dir, state_dict)

    def get_batch_samples(self, epoch_iterator, num_batches: int, device: torch.device):
        """As in `Trainer`; what cannot be made into a batch stops the run with the cause."""
        try:
            return super().get_batch_samples(epoch_iterator, num_batches, device)
        except Exception as error:
            raise TrainingStopped(
                f"No batch could be made for step {self.state.global_step + 1}: {error_text(error)} {self._kept()}"
            ) from error

    def _run_epoch(self, *args, **kwargs) -> None:
        if self.state.global_step >= self.state.max_steps or self.control.should_training_stop:
            # `Trainer` looks for its end after a step only: resuming from the last checkpoint, it would train one step too many.
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)

    def _remove_unused_columns(self, dataset: Dataset, description: str | None = None) -> NamedRows:
        sources = self.source_names if description == "Training" else ()
        return NamedRows(
            super()._remove_unused_columns(dataset, description), self.processing_class.output_image_processor.fetch_images, sources
        )

    def _get_train_sampler(self, train_dataset=None):
        return super()._get_train_sampler(train_dataset.rows if isinstance(train_dataset, NamedRows) else train_dataset)

    def _get_eval_sampler(self, eval_dataset):
        return super()._get_eval_sampler(eval_dataset.rows if isinstance(eval_dataset, NamedRows) else eval_dataset)

    def _save_checkpoint(self, model, trial) -> None:
        output_dir = Path(self._get_output_dir(trial=trial))
        folder = output_dir / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        if self.args.should_save:
            (folder / _STATE).unlink(missing_ok=True)  # of an earlier run: it would call the folder whole before it is
        self.counts_of_run.counted = self._counted()
        try:
            super()._save_checkpoint(model, trial)
        except BaseException as error:  # an interrupt, too, leaves no half checkpoint
            if self.args.should_save and not is_whole(folder):
                shutil.rmtree(folder, ignore_errors=True)
            if isinstance(error, TrainingStopped) or not isinstance(error, Exception):
                raise
            raise TrainingStopped(
                f"The checkpoint of step {self.state.global_step} could not be written: {error_text(error)} {self._room(output_dir)} "
                f"What was written of it is deleted. Make room, or set `save_total_limit`. {self._kept()}"
            ) from error

    def _has_broken_weights(self) -> bool:
        """Whether any trained weight is not finite, in any process."""
        parts = [local_part(parameter) for parameter in self.model.parameters() if parameter.requires_grad]
        broken = ~torch.stack([part.detach().isfinite().all() for part in parts]).all()
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:  # otherwise all have the same, and the first one may save alone
            broken = self.accelerator.gather(broken[None]).any()
        return bool(broken)

    def _causes(self) -> str:
        return (
            "Usual causes: too high a learning rate or too short a warm-up, no `max_grad_norm`, training in float16, or weights that were not "
            f"finite at the start. {self._kept()}"
        )

    def _kept(self) -> str:
        """Where to resume."""
        last = last_complete_checkpoint(self.args.output_dir)
        if last is None:
            return f"There is no complete checkpoint in {self.args.output_dir}: start the run again."
        steps = TrainerState.load_from_json(str(Path(last) / _STATE)).global_step
        return f"The last complete checkpoint is {last} (step {steps}): resume with --resume_from_checkpoint true."


class CountsOfRun(TrainerCallback, ExportableState):
    """Keeps in checkpoints what a trainer counts over a whole run.

    Attributes:
        counted: all of it, when a checkpoint is written.
        before: what had been counted when this run was resumed; {} for one that began anew.
    """

    def __init__(self):
        self.counted: dict[str, int] = {}
        self.before: dict[str, int] = {}

    def state(self) -> dict[str, Any]:
        """What Transformers writes into the trainer's state."""
        return {"args": {}, "attributes": {"counted": self.counted}}

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        """Takes what the checkpoint holds; those from before this class have nothing."""
        kept = state.stateful_callbacks.get(type(self).__name__) if state.global_step else None
        self.before = kept["attributes"]["counted"] if kept else {}


class StopAt(TrainerCallback):
    """Ends training early, with a checkpoint, while learning rates are those of all steps: the first part of a longer run.

    Args:
        share: of all steps, above 0 and up to 1.

    Raises:
        ValueError: another share.
    """

    def __init__(self, share: float):
        if not 0 < share <= 1:
            raise ValueError(f"`stop_at` must be a share of all steps above 0 and up to 1, got {share}.")
        self.share = share

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        """A run that resumes where it was to end ends at once."""
        control.should_training_stop |= state.global_step >= self._last_step(state)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        """The last step is saved as others are."""
        if state.global_step >= self._last_step(state):
            control.should_training_stop = True
            control.should_save |= args.save_strategy != "no"

    def _last_step(self, state: TrainerState) -> int:
        return max(math.ceil(self.share * state.max_steps), 1)


def local_part(parameter: torch.nn.Parameter) -> torch.Tensor:
    """What this process holds of a parameter: all of it, or its shard under FSDP2 or ZeRO-3."""
    if isinstance(parameter, DTensor):
        return parameter.to_local()
    return parameter.ds_tensor if hasattr(parameter, "ds_tensor") else parameter


def error_text(error: Exception) -> str:
    """The error's own words, ended like a sentence; with its kind, where it is none of ours."""
    text = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
    return text if text.endswith(".") else f"{text}."
