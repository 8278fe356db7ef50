"""LoRA presets: which linear layers get adapters, what is fully trained beside them, and what quantizers should leave alone."""

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from peft import LoraConfig


class Preset(NamedTuple):
    """Where a preset's adapters go and what it trains whole, as starts of module names.

    Args:
        adapts: every linear layer in these modules gets an adapter.
        trains: these small modules are fully trained and saved with the adapter (`modules_to_save`).
    """

    adapts: tuple[str, ...]
    trains: tuple[str, ...]


_PICTURE_SIDE = ("vlm.multi_modal_projector", "projector_to_llm", "projector_to_decoder", "visual_decoder")
_UNDERSTAND = Preset(("vlm.language_model",), ("vlm.multi_modal_projector",))
_DRAW = Preset(("visual_decoder",), ("projector_to_llm", "projector_to_decoder", "visual_decoder.head"))
PRESETS = {"understand": _UNDERSTAND, "draw": _DRAW, "all": Preset(_UNDERSTAND.adapts + _DRAW.adapts, _UNDERSTAND.trains + _DRAW.trains)}


def lora_config(preset: str, **overrides) -> "LoraConfig":
    """Settings of LoRA for a VARGPT, for `peft.get_peft_model`, `VargptSFTTrainer(peft_config=...)` or `model.add_adapter`.

    Needs `vargpt-hf[train]`.

    | preset | adapters on every linear layer of | fully trained |
    |---|---|---|
    | `"understand"` | the language model | CLIP's projector |
    | `"draw"` | the visual decoder | both generation projectors, the decoder's head |
    | `"all"` | both | all three projectors, the decoder's head |

    CLIP's tower, the image tokenizer, the token embedding and the language-model head stay as they are, whatever names their layers share
    with others. So tied embeddings stay tied; to train them, give `modules_to_save=[..., "embed_tokens"]` with
    `ensure_weight_tying=True`.

    What is saved with these settings has a card that says how to load it, and loads by `AutoPeftModelForCausalLM` and `pipeline`, too.

    Args:
        preset: "understand", "draw" or "all".
        overrides: any field of `LoraConfig`. `target_modules` then chooses among the linear layers of the preset's modules. With
            `modules_to_save=None` nothing is fully trained, and what would be gets adapters too.

    Raises:
        ValueError: an unknown preset.
    """
    from .peft_config import VargptLoraConfig

    adapts, trains = _preset(preset)
    inside = "|".join(name.replace(".", r"\.") for name in adapts + trains)
    fields = {
        "task_type": "CAUSAL_LM",  # by which AutoPeftModelForCausalLM and pipelines find the class of the base model
        "r": 16,
        "lora_alpha": 32,
        # Names such as "q_proj" are also CLIP's: all linear layers that do not stand in the preset's own modules are left out.
        "target_modules": "all-linear",
        "exclude_modules": rf"(?!(model\.)?({inside})(\.|$)).*",
        "modules_to_save": list(trains),
    }
    config = VargptLoraConfig(**{**fields, **overrides})
    config.preset = preset
    return config


def unquantized_modules(preset: str | None = None) -> list[str]:
    """What should stay in floating point when a VARGPT is quantized.

    Without a preset, all but the layers of the language model: the image side and the heads choose codes, and rounding costs more there than
    it saves. For QLoRA, give the preset that will be trained: its modules may then be quantized too, but for what it trains whole and for
    the decoder's embedding of latent channels, which are fewer than one block of a quantizer's.

    For `llm_int8_skip_modules` of bitsandbytes or `modules_to_not_convert` of torchao.

    Raises:
        ValueError: an unknown preset.
    """
    kept = ("vlm.vision_tower", "image_tokenizer", "visual_decoder.token_embedding")
    whole = _PICTURE_SIDE if preset is None else _preset(preset).trains
    return ["lm_head", *(f"model.{name}" for name in dict.fromkeys(kept + whole))]


def _preset(name: str) -> Preset:
    if name not in PRESETS:
        raise ValueError(f"There is no preset {name!r}; the presets are {', '.join(PRESETS)}.")
    return PRESETS[name]


__all__ = ["PRESETS", "Preset", "lora_config", "unquantized_modules"]
