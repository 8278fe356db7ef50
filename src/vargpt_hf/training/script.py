"""One stage of training from a YAML file, in the form of TRL's own scripts."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl import ModelConfig, SFTConfig, TrlParser, get_peft_config

from ..modeling.modeling_vargpt import VargptForConditionalGeneration
from ..processing.processing_vargpt import VargptProcessor
from .collator import VargptDataCollator
from .data import load_rows
from .stages import apply_stage, get_stage
from .trainer import VargptSFTTrainer


@dataclass
class VargptScriptArguments:
    """What a stage's YAML says beside TRL's `SFTConfig` and `ModelConfig`.

    Args:
        stage: name of the stage, which says what is trained and the default schedule.
        train_data: dataset to train on; see `load_rows`.
        eval_data: dataset to evaluate on.
        train_modules: regular expressions of parameters to train in place of the stage's.
        max_row_length: longest row in tokens; a longer one is refused.
        assistant_only: label the assistant's tokens only.
        prompt_dropout: how often a drawing's prompt is emptied, for guidance by an unconditional prompt.
    """

    stage: str = ""
    train_data: str = ""
    eval_data: str | None = None
    train_modules: list[str] | None = field(default=None)
    max_row_length: int | None = None
    assistant_only: bool = True
    prompt_dropout: float = 0.0


@dataclass
class VargptSFTConfig(SFTConfig):
    """TRL's `SFTConfig`, with gradient checkpointing and bfloat16 off unless asked for, and no reports to services."""

    gradient_checkpointing: bool = False
    bf16: bool | None = False
    report_to: list[str] = field(default_factory=list)
    logging_steps: float = 20


def train(config: str | Path, overrides: Sequence[str] = ()) -> None:
    """Runs the stage that a YAML file describes and saves model and processor in its `output_dir`.

    Args:
        config: the file.
        overrides: arguments that win over the file, such as `["--learning_rate", "1e-4"]`.

    Raises:
        ValueError: a file, key, stage, dataset or model folder that is not there or not right.
    """
    script, training, model_config = parse(config, overrides)
    train_rows = load_rows(script.train_data)
    eval_rows = load_rows(script.eval_data) if script.eval_data else None
    model = VargptForConditionalGeneration.from_pretrained(model_config.model_name_or_path, dtype=model_config.dtype or "float32")
    processor = VargptProcessor.from_pretrained(model_config.model_name_or_path)
    trained = apply_stage(model, script.stage, script.train_modules)
    print(f"{script.stage}: trains {trained:,} of {model.num_parameters():,} parameters on {len(train_rows):,} rows")
    collator = VargptDataCollator(
        processor,
        assistant_only=script.assistant_only,
        max_length=script.max_row_length,
        prompt_dropout=script.prompt_dropout,
        seed=training.seed,
    )
    trainer = VargptSFTTrainer(
        model,
        args=training,
        data_collator=collator,
        train_dataset=train_rows,
        eval_dataset=eval_rows,
        processing_class=processor,
        peft_config=get_peft_config(model_config),
    )
    trainer.train(resume_from_checkpoint=resume_point(training))
    trainer.save_model(training.output_dir)
    processor.save_pretrained(training.output_dir)


def parse(config: str | Path, overrides: Sequence[str] = ()) -> tuple[VargptScriptArguments, VargptSFTConfig, ModelConfig]:
    """The three groups of arguments of a YAML file; the stage's schedule fills in what it leaves open.

    Raises:
        ValueError: a file that is not there or no mapping, unknown keys, or a stage, dataset or model that is missing.
    """
    if not Path(config).is_file():
        raise ValueError(f"There is no file {config}.")
    given = yaml.safe_load(Path(config).read_text())
    if not isinstance(given, dict):
        raise ValueError(f"{config} must hold `key: value` lines.")
    for key in ("stage", "train_data", "model_name_or_path", "output_dir"):
        if not given.get(key) and f"--{key}" not in overrides:
            raise ValueError(f"{config} has no `{key}`.")
    schedule = get_stage(given["stage"]).schedule
    defaults = [part for key, value in schedule.items() if key not in given for part in (f"--{key}", str(value))]
    parser = TrlParser((VargptScriptArguments, VargptSFTConfig, ModelConfig))
    parsed = parser.parse_args_and_config(["--config", str(config), *defaults, *overrides], return_remaining_strings=True)
    *groups, unknown = parsed
    if unknown:
        raise ValueError(f"{config}: unknown arguments {' '.join(unknown)}.")
    return tuple(groups)


def resume_point(training: SFTConfig) -> str | None:
    """The checkpoint to go on from: the one asked for, or, where "true" is, the last complete one, if there is any."""
    asked = training.resume_from_checkpoint
    if asked is None or str(asked).lower() == "false":
        return None
    return last_complete_checkpoint(training.output_dir) if str(asked).lower() == "true" else str(asked)


def last_complete_checkpoint(output_dir: str | Path) -> str | None:
    """The checkpoint folder with the highest step whose trainer state, which is written last, can be read."""
    complete = []
    for folder in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        try:
            json.loads((folder / "trainer_state.json").read_text())
            complete.append((int(folder.name.rsplit("-", 1)[1]), str(folder)))
        except (OSError, ValueError):
            continue  # a run was killed while it wrote this one
    return max(complete)[1] if complete else None
