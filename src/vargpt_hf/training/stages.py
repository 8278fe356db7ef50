"""What each stage of training trains, and its default schedule.

Those of VARGPT v1 are of arXiv 2501.12327, section 4; `v1_1_stage…` are those of VARGPT v1.1 (arXiv 2504.02949), by what the released training
freezes.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from peft import PeftModel
from torch import nn

from ..peft import backbone_of


@dataclass(frozen=True)
class Stage:
    """One stage of training.

    Args:
        description: what the stage is for.
        trains: regular expressions; a parameter is trained where one of them matches the start of its name. `<language model>` and
            `<projector>` in them stand for what a model's backbone calls its language model and the projector of images that are read.
        schedule: defaults of training arguments, which a configuration may replace.
    """

    description: str
    trains: tuple[str, ...]
    schedule: dict[str, float | int | str] = field(default_factory=dict)


# In regular expressions these stand for what the backbone of a model calls the modules.
LANGUAGE_MODEL, PROJECTOR = "<language model>", "<projector>"

_LLM = (LANGUAGE_MODEL, r"lm_head\.")
_UNDERSTANDING_PROJECTOR = (PROJECTOR,)
_GENERATION_PROJECTORS = (r"model\.projector_to_(llm|decoder)\.",)
_DECODER = (r"model\.visual_decoder\.",)
_CONDITION = (r"model\.visual_decoder\.condition_embedding(\.|$)",)  # a table in one visual decoder, a parameter in another
_READER = (r"model\.vlm\.",)
_COSINE = {"lr_scheduler_type": "cosine", "warmup_steps": 0.1}
_RELEASED_V1_1 = {
    "learning_rate": 5e-5,
    "num_train_epochs": 6,
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 2,
    **_COSINE,
}

STAGES = {
    "pretrain": Stage(
        "Gives language model, projectors and visual decoder first weights, where no ready-made ones (the paper: LLaVA-1.5 and VAR) are used.",
        trains=(*_UNDERSTANDING_PROJECTOR, *_LLM, *_GENERATION_PROJECTORS, *_DECODER),
        schedule={"learning_rate": 1e-3, "num_train_epochs": 1, "per_device_train_batch_size": 32, **_COSINE},
    ),
    "stage1": Stage(
        "Aligns the drawing side with the language model (the paper gives no numbers of its schedule).",
        trains=(*_GENERATION_PROJECTORS, *_CONDITION),
        schedule={"learning_rate": 1e-3, "num_train_epochs": 1, "per_device_train_batch_size": 32, **_COSINE},
    ),
    "stage2": Stage(
        "Teaches to follow instructions about images (the paper gives no numbers of its schedule).",
        trains=(*_LLM, *_UNDERSTANDING_PROJECTOR),
        schedule={"learning_rate": 2e-5, "num_train_epochs": 1, "per_device_train_batch_size": 16, **_COSINE},
    ),
    "stage3": Stage(
        "Teaches to draw what an instruction asks for (schedule as released; also released, and left to the machine in use: rows of at "
        "most 2048 tokens, bfloat16, ZeRO-3).",
        trains=(*_GENERATION_PROJECTORS, *_DECODER),
        schedule={
            "learning_rate": 5e-5,
            "num_train_epochs": 3,
            "per_device_train_batch_size": 8,
            "gradient_accumulation_steps": 2,
            **_COSINE,
        },
    ),
    "v1_1_stage1": Stage(
        "v1.1: aligns the drawing side with the language model (no numbers of its schedule were released).",
        trains=(*_GENERATION_PROJECTORS, *_CONDITION),
        schedule={"learning_rate": 1e-3, "num_train_epochs": 1, "per_device_train_batch_size": 32, **_COSINE},
    ),
    "v1_1_stage2": Stage(
        "v1.1: teaches the language model to follow instructions about images (no numbers of its schedule were released).",
        trains=_LLM,
        schedule={"learning_rate": 2e-5, "num_train_epochs": 1, "per_device_train_batch_size": 16, **_COSINE},
    ),
    "v1_1_stage3": Stage(
        "v1.1: teaches the drawing side to draw, at 256 and then at 512 pixels, and to edit (schedule as released; also released, and left to "
        "the machine in use: rows of at most 8192 tokens, bfloat16, ZeRO-3).",
        trains=(*_GENERATION_PROJECTORS, *_DECODER),
        schedule=_RELEASED_V1_1,
    ),
    "v1_1_stage4": Stage(
        "v1.1: teaches the language model and the drawing side together (schedule of stage 3).",
        trains=(*_LLM, *_GENERATION_PROJECTORS, *_DECODER),
        schedule=_RELEASED_V1_1,
    ),
    "v1_1_stage5": Stage(
        "v1.1: trains all but the image tokenizer (schedule of stage 3).",
        trains=(*_READER, r"lm_head\.", *_GENERATION_PROJECTORS, *_DECODER),
        schedule=_RELEASED_V1_1,
    ),
}
# Wrappers put these before the names.
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

    Of a model that PEFT has wrapped, the adapters (and copies by `modules_to_save`) inside the stage's modules are trained, never the
    weights beneath. After `merge_and_unload` it is a plain model again: apply the stage once more.

    Args:
        model: a `VargptForConditionalGeneration`, plain or wrapped by PEFT.
        stage: its name, or a stage of your own.
        train_modules: regular expressions in place of the stage's.

    Raises:
        ValueError: an unknown stage, or expressions that are none or match no parameter.
    """
    patterns = _patterns(model, stage, train_modules)
    adapters = adapter_parameters(model) if isinstance(model, PeftModel) else None
    trained = 0
    for name, parameter in model.named_parameters():
        wanted = adapters is None or name in adapters
        parameter.requires_grad_(wanted and _matches(patterns, name))
        trained += parameter.numel() if parameter.requires_grad else 0
    if trained == 0:
        raise ValueError(f"No parameter has a name that starts like {[pattern.pattern for pattern in patterns]}: nothing to train.")
    return trained


