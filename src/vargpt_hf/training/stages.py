"""What each stage of training trains (VARGPT, arXiv 2501.12327, section 4), and its default schedule."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import nn


@dataclass(frozen=True)
class Stage:
    """One stage of training.

    Args:
        description: what the stage is for.
        trains: regular expressions; a parameter is trained where one of them matches the start of its name.
        schedule: defaults of training arguments, which a configuration may replace.
    """

    description: str
    trains: tuple[str, ...]
    schedule: dict[str, float | int | str] = field(default_factory=dict)


_LLM = (r"model\.language_model\.", r"lm_head\.")
_UNDERSTANDING_PROJECTOR = (r"model\.multi_modal_projector\.",)
_GENERATION_PROJECTORS = (r"model\.generation_projector_(in|out)\.",)
_DECODER = (r"model\.visual_decoder\.",)
_COSINE = {"lr_scheduler_type": "cosine", "warmup_steps": 0.1}

STAGES = {
    "pretrain": Stage(
        "Gives language model and visual decoder first weights, where no ready-made ones (the paper: LLaVA-1.5 and VAR) are used.",
        trains=(*_LLM, *_UNDERSTANDING_PROJECTOR, *_GENERATION_PROJECTORS, *_DECODER),
        schedule={"learning_rate": 1e-3, "num_train_epochs": 1, "per_device_train_batch_size": 32, **_COSINE},
    ),
    "stage1": Stage(
        "Aligns the drawing side with the language model (the paper gives no numbers of its schedule).",
        trains=(*_GENERATION_PROJECTORS, r"model\.visual_decoder\.condition_embedding\."),
        schedule={"learning_rate": 1e-3, "num_train_epochs": 1, "per_device_train_batch_size": 32, **_COSINE},
    ),
    "stage2": Stage(
        "Teaches to follow instructions about pictures (the paper gives no numbers of its schedule).",
        trains=(*_LLM, *_UNDERSTANDING_PROJECTOR),
        schedule={"learning_rate": 2e-5, "num_train_epochs": 1, "per_device_train_batch_size": 16, **_COSINE},
    ),
    "stage3": Stage(
        "Teaches to draw what an instruction asks for (schedule as released).",
        trains=(*_GENERATION_PROJECTORS, *_DECODER),
        schedule={
            "learning_rate": 5e-5,
            "num_train_epochs": 3,
            "per_device_train_batch_size": 8,
            "gradient_accumulation_steps": 2,
            **_COSINE,
        },
    ),
}
# A wrapper such as PEFT's puts prefixes before the names and `base_layer`, adapter names and the like inside them.
_WRAPPERS = re.compile(r"^(base_model\.model\.|module\.|_orig_mod\.)+")


def get_stage(name: str) -> Stage:
    """The stage of that name.

    Raises:
        ValueError: an unknown name.
    """
    if name not in STAGES:
        raise ValueError(f"There is no stage {name!r}; the stages are {', '.join(STAGES)}.")
    return STAGES[name]


def apply_stage(model: nn.Module, stage: str | Stage, train_modules: Sequence[str] | None = None) -> int:
    """Makes exactly what the stage trains require gradients, all else not; returns how many parameters that are.

    Args:
        model: a `VargptForConditionalGeneration`.
        stage: its name, or a stage of your own.
        train_modules: regular expressions in place of the stage's.

    Raises:
        ValueError: an unknown stage, or expressions that match no parameter.
    """
    stage = get_stage(stage) if isinstance(stage, str) else stage
    patterns = [re.compile(pattern) for pattern in train_modules or stage.trains]
    trained = 0
    for name, parameter in model.named_parameters():
        name = _WRAPPERS.sub("", name)
        parameter.requires_grad_(any(pattern.match(name) for pattern in patterns))
        trained += parameter.numel() if parameter.requires_grad else 0
    if trained == 0:
        raise ValueError(f"No parameter has a name that starts like {[pattern.pattern for pattern in patterns]}: nothing to train.")
    return trained
