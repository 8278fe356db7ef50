"""The model card of a VARGPT repository."""

import os
import re
from collections.abc import Sequence

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import EntryNotFoundError
from transformers import PreTrainedModel

PARTS = {
    "vlm": "{vlm}, which reads",
    "visual_decoder": "visual decoder, which draws",
    "image_tokenizer": "image tokenizer",
}
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")

_USE = """```python
from transformers import pipeline

pipe = pipeline("any-to-any", model="{name}", trust_remote_code=True)
(answer,) = pipe([{{"role": "user", "content": "{prompt}"}}], max_new_tokens=64)
for part in answer["generated_content"]:  # text and images, in the order in which they were generated
    print(part["text"]) if part["type"] == "text" else part["image"].show()
```

An image is read where a message has one: `{{"type": "image", "image": image}}` beside `{{"type": "text", "text": question}}`.
`AutoModelForMultimodalLM` and `AutoProcessor` load the two parts, also with `trust_remote_code=True`; where `vargpt-hf` is installed
and imported, without."""


def make_card(
    model: PreTrainedModel,
    name: str,
    *,
    license: str | None = None,
    base_model: str | None = None,
    datasets: Sequence[str] = (),
    results: Sequence[EvalResult] = (),
    headline: Sequence[str] = (),
    example: tuple[str, str] | None = None,
) -> ModelCard:
    """The card of a model, to be saved as README.md.

    Args:
        model: a `VargptForConditionalGeneration`; a `license_note` in its config is quoted.
        name: Hub id, or folder, under which users load it.
        license: SPDX name of the weights' license; "other" by default where the config has a `license_note`.
        base_model: Hub id of the model that this one was made from.
        datasets: what it was trained on; Hub ids among them also stand in the card's metadata.
        results: what it was measured at, read off a report of `vargpt evaluate` (`vargpt_hf.evaluation.card.eval_results`), for the card's
            metadata (`model-index`) and a table.
        headline: names of the metrics that this table shows at once, in this order; all others are folded away. By default none is.
        example: a prompt, and the file in the repository that shows what was drawn.
    """
    note = getattr(model.config, "license_note", None)
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="any-to-any",
        license=license or ("other" if note else None),
        base_model=base_model,
        datasets=[dataset for dataset in datasets if _HUB_ID.fullmatch(dataset)] or None,
        tags=["vargpt", "next-scale-prediction", "custom_code"],
        **({"eval_results": list(results), "model_name": name.rstrip("/").split("/")[-1]} if results else {}),
    )
    prompt = example[0] if example else "draw a red circle above a blue square"
    sections = [
        f"# {name.rstrip('/').split('/')[-1]}",
        "A VARGPT ([arXiv 2501.12327](https://arxiv.org/abs/2501.12327)): one autoregressive model that reads images and draws them, by "
        "next-token prediction for text and next-scale prediction for images.",
    ]
    if example:
        sections.append(f"![{prompt}]({example[1]})\n\n*{prompt}*")
    sections += ["## Use", _USE.format(name=name, prompt=prompt), "## Sizes", _sizes(model)]
    if results:
        sections += ["## Evaluation", _evaluation(results, headline)]
    if datasets:
        sections += ["## Data", "\n".join(f"- {dataset}" for dataset in datasets)]
    if note:
        sections += ["## License", note]
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n")


_USE_ADAPTER = """```python
from peft import PeftModel
from vargpt_hf import VargptForConditionalGeneration, VargptProcessor

base = VargptForConditionalGeneration.from_pretrained("{base}")
model = PeftModel.from_pretrained(base, "{name}")  # .merge_and_unload() makes one model of the two
processor = VargptProcessor.from_pretrained("{base}")
```"""


