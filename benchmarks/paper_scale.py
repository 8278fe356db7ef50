"""What the paper's stages take at its size: the tables of docs/paper_scale.md, from the model's layers and examples/paper/.

python benchmarks/paper_scale.py          # prints them
python benchmarks/paper_scale.py --write  # puts them into the page
"""

import re
import sys
from pathlib import Path

import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode

from vargpt_hf import VargptConfig, VargptForConditionalGeneration
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
    return estimate_budget(model, pictures_to_read=reads, pictures_to_generate=draws, **{**fixed, **sizes, **options})


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
    side, _ = model.config.image_tokenizer_config.image_size()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.model.image_tokenizer.encoder(torch.empty(1, model.config.image_tokenizer_config.in_channels, side, side, device="meta"))
    return f"The image tokenizer's encoder takes {counter.get_total_flops() / 1e12:.2f} · 10¹² operations an image."


def render(page: str) -> str:
    """The page with its tables anew: each stands between `<!-- name -->` and `<!-- end -->`."""
    model = paper_model()
    for make in (parameters, memory, one_gpu, time, encoding):
        marked = rf"(<!-- {make.__name__} -->\n).*?(\n<!-- end -->)"
        text = make(model)
        page, found = re.subn(marked, lambda match, text=text: match[1] + text + match[2], page, flags=re.DOTALL)
        if found != 1:
            raise ValueError(f"The page must have one place <!-- {make.__name__} --> … <!-- end -->, it has {found}.")
    return page


if __name__ == "__main__":
    rendered = render(PAGE.read_text(encoding="utf-8"))
    if "--write" in sys.argv[1:]:
        PAGE.write_text(rendered, encoding="utf-8")
    else:
        print(rendered)
