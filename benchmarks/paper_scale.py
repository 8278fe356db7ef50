"""What the papers' stages take at their size: the tables of docs/paper_scale.md, from the models' layers, examples/paper/ and paper_v1_1/.

python benchmarks/paper_scale.py          # prints them
python benchmarks/paper_scale.py --write  # puts them into the page
"""

import functools
import itertools
import re
import sys
from pathlib import Path

import torch
import yaml

from vargpt_hf import VargptConfig, VargptForConditionalGeneration
from vargpt_hf.operations import ModelParts, decoder_flops, encoder_flops
from vargpt_hf.training.budget import Budget, estimate_budget
from vargpt_hf.training.stages import apply_stage

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "paper_scale.md"
GPUS = 8
GPU_BYTES = 80e9
# Dense bfloat16 operations a second, by their makers' data sheets.
PEAKS = {"A100": 312e12, "H100": 989e12}
UTILISATION = 0.4
# Rows of an epoch, tokens of an average and of the longest row (assumed: see the page), images to read and to draw in a row.
STAGES = {
    "stage1": (1_280_000, 768, 768, 0, 1),
    "stage2": (1_178_000, 1024, 2048, 1, 5 / 1178),
    "stage3": (1_400_000, 1024, 2048, 0, 1),
}
PARTS = {
    "vlm.language_model": "language model",
    "vlm.vision_tower": "vision tower",
    "vlm.multi_modal_projector": "CLIP's projector",
    "visual_decoder": "visual decoder",
    "projector_to_llm": "generation projector, in",
    "projector_to_decoder": "generation projector, out",
    "image_tokenizer": "image tokenizer",
}
# Of v1.1 the same, or None where steps, not rows, are given; its images to read have any size: these are taken to have so many tokens.
STAGES_V1_1 = {
    "stage1": (8_300_000, 640, 768, 0, 1),
    "stage2": (1_223_000, 1024, 4096, 1, 50 / 1223),
    "sft_256": (None, 640, 1024, 0, 1),
    "dpo_256": (None, 640, 1024, 0, 1),
    "sft_512": (None, 2688, 3072, 0, 1),
    "dpo_512": (None, 2688, 3072, 0, 1),
    "edit": (11_000, 3008, 3328, 1, 1),
}
IMAGE_TOKENS_V1_1 = 324  # of 504 × 504 pixels
PROMPT_V1_1 = 60  # tokens before a drawing
PARTS_V1_1 = {
    "vlm.language_model": "language model",
    "vlm.visual": "vision tower with its merger",
    "visual_decoder": "visual decoder",
    "projector_to_llm": "generation projector, in",
    "projector_to_decoder": "generation projector, out",
    "image_tokenizer": "image tokenizer",
}


def paper_model() -> VargptForConditionalGeneration:
    """The paper's model without memory for its weights."""
    with torch.device("meta"):
        return VargptForConditionalGeneration(VargptConfig.v1())


def settings(stage: str) -> dict:
    """What examples/paper/ says of a stage."""
    return yaml.safe_load((ROOT / "examples" / "paper" / f"{stage}.yaml").read_text())


def stage_budget(model: VargptForConditionalGeneration, stage: str, longest: bool = False, **options) -> Budget:
    """Of a step on average rows, or on the longest, with the batch size of examples/paper/ unless `options` say otherwise."""
    _, average, most, reads, draws = STAGES[stage]
    given = settings(stage)
    apply_stage(model, stage)
    fixed = {"bf16": given["bf16"], "gradient_checkpointing": given["gradient_checkpointing"]}
    sizes = {"batch_size": given["per_device_train_batch_size"], "sequence_length": most if longest else average}
    return estimate_budget(model, images_to_read=reads, images_to_draw=draws, **{**fixed, **sizes, **options})


