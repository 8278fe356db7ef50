"""One stage of training from a YAML file, in the form of TRL's own scripts."""

import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, get_type_hints

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from torch import nn
from transformers import ProgressCallback, TrainingArguments
from trl import ModelConfig, TrlParser, get_peft_config

from ..hardware import disable_cudnn_attention, keep_freed_memory
from ..modeling.configuration_vargpt import VargptConfig
from ..modeling.modeling_vargpt import VargptForConditionalGeneration
from ..peft import PRESETS, find_preset, lora_config
from ..processing.processing_vargpt import VargptProcessor
from ..shipped import folder_of
from .collator import VargptDataCollator
from .data import DataSource, add_lengths, mix_pairs, mix_rows, names_of, numbered, sources_of
from .forecast import StepTimer, describe_plan, num_steps
from .formats import loaded_whole, loading_options, widen_trained
from .guards import StopAt, checkpoints_of, last_complete_checkpoint, remove_half_checkpoints
from .optimizer import check_checkpoint
from .preference import VargptDPOConfig, VargptDPOTrainer
from .progress import CURVES, LossProgressCallback, SampleCallback, describe_evaluation, drawing_prompts, remove_samples, save_curves
from .resolution import fit_processor, with_image_budget
from .stage_files import check_form, find_stage, only_writer, read_stage, refuse_unknown
from .stages import apply_stage, get_stage, stage_linears
from .trainer import GROUPING, VargptSFTConfig, VargptSFTTrainer

_ADAPTER = "adapter_config.json"
_TEXT_OR_LIST = ("train_data", "eval_data", "lora_target_modules", "lora_modules_to_save", "loss_type")  # whatever their types say


@dataclass
class PreferenceArguments:
    """What a stage's YAML says beside TRL's `ModelConfig` and the trainer's own configuration.

    Args:
        stage: name of the stage, which says what is trained and the default schedule.
        method: "sft", supervised, or "dpo", on pairs of answers: `train_data` are then datasets of pairs (docs/preference.md), and the
            further settings are those of `VargptDPOConfig`.
        train_data: what to train on: a path, or (in the file) a list of paths and of mappings with the fields of `DataSource`.
        eval_data: what to evaluate on, in the same form, at the end and as often as `eval_strategy` says.
        train_modules: regular expressions of parameters to train in place of the stage's.
        image_budget: pixels of images to draw from this stage on, of a model with Infinity's schedules: "0.06M" (256×256), "0.25M" (512×512),
            "0.60M" or "1M"; by default the model's own.
        lora_preset: with `use_peft`, where adapters go and what is fully trained beside them, as in `vargpt_hf.peft.lora_config`: "draw",
            "understand" or "all"; it, not the stage, then says what is trained. By default adapters go on the linear layers of the stage.
        stop_at: share of all steps after which training ends early, on the learning rates of a whole run: the first part of one, for
            comparison. A run without it resumes from there.
    """

    stage: str = ""
    method: str = "sft"
    train_data: str = ""
    eval_data: str | None = None
    train_modules: list[str] | None = field(default=None)
    image_budget: str | None = None
    lora_preset: str | None = None
    stop_at: float = 1.0


@dataclass
class VargptScriptArguments(PreferenceArguments):
    """The same for supervised training, with what that alone knows.

    Args:
        streaming: read rows one after the other instead of all ahead; needs `max_steps`.
        mixture_stop: when a mixture of several ends; see `mix_rows`.
        assistant_only: label the assistant's tokens only.
        prompt_dropout: how often a drawing's prompt is emptied, for guidance by an unconditional prompt.
        random_crop: cut images to draw at a random position, not in the middle.
        scale_dropout: how often an image to draw is left without its finer scales, so that more rows are learned from in the same time.
        coarse_scales: how many scales such an image keeps.
        resize_factor: how much larger than its final size an image to draw is made before it is cropped, from 1, which cuts off no
            margin, as edits need it; by default the processor's own.
        text_loss_weight, image_loss_weight, image_scale_power: of the losses; by default the model's own (see `VargptConfig`).
        sample_prompts: what to draw before, at evaluations and at the end; by default the first such prompts in the data, [] for nothing.
    """

    streaming: bool = False
    mixture_stop: str = "all_exhausted"
    assistant_only: bool = True
    prompt_dropout: float = 0.0
    random_crop: bool = False
    scale_dropout: float = 0.0
    coarse_scales: int = 1
    resize_factor: float | None = None
    text_loss_weight: float | None = None
    image_loss_weight: float | None = None
    image_scale_power: float | None = None
    sample_prompts: list[str] | None = field(default=None)


