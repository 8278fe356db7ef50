"""Teaches vargpt-tiny by preference (DPO): of its own drawings of a prompt, those that a judge finds right over those that it finds wrong.

    python examples/dpo_tiny.py runs/dpo --image docs/dpo_tiny.png

Takes three minutes of one core of an Intel Xeon. Draws at temperature 1, five times the shipped one, where a tenth of the digits cannot
be read. Saves the adapter and figures.json, and prints, for prompts in words that are not trained on: the share of drawings that are
right before and after; from the same noise, how many are right only after and only before, and what share the former are of both (the win
rate); and the spread of drawings of one prompt, which would fall to nothing if all came to look alike. What is measured is judged by a
classifier of digits that has no example in common with the one that chose what to train on.
"""

import argparse
import json
import zlib
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from draw_gallery import sheet
from PIL import Image as PILImage

from vargpt_hf import VargptForConditionalGeneration, VargptProcessor
from vargpt_hf.evaluation.shapes_and_digits import draw_rows, drawing_figures
from vargpt_hf.inference.drawing import answer
from vargpt_hf.peft import lora_config
from vargpt_hf.tiny import TINY_FOLDER
from vargpt_hf.tiny.digits import load_split
from vargpt_hf.tiny.judges import DigitJudge
from vargpt_hf.tiny.rows import rows
from vargpt_hf.training.preference import PREFERENCE_CODES_FEATURES, VargptDPOConfig, VargptDPOTrainer

TEMPERATURE, DRAWINGS, BATCH = 1.0, 8, 25
MIXTURE = {"draw_digit": 3.0, "draw": 1.0}  # what is trained on; most shapes are drawn rightly, so that they make few pairs
ANSWER = [{"role": "assistant", "content": [{"type": "output_image"}]}]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="folder for the adapter and the figures")
    parser.add_argument("--image", type=Path, help="file for the first digits that are measured, before and after")
    parser.add_argument("--prompts", type=int, default=800, help=f"to make pairs from, of {DRAWINGS} drawings each")
    parser.add_argument("--evaluate", type=int, default=800, help="drawings of each kind that are measured")
    arguments = parser.parse_args()
    processor = VargptProcessor.from_pretrained(TINY_FOLDER)
    model = VargptForConditionalGeneration.from_pretrained(TINY_FOLDER, dtype="float32").eval()
    digits, labels = load_split("train")
    teacher, examiner = DigitJudge(digits[::2], labels[::2]), DigitJudge(digits[1::2], labels[1::2])

    measured = {kind: some_rows({kind: 1.0}, arguments.evaluate, seed=5, split="test", held_out=True) for kind in MIXTURE}

    def drawn(model) -> dict[str, list[PILImage.Image]]:
        settings = {"seed": 6, "batch_size": BATCH, "output_image_temperature": TEMPERATURE}
        return {kind: draw_rows(model.eval(), processor, asked, **settings) for kind, asked in measured.items()}

    before = drawn(model)
    pairs = make_pairs(model, processor, some_rows(MIXTURE, arguments.prompts, seed=3, split="train", held_out=False), teacher)
    print(f"{len(pairs)} pairs of a right and a wrong drawing, from {arguments.prompts * DRAWINGS} drawings", flush=True)
    trainer = VargptDPOTrainer(
        model,
        args=VargptDPOConfig(
            str(arguments.output),
            learning_rate=5e-4,
            per_device_train_batch_size=16,
            num_train_epochs=2,
            warmup_steps=5,
            save_strategy="no",
            bf16=False,  # as the README's figures were taken
        ),
        train_dataset=Dataset.from_list(pairs, features=PREFERENCE_CODES_FEATURES),
        processing_class=processor,
        peft_config=lora_config("draw"),
    )
    trainer.train()
    trainer.save_model()
    after = drawn(trainer.model)
    figures = {kind: compare(asked, before[kind], after[kind], examiner) for kind, asked in measured.items()}
    print(json.dumps(figures, indent=2))
    (arguments.output / "figures.json").write_text(json.dumps(figures, indent=2) + "\n")
    if arguments.image:
        captions = [words(row) for row in measured["draw_digit"][:8]]
        sheet([list(zip(images["draw_digit"], captions)) for images in (before, after)]).save(arguments.image)


def words(row: dict) -> str:
    return row["messages"][0]["content"][0]["text"]


def some_rows(mixture: dict[str, float], count: int, seed: int, split: str, held_out: bool) -> list[dict]:
    """Rows whose words are among the third of all that is never trained on, or among the others."""
    made = rows(mixture, 5 * count, seed, split)
    return [row for row in made if (zlib.crc32(words(row).encode()) % 3 == 0) == held_out][:count]


def right(image: PILImage.Image, row: dict, judge: DigitJudge) -> bool:
    return all(drawing_figures(image, json.loads(row["truth"]), judge).values())


def make_pairs(model, processor, asked: list[dict], judge: DigitJudge) -> list[dict]:
    """Codes of drawings that the judge finds right, each beside one of the same words that it finds wrong, while there are both."""
    generator, found = torch.Generator().manual_seed(4), defaultdict(lambda: {True: [], False: []})
    for start in range(0, len(asked), BATCH):
        batch = asked[start : start + BATCH]
        settings = {"output_image_temperature": TEMPERATURE, "num_return_sequences": DRAWINGS, "generator": generator}
        drawn = answer(model, processor, [row["messages"][:1] for row in batch], "image", max_new_tokens=2, **settings)
        for image, codes, index in zip(drawn.images, drawn.output.output_image_codes.tolist(), drawn.output.output_image_rows.tolist()):
            row = batch[index // DRAWINGS]
            found[words(row)][right(image, row, judge)].append(codes)
    fingerprint = model.model.image_tokenizer.fingerprint()
    return [
        {"prompt": [{"role": "user", "content": [{"type": "text", "text": text}]}], "chosen": ANSWER, "rejected": ANSWER, "images": []}
        | {"chosen_codes": [good], "rejected_codes": [bad], "image_tokenizer_fingerprint": fingerprint}
        for text, judged in found.items()
        for good, bad in zip(judged[True], judged[False])
    ]


def compare(asked: list[dict], before: list[PILImage.Image], after: list[PILImage.Image], judge: DigitJudge) -> dict[str, float]:
    """The figures of one kind of prompts."""
    was, now = (np.array([right(image, row, judge) for image, row in zip(images, asked)]) for images in (before, after))
    wins, losses = int((now & ~was).sum()), int((was & ~now).sum())
    shares = {"right before": was.mean(), "right after": now.mean(), "win rate": wins / max(wins + losses, 1)}
    shares |= {"spread before": spread(asked, before), "spread after": spread(asked, after)}
    return {"drawings": len(asked), "only after": wins, "only before": losses, **{name: round(float(each), 4) for name, each in shares.items()}}


def spread(asked: list[dict], images: list[PILImage.Image]) -> float:
    """Standard deviation of a pixel among drawings of the same words, in steps of 0 to 255."""
    groups = defaultdict(list)
    for row, image in zip(asked, images):
        groups[words(row)].append(np.asarray(image, dtype=np.float64))
    return float(np.mean([np.std(group, axis=0).mean() for group in groups.values() if len(group) > 1] or [0.0]))


if __name__ == "__main__":
    main()
