"""A file of prompts → a folder of images: in batches, on many processes, resuming after a kill.

Every prompt has a seed of its own, so that its image depends neither on its neighbors nor on the number of processes. Batches are cut by
the place in the file and drawn again as a whole where one of their images is missing, since a batch of other sizes rounds otherwise.
"""

import codecs
import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from PIL import Image
from tqdm.auto import tqdm
from transformers import AutoConfig

from ..hardware import default_device, keep_freed_memory, loading_dtype
from ..modeling.configuration_vargpt import VargptConfig
from ..modeling.modeling_vargpt import VargptForConditionalGeneration
from ..modeling.settings_vargpt import check_room, check_settings, image_tokens, user_turn
from ..processing.processing_vargpt import VargptProcessor
from ..restartable import claim_folder, device_of, remove_unfinished, run_each, write_whole
from .drawing import answer, prompt_inputs
from .mixed import load_to_infer

MANIFEST = "draw.manifest"
RESULTS = "results.jsonl"
_NAME = re.compile(r"\w[\w.-]{0,199}", re.ASCII)
_MODEL_FILES = (".json", ".jinja", ".model", ".safetensors")


@dataclass(frozen=True)
class Prompt:
    """One line of a file of prompts.

    Attributes:
        text: what to draw; of a line that is broken, what stands there.
        name: of the image's file, without its ending.
        seed: of everything random in the image.
        error: why it cannot be drawn, or None.
    """

    text: str
    name: str
    seed: int
    error: str | None = None

    @property
    def file(self) -> str:
        return f"{self.name}.png"


def read_prompts(file: str | Path, seed: int = 0) -> list[Prompt]:
    """The prompts of a file, in its order; a line that is broken becomes a prompt with an `error`.

    Args:
        file: .txt with one prompt a line, or .jsonl with an object a line: "prompt", and if wanted "id" (name of its image; six digits
            of its number from 0 by default) and "seed"; other keys are not read.
        seed: of the first prompt; each further one has the next, unless it brings its own.

    Raises:
        ValueError: a file with another ending, one without lines, or a seed that is negative.
        OSError: a file that cannot be read.
    """
    file = Path(file)
    if not 0 <= seed < 2**63:
        raise ValueError(f"The seed must be a whole number from 0 to 2^63 - 1, got {seed}.")
    if file.suffix not in (".txt", ".jsonl"):
        raise ValueError(f"{file} must end in .txt (one prompt a line) or .jsonl (one object a line, with the key prompt).")
    content = file.read_bytes().removeprefix(codecs.BOM_UTF8)
    if not content.strip():
        raise ValueError(f"{file} holds no prompts: give it one a line.")
    parse = _parse_json if file.suffix == ".jsonl" else _parse_text
    prompts, names = [], set()
    for index, line in enumerate(content.removesuffix(b"\n").split(b"\n")):
        prompt = Prompt(line.decode(errors="replace").strip(), f"{index:06}", seed + index)
        try:
            prompt = parse(line, prompt)
            if prompt.name in names:
                raise ValueError(f"the id {prompt.name!r} is that of an earlier prompt; give each its own")
            names.add(prompt.name)
        except (ValueError, TypeError, RecursionError) as error:
            prompt = replace(prompt, error=str(error))
        prompts.append(prompt)
    return prompts


def _parse_text(line: bytes, prompt: Prompt) -> Prompt:
    return replace(prompt, text=_text_of(line.decode()))


def _parse_json(line: bytes, prompt: Prompt) -> Prompt:
    if not line.strip():
        raise ValueError("the line is empty")
    row = json.loads(line)
    if not isinstance(row, dict) or "prompt" not in row:
        raise ValueError('the line is no JSON object with the key "prompt"')
    name = row.get("id") if row.get("id") is not None else prompt.name
    if isinstance(name, bool) or not isinstance(name, str | int) or not _NAME.fullmatch(str(name)):
        raise ValueError(f"the id {name!r} cannot name a file: use letters, digits, and . _ - after the first of them")
    seed = row.get("seed") if row.get("seed") is not None else prompt.seed
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise ValueError(f"the seed {seed!r} is no whole number from 0 to 2^63 - 1")
    return replace(prompt, text=_text_of(row["prompt"]), name=str(name), seed=seed)