NUM_SAMPLES = 4
LOSS_SETTINGS = ("text_loss_weight", "image_loss_weight", "image_scale_power")


def train(config: str | Path, overrides: Sequence[str] = (), dry_run: bool = False) -> None:
    """Runs the stage that a YAML file describes and saves model and processor in its `output_dir`.

    A plan is printed first. In `output_dir` lie at the end, too, the curves of both losses (`training.png`) and images drawn before,
    at evaluations and after (`samples/`). With `use_peft` the adapter is saved, as TRL does; a folder with an adapter can be the next
    stage's model, into which it is merged.

    Args:
        config: the file, or the name of one that comes with the package, such as "lora".
        overrides: arguments that win over the file, such as `["--learning_rate", "1e-4"]`.
        dry_run: do one step of everything, training, evaluation, saving, drawing, say what it took, and leave nothing behind.

    Raises:
        ValueError: a file, key, stage, dataset or model folder that is not there or not right.
    """
    if dry_run:
        return _try_one_step(config, overrides)
    script, training, model_config = parse(config, overrides)
    with only_writer(training.output_dir):
        checkpoint = resume_point(training)
        trainer, sources = make_trainer(script, training, model_config)
        _print_plan(trainer, script, sources)
        _run(trainer, script, checkpoint)


def _try_one_step(config: str | Path, overrides: Sequence[str]) -> None:
    """One step of everything in a folder that goes again, on the device and beside the files of the real run."""
    script, whole, _ = parse(config, overrides)
    parent = next(folder for folder in Path(whole.output_dir).absolute().parents if folder.is_dir())
    with tempfile.TemporaryDirectory(prefix=".dry-run-", dir=parent) as folder:
        once = {"output_dir": folder, "max_steps": 1, "save_strategy": "steps", "save_steps": 1, "logging_steps": 1, "report_to": "none"}
        once |= {"resume_from_checkpoint": "false", **({"eval_strategy": "steps", "eval_steps": 1} if script.eval_data else {})}
        script, training, model_config = parse(
            config, [*overrides, *(part for key, value in once.items() for part in (f"--{key}", str(value)))]
        )
        trainer, sources = make_trainer(script, training, model_config)
        if trainer.eval_dataset is not None:
            trainer.eval_dataset = trainer.eval_dataset.select(range(min(len(trainer.eval_dataset), training.eval_batch_size)))
        _print_plan(trainer, script, sources, whole)
        timer = StepTimer()
        trainer.add_callback(timer)
        _run(trainer, script, None)
    if trainer.is_world_process_zero():
        print(f"Dry run: everything works. {timer.describe(num_steps(whole, trainer.train_dataset))}")


