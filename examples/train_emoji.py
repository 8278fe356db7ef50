"""Trains vargpt-emoji from scratch: sentences and pictures, tokenizers, vision tower, first weights, one long stage, what is shipped, its
report and its card.

    python examples/train_emoji.py runs/emoji --packages DOWNLOADS

The pictures are in four npm packages, which npm fetches into DOWNLOADS unless they lie there (vargpt_hf.emoji.packages). Laid out for at most
six hours of 2 cores, on CPUs without bfloat16 units, too; --scale 0.01 tries every step in some minutes, to no good. Steps whose
result is there are skipped, and every training resumes from its last checkpoint: stop it whenever you like, and give the same command again.

Whether another seed shows the same curves, a fifth of a second run tells, which takes what does not depend on the language model from the
first (examples/compare_curves.py draws both):

    python examples/train_emoji.py runs/emoji-2 --packages DOWNLOADS --parts-of runs/emoji --seed 1 --stop-at 0.2

An existing model, such as the package's own, is trained further, on rows alone:

    python examples/train_emoji.py runs/emoji-more --packages DOWNLOADS --start-from vargpt-emoji
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

VARGPT = Path(sys.executable).with_name("vargpt")  # of this environment, active or not
FILES = Path(__file__).parent
DRAWING = {
    "draw": 5.0,
    "draw_plain": 1.0,
    "draw_by_words": 1.5,
    "draw_placed": 2.0,
    "draw_scene": 7.0,
    "draw_and_say": 0.6,
    "draw_shapes": 1.0,
    "draw_varied_shapes": 2.0,
    "draw_digit": 0.9,
}
READING = {
    "read": 3.0,
    "read_name": 1.5,
    "read_scene": 2.0,
    "read_relation": 2.6,
    "read_shapes": 0.5,
    "look_up_shapes": 1.6,
    "read_digit": 0.5,
    "talk": 0.4,
}
# Rows of each dataset, in the proportion of the weights in examples/emoji/train.yaml.
ROWS = {"drawing": (240_000, DRAWING), "reading": (160_000, READING)}
CAPTIONED = {"images": (60_000, "train"), "images-test": (500, "test")}
SHARDS = 16  # of every dataset, each from its own seed, so that any number of processes makes the same rows
VOCABULARY = 1536
TEXT_CONFIG = {
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 576,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
}
DECODER_CONFIG = {
    "model_type": "vargpt_infinity_decoder",
    "hidden_size": 256,
    "intermediate_size": 672,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "unconditional_context_size": 32,
    "max_scales": 4,
    "drop_path_rate": 0.0,
}
CLIP_TOWER = {"hidden_size": 128, "intermediate_size": 512, "num_attention_heads": 4}
CLIP_TRAINING = {
    "per_device_train_batch_size": 128,
    "max_steps": 2_000,
    "save_strategy": "steps",
    "save_steps": 100,
    "save_total_limit": 2,
    "dataloader_num_workers": 1,
}
IMAGE_TOKENIZER_STEPS = 5_000
# Learning rates of --start-from: on CPUs, at 1e-3, batches of 128 make the model forget what it draws by heart.
FINE_TUNING_RATES = {"cpu": 4e-4, "cuda": 1e-3}
# Settings of runs that began before these were recorded.
BEFORE = {"muon": {"muon": "false", "learning_rate": 1e-3}, "scale_dropout": {"scale_dropout": 0.0}}
EXAMPLE = "a turtle in the flat look"
PARTS = ("data", "tokenizer", "image_tokenizer", "clip")  # of a run, which depend on no language model
OWN_DATA = ("drawn scenes of coloured shapes (vargpt_hf.tiny.shapes)", "handwritten digits (scikit-learn's)")
GENERATION = {"do_sample": True, "top_k": 1, "output_image_temperature": 0.5, "output_image_top_k": 0, "output_image_top_p": 0.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--packages", type=Path, help="folder of the npm packages; OUTPUT/packages by default")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the data to train on")
    parser.add_argument("--image-tokenizer", default="vq", choices=("vq", "bsq"), help="kind of image tokenizer")
    parser.add_argument("--evaluate", type=int, default=400, help="drawings of each group that are judged")
    parser.add_argument("--seed", type=int, default=0, help="of all weights and of the order of rows; the data stays the same")
    parser.add_argument("--epochs", type=float, default=0.55, help="how often the stage goes through its rows; by default what six hours allow")
    parser.add_argument("--stop-at", type=float, default=1.0, help="share of the steps after which image tokenizer and stage end; 1 ships")
    parser.add_argument("--parts-of", type=Path, help="folder of a run whose data, tokenizers and vision tower are taken")
    parser.add_argument("--start-from", help="model to train further: a folder, a Hub id, or a name such as vargpt-emoji")
    parser.add_argument("--batch-size", type=int, help="rows of a step; by default 512 on NVIDIA's GPUs, where they take 23 GiB, else 64")
    parser.add_argument("--max-flip-rate", type=float, help="of bitwise self-correction, where the image tokenizer has bits; 0: none")
    parser.add_argument("--prompt-dropout", type=float, help="share of drawings whose prompt is emptied, in place of the stage's own")
    arguments = parser.parse_args()
    if arguments.max_flip_rate is not None and arguments.image_tokenizer != "bsq":
        parser.error("--max-flip-rate is of bits, which a codebook has not: give --image-tokenizer bsq, too")
    if arguments.start_from and (arguments.parts_of or arguments.image_tokenizer != "vq"):
        parser.error("--start-from takes all parts of a model: leave out --parts-of and --image-tokenizer")
    from vargpt_hf.emoji.packages import fetch
    from vargpt_hf.hardware import keep_freed_memory
    from vargpt_hf.training.image_tokenizer.networks import SmallNetwork

    SmallNetwork()  # the judge's, hours later: whoever lacks it should hear of it now
    keep_freed_memory()
    folder, packages = arguments.output, arguments.packages or arguments.output / "packages"
    folder.mkdir(parents=True, exist_ok=True)
    settings = settings_of_run(folder, arguments.start_from, arguments.batch_size)
    fetch(packages)
    if arguments.parts_of:
        link_parts(arguments.parts_of, folder)
    if arguments.start_from:
        save_in("float32", arguments.start_from, folder / "base")  # in which small steps are not rounded away
    else:
        make_images(folder / "data", packages, arguments.scale)
        make_parts(folder, packages, arguments)
    make_rows(folder / "data", packages, arguments.scale)
    if not (folder / "trained" / "model.safetensors").exists():
        dropout = [] if arguments.prompt_dropout is None else ["--prompt_dropout", arguments.prompt_dropout]
        length = ["--num_train_epochs", arguments.epochs, "--stop_at", arguments.stop_at]
        train("train", "emoji/train", folder, "--seed", 1 + arguments.seed, *length, *dropout, **settings | {"compile_layers": can_compile()})
    if arguments.stop_at == 1:
        save_in("bfloat16", folder / "trained", folder / "vargpt-emoji")
        describe(folder / "vargpt-emoji", folder / "report", packages, arguments.evaluate, arguments.start_from)


def vargpt(*arguments) -> None:
    """Runs the command `vargpt`."""
    subprocess.run([VARGPT, *map(str, arguments)], check=True)


def train(command: str, name: str, folder: Path, *arguments, **settings) -> None:
    """Trains by the file of that name beside this one, with this run's folder in place of its own, from the last checkpoint on."""
    config = folder / f"{Path(name).name}.yaml"
    config.write_text((FILES / f"{name}.yaml").read_text().replace("runs/emoji", str(folder)))
    settings = {"resume_from_checkpoint": "true", **of_gpu(), **settings}
    vargpt(*command.split(), config, *(part for name, value in settings.items() for part in (f"--{name}", value)), *arguments)


