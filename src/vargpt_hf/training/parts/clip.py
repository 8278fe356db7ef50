"""Training of a small CLIP, whose vision tower reads images; on Transformers' own contrastive `CLIPModel`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import CLIPConfig, CLIPModel, CLIPVisionModel, PreTrainedTokenizerFast, Trainer, TrainingArguments

from ..guards import last_complete_checkpoint


def pixels_of(rows: list[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    """Collates rows `{"image": PIL picture}` of one size to pixels (B, 3, height, width) in [-1, 1]."""
    pictures = np.stack([np.asarray(row["image"].convert("RGB")) for row in rows])
    pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous()  # channels last, group norms take twice as long on CPUs
    return {"pixel_values": pixels.float() / 127.5 - 1}


class PairCollator:
    """Rows `{"image": PIL image, "text": caption}` → inputs of `CLIPModel`."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, max_length: int):
        self.tokenizer = tokenizer
        self.max_length = max_length

    def __call__(self, rows: list[Mapping[str, Any]]) -> dict[str, Any]:
        texts = self.tokenizer(
            [row["text"] + self.tokenizer.eos_token for row in rows],
            padding=True,
            truncation=True,
            max_length=self.max_length,
            return_tensors="pt",
        )
        return {**pixels_of(rows), "input_ids": texts["input_ids"], "attention_mask": texts["attention_mask"], "return_loss": True}


@torch.no_grad()
def retrieval_accuracy(model: CLIPModel, collator: PairCollator, pairs: Dataset, batch_size: int = 100) -> float:
    """Share of images whose own caption is the nearest among those of their batch."""
    right = 0
    for start in range(0, len(pairs), batch_size):
        batch = collator([pairs[index] for index in range(start, min(start + batch_size, len(pairs)))])
        scores = model(**batch).logits_per_image
        right += int((scores.argmax(1) == torch.arange(len(scores), device=scores.device)).sum())
    return right / len(pairs)


def train_clip(
    config: CLIPConfig,
    tokenizer: PreTrainedTokenizerFast,
    pairs: Dataset,
    output_dir: str | Path,
    test_pairs: Dataset | None = None,
    seed: int = 0,
    resume: bool = False,
    **arguments,
) -> CLIPVisionModel:
    """Trains on rows `{"image", "text"}`, saves the vision tower and returns it.

    Args:
        config: sizes of both towers.
        test_pairs: pairs whose retrieval accuracy is printed at the end.
        resume: go on from the last complete checkpoint in `output_dir`, where there is one; `save_steps` makes some.
        arguments: of `TrainingArguments`, over the defaults here.

    Raises:
        ValueError: no pairs, or images of another size than `config.vision_config.image_size`.
    """
    if len(pairs) == 0:
        raise ValueError("There are no pairs of images and captions to train on.")
    side = config.vision_config.image_size
    if pairs[0]["image"].size != (side, side):
        raise ValueError(f"Images are {pairs[0]['image'].size}, but the vision tower takes {side}×{side}.")
    torch.manual_seed(seed)
    model = CLIPModel(config)
    collator = PairCollator(tokenizer, config.text_config.max_position_embeddings)
    defaults = {
        "learning_rate": 1e-3,
        "weight_decay": 0.05,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 50,
        "per_device_train_batch_size": 256,
        "logging_steps": 50,
        "save_strategy": "no",
        "report_to": [],
        "remove_unused_columns": False,
    }
    trainer = Trainer(
        model,
        TrainingArguments(output_dir=str(output_dir), seed=seed, **{**defaults, **arguments}),
        data_collator=collator,
        train_dataset=pairs,
    )
    trainer.train(resume_from_checkpoint=last_complete_checkpoint(output_dir) if resume else None)
    model.cpu().eval()  # where the captions are, and the vision tower that is saved
    if test_pairs is not None:
        print(f"retrieval accuracy among 100: {retrieval_accuracy(model, collator, test_pairs):.3f}")
    vision_tower = CLIPVisionModel(config.vision_config).eval()
    vision_tower.load_state_dict(model.vision_model.state_dict(), strict=True)
    vision_tower.save_pretrained(output_dir)
    return vision_tower
