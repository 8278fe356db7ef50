"""What training of a model would take, by its configuration alone: nothing of it is loaded or allocated."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from ..modeling.configuration_vargpt import VargptConfig
from ..modeling.modeling_vargpt import VargptForConditionalGeneration
from .budget import IMAGE_TOKENS, Budget, estimate_budget

# GPUs and the operations a second that a dense product in bfloat16 reaches there, by their makers' sheets.
GPUS = {"RTX 4090": 165e12, "A100": 312e12}
UTILISATION = 0.4  # as training commonly reaches
TEXT_TOKENS = 128  # of a row, beside its images
FREE = 0.1  # of a GPU's memory, for what is not counted
BATCHES = (32, 16, 8, 4, 2, 1)
GB = 1e9
# Bytes of a number in a quantized linear layer, with its share of the scales.
QUANTIZED = {"load_in_8bit": 1.0, "load_in_4bit": 0.53}


@dataclass(frozen=True)
class Recipe:
    """A way to train.

    Args:
        name: of its file among the examples, or what it is.
        what: what it trains.
        stage: whose modules it trains; None for adapters.
        preset: of the adapters.
        reads: images to read in a row.
    """

    name: str
    what: str
    stage: str | None = None
    preset: str | None = None
    reads: int = 0


RECIPES = (
    Recipe("any_vlm/stage1", "frozen language model; projectors and visual decoder are trained", stage="stage3"),
    Recipe("any_vlm/lora", "adapters on language model and visual decoder, with rows that read", preset="all", reads=1),
    Recipe("any_vlm/draw", "adapters on the visual decoder", preset="draw"),
    Recipe("everything", "language model, projectors and visual decoder are trained", stage="v1_1_stage4", reads=1),
)


@dataclass(frozen=True)
class Outlook:
    """What a recipe takes on one GPU, computing in bfloat16 with frozen weights in bfloat16, trained ones in float32, and checkpointing.

    Args:
        recipe: the recipe.
        budgets: of batches of one row and of two, by which those of all others follow.
        quantized: linear weights of a frozen language model: their number.
    """

    recipe: Recipe
    budgets: tuple[Budget, Budget]
    quantized: int

    def memory(self, rows: int, quantizer: str | None = None) -> float:
        """Bytes of a batch, with the frozen language model quantized or not."""
        saved = 0.0 if quantizer is None else (2 - QUANTIZED[quantizer]) * self.quantized
        one, two = (budget.memory for budget in self.budgets)
        return one + (rows - 1) * (two - one) - saved

    def fitting(self, gpu_memory: float) -> tuple[int, str | None] | None:
        """Rows of the largest batch that fits so many bytes, with the quantizer that it needs, if any; None where nothing fits."""
        for quantizer in (None, *(QUANTIZED if self.quantized and self.recipe.preset else ())):
            for rows in BATCHES:
                if self.memory(rows, quantizer) <= (1 - FREE) * gpu_memory:
                    return rows, quantizer
        return None

    def hours(self, rows: int, peak_flops: float) -> float:
        """Hours of training on so many rows."""
        return self.budgets[0].hours(rows, peak_flops, UTILISATION)


def outlooks(config: VargptConfig) -> Iterator[Outlook]:
    """What each recipe takes for a model of this configuration; needs `vargpt-hf[train]`."""
    for recipe in RECIPES:
        model = _model_for(recipe, config)
        backbone = next(module for module in model.modules() if isinstance(module, VargptForConditionalGeneration)).model.backbone
        reads = recipe.reads if backbone.reads_images else 0
        length = config.schedules[0].num_positions + 2 + TEXT_TOKENS + reads * _image_tokens(config)
        settings = {"sequence_length": length, "images_to_read": reads, "images_to_draw": 1, "gradient_checkpointing": True}
        budgets = tuple(estimate_budget(model, batch_size=rows, **settings) for rows in (1, 2))
        frozen = (m.weight for m in backbone.decoder.modules() if isinstance(m, nn.Linear) and not m.weight.requires_grad)
        yield Outlook(recipe, budgets, sum(weight.numel() for weight in frozen))


def _image_tokens(config: VargptConfig) -> int:
    return getattr(config.vlm_config, "image_seq_length", None) or IMAGE_TOKENS


def _model_for(recipe: Recipe, config: VargptConfig) -> nn.Module:
    """A model on the meta device that trains what the recipe does, in its number formats."""
    from peft import get_peft_model

    from ..peft import lora_config
    from .stages import apply_stage

    with torch.device("meta"):
        model = VargptForConditionalGeneration(config)
        if recipe.preset is None:
            apply_stage(model, recipe.stage)
        else:
            model = get_peft_model(model, lora_config(recipe.preset, model))
    for parameter in model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(torch.bfloat16)
    return model


def describe_outlook(config: VargptConfig, gpu_memory: float | None = None) -> str:
    """Sizes of a model, and what training takes, as a text.

    Args:
        gpu_memory: GB (10⁹ bytes) of a GPU, for which what fits is marked.
    """
    with torch.device("meta"):
        model = VargptForConditionalGeneration(config)
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in _parts(model)}
    total = sum(p.numel() for p in model.parameters())
    lines = ["Parameters in millions: " + ", ".join(f"{name} {size / 1e6:,.1f}" for name, size in sizes.items() if size)]
    lines.append(f"In all {total / 1e6:,.1f} million, {2 * total / GB:,.2f} GB in bfloat16, {4 * total / GB:,.2f} GB in float32.")
    try:
        found = list(outlooks(config))
    except ImportError:
        return "\n".join([*lines, 'What training takes is estimated where its packages are: pip install "vargpt-hf[train]".'])
    lines.append(
        f"Training on one GPU, by estimate: rows of an image to draw ({config.schedules[0].num_positions} positions) and {TEXT_TOKENS} "
        "tokens of text; frozen weights in bfloat16, trained ones in float32, gradient checkpointing."
    )
    for one in found:
        hours = ", ".join(f"{one.hours(10**6, rate):,.1f} h ({name})" for name, rate in GPUS.items())
        lines.append(f"- {one.recipe.name}: {one.recipe.what}; {one.memory(1) / GB:.1f} GB with 1 row a batch, {one.memory(8) / GB:.1f} with 8")
        lines.append(f"  a million rows: {hours}, at {UTILISATION:.0%} of the peak{_fit(one, gpu_memory)}")
    if gpu_memory is not None:
        lines.append(_advice(found, gpu_memory))
    return "\n".join(lines)


def _parts(model: VargptForConditionalGeneration) -> Iterator[tuple[str, nn.Module]]:
    inner, backbone = model.model, model.model.backbone
    yield "language model", backbone.decoder
    if backbone.decoder is not inner.vlm:
        yield "vision side", nn.ModuleList([child for child in inner.vlm.children() if not any(m is backbone.decoder for m in child.modules())])
    if not model.config.tie_word_embeddings:
        yield "its head", model.lm_head
    for name in ("projector_to_llm", "visual_decoder", "projector_to_decoder", "image_tokenizer"):
        yield name.replace("_", " "), inner.get_submodule(name)


def _fit(one: Outlook, gpu_memory: float | None) -> str:
    if gpu_memory is None:
        return ""
    found = one.fitting(gpu_memory * GB)
    if found is None:
        return f"; does not fit {gpu_memory:g} GB"
    rows, quantizer = found
    return f"; fits {gpu_memory:g} GB with {rows} rows a batch" + (f" and `{quantizer}: true`" if quantizer else "")


def _advice(found: list[Outlook], gpu_memory: float) -> str:
    """What to do with a GPU of so many GB."""
    fits = [one for one in found if one.fitting(gpu_memory * GB)]
    if not fits:
        return (
            f"None fits {gpu_memory:g} GB: take a smaller model that reads or a smaller --decoder-size, or several GPUs "
            "(examples/accelerate/fsdp2.yaml)."
        )
    names = [one.recipe.name for one in fits]
    advice = f"On {gpu_memory:g} GB train {', then '.join(name for name in names if name != 'everything')}"
    if "everything" in names:
        advice += "; training everything fits, too"
    return advice + ". Larger batches come of gradient_accumulation_steps."


__all__ = ["GPUS", "RECIPES", "Outlook", "describe_outlook", "outlooks"]