def make_trainer(
    script: PreferenceArguments, training: VargptSFTConfig, model_config: ModelConfig
) -> tuple[VargptSFTTrainer | VargptDPOTrainer, list[DataSource]]:
    """The trainer of a stage and the sources of its data."""
    sources = sources_of(script.train_data)
    if script.method == "dpo":
        return _make_preference_trainer(script, training, model_config, sources), sources
    train_rows = mix_rows(sources, training.seed, script.streaming, script.mixture_stop)
    if script.streaming:
        train_rows = numbered(train_rows.repeat(None))  # one endless pass, since a resumed run finds its position in the first pass alone
    eval_rows = mix_rows(sources_of(script.eval_data), training.seed, stop="all_exhausted_without_replacement") if script.eval_data else None
    with loaded_whole(training):
        model, processor = load_model(model_config, script.image_budget), load_processor(model_config, script.image_budget)
    for name in LOSS_SETTINGS:
        if getattr(script, name) is not None:
            setattr(model.config, name, getattr(script, name))
    if script.resize_factor is not None:
        processor.output_image_processor.resize_factor = script.resize_factor
    if training.train_sampling_strategy in GROUPING:
        train_rows = add_lengths(train_rows, processor, training.length_column_name)
        eval_rows = eval_rows and add_lengths(eval_rows, processor, training.length_column_name)
    model = with_adapters(model, script, model_config)
    apply_stage(model, script.stage, modules_of(script, model))
    collator = VargptDataCollator(
        processor,
        assistant_only=script.assistant_only,
        max_length=training.max_length,
        prompt_dropout=script.prompt_dropout,
        random_crop=script.random_crop,
        scale_dropout=script.scale_dropout,
        coarse_scales=script.coarse_scales,
        seed=training.seed,
    )
    trainer = VargptSFTTrainer(
        model,
        args=training,
        data_collator=collator,
        train_dataset=train_rows,
        eval_dataset=eval_rows,
        processing_class=processor,
        source_names=names_of(sources) if len(sources) > 1 else (),
    )
    widen_trained(trainer.model, training)
    if not training.disable_tqdm:
        trainer.pop_callback(ProgressCallback)
        trainer.add_callback(LossProgressCallback)
    return trainer, sources


def _make_preference_trainer(
    script: PreferenceArguments, training: VargptDPOConfig, model_config: ModelConfig, sources: list[DataSource]
) -> VargptDPOTrainer:
    """The trainer of pairs of answers; its reference is the model that it starts from."""
    eval_rows = mix_pairs(sources_of(script.eval_data), training.seed) if script.eval_data else None
    with loaded_whole(training):
        model = with_adapters(load_model(model_config, script.image_budget), script, model_config)
    apply_stage(model, script.stage, modules_of(script, model))
    trainer = VargptDPOTrainer(
        model,
        args=training,
        train_dataset=mix_pairs(sources, training.seed),
        eval_dataset=eval_rows,
        processing_class=load_processor(model_config, script.image_budget),
    )
    widen_trained(trainer.model, training)
    return trainer


def _print_plan(
    trainer: VargptSFTTrainer, script: PreferenceArguments, sources: list[DataSource], training: VargptSFTConfig | None = None
) -> None:
    if trainer.is_world_process_zero():
        print(describe_plan(trainer, f"{script.stage}: {get_stage(script.stage).description}", sources, training or trainer.args))


def _run(trainer: VargptSFTTrainer, script: PreferenceArguments, checkpoint: str | None) -> None:
    """Trains, saves model and processor, and then what people look at."""
    if not torch.accelerator.is_available():
        keep_freed_memory()  # not before the model is loaded: what quantizing frees would be kept in pieces
    disable_cudnn_attention()
    output_dir = Path(trainer.args.output_dir)
    if checkpoint is not None:
        check_checkpoint(checkpoint, trainer.muon)
    trainer.add_callback(StopAt(script.stop_at))
    sampler = _sampler(trainer, script)
    if sampler is not None:
        trainer.add_callback(sampler)
        if checkpoint is None and trainer.is_world_process_zero():
            remove_samples(output_dir)
            sampler.draw(trainer.model, output_dir, 0)
    if checkpoint is not None and trainer.is_world_process_zero():
        remove_half_checkpoints(output_dir)
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_whole_model(output_dir)  # with the processor
    if trainer.eval_dataset is not None and not _is_evaluated(trainer):
        metrics = trainer.evaluate()
        if trainer.is_world_process_zero():
            print(describe_evaluation(metrics))
    if trainer.is_world_process_zero():
        save_curves(trainer.state.log_history, output_dir / CURVES)
        if sampler is not None:
            sampler.draw(trainer.model, output_dir, trainer.state.global_step)


