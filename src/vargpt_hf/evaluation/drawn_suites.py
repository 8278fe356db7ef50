"""Draws a benchmark's prompts into its official layout: with seeds, rewritten prompts and a template on record, resuming, on several processes.

Every image has a seed of its own, as in `inference.prompts`, whose ways of dividing the work are these, too. A plan that the model wrote
before an image (`generation_mode="text_image"`) is kept in the image's file, so that a run that resumes knows it.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo
from tqdm.auto import tqdm
from transformers import AutoConfig

from ..hardware import default_device, keep_freed_memory, loading_dtype
from ..inference.drawing import answer, prompt_inputs
from ..inference.mixed import load_to_infer
from ..inference.prompts import model_fingerprint
from ..modeling.settings_vargpt import check_settings
from ..processing.processing_vargpt import VargptProcessor
from ..restartable import claim_folder, device_of, remove_unfinished, run_each, write_whole
from .benchmarks import Benchmark, Item, known_benchmark
from .suites import data_hash

MANIFEST, DRAWN = "benchmark.manifest", "drawn.jsonl"


@dataclass(frozen=True)
class Drawing:
    """One image to draw.

    Attributes:
        file: of the image, in the folder.
        key: of its item.
        prompt: as the benchmark has it.
        text: as the model gets it: rewritten and put into the template.
        seed: of everything random in the image.
        image: file of the image to edit, or None.
    """

    file: str
    key: str
    prompt: str
    text: str
    seed: int
    image: str | None = None


def plan_drawings(
    benchmark: Benchmark, items: Sequence[Item], per_prompt: int, template: str = "{}", rewrites: Mapping[str, str] | None = None, seed: int = 0
) -> list[Drawing]:
    """All images of a benchmark: image `number` of item `index` has the seed `seed + index * per_prompt + number`.

    Args:
        per_prompt: images of each prompt.
        template: with `{}` where the prompt goes.
        rewrites: what to draw in place of prompts; all must be there.

    Raises:
        ValueError: a template without `{}`, a prompt that is not rewritten, or more images than the layout holds.
    """
    if template.count("{}") != 1:
        raise ValueError(f"The template {template!r} must have {{}} once, where the prompt goes.")
    if per_prompt < 1 or benchmark.single and per_prompt > 1:
        raise ValueError(
            f"The layout of this benchmark holds {'one image' if benchmark.single else 'at least one image'} a prompt, not {per_prompt}."
        )
    if benchmark.edits and any(item.image is None for item in items):
        raise ValueError("This benchmark edits images: give the folder of the originals.")
    drawings = []
    for index, item in enumerate(items):
        if rewrites is not None and item.prompt not in rewrites:
            raise ValueError(f"The prompt {item.prompt!r} ({item.key}) is not among the rewritten ones.")
        text = template.replace("{}", item.prompt if rewrites is None else rewrites[item.prompt])
        for number in range(per_prompt):
            place, image = benchmark.place(item, index, number, per_prompt), None if item.image is None else str(item.image)
            drawings.append(Drawing(place, item.key, item.prompt, text, seed + index * per_prompt + number, image))
    return drawings


def read_rewrites(file: str | Path) -> dict[str, str]:
    """Rewritten prompts of a .jsonl file with "prompt" and "rewritten" in each line.

    Raises:
        ValueError: a line that is not so, or a prompt that is rewritten twice, differently.
        OSError: a file that cannot be read.
    """
    found: dict[str, str] = {}
    for number, line in enumerate(Path(file).read_text(encoding="utf-8").splitlines()):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{file}, line {number + 1} is no JSON: {error}.") from error
        pair = [row.get(name) if isinstance(row, dict) else None for name in ("prompt", "rewritten")]
        if not all(isinstance(text, str) and text.strip() for text in pair):
            raise ValueError(f'{file}, line {number + 1} must have texts under "prompt" and "rewritten".')
        if found.setdefault(*pair) != pair[1]:
            raise ValueError(f"{file}, line {number + 1} rewrites {pair[0]!r} otherwise than an earlier line.")
    return found


def draw_suite(
    name: str,
    file: str | Path,
    model: str | Path,
    output: str | Path,
    *,
    images: str | Path | None = None,
    per_prompt: int | None = None,
    template: str = "{}",
    rewrites: str | Path | None = None,
    think: int = 0,
    seed: int = 0,
    batch_size: int = 16,
    num_processes: int = 1,
    device: str = "auto",
    dtype: str = "auto",
    **settings: Any,
) -> list[dict[str, Any]]:
    """Draws all prompts of a benchmark into a folder, in its official layout, with what its scorer wants beside.

    Started by accelerate or torchrun, each process draws its share, as in `inference.prompts.draw_prompts`; the last to end finishes.

    Args:
        name: of the benchmark, see `benchmarks.BENCHMARKS`.
        file: its prompts.
        model: folder or Hub id of a VARGPT.
        output: folder for the images; one that an earlier run of the same has begun is continued.
        images: folder of the images to edit, for benchmarks that edit.
        per_prompt: images of each prompt; as many as the benchmark's authors draw by default.
        template: around each prompt, with `{}` in its place.
        rewrites: .jsonl of prompts and what to draw in their place, see `read_rewrites`.
        think: let the model write a plan of up to this many tokens before it draws; 0: no plan.
        seed: of the first image; each further one has the next.
        batch_size, num_processes, device, dtype: as in `draw_prompts`.
        settings: of `generate`.

    Returns:
        What drawn.jsonl holds: of each image "file", "key", "prompt", "text", "seed", "image", "plan"; empty in a process that was not the
        last to end.

    Raises:
        TypeError, ValueError: bad settings, prompts that cannot be drawn, a folder of other images.
        OSError: what cannot be read or written; `ChildProcessError` where one of several processes was killed.
    """
    output, file = Path(output), Path(file)
    benchmark, (rank, world_size, local_rank) = known_benchmark(name), _rank()
    if world_size > 1 and num_processes > 1:
        raise ValueError(f"A launcher has started {world_size} processes already; leave num_processes at 1, not {num_processes}.")
    items = benchmark.read(file, None if images is None else Path(images), output)
    per_prompt = benchmark.images_per_prompt if per_prompt is None else per_prompt
    drawings = plan_drawings(benchmark, items, per_prompt, template, None if rewrites is None else read_rewrites(rewrites), seed)
    device, config = default_device() if device == "auto" else device, AutoConfig.from_pretrained(model, trust_remote_code=False)
    dtype = loading_dtype(dtype, config.dtype, device, config.least_parameters())
    settings = {**settings, **({"generation_mode": "text_image", "max_new_tokens": think + 2} if think else {"generation_mode": "image"})}
    check_settings(settings, config.text_config.vocab_size)
    _check_texts(drawings, VargptProcessor.from_pretrained(model))
    job = {
        "benchmark": name,
        "prompts_sha256": data_hash([[item.key, item.prompt] for item in items]),
        "drawings_sha256": data_hash([drawing.file, drawing.text, drawing.seed] for drawing in drawings),
        "prompts": {"template": template, "rewriting": None if rewrites is None else Path(rewrites).name},
        "model": {"name": Path(model).name if Path(model).is_dir() else str(model), "fingerprint": model_fingerprint(model)},
        "per_prompt": per_prompt,
        "seed": seed,
        "device": device.split(":")[0],
        "dtype": dtype,
        "settings": settings,
    }
    claim_folder(output, MANIFEST, job, "images")
    benchmark.prepare(output, file)
    for folder in {(output / drawing.file).parent for drawing in drawings}:
        folder.mkdir(parents=True, exist_ok=True)
    batches = [drawings[start : start + batch_size] for start in range(0, len(drawings), batch_size)][rank::world_size]
    prepare, draw = partial(_load, str(model), device, dtype, local_rank), partial(_draw_missing, output=output, settings=settings)
    _draw_all(batches, output, num_processes, prepare, draw, silent=rank > 0)
    if not all((output / drawing.file).exists() for drawing in drawings):  # another process still draws
        return []
    benchmark.finish(output, items, per_prompt)
    return _write_rows(output, drawings)


def _draw_all(batches: Sequence[Sequence[Drawing]], output: Path, num_processes: int, prepare: Callable, draw: Callable, silent: bool) -> None:
    """Draws the batches of which an image is missing."""
    missing = [batch for batch in batches if not all((output / drawing.file).exists() for drawing in batch)]
    total, left = (sum(map(len, some)) for some in (batches, missing))
    with tqdm(total=total, initial=total - left, desc="Drawing", unit=" images", disable=silent) as progress:
        for batch, _ in run_each(draw, missing, num_processes, prepare):
            progress.update(len(batch))
    _loaded.clear()


def _write_rows(output: Path, drawings: Sequence[Drawing]) -> list[dict[str, Any]]:
    """Writes drawn.jsonl, tidies up, and returns what the file holds."""
    rows = [{**asdict(drawing), "plan": _plan_of(output / drawing.file)} for drawing in drawings]
    write_whole(output / DRAWN, lambda path: path.write_text("".join(json.dumps(row) + "\n" for row in rows)))
    for folder in {(output / drawing.file).parent for drawing in drawings}:
        remove_unfinished(folder, ".png")
    return rows


def read_drawn(folder: str | Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The note of how a folder's images were drawn, and one row for each image, as `draw_suite` wrote them.

    Raises:
        ValueError: a folder that `draw_suite` has not finished.
    """
    folder = Path(folder)
    if not (folder / MANIFEST).is_file() or not (folder / DRAWN).is_file():
        raise ValueError(f"{folder} holds no finished images of a benchmark: draw them by `vargpt draw --benchmark`.")
    rows = [json.loads(line) for line in (folder / DRAWN).read_text().splitlines()]
    return json.loads((folder / MANIFEST).read_text()), rows