def of_gpu() -> dict[str, int]:
    """What a GPU changes of settings laid out for CPUs: it takes batches faster than one process makes them, and its steps are shorter."""
    import torch

    workers = max(1, min(12, (os.cpu_count() or 1) - 2))
    return {"dataloader_num_workers": workers, "save_steps": 500} if torch.accelerator.is_available() else {}


def can_compile() -> str:
    """Whether layers can be compiled here, for a stage's file."""
    import torch

    from vargpt_hf.training.compiling import has_cpp_compiler

    return str(torch.cuda.is_available() or has_cpp_compiler()).lower()


def settings_of_run(folder: Path, start_from: str | None, batch_size: int | None) -> dict[str, int | float | str]:
    """Settings of the stage that depend on machine and command, as they were when the run began.

    A run that continues elsewhere keeps them: of other batches, the steps done so far would be another share of the rows.

    Raises:
        ValueError: a run that began from other weights, or with another batch size.
    """
    import torch

    kept = folder / "run.json"
    if kept.exists():
        began = json.loads(kept.read_text())
    else:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        settings = {"per_device_train_batch_size": 64, "muon": "true", "scale_dropout": 0.0 if start_from else 0.75}
        if device == "cuda":
            settings |= {"per_device_train_batch_size": 512, "warmup_steps": 100, "attn_implementation": "sdpa"}
        if start_from:
            settings["learning_rate"] = FINE_TUNING_RATES[device]
        if batch_size:
            settings["per_device_train_batch_size"] = batch_size
        began = {"start_from": start_from, "stage": settings}
        kept.write_text(json.dumps(began))
    if began["start_from"] != start_from:
        told = began["start_from"] or "fresh weights"
        raise ValueError(f"The run in {folder} began from {told}, not from {start_from or 'fresh weights'}: give another folder.")
    stage = began["stage"]
    for name, settings in BEFORE.items():
        stage = stage if name in stage else settings | stage
    size = stage["per_device_train_batch_size"]
    if batch_size not in (None, size):
        raise ValueError(f"The run in {folder} began with {size} rows a step, not with {batch_size}: leave out --batch-size.")
    return stage