def _is_evaluated(trainer: VargptSFTTrainer) -> bool:
    """Whether the weights are evaluated as they are, after the last step."""
    return any("eval_loss" in entry and entry["step"] == trainer.state.global_step for entry in trainer.state.log_history)


def _sampler(trainer: VargptSFTTrainer, script: PreferenceArguments) -> SampleCallback | None:
    """What draws samples, where there is something to draw and a process has the whole model."""
    if not isinstance(script, VargptScriptArguments):
        return None
    prompts = script.sample_prompts
    if prompts is None:
        rows = [rows for rows in (trainer.eval_dataset, trainer.train_dataset) if rows is not None]
        prompts = next(filter(None, (drawing_prompts(each, NUM_SAMPLES) for each in rows)), [])
    if not prompts or trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        return None
    return SampleCallback(trainer.processing_class, prompts, trainer.args.seed)


def load_model(model_config: ModelConfig, image_budget: str | None = None) -> VargptForConditionalGeneration:
    """The model of a folder or Hub id, drawing images of a budget; of a folder with an adapter, its base with the adapter merged into it."""
    path, revision = model_config.model_name_or_path, model_config.model_revision
    has_adapter = (Path(path) / _ADAPTER).is_file()
    base = PeftConfig.from_pretrained(path).base_model_name_or_path if has_adapter else path
    options = {} if has_adapter else {"revision": revision}
    config = VargptConfig.from_pretrained(base, **options)
    options |= loading_options(model_config, config)
    if image_budget is not None:
        options["config"] = with_image_budget(config, image_budget)
    model = VargptForConditionalGeneration.from_pretrained(base, **options)
    return PeftModel.from_pretrained(model, path).merge_and_unload() if has_adapter else model


def load_processor(model_config: ModelConfig, image_budget: str | None = None) -> VargptProcessor:
    """The processor of the same folder or Hub id, for images to draw of a budget."""
    path, revision = model_config.model_name_or_path, model_config.model_revision
    processor = VargptProcessor.from_pretrained(path, revision=revision)
    if image_budget is not None:
        base = PeftConfig.from_pretrained(path).base_model_name_or_path if (Path(path) / _ADAPTER).is_file() else path
        fit_processor(processor, with_image_budget(VargptConfig.from_pretrained(base), image_budget))
    return processor


def with_adapters(
    model: VargptForConditionalGeneration, script: PreferenceArguments, model_config: ModelConfig
) -> VargptForConditionalGeneration | PeftModel:
    """The model in PEFT's wrapper, where asked for: by a preset, or by default, and for "all-linear", on the linear layers of the stage."""
    peft_config = get_peft_config(model_config)
    if peft_config is None:
        return model
    if script.lora_preset is not None:
        kept = ("r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora")
        return get_peft_model(model, lora_config(script.lora_preset, model, **{name: getattr(peft_config, name) for name in kept}))
    targets = model_config.lora_target_modules
    if targets in (None, [], "all-linear", ["all-linear"]):
        # PEFT's own "all-linear" takes those of every part, also of the frozen vision tower.
        peft_config.target_modules = set(stage_linears(model, script.stage, script.train_modules))
    return get_peft_model(model, peft_config)


def modules_of(script: PreferenceArguments, model: nn.Module) -> list[str] | None:
    """Regular expressions of the parameters to train, where they are not the stage's: those given, or those of the preset."""
    if script.lora_preset is None:
        return script.train_modules
    preset = find_preset(script.lora_preset, model)
    return [rf"model\.{re.escape(name)}\." for name in preset.adapts + preset.trains]


