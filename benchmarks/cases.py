"""What is measured: each case prepares a piece of work for a model and knows what it costs at least.

A case is a function of the model that returns the work, a function without arguments to be called again and again.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from .costs import Cost, Costs
from .sizes import IMAGE_TOKENS

PROMPT = 64  # tokens
NEW_TOKENS = 64
MIXED_TOKENS = 32
TRAINED_TOKENS = 745  # of a row at the paper's scales: 65 of text beside the 680 positions
IMAGES = 4  # through the image tokenizer at once
Work = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """One line of the table.

    Args:
        title: what the line says.
        prepare: from a model to the work.
        cost: what one call of the work costs, by the costs of the model's parts.
        unit, units: what one call makes, and how many: images, tokens, rows.
        memory: bytes that the work cannot do without, weights included; None where nobody asked.
    """

    title: str
    prepare: Callable[[PreTrainedModel], Work]
    cost: Callable[[Costs], Cost]
    unit: str
    units: int = 1
    memory: Callable[[Costs], int] | None = None


def _prompt(model: PreTrainedModel, rows: int) -> dict[str, torch.Tensor]:
    """Random prompts of ordinary tokens, the same at every call."""
    generator = torch.Generator().manual_seed(0)
    special = {0, 1, 2, *(getattr(model.config, name) for name in IMAGE_TOKENS)}  # padding, begin and end of every size
    ordinary = torch.tensor([token for token in range(model.config.text_config.vocab_size) if token not in special])
    ids = ordinary[torch.randint(len(ordinary), (rows, PROMPT), generator=generator)].to(model.device)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


GUIDANCE = {
    "": {"output_image_guidance_type": "none"},
    "guided": {"output_image_guidance_type": "prompt", "output_image_unconditional_ids": [1]},
    "scale": {"output_image_guidance_type": "scale"},
}


def _draw(rows: int, guidance: str) -> Callable[[PreTrainedModel], Work]:
    def prepare(model: PreTrainedModel) -> Work:
        options = {"generation_mode": "image", "max_new_tokens": 2, "do_sample": False, "return_dict_in_generate": True, **GUIDANCE[guidance]}
        inputs = _prompt(model, rows)
        return lambda: model.generate(**inputs, **options)

    return prepare


def _rows(rows: int, guidance: str) -> tuple[int, int]:
    """Rows of the language model, and rows that read each scale alone."""
    return rows * (2 if guidance == "guided" else 1), rows if guidance == "scale" else 0


def _draw_cost(rows: int, guidance: str) -> Callable[[Costs], Cost]:
    llm_rows, alone = _rows(rows, guidance)

    def cost(costs: Costs) -> Cost:
        return costs.llm(llm_rows, PROMPT) + costs.lm_head(llm_rows) + costs.drawing(llm_rows, rows, PROMPT, alone) + costs.decode(rows)

    return cost


def _draw_memory(rows: int, guidance: str) -> Callable[[Costs], int]:
    llm_rows, alone = _rows(rows, guidance)
    return lambda costs: costs.weights_bytes() + costs.cache_bytes(llm_rows, PROMPT + 1 + sum(costs.areas), llm_rows + alone, PROMPT)


def _drawing(rows: int, guidance: str = "") -> Case:
    said = {"": "", "guided": ", guided", "scale": ", guided by each scale alone"}[guidance]
    title = f"an image after {PROMPT} tokens, batch {rows}{said}"
    return Case(title, _draw(rows, guidance), _draw_cost(rows, guidance), "image", rows, _draw_memory(rows, guidance))


def write(tokens: int, rows: int = 1) -> Callable[[PreTrainedModel], Work]:
    """Text of so many tokens, never ending earlier."""

    def prepare(model: PreTrainedModel) -> Work:
        inputs = _prompt(model, rows)
        return lambda: model.generate(**inputs, generation_mode="text", do_sample=False, min_new_tokens=tokens, max_new_tokens=tokens)

    return prepare


def write_cost(tokens: int) -> Callable[[Costs], Cost]:
    """Prefill, then all tokens but the last are fed one by one."""

    def cost(costs: Costs) -> Cost:
        total = costs.llm(1, PROMPT) + costs.lm_head(1) * tokens
        for seen in range(PROMPT, PROMPT + tokens - 1):
            total += costs.llm(1, 1, seen)
        return total

    return cost


def _mixed(model: PreTrainedModel) -> Work:
    """Four rows that write; two of them draw first, since their prompts end in image-start."""
    inputs = _prompt(model, 4)
    inputs["input_ids"][:2, -1] = model.config.output_image_start_token_id
    options = {"output_image_guidance_type": "none", "max_output_images": 1, "do_sample": False, "return_dict_in_generate": True}
    # A row that draws spends one of its tokens on image-end; the others must neither draw nor end.
    options |= {"suppress_tokens": [model.config.output_image_start_token_id], "min_new_tokens": MIXED_TOKENS, "max_new_tokens": MIXED_TOKENS}
    return lambda: model.generate(**inputs, generation_mode="auto", **options)


def _mixed_cost(costs: Costs) -> Cost:
    """What the four rows need, were each of them never to wait for the others."""
    total = costs.llm(4, PROMPT - 1) + costs.drawing(2, 2, PROMPT - 1) + costs.decode(2)
    positions = sum(costs.areas)
    for step in range(MIXED_TOKENS):
        total += costs.llm(2, 1, PROMPT - 1 + step) + costs.lm_head(2)
        if step:
            total += costs.llm(2, 1, PROMPT - 1 + positions + step) + costs.lm_head(2)
    return total


def _random_images(model: PreTrainedModel, number: int) -> torch.Tensor:
    side, _ = model.config.image_tokenizer_config.image_size()
    return torch.rand(number, 3, side, side, generator=torch.Generator().manual_seed(0)).mul(2).sub(1).to(model.device)


def _random_codes(model: PreTrainedModel, number: int) -> torch.LongTensor:
    tokenizer, generator = model.config.image_tokenizer_config, torch.Generator().manual_seed(0)
    shape = (number, model.config.schedules[0].num_positions)
    return torch.randint(tokenizer.num_classes**tokenizer.num_symbols, shape, generator=generator).to(model.device)


def _encode(model: PreTrainedModel) -> Work:
    images = _random_images(model, IMAGES)
    return lambda: model.model.image_tokenizer.encode(images)


def _decode(model: PreTrainedModel) -> Work:
    codes = _random_codes(model, IMAGES)
    return lambda: model.model.image_tokenizer.decode(codes)


def _train(rows: int, codes_ahead: bool) -> Callable[[PreTrainedModel], Work]:
    """Forward, backward and AdamW of rows of text around one image each; image tokenizer and vision tower frozen."""

    def prepare(model: PreTrainedModel) -> Work:
        model.train()
        backbone = model.model.backbone
        for name in (*backbone.tower_names, *backbone.projector_names):
            model.model.vlm.get_submodule(name).requires_grad_(False)
        model.model.image_tokenizer.requires_grad_(False)
        config, positions = model.config, model.config.schedules[0].num_positions
        before, after = PROMPT, trained_tokens(config) - PROMPT - positions
        ids = _prompt(model, rows)["input_ids"]
        ids[:, -1] = config.output_image_start_token_id
        ids = torch.cat([ids, ids.new_full((rows, positions), config.output_image_token_id), ids[:, :after]], dim=1)
        labels = ids.clone()
        labels[:, : before - 1] = -100
        images = {"output_image_codes": _random_codes(model, rows)} if codes_ahead else {"output_pixel_values": _random_images(model, rows)}
        optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-5, fused=True)  # as Trainer's

        def step() -> None:
            model(input_ids=ids, labels=labels, attention_mask=torch.ones_like(ids), **images).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        return step

    return prepare


def trained_tokens(config) -> int:
    """Tokens of a row of the training step: as much text beside the positions as in the paper's size."""
    return TRAINED_TOKENS - 680 + config.schedules[0].num_positions


