"""Trains vargpt-tiny from scratch: tokenizer, image tokenizer, CLIP, first weights, then the paper's three stages.

    python examples/train_tiny.py runs/tiny

Takes one and a half to two hours on 2 cores of an Intel Xeon with AMX (--scale 0.01 tries every step in a few minutes, to no good) and
prints the figures at the end. Steps whose folder is there are skipped, so a run that was stopped goes on.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

VARGPT = Path(sys.executable).with_name("vargpt")  # of this environment, active or not
DRAWING = {"draw": 6.0, "draw_digit": 2.0, "draw_and_say": 1.0}
READING = {"ask": 1.2, "look_up": 4.0, "read_digit": 1.2, "talk": 0.4}
# Rows of each stage's datasets, in the proportion of the weights in its file, and what they are about.
STAGES = {
    "pretrain": {"drawing": (136_800, DRAWING), "reading": (103_200, READING)},
    "stage1": {"drawing": (8_000, DRAWING)},
    "stage2": {
        "drawing": (43_000, {"draw": 3.0, "draw_digit": 0.6, "draw_and_say": 0.6, "draw_two": 0.8}),
        "reading": (117_000, {**READING, "ask": 2.0, "look_up": 10.0}),
    },
    "stage3": {"drawing": (50_000, {**DRAWING, "draw_two": 0.8})},
}
TEXT_CONFIG = {
    "model_type": "llama",
    "hidden_size": 192,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
}
DECODER_CONFIG = {"hidden_size": 192, "num_hidden_layers": 4, "num_attention_heads": 4, "mlp_ratio": 3.0, "drop_path_rate": 0.0}
VQ_CONFIG = {
    "schedules": [(1, 3, 6)],  # the whole, the board's squares, their quarters
    "codebook_size": 512,
    "latent_channels": 8,
    "commitment_weight": 1.0,
    "base_channels": 16,
    "channel_multipliers": (1, 1, 2, 4),
    "num_res_blocks": 1,
    "norm_num_groups": 8,
}
VQ_TRAINING = {
    "l1_weight": 0.0,
    "l2_weight": 10.0,
    "color_weight": 10.0,
    "edge_weight": 5.0,
    "learning_rate": 1.5e-3,
    "weight_decay": 0.01,
    "warmup_steps": 100,
    "per_device_train_batch_size": 32,
    "logging_steps": 100,
}
CLIP_TOWER = {"hidden_size": 96, "intermediate_size": 384, "num_attention_heads": 4}
SHARDS = 2  # of every dataset: as many processes make it
TRAINING = {"use_cpu": True, "dataloader_num_workers": 1}
EXAMPLE = "a red circle above a blue square"
DATA = ("drawn scenes of coloured shapes (vargpt_hf.tiny.shapes)", "handwritten digits (scikit-learn's)")
GENERATION = {"do_sample": True, "top_k": 1, "output_image_temperature": 0.2, "output_image_top_k": 0, "output_image_top_p": 0.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the data to train on")
    parser.add_argument("--evaluate", type=int, default=400, help="rows of each group that the judges look at")
    arguments = parser.parse_args()
    from vargpt_hf.hardware import keep_freed_memory

    keep_freed_memory()
    folder, scale = arguments.output, arguments.scale
    make_parts(folder, scale)
    for seed, (stage, datasets) in enumerate(STAGES.items(), start=1):
        if not (folder / stage / "model.safetensors").exists():
            for number, (name, (count, mixture)) in enumerate(datasets.items()):
                make_rows(folder / "data" / stage / name, mixture, max(int(count * scale), 64), 10 * seed + number)
            encode(folder / "data" / stage, folder / "base")
            run_stage(stage, folder)
    ship(folder / "stage3", folder / "vargpt-tiny")
    shipped, report = folder / "vargpt-tiny", folder / "report"
    evaluate = [VARGPT, "evaluate", "--number", str(arguments.evaluate), "--output", report]
    subprocess.run([*evaluate, "--model", shipped], check=True)
    data = [part for name in DATA for part in ("--data", name)]
    card = [VARGPT, "card", shipped, "--report", report, "--draw", EXAMPLE, "--license", "apache-2.0", "--overwrite", *data]
    subprocess.run(card, check=True)


def make_parts(folder: Path, scale: float) -> None:
    """Tokenizer, image tokenizer, CLIP's vision tower, and the model folder that they make."""
    import torch
    from datasets import Dataset
    from transformers import CLIPConfig, CLIPVisionModel, PreTrainedTokenizerFast

    from vargpt_hf import VargptVQModel
    from vargpt_hf.evaluation.image_tokenizers import measure
    from vargpt_hf.hardware import is_fast
    from vargpt_hf.tiny.rows import SEEN_PAIRS, captioned_images, texts
    from vargpt_hf.training.image_tokenizer.images import Images, PixelCollator, batches_of, read_images
    from vargpt_hf.training.image_tokenizer.trainer import processor_of
    from vargpt_hf.training.parts.base import build_base
    from vargpt_hf.training.parts.clip import train_clip
    from vargpt_hf.training.parts.tokenizer import train_tokenizer

    if (folder / "base" / "model.safetensors").exists():
        return
    if not (folder / "tokenizer").exists():
        train_tokenizer(texts(20_000, seed=1), vocab_size=512).save_pretrained(folder / "tokenizer")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer")
    arguments = {**TRAINING, "bf16": is_fast("cpu", torch.bfloat16)}
    cache = str(folder / "data" / "images")  # of this run: the shared one would not notice that the generator's code changed
    training = {"count": int(60_000 * scale) + 300, "seed": 1}
    drawn_images = Dataset.from_generator(captioned_images, cache_dir=cache, gen_kwargs={**training, "pairs": tuple(sorted(SEEN_PAIRS))})
    train_images = Dataset.from_generator(captioned_images, cache_dir=cache, gen_kwargs=training)
    test_images = Dataset.from_generator(captioned_images, cache_dir=cache, gen_kwargs={"count": 500, "seed": 1, "split": "test"})
    if not (folder / "vq" / "model.safetensors").exists():
        train_image_tokenizer(folder / "vq", drawn_images, scale, arguments)
    image_tokenizer = VargptVQModel.from_pretrained(folder / "vq")
    report = measure(image_tokenizer, batches_of(Images([read_images(test_images)]), PixelCollator(processor_of(image_tokenizer)), 100))
    print("image tokenizer:", report.means())
    if not (folder / "clip" / "model.safetensors").exists():
        config = CLIPConfig(
            text_config={**CLIP_TOWER, "vocab_size": len(tokenizer), "num_hidden_layers": 2, "max_position_embeddings": 48}
            | {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")},
            vision_config={**CLIP_TOWER, "num_hidden_layers": 4, "image_size": 48, "patch_size": 8, "hidden_act": "gelu"},
            projection_dim=96,
        )
        train_clip(config, tokenizer, train_images, folder / "clip", test_images, max_steps=max(int(600 * scale), 5), **arguments)
    vision_tower = CLIPVisionModel.from_pretrained(folder / "clip")
    build_base(folder / "base", tokenizer, image_tokenizer, vision_tower, TEXT_CONFIG, DECODER_CONFIG, GENERATION)


def train_image_tokenizer(folder: Path, images, scale: float, arguments: dict) -> None:
    """The image tokenizer, saved in a folder. Squared errors and edges take the place of a perceptual network, of which there is none here."""
    import torch

    from vargpt_hf.training.image_tokenizer.arguments import ImageTokenizerTrainingConfig
    from vargpt_hf.training.image_tokenizer.loading import fresh_image_tokenizer
    from vargpt_hf.training.image_tokenizer.trainer import VargptImageTokenizerTrainer

    torch.manual_seed(0)
    settings = ImageTokenizerTrainingConfig(
        str(folder),
        **arguments,
        **VQ_TRAINING,
        continuous_steps=int(1_500 * scale),
        max_steps=max(int(5_000 * scale), 10),
        save_strategy="no",
        seed=0,
    )
    trainer = VargptImageTokenizerTrainer(fresh_image_tokenizer("vq", VQ_CONFIG), settings, images)
    trainer.train()
    trainer.save_image_tokenizer(folder)


def make_rows(folder: Path, mixture: dict[str, float], number: int, seed: int) -> None:
    """A dataset on disk of rows for one stage, if it is not there."""
    from datasets import Dataset, Features, Value

    from vargpt_hf.restartable import write_whole
    from vargpt_hf.training.data import ROW_FEATURES

    if folder.exists():
        return
    features = Features({**ROW_FEATURES, "truth": Value("string")})
    shards = {"mixture": mixture, "count": number // SHARDS, "seeds": [SHARDS * seed + shard for shard in range(SHARDS)]}
    with tempfile.TemporaryDirectory() as cache:
        write_whole(folder, Dataset.from_generator(rows_of_seeds, features, cache, gen_kwargs=shards, num_proc=SHARDS).save_to_disk)


def encode(data: Path, model: Path) -> None:
    """The drawings as codes of the image tokenizer, so that it does not run while a stage is trained."""
    subprocess.run([VARGPT, "encode", data / "drawing", data / "drawing_codes", "--model", model, "--num-processes", str(SHARDS)], check=True)


def rows_of_seeds(mixture: dict[str, float], count: int, seeds: list[int]):
    """`count` rows of each seed; a process takes some of the seeds."""
    from vargpt_hf.tiny.rows import rows

    for seed in seeds:
        yield from rows(mixture, count, seed)


def run_stage(stage: str, folder: Path) -> None:
    """`vargpt train` on the stage's file beside this one, with this run's folder in place of its own."""
    config = folder / f"{stage}.yaml"
    config.write_text((Path(__file__).parent / "tiny" / config.name).read_text().replace("runs/tiny", str(folder)))
    subprocess.run([VARGPT, "train", config, "--resume_from_checkpoint", "true"], check=True)


def ship(trained: Path, destination: Path) -> None:
    """The trained model and its processor, in float16."""
    import torch

    from vargpt_hf import VargptForConditionalGeneration, VargptProcessor

    VargptForConditionalGeneration.from_pretrained(trained, dtype=torch.float16).save_pretrained(destination)
    VargptProcessor.from_pretrained(trained).save_pretrained(destination)


if __name__ == "__main__":
    main()