def parse(config: str | Path, overrides: Sequence[str] = ()) -> tuple[PreferenceArguments, VargptSFTConfig | VargptDPOConfig, ModelConfig]:
    """The three groups of arguments of a YAML file; the stage's schedule fills in what it leaves open.

    Raises:
        ValueError: a file that is not there or no mapping, unknown keys, or a stage, dataset or model that is missing.
    """
    config = find_stage(config)
    given, overrides = read_stage(config), list(overrides)
    stage, method = _chosen(given, overrides)
    if method not in METHODS:
        raise ValueError(f"{config}: `method` is {method!r}; it must be one of {', '.join(METHODS)}.")
    groups = (*METHODS[method], ModelConfig)
    required = ("stage", "train_data", "model_name_or_path", "output_dir")
    parsed = parse_groups(groups, config, given, overrides, required, lambda: get_stage(stage).schedule)
    parsed[2].model_name_or_path = folder_of(parsed[2].model_name_or_path)
    _check(*parsed)
    return tuple(parsed)


def parse_groups(
    groups: Sequence[type], config: Path, given: dict, overrides: Sequence[str], required: Sequence[str], schedule: Callable[[], dict] = dict
) -> list:
    """One object for each group of arguments, of a file's values and the command line's.

    Args:
        given: what the file says.
        overrides: the command line's, which replace it.
        required: arguments that one of the two must give.
        schedule: gives values of what neither says, in place of the groups' own; asked once all that is required is there.

    Raises:
        ValueError: unknown keys, values of the wrong form, or something required that is missing.
    """
    overrides = list(overrides)
    hints = {name: hint for group in groups for name, hint in get_type_hints(group).items()} | {"env": dict}
    refuse_unknown([key for key in given if key not in hints], hints, config)
    check_form(given, {**hints, **dict.fromkeys(_TEXT_OR_LIST, str | list | None)}, config)
    parser = CommandParser(groups, allow_abbrev=False)
    try:
        parser.set_defaults_with_config(**given)
        values, _ = parser.parse_known_args(overrides)
        for key in required:
            if not getattr(values, key):
                raise ValueError(f"{config} has no `{key}`.")
        parser.set_defaults_with_config(**schedule())  # which the file's own values, set next, replace
        *parsed, unknown = parser.parse_args_and_config(["--config", str(config), *overrides], return_remaining_strings=True)
    except (TypeError, KeyError, AttributeError) as error:  # of the libraries' own checks, which take the form for granted
        raise ValueError(f"{config}: a value has the wrong form: {error}.") from error
    refuse_unknown([str(part).removeprefix("--").split("=")[0] for part in unknown if str(part).startswith("--")], hints, "command line")
    if unknown:
        raise ValueError(f"command line: {' '.join(map(str, unknown))} belongs to no --key.")
    return parsed


