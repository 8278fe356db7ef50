"""Rows for a micro model, and files of stages that train it on them."""

import json
from pathlib import Path

import numpy as np
from datasets import Dataset
from PIL import Image as PILImage

from vargpt_hf.training.data import ROW_FEATURES


def image(seed: int) -> PILImage.Image:
    return PILImage.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8))


def row(user: list, assistant: list, seed: int = 0) -> dict:
    """A row whose parts are texts, "image" or "output_image"."""

    def parts(given):
        return [{"type": part} if part in ("image", "output_image") else {"type": "text", "text": part} for part in given]

    messages = [{"role": "user", "content": parts(user)}, {"role": "assistant", "content": parts(assistant)}]
    images = [image(seed + index) for index in range(user.count("image"))]
    drawings = [image(seed + 100 + index) for index in range(assistant.count("output_image"))]
    return {"messages": messages, "images": images, "output_images": drawings}


ROWS = [
    row(["say hello"], ["hello"]),
    row(["image", "what is it"], ["noise"], 1),
    row(["draw noise"], ["output_image"], 2),
    row(["draw two"], ["first", "output_image", "then", "output_image"], 3),
    row(["image", "draw it again and say so"], ["output_image", "so"], 5),
    row(["say a longer thing than the others"], ["a longer thing than the others, and longer still"]),
    row(["draw"], ["output_image"], 8),
    row(["image", "image", "which"], ["the second"], 9),
]


def write_config(tmp_path, base, **keys):
    """A stage's YAML and its dataset; returns the file."""
    Dataset.from_list(ROWS, features=ROW_FEATURES).save_to_disk(tmp_path / "rows")
    given = {
        "stage": "stage1",
        "model_name_or_path": str(base),
        "train_data": str(tmp_path / "rows"),
        "output_dir": str(tmp_path / "out"),
        "max_steps": 4,
        "save_steps": 2,
        "use_cpu": True,
        "bf16": False,  # numbers are compared
        "disable_tqdm": True,
        **keys,
    }
    file = tmp_path / "stage.yaml"
    file.write_text("\n".join(f"{key}: {json.dumps(value)}" for key, value in given.items()))
    return file


def stage_file(folder: Path, base: Path, streaming: bool = False, **keys) -> Path:
    """A stage on a mixture with much that is random, in whose course many checkpoints are written and deleted."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = [{"prompt": f"say {word}", "completion": word} for word in ("hello", "so", "noise", "the second")]
    (folder / "texts.json").write_text(json.dumps(texts * 6))
    sources = [{"path": str(folder / "rows"), "weight": 2}, str(folder / "texts.json")]
    common = {"stage": "pretrain", "train_data": sources, "streaming": streaming, "per_device_train_batch_size": 2, "logging_steps": 5}
    common |= {
        "prompt_dropout": 0.5,
        "random_crop": True,
        "scale_dropout": 0.5,
        "coarse_scales": 2,
        "save_total_limit": 2,
        "gradient_accumulation_steps": 2,
    }
    return write_config(folder, base, **{**common, **keys})
