"""LoRA presets: which linear layers get adapters, what is fully trained beside them, and what quantizers should leave alone."""

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from peft import LoraConfig
    from torch import nn

    from .modeling.backbone_vargpt import VargptBackbone


class Preset(NamedTuple):
    """Where a preset's adapters go and what it trains whole, as starts of module names.

    Args:
        adapts: every linear layer in these modules gets an adapter.
        trains: these small modules are fully trained and saved with the adapter (`modules_to_save`).
    """

    adapts: tuple[str, ...]
    trains: tuple[str, ...]


# Of a model whose backbone is a LLaVA.
_LANGUAGE_MODEL, _PROJECTOR, _TOWER = "vlm.language_model", "vlm.multi_modal_projector", "vlm.vision_tower"
_UNDERSTAND = Preset((_LANGUAGE_MODEL,), (_PROJECTOR,))
_DRAW = Preset(("visual_decoder",), ("projector_to_llm", "projector_to_decoder", "visual_decoder.head"))
PRESETS = {"understand": _UNDERSTAND, "draw": _DRAW, "all": Preset(_UNDERSTAND.adapts + _DRAW.adapts, _UNDERSTAND.trains + _DRAW.trains)}


def lora_config(preset: str, model: "nn.Module | None" = None, **overrides) -> "LoraConfig":
    """Settings of LoRA for a VARGPT, for `peft.get_peft_model`, `VargptSFTTrainer(peft_config=...)` or `model.add_adapter`.

    Needs `vargpt-hf[train]`.

    | preset | adapters on every linear layer of | fully trained |
    |---|---|---|
    | `"understand"` | the language model | the projector of images that are read |
    | `"draw"` | the visual decoder | both projectors of drawn images, the decoder's head |
    | `"all"` | both | all projectors, the decoder's head |

    The vision tower, the image tokenizer, the token embedding and the language-model head stay as they are, whatever names their layers share
    with others. So tied embeddings stay tied; to train them, give `modules_to_save=[..., "embed_tokens"]` with
    `ensure_weight_tying=True`.

    What is saved with these settings has a card that says how to load it, and loads by `AutoPeftModelForCausalLM` and `pipeline`, too.

    Args:
        preset: "understand", "draw" or "all".
        model: the VARGPT to be trained, whose backbone says how its language model and projector are called; a LLaVA's by default.
        overrides: any field of `LoraConfig`. `target_modules` then chooses among the linear layers of the preset's modules. With
            `modules_to_save=None` nothing is fully trained, and what would be gets adapters too.

    Raises:
        ValueError: an unknown preset.
    """
    from .peft_config import VargptLoraConfig

    adapts, trains = find_preset(preset, model)
    inside = "|".join(name.replace(".", r"\.") for name in adapts + trains)
    fields = {
        "task_type": "CAUSAL_LM",  # by which AutoPeftModelForCausalLM and pipelines find the class of the base model
        "r": 16,
        "lora_alpha": 32,
        # Names such as "q_proj" are also those of vision towers: all linear layers that do not stand in the preset's own modules are left out.
        "target_modules": "all-linear",
        "exclude_modules": rf"(?!(model\.)?({inside})(\.|$)).*",
        "modules_to_save": list(trains) or None,
    }
    config = VargptLoraConfig(**{**fields, **overrides})
    config.preset = preset
    return config


def unquantized_modules(preset: str | None = None, model: "nn.Module | None" = None) -> list[str]:
    """What should stay in floating point when a VARGPT is quantized.

    Without a preset, all but the layers of the language model: the image side and the heads choose codes, and rounding costs more there than
    it saves. For QLoRA, give the preset that will be trained: its modules may then be quantized too, but for what it trains whole and for
    the decoder's embedding of latent channels, which are fewer than one block of a quantizer's.

    For `llm_int8_skip_modules` of bitsandbytes or `modules_to_not_convert` of torchao. The names are those of a LLaVA, unless a `model` with
    another backbone is given, for which one on the meta device will do.

    Raises:
        ValueError: an unknown preset.
    """
    kept = (*_names(model)[_TOWER], "image_tokenizer", "visual_decoder.token_embedding")
    whole = find_preset("all", model).trains + _DRAW.adapts if preset is None else find_preset(preset, model).trains
    return ["lm_head", *(f"model.{name}" for name in dict.fromkeys(kept + whole))]


def find_preset(name: str, model: "nn.Module | None" = None) -> Preset:
    """The preset of that name, in the module names of a model, plain or wrapped; in those of a LLaVA by default.

    Raises:
        ValueError: an unknown name, or no VARGPT inside the model.
    """
    if name not in PRESETS:
        raise ValueError(f"There is no preset {name!r}; the presets are {', '.join(PRESETS)}.")
    names = _names(model)
    return Preset(*(tuple(found for part in parts for found in names.get(part, (part,))) for parts in PRESETS[name]))


def _names(model: "nn.Module | None") -> dict[str, tuple[str, ...]]:
    """Names in `model` of what in a LLaVA is called so."""
    if model is None:
        return {name: (name,) for name in (_LANGUAGE_MODEL, _PROJECTOR, _TOWER)}
    backbone = backbone_of(model)
    found = {_LANGUAGE_MODEL: (backbone.decoder_name,), _PROJECTOR: backbone.projector_names, _TOWER: backbone.tower_names}
    return {name: tuple(f"vlm.{part}".rstrip(".") for part in parts) for name, parts in found.items()}


def backbone_of(model: "nn.Module") -> "VargptBackbone":
    """The reading side of a VARGPT, however adapters or engines have wrapped it.

    Raises:
        ValueError: no VARGPT inside.
    """
    from .modeling.modeling_vargpt import VargptModel

    found = next((module for module in model.modules() if isinstance(module, VargptModel)), None)
    if found is None:
        raise ValueError(f"There is no VARGPT inside this {type(model).__name__}.")
    return found.backbone


__all__ = ["PRESETS", "Preset", "backbone_of", "find_preset", "lora_config", "unquantized_modules"]