def stage_linears(model: nn.Module, stage: str | Stage, train_modules: Sequence[str] | None = None) -> list[str]:
    """Names of the linear layers inside the stage's modules but for the language-model head: where LoRA's adapters go.

    Raises:
        ValueError: an unknown stage, or no such layer.
    """
    patterns = _patterns(model, stage, train_modules)
    linears = (name for name, module in model.named_modules() if isinstance(module, nn.Linear) and name != "lm_head")
    names = [name for name in linears if _matches(patterns, f"{name}.weight")]
    if not names:
        raise ValueError(f"No linear layer has a name that starts like {[pattern.pattern for pattern in patterns]}.")
    return names


def adapter_parameters(model: PeftModel) -> set[str]:
    """Names of the parameters that PEFT added: it keys each of them by the adapter's name."""
    adapters = set(model.peft_config)
    return {name for name, _ in model.named_parameters() if adapters & set(name.split("."))}


def _patterns(model: nn.Module, stage: str | Stage, train_modules: Sequence[str] | None) -> list[re.Pattern[str]]:
    stage = get_stage(stage) if isinstance(stage, str) else stage
    patterns = train_modules or stage.trains
    if any(mark in pattern for pattern in patterns for mark in (LANGUAGE_MODEL, PROJECTOR)):
        backbone = backbone_of(model)
        names = {LANGUAGE_MODEL: (backbone.decoder_name,), PROJECTOR: backbone.projector_names}
        for mark, parts in names.items():
            starts = "|".join(re.escape(f"model.vlm.{part}".rstrip(".") + ".") for part in parts) or "(?!)"  # which matches nothing
            patterns = [pattern.replace(mark, f"(?:{starts})") for pattern in patterns]
    try:
        return [re.compile(pattern) for pattern in patterns]
    except re.error as error:
        raise ValueError(f"`train_modules` must be regular expressions: {error.pattern!r} is none ({error}).") from error


def _matches(patterns: list[re.Pattern[str]], name: str) -> bool:
    return any(pattern.match(_WRAPPERS.sub("", name)) for pattern in patterns)