def _check_texts(drawings: Sequence[Drawing], processor: VargptProcessor) -> None:
    """Raises a ValueError for a prompt that the processor refuses, before anything is drawn."""
    for text, key in {drawing.text: drawing.key for drawing in drawings}.items():
        try:
            prompt_inputs(processor, [text])
        except ValueError as error:
            raise ValueError(f"The prompt of {key}, {text!r}, cannot be drawn: {error}") from error


def _rank() -> tuple[int, int, int]:
    """Number of this process, of all, and its number on this machine, as accelerate and torchrun tell them."""
    return tuple(int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0)))


_loaded: dict[str, Any] = {}  # of a process that draws


def _load(model: str, device: str, dtype: str, local_rank: int, number: int) -> None:
    """Makes a process ready: the model on its device."""
    device = device_of(device, local_rank + number)
    if str(device) == "cpu":
        keep_freed_memory()
    vargpt = load_to_infer(model, dtype)
    processor = VargptProcessor.from_pretrained(model)
    processor.check_fits(vargpt.config)
    _loaded.update(model=vargpt.to(device).eval(), processor=processor)


def _draw_missing(batch: Sequence[Drawing], output: Path, settings: dict[str, Any]) -> None:
    """Draws a batch, as a whole since others would round otherwise, and writes those of its images that are not there."""
    settings = dict(settings)
    seeds = [drawing.seed for drawing in batch]
    drawn = answer(
        _loaded["model"], _loaded["processor"], [_chat(one) for one in batch], settings.pop("generation_mode"), seeds=seeds, **settings
    )
    for drawing, image, plan in zip(batch, drawn.images, drawn.texts):
        if not (output / drawing.file).exists():
            note = PngInfo()
            if plan:
                note.add_itxt("plan", plan)
            write_whole(output / drawing.file, partial(image.save, format="PNG", pnginfo=note))


def _chat(drawing: Drawing) -> list[dict[str, Any]]:
    parts = [] if drawing.image is None else [{"type": "image", "path": drawing.image}]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": drawing.text.strip()}]}]


def _plan_of(file: Path) -> str | None:
    with Image.open(file) as image:
        return image.text.get("plan") if hasattr(image, "text") else None


__all__ = ["Drawing", "draw_suite", "plan_drawings", "read_drawn", "read_rewrites"]