def link_parts(parts: Path, folder: Path) -> None:
    """What another run has made, and this one does not make again."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in PARTS:
        if not (parts / name).is_dir():
            raise FileNotFoundError(f"{parts} has no {name}: --parts-of takes the folder of a run that has come as far as its stage.")
        if not (folder / name).exists():
            (folder / name).symlink_to((parts / name).resolve())


def make_rows(data: Path, packages: Path, scale: float) -> None:
    """Rows to train on."""
    from datasets import Features, Value

    from vargpt_hf.training.data import ROW_FEATURES

    for number, (name, (count, mixture)) in enumerate(ROWS.items(), start=len(CAPTIONED)):
        features = Features({**ROW_FEATURES, "truth": Value("string")})
        make_dataset(data / name, rows_of_seeds, features, max(int(count * scale), 32), number, packages=packages, mixture=mixture)


def make_images(data: Path, packages: Path, scale: float) -> None:
    """Captioned images for image tokenizer and vision tower, and for the image tokenizer single pictures of all concepts."""
    from datasets import Features, Image, Value

    from vargpt_hf.emoji.pictures import tokenizer_images
    from vargpt_hf.restartable import write_whole

    if not (data / "pictures").exists():
        write_whole(data / "pictures", tokenizer_images(packages).save_to_disk)
    for number, (name, (count, split)) in enumerate(CAPTIONED.items()):
        features = Features({"image": Image(), "text": Value("string")})
        make_dataset(data / name, images_of_seeds, features, max(int(count * scale), 128), number, packages=packages, split=split)


def make_dataset(place: Path, generator, features, count: int, number: int, **arguments) -> None:
    """A dataset on disk, made by several processes; there when it is complete."""
    from datasets import Dataset

    if place.exists():
        return
    part = place.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    shards = {**arguments, "count": count // SHARDS, "seeds": [SHARDS * number + shard + 1 for shard in range(SHARDS)]}
    processes = min(SHARDS, os.cpu_count() or 1)
    made = Dataset.from_generator(generator, features, str(part / "cache"), gen_kwargs=shards, num_proc=processes)
    made.save_to_disk(part / "rows", num_proc=processes)
    (part / "rows").rename(place)
    shutil.rmtree(part)


def rows_of_seeds(packages: Path, mixture: dict[str, float], count: int, seeds: Sequence[int]) -> Iterator[dict]:
    """`count` rows of each seed; a process takes some of the seeds."""
    from vargpt_hf.emoji.rows import rows

    for seed in seeds:
        yield from rows(mixture, count, seed, folder=packages)


def images_of_seeds(packages: Path, split: str, count: int, seeds: Sequence[int]) -> Iterator[dict]:
    """`count` captioned images of each seed."""
    from vargpt_hf.emoji.rows import captioned_images

    for seed in seeds:
        yield from captioned_images(count, seed, split, folder=packages)


def make_parts(folder: Path, packages: Path, given: argparse.Namespace) -> None:
    """Tokenizer, image tokenizer, CLIP's vision tower, and the model folder that they make."""
    from transformers import CLIPVisionModel, PreTrainedTokenizerFast

    from vargpt_hf.emoji.rows import texts
    from vargpt_hf.restartable import write_whole
    from vargpt_hf.training.image_tokenizer.loading import load_image_tokenizer
    from vargpt_hf.training.parts.base import build_base
    from vargpt_hf.training.parts.tokenizer import train_tokenizer

    if (folder / "base" / "model.safetensors").exists():
        return
    if not (folder / "tokenizer").exists():
        write_whole(folder / "tokenizer", train_tokenizer(texts(30_000, seed=1, folder=packages), VOCABULARY).save_pretrained)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer")
    if not (folder / "image_tokenizer" / "model.safetensors").exists():
        length = ["--max_steps", max(int(IMAGE_TOKENIZER_STEPS * given.scale), 2), "--stop_at", given.stop_at]
        train("tokenizer train", f"tokenizer/emoji_{given.image_tokenizer}", folder, "--seed", given.seed, *length)
    train_vision_tower(folder, tokenizer, given.scale, given.seed)
    parts = load_image_tokenizer(folder / "image_tokenizer"), CLIPVisionModel.from_pretrained(folder / "clip")
    if given.max_flip_rate is not None:
        parts[0].config.max_flip_rate = given.max_flip_rate
    build_base(folder / "base", tokenizer, *parts, TEXT_CONFIG, DECODER_CONFIG, GENERATION, given.seed)