class CommandParser(TrlParser):
    """TRL's, which raises a ValueError where argparse would print all its options and end the program."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message[:1].upper()}{message[1:]}.")


METHODS = {"sft": (VargptScriptArguments, VargptSFTConfig), "dpo": (PreferenceArguments, VargptDPOConfig)}


def _chosen(given: Mapping[str, Any], overrides: list[str]) -> tuple[str, str]:
    """Stage and method that the file or, which win, the overrides name: they say which other arguments there are, and their defaults."""
    parser = CommandParser((PreferenceArguments,), allow_abbrev=False)
    parser.set_defaults_with_config(**given)
    chosen, _ = parser.parse_known_args(overrides)
    return str(chosen.stage), str(chosen.method)


def _check(script: PreferenceArguments, training: VargptSFTConfig | VargptDPOConfig, model_config: ModelConfig) -> None:
    """Refuses, before anything is loaded, what cannot work."""
    StopAt(script.stop_at)
    if isinstance(script, VargptScriptArguments):
        _check_supervised(script, training)
    if training.eval_strategy != "no" and not script.eval_data:
        raise ValueError(f"eval_strategy is {training.eval_strategy.value!r}, but there is no `eval_data`.")
    if training.max_length is not None and training.max_length < 1:
        raise ValueError(f"`max_length` must be at least 1, got {training.max_length}; leave it out for no limit.")
    check_training(training)
    if script.lora_preset is not None:
        if script.lora_preset not in PRESETS:
            raise ValueError(f"`lora_preset` is {script.lora_preset!r}; it must be one of {', '.join(PRESETS)}.")
        if not model_config.use_peft or script.train_modules or model_config.lora_target_modules or model_config.lora_modules_to_save:
            raise ValueError(
                "`lora_preset` says where adapters go: it needs `use_peft: true`, and neither `train_modules`, nor `lora_target_modules`, nor "
                "`lora_modules_to_save`."
            )
    if (model_config.load_in_4bit or model_config.load_in_8bit) and (
        not model_config.use_peft or (Path(model_config.model_name_or_path) / _ADAPTER).is_file()
    ):
        raise ValueError(
            "load_in_4bit and load_in_8bit quantize a frozen language model: they need `use_peft: true`, and a model without an adapter of its "
            "own, which cannot be merged into quantized weights."
        )
    for pattern in script.train_modules or ():
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"`train_modules` must be regular expressions: {pattern!r} is none ({error}).") from error
    path = model_config.model_name_or_path
    if not (Path(path) / _ADAPTER).is_file():
        try:
            config = VargptConfig.from_pretrained(path, revision=model_config.model_revision)
        except OSError as error:
            raise ValueError(f"There is no model at {path}: give a folder with a VARGPT, or a Hub id.") from error
        if script.image_budget is not None:
            with_image_budget(config, script.image_budget)


def _check_supervised(script: VargptScriptArguments, training: VargptSFTConfig) -> None:
    if script.streaming and training.max_steps <= 0:
        raise ValueError("`streaming` does not know how many rows there are: set `max_steps`.")
    if script.streaming and training.train_sampling_strategy in GROUPING:
        raise ValueError(f"train_sampling_strategy={training.train_sampling_strategy!r} needs all rows ahead: leave it out, or `streaming`.")
    for name in LOSS_SETTINGS:
        if (getattr(script, name) or 0) < 0:
            raise ValueError(f"`{name}` must not be negative, got {getattr(script, name)}.")
    if script.resize_factor is not None and not 1 <= script.resize_factor < float("inf"):
        raise ValueError(f"`resize_factor` must be a number from 1 on, got {script.resize_factor}.")
    for name in ("prompt_dropout", "scale_dropout"):
        if not 0 <= getattr(script, name) <= 1:
            raise ValueError(f"`{name}` must be in [0, 1], got {getattr(script, name)}.")
    if script.coarse_scales < 1:
        raise ValueError(f"`coarse_scales` must be at least 1, got {script.coarse_scales}.")


def check_training(training: TrainingArguments) -> None:
    """Raises a ValueError for settings of a trainer that cannot work."""
    for name in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"):
        if getattr(training, name) < 1:
            raise ValueError(f"`{name}` must be at least 1, got {getattr(training, name)}.")
    if not 0 <= training.learning_rate < float("inf"):
        raise ValueError(f"`learning_rate` must be a number from 0 on, got {training.learning_rate}.")
    asked = training.resume_from_checkpoint
    if asked is not None and str(asked).lower() not in ("true", "false") and not Path(asked).is_dir():
        raise ValueError(f"There is no checkpoint {asked}.")


def resume_point(training: TrainingArguments) -> str | None:
    """The checkpoint to resume from: the one asked for, or, where "true" is, the last complete one, if there is any.

    Raises:
        ValueError: a run that starts anew among checkpoints of another, which `save_total_limit` and resuming would take for its own.
    """
    asked = str(training.resume_from_checkpoint or "false")
    if asked.lower() not in ("true", "false"):
        return asked
    if asked.lower() == "true":
        return last_complete_checkpoint(training.output_dir)
    if earlier := checkpoints_of(training.output_dir):
        raise ValueError(
            f"{training.output_dir} holds {earlier[-1].name} of an earlier run: continue that by --resume_from_checkpoint true, or delete its "
            "checkpoints, or give another --output_dir."
        )
    return None