def _text_of(prompt: Any) -> str:
    return user_turn(prompt)[0]["content"]


def check_prompts(prompts: Sequence[Prompt], processor: VargptProcessor, config: VargptConfig) -> list[Prompt]:
    """The prompts, with an `error` for those that hold a special token or leave no room for an image."""

    def checked(prompt: Prompt) -> Prompt:
        if prompt.error is not None:
            return prompt
        try:
            user_turn(prompt.text)
            check_room(config, prompt_inputs(processor, _chats([prompt]))["input_ids"].shape[1], image_tokens(config, [0]))
        except ValueError as error:
            return replace(prompt, error=str(error))
        return prompt

    return [checked(prompt) for prompt in prompts]


def draw_batch(
    model: VargptForConditionalGeneration, processor: VargptProcessor, prompts: Sequence[Prompt], enlarge: int = 1, **settings
) -> list[Image.Image]:
    """One image for each prompt, each from its own seed.

    Args:
        prompts: such as have no `error`; none gives no images.
        enlarge: how many times to enlarge the images.
        settings: of `generate`.

    Raises:
        ValueError: a batch that does not fit into the device's memory.
    """
    if not prompts:
        return []
    drawn = answer(model, processor, _chats(prompts), "image", seeds=[prompt.seed for prompt in prompts], **settings)
    return [enlarged(image, enlarge) for image in drawn.images]


def _chats(prompts: Sequence[Prompt]) -> list[list[dict[str, str]]]:
    return [[{"role": "user", "content": prompt.text}] for prompt in prompts]


def enlarged(image: Image.Image, times: int) -> Image.Image:
    """The image with every pixel as a square of times × times."""
    return image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)


def draw_prompts(
    file: str | Path,
    model: str | Path,
    output: str | Path,
    *,
    seed: int = 0,
    batch_size: int = 16,
    num_processes: int = 1,
    device: str = "auto",
    dtype: str = "auto",
    enlarge: int = 1,
    **settings,
) -> list[dict[str, Any]]:
    """Draws all prompts of a file into a folder.

    An image appears when it is complete; an interrupted run resumes with those that are missing. When all are there, results.jsonl is
    written, in the file's order. Started by accelerate or torchrun on one machine or several with a common folder, each process draws its
    share, and the last to end writes the results: they need no talk with one another, so none waits and none is lost with another.

    Args:
        file: .txt or .jsonl, see `read_prompts`.
        model: folder or Hub id of a VARGPT.
        output: folder for the images; one that an earlier run of the same prompts, model and settings has begun is continued.
        seed: of the first prompt; each further one has the next.
        batch_size: prompts that are drawn together.
        num_processes: processes that draw at the same time, started here.
        device: "cpu", "cuda" (each process takes the next GPU), "cuda:1", …; "auto" takes GPUs where there are any.
        dtype: number format of the weights, such as "bfloat16"; "auto": as stored, or float32 where the device has no units for that.
        enlarge: how many times to enlarge the images.
        settings: of `generate`.

    Returns:
        For each prompt `{"prompt", "file", "seed", "error"}`, what results.jsonl holds: file None and a cause where it could not be drawn.
        Empty in a process that was not the last to end.

    Raises:
        TypeError: a setting of the wrong type.
        ValueError: a file that holds no prompts, a setting out of range, a folder of other images, or a batch that does not fit into memory.
        OSError: what cannot be read or written; `ChildProcessError` where one of several processes was killed.
    """
    output, (rank, world_size, local_rank) = Path(output), _rank()
    if world_size > 1 and num_processes > 1:
        raise ValueError(f"A launcher has started {world_size} processes already; leave num_processes at 1, not {num_processes}.")
    device, config = default_device() if device == "auto" else device, AutoConfig.from_pretrained(model, trust_remote_code=False)
    dtype = loading_dtype(dtype, config.dtype, device, config.least_parameters())
    check_settings(settings, config.text_config.vocab_size)  # before the folder is claimed for them
    processor = VargptProcessor.from_pretrained(model)
    processor.check_fits(config)
    prompts = check_prompts(read_prompts(file, seed), processor, config)
    claim_images(output, prompts, model, device, dtype, enlarge, **settings)
    batches = [prompts[start : start + batch_size] for start in range(0, len(prompts), batch_size)][rank::world_size]
    there = {path.name for path in output.iterdir()}
    missing = [batch for batch in batches if any(prompt.error is None and prompt.file not in there for prompt in batch)]
    draw = partial(_draw_missing, output=output, enlarge=enlarge, settings=settings)
    prepare = partial(_load, str(model), device, dtype, local_rank)
    total, left = (sum(map(len, some)) for some in (batches, missing))
    with tqdm(total=total, initial=total - left, desc="Drawing", unit=" prompts", disable=rank > 0) as progress:
        for batch, _ in run_each(draw, missing, num_processes, prepare):
            progress.update(len(batch))
    _loaded.clear()
    there = {path.name for path in output.iterdir()}
    if any(prompt.error is None and prompt.file not in there for prompt in prompts):  # another process still draws
        return []
    return write_results(output, prompts)