def train_vision_tower(folder: Path, tokenizer, scale: float, seed: int) -> None:
    """The vision tower of a CLIP, trained on captioned images."""
    import torch
    from datasets import load_from_disk
    from transformers import CLIPConfig

    from vargpt_hf.cli.options import check_device
    from vargpt_hf.hardware import is_fast
    from vargpt_hf.training.parts.clip import train_clip

    if (folder / "clip" / "model.safetensors").exists():
        return
    config = CLIPConfig(
        text_config={**CLIP_TOWER, "vocab_size": len(tokenizer), "num_hidden_layers": 2, "max_position_embeddings": 64}
        | {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")},
        vision_config={**CLIP_TOWER, "num_hidden_layers": 4, "image_size": 64, "patch_size": 8, "hidden_act": "gelu"},
        projection_dim=128,
    )
    images, test_images = (load_from_disk(folder / "data" / name) for name in CAPTIONED)
    steps = max(int(CLIP_TRAINING["max_steps"] * scale), 2)
    arguments = CLIP_TRAINING | {"bf16": is_fast(check_device("auto"), torch.bfloat16), "max_steps": steps}
    arguments |= {"use_cpu": not torch.accelerator.is_available(), **of_gpu()}
    train_clip(config, tokenizer, images, folder / "clip", test_images, seed, resume=True, **arguments)


def save_in(dtype: str, source: str | Path, destination: Path) -> None:
    """A model and its processor once more, in another number format; there when it is complete."""
    from vargpt_hf import VargptForConditionalGeneration, VargptProcessor
    from vargpt_hf.shipped import folder_of

    if destination.exists():
        return
    part, source = destination.with_suffix(".part"), folder_of(source)
    VargptForConditionalGeneration.from_pretrained(source, dtype=dtype).save_pretrained(part)
    VargptProcessor.from_pretrained(source).save_pretrained(part)
    part.rename(destination)


def describe(model: Path, report: Path, packages: Path, number: int, start_from: str | None = None) -> None:
    """The report of one evaluation, and the model's card, which has its metrics, a drawing and the credits of all that it was trained on.

    The license of weights that somebody else has begun is left to whoever gives them away.
    """
    from vargpt_hf.emoji.packages import PACKAGES
    from vargpt_hf.shipped import KNOWN

    if not (report / "report.json").exists():
        vargpt("evaluate", "--suite", "emoji", "--model", model, "--references", packages, "--number", number, "--output", report)
    if not (model / "README.md").exists():
        data = [part for name in (*(package.credit for package in PACKAGES), *OWN_DATA) for part in ("--data", name)]
        origin = ["--license", "apache-2.0"] if start_from in (None, *KNOWN) else ["--base-model", start_from]
        vargpt("card", model, "--report", report, "--draw", EXAMPLE, *origin, *data)


if __name__ == "__main__":
    main()