def _train_cost(rows: int, codes_ahead: bool) -> Callable[[Costs], Cost]:
    def cost(costs: Costs) -> Cost:
        step = costs.training_step(rows, TRAINED_TOKENS - 680 + sum(costs.areas))
        return step if codes_ahead else step + costs.encode(rows)

    return cost


CASES = {
    **{f"draw-{rows}": _drawing(rows) for rows in (1, 4, 16)},
    **{f"draw-{rows}-guided": _drawing(rows, "guided") for rows in (1, 4, 16)},
    "draw-1-scale": _drawing(1, "scale"),  # as VARGPT v1.1 was released
    "text": Case(f"{NEW_TOKENS} tokens of text", write(NEW_TOKENS), write_cost(NEW_TOKENS), "token", NEW_TOKENS),
    "mixed": Case(f"4 rows of {MIXED_TOKENS} tokens, 2 of them draw", _mixed, _mixed_cost, "row", 4),
    "encode": Case(f"image tokenizer: {IMAGES} images to codes", _encode, lambda c: c.encode(IMAGES), "image", IMAGES),
    "decode": Case(f"image tokenizer: codes to {IMAGES} images", _decode, lambda c: c.decode(IMAGES), "image", IMAGES),
    "train": Case("training step of 2 images", _train(2, False), _train_cost(2, False), "row", 2),
    "train-codes": Case("training step of 2 images, codes ahead", _train(2, True), _train_cost(2, True), "row", 2),
}