def table(head: str, rows: list[list[str]]) -> str:
    names = head.split(" | ")
    lines = [names, ["---", *["---:"] * (len(names) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def parameters(model: VargptForConditionalGeneration) -> str:
    """Parameters of each part, and of those what each stage trains."""
    parts = {what: model.model.get_submodule(name) for name, what in PARTS.items()} | {
        "head of the language model": model.lm_head,
        "all": model,
    }
    rows = [[what, f"{sum(p.numel() for p in part.parameters()):,}"] for what, part in parts.items()]
    for stage in STAGES:
        apply_stage(model, stage)
        for row, part in zip(rows, parts.values()):
            row.append(f"{sum(p.numel() for p in part.parameters() if p.requires_grad):,}")
    return table("part | parameters | stage 1 trains | stage 2 trains | stage 3 trains", rows)


def memory(model: VargptForConditionalGeneration) -> str:
    """Gigabytes on each GPU, sharded over all."""
    rows = []
    for stage in STAGES:
        found = stage_budget(model, stage, longest=True, num_processes=GPUS, sharded=True)
        kinds = (found.weights, found.gradients, found.optimizer, found.working, found.activations, found.transient, found.memory)
        rows.append([stage, f"{found.rows // GPUS} × {found.tokens // found.rows:,}", *(f"{size / 1e9:.1f}" for size in kinds)])
    return table("stage | rows × tokens | weights | gradients | AdamW | working copies | activations | transient | in all", rows)


def one_gpu(model: VargptForConditionalGeneration) -> str:
    """Gigabytes on one GPU, with one row a batch."""
    rows = []
    for stage in STAGES:
        found = stage_budget(model, stage, longest=True, batch_size=1)
        rows.append([stage, f"{found.memory / 1e9:.1f}", "yes" if found.memory < GPU_BYTES else "no"])
    return table("stage | GB | fits into 80 GB", rows)


def time(model: VargptForConditionalGeneration) -> str:
    """Rows, operations and hours of each stage."""
    rows = []
    for stage, (number, average, *_) in STAGES.items():
        given = settings(stage)
        found = stage_budget(model, stage, num_processes=GPUS, sharded=True)
        seen = number * given["num_train_epochs"]
        hours = [f"{found.hours(seen, peak, UTILISATION):,.1f}" for peak in PEAKS.values()]
        steps = seen / (found.rows * given["gradient_accumulation_steps"])
        again = f"{found.recomputed_flops / found.flops:.0%}"
        each = f"{found.flops / found.rows / 1e12:.1f}"
        rows.append([stage, f"{seen:,}", f"{average:,}", f"{steps:,.0f}", f"{seen * average / 1e9:.2f}", each, again, *hours])
    head = "stage | rows | tokens a row | steps | 10⁹ tokens | 10¹² operations a row | computed again"
    return table(" | ".join([head, *(f"hours on {GPUS} {name}" for name in PEAKS)]), rows)


def encoding(model: VargptForConditionalGeneration) -> str:
    """Operations of the image tokenizer's encoder, which `vargpt encode` runs ahead."""
    return f"The image tokenizer's encoder takes {encoder_flops(model) / 1e12:.2f} · 10¹² operations an image."


# ---- v1.1


def settings_v1_1(name: str) -> dict:
    """What examples/paper_v1_1/ says of a part of the course."""
    return yaml.safe_load((ROOT / "examples" / "paper_v1_1" / f"{name}.yaml").read_text())


@functools.cache
def model_v1_1(budget: str) -> VargptForConditionalGeneration:
    """VARGPT v1.1 for images of a pixel budget, without memory for its weights."""
    with torch.device("meta"):
        return VargptForConditionalGeneration(VargptConfig.v1_1(budget))


def budget_v1_1(name: str, longest: bool = False, trained: bool = True, **options) -> Budget:
    """Of a step of the course on average rows, or on the longest; a pair has two. Of what is not trained, of its forward pass."""
    _, average, most, reads, draws = STAGES_V1_1[name]
    given = settings_v1_1(name)
    model = model_v1_1(given.get("image_budget", "0.06M"))
    if trained:
        apply_stage(model, given["stage"])
    else:
        model.requires_grad_(False)
    options = {"bf16": True, "gradient_checkpointing": trained, "image_tokens": IMAGE_TOKENS_V1_1 if reads else None, **options}
    sizes = {"batch_size": given["per_device_train_batch_size"] * answers(given), "sequence_length": most if longest else average}
    return estimate_budget(model, images_to_read=reads, images_to_draw=draws, **{**sizes, **options})


def answers(given: dict) -> int:
    """Rows that a sample of a stage makes: a pair has two answers."""
    return 2 if given.get("method") == "dpo" else 1


def parameters_v1_1() -> str:
    """Parameters of each part, and of those what each stage trains."""
    model = model_v1_1("0.25M")
    parts = {what: model.model.get_submodule(name) for name, what in PARTS_V1_1.items()}
    parts |= {"head of the language model": model.lm_head, "all": model}
    rows = [[what, f"{sum(p.numel() for p in part.parameters()):,}"] for what, part in parts.items()]
    for stage in ("v1_1_stage1", "v1_1_stage2", "v1_1_stage3"):
        apply_stage(model, stage)
        for row, part in zip(rows, parts.values()):
            row.append(f"{sum(p.numel() for p in part.parameters() if p.requires_grad):,}")
    return table("part | parameters | stage 1 trains | stage 2 trains | stage 3 trains", rows)


def memory_v1_1() -> str:
    """Gigabytes on each GPU, sharded over all; preferences with a frozen copy of the model."""
    rows = []
    for name in STAGES_V1_1:
        found = budget_v1_1(name, longest=True, num_processes=GPUS, sharded=True)
        reference = found.weights if answers(settings_v1_1(name)) == 2 else 0
        kinds = (found.weights + reference, found.gradients, found.optimizer, found.working, found.activations, found.transient)
        sizes = [*kinds, found.memory + reference]
        rows.append([name, f"{found.rows // GPUS} × {found.tokens // found.rows:,}", *(f"{size / 1e9:.1f}" for size in sizes)])
    return table("stage | rows × tokens | weights | gradients | AdamW | working copies | activations | transient | in all", rows)


def time_v1_1() -> str:
    """Samples, operations and hours of the course; the encoder of the image tokenizer is among them, as self-correction needs images."""
    rows = []
    for name, (number, average, _, _, draws) in STAGES_V1_1.items():
        given = settings_v1_1(name)
        found = budget_v1_1(name, num_processes=GPUS, sharded=True)
        accumulated, each = given["gradient_accumulation_steps"], found.rows // answers(given)
        seen = given["max_steps"] * each * accumulated if number is None else number * given["num_train_epochs"]
        flops = found.flops / each + draws * answers(given) * encoder_flops(model_v1_1(given.get("image_budget", "0.06M")))
        if answers(given) == 2:
            flops += budget_v1_1(name, trained=False).flops
        hours = [f"{seen * flops / (GPUS * peak * UTILISATION) / 3600:,.1f}" for peak in PEAKS.values()]
        steps = seen / (each * accumulated)
        rows.append([name, f"{seen:,}", f"{average:,}", f"{steps:,.0f}", f"{flops / 1e12:.1f}", *hours])
    head = "stage | rows or pairs | tokens a row | steps | 10¹² operations a row or pair"
    return table(" | ".join([head, *(f"hours on {GPUS} {name}" for name in PEAKS)]), rows)


def drawing_parts_v1_1(prompt: int = PROMPT_V1_1) -> dict[str, tuple[float, float]]:
    """Operations of one 512×512 image, without guidance and with the released one, whose unconditional rows see one scale each."""
    model = model_v1_1("0.25M")
    parts, schedule = ModelParts(model), model.config.schedules[0]
    length = schedule.num_positions
    passes = list(zip(schedule.areas, itertools.accumulate(schedule.areas)))  # positions of a scale, and of those up to it
    language = sum(parts.language_model(area, prompt + end).flops for area, end in passes)
    alone = sum(parts.language_model(area, area).flops for area in schedule.areas)
    decoder = sum(parts.visual_decoder(area, end + prompt).flops for area, end in passes) + parts.decoder_context(prompt).flops
    projectors = parts.projector_to_llm(length).flops + parts.projector_to_decoder(length + prompt).flops
    found = {
        "language model, the prompt": (parts.language_model(prompt, prompt).flops, 0),
        "language model, the image": (language, alone),
        "visual decoder": (decoder, decoder),
        "projectors": (projectors, projectors),
        "image tokenizer": (decoder_flops(model), 0),
    }
    return {name: (plain, plain + more) for name, (plain, more) in found.items()}


def drawing_v1_1() -> str:
    """Operations of one image."""
    parts = drawing_parts_v1_1()
    rows = [[name, *(f"{flops / 1e12:.1f}" for flops in both)] for name, both in parts.items()]
    rows.append(["in all", *(f"{sum(flops) / 1e12:.1f}" for flops in zip(*parts.values()))])
    return table("10¹² operations of | without guidance | with guidance", rows)


def render(page: str) -> str:
    """The page with its tables anew: each stands between `<!-- name -->` and `<!-- end -->`."""
    model = paper_model()
    tables = [(make, (model,)) for make in (parameters, memory, one_gpu, time, encoding)]
    tables += [(make, ()) for make in (parameters_v1_1, memory_v1_1, time_v1_1, drawing_v1_1)]
    for make, arguments in tables:
        marked = rf"(<!-- {make.__name__} -->\n).*?(<!-- end -->)"
        text = make(*arguments)
        page, found = re.subn(marked, lambda match, text=text: f"{match[1]}{text}\n{match[2]}", page, flags=re.DOTALL)
        if found != 1:
            raise ValueError(f"The page must have one place <!-- {make.__name__} --> … <!-- end -->, it has {found}.")
    return page


if __name__ == "__main__":
    rendered = render(PAGE.read_text(encoding="utf-8"))
    if "--write" in sys.argv[1:]:
        PAGE.write_text(rendered, encoding="utf-8")
    else:
        print(rendered)