def claim_images(
    output: Path, prompts: Sequence[Prompt], model: str | Path, device: str, dtype: str = "auto", enlarge: int = 1, **settings
) -> None:
    """Notes in a new folder what its images are made of; a ValueError for one with other images. Arguments as of `draw_prompts`."""
    job = {"prompts": _fingerprint(prompts), "model": model_fingerprint(model), "device": device.split(":")[0], "dtype": dtype}
    claim_folder(output, MANIFEST, {**job, "enlarge": enlarge, "settings": settings}, "images")


def write_results(output: Path, prompts: Sequence[Prompt]) -> list[dict[str, Any]]:
    """Writes results.jsonl of a folder whose images are all there, tidies it up, and returns what results.jsonl holds."""
    results = [
        {"prompt": prompt.text, "file": prompt.file if prompt.error is None else None, "seed": prompt.seed, "error": prompt.error}
        for prompt in prompts
    ]
    write_whole(output / RESULTS, lambda path: path.write_text("".join(json.dumps(row) + "\n" for row in results)))
    remove_unfinished(output, ".png")
    return results


def _rank() -> tuple[int, int, int]:
    """Number of this process, of all, and its number on this machine, as accelerate and torchrun tell them."""
    return tuple(int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0)))


def _fingerprint(prompts: Sequence[Prompt]) -> str:
    return hashlib.sha256(json.dumps([astuple(prompt) for prompt in prompts]).encode()).hexdigest()[:16]


def model_fingerprint(model: str | Path) -> str:
    """Tells models apart: a folder by its content, wherever it lies; a Hub id by its revision."""
    if not Path(model).is_dir():
        return f"{model} at {Path(hf_hub_download(str(model), 'config.json')).parent.name}"  # files of a revision share a folder
    digest = hashlib.sha256()
    for path in sorted(path for path in Path(model).iterdir() if path.suffix in _MODEL_FILES):
        digest.update(path.name.encode())
        with path.open("rb") as content:
            while block := content.read(2**24):
                digest.update(block)
    return digest.hexdigest()[:16]


_loaded: dict[str, Any] = {}  # of a process that draws


def _load(model: str, device: str, dtype: str, local_rank: int, number: int) -> None:
    """Makes a process ready: the model on its device."""
    device = device_of(device, local_rank + number)
    if str(device) == "cpu":
        keep_freed_memory()
    vargpt = load_to_infer(model, dtype)
    _loaded.update(model=vargpt.to(device).eval(), processor=VargptProcessor.from_pretrained(model))


def _draw_missing(batch: Sequence[Prompt], output: Path, enlarge: int, settings: dict[str, Any]) -> None:
    """Draws a batch and writes those of its images that are not there."""
    drawable = [prompt for prompt in batch if prompt.error is None]
    save_images(output, drawable, draw_batch(**_loaded, prompts=drawable, enlarge=enlarge, **settings))


def save_images(output: Path, prompts: Sequence[Prompt], images: Sequence[Image.Image]) -> None:
    """Writes the images of prompts that are not there, each at once."""
    for prompt, image in zip(prompts, images):
        if not (output / prompt.file).exists():
            write_whole(output / prompt.file, partial(image.save, format="PNG"))