def make_adapter_card(name: str, base: str | None, preset: str | None, rank: int, alpha: float) -> ModelCard:
    """The card of an adapter, to be saved as README.md.

    Args:
        name: Hub id, or folder, under which users load it.
        base: Hub id or path of the model that it was trained on; of a path the card names the last folder alone.
        preset: of [`vargpt_hf.peft.lora_config`], which says what the adapter changes; None where others chose that.
        rank, alpha: of LoRA.
    """
    known = hub_id(base) if base else None
    shown = known or os.path.basename(os.path.normpath(base or "")) or "base"
    data = ModelCardData(library_name="peft", pipeline_tag="any-to-any", base_model=known, tags=["vargpt", "lora"])
    where = f"[{known}](https://huggingface.co/{known})" if known else f"`{shown}`, a folder: give its path"
    what = f"the preset `{preset}` of `vargpt_hf.peft.lora_config`" if preset else "LoRA"
    text = (
        f"# {name.rstrip('/').split('/')[-1]}\n\nAn adapter of a VARGPT ([arXiv 2501.12327](https://arxiv.org/abs/2501.12327)), a model that "
        f"reads images and draws them: {what}, rank {rank}, alpha {alpha:g}.\n\nBase model: {where}.\n\n## Use\n\n"
        f"{_USE_ADAPTER.format(base=shown, name=name)}\n\n`AutoPeftModelForCausalLM.from_pretrained` loads both at once where the base "
        "model is found under the name in adapter_config.json.\n"
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}")


def hub_id(name: str) -> str | None:
    """The name itself where it is a Hub id, and not a folder that is there."""
    return name if _HUB_ID.fullmatch(name) and not os.path.exists(name) else None


def has_own_card(repo_id: str, token: bool | str | None = None) -> bool:
    """Whether a repository has a card that someone wrote, and not the empty form that Transformers pushes with a processor."""
    try:
        card = ModelCard.load(repo_id, token=token)
    except EntryNotFoundError:
        return False
    return "has been automatically generated" not in card.text


def _evaluation(results: Sequence[EvalResult], headline: Sequence[str]) -> str:
    """What was measured, as a table, or as two of which the second is folded away."""
    named = {result.metric_name: result for result in results}
    first = [named[name] for name in headline if name in named] or list(results)
    rest = [result for result in results if not any(result is shown for shown in first)]
    sections = [_table(first)]
    if rest:
        sections.append(f"<details><summary>{len(rest)} more metrics</summary>\n\n{_table(rest)}\n\n</details>")
    return "\n\n".join([*sections, f"Measured by `vargpt evaluate`: {results[0].source_name}."])


def _table(results: Sequence[EvalResult]) -> str:
    rows = []
    for result in results:
        args, is_share = result.metric_args or {}, result.metric_type == "accuracy"
        shown = "{:.1%}".format if is_share else "{:.4g}".format
        interval = "" if args.get("low") is None else f"{shown(args['low'])} to {shown(args['high'])}"
        rows.append(f"| {result.dataset_name} | {result.metric_name} | {shown(result.metric_value)} | {interval} | {args.get('samples', '')} |")
    return "\n".join(["| data | metric | value | 95% interval | samples |", "|---|---|---|---|---|", *rows])


def _sizes(model: PreTrainedModel) -> str:
    """Parameters by part, and what an image costs, as a table."""
    config = model.config
    rows = [
        f"| {what.format(vlm=config.vlm_config.model_type)} | {sum(p.numel() for p in getattr(model.model, part).parameters()):,} |"
        for part, what in PARTS.items()
    ]
    rows.append(f"| in all | {model.num_parameters():,} |")
    tokenizer = config.image_tokenizer_config
    symbols = "" if tokenizer.num_symbols == 1 else f"{tokenizer.num_symbols} × "
    images = []
    for schedule in config.schedules:
        height, width = tokenizer.image_size(schedule)
        images.append(
            f"An image of {height}×{width} pixels has {schedule.num_positions:,} codes of {symbols}{tokenizer.num_classes:,} classes "
            f"and takes {len(schedule)} calls of the language model."
        )
    return "\n".join(["| part | parameters |", "|---|---|", *rows]) + "\n\n" + "\n".join(images)


__all__ = ["has_own_card", "hub_id", "make_adapter_card", "make_card"]
