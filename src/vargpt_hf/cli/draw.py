"""`vargpt draw`: a sentence in, a picture out."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from .options import Device, DType, Model, Seed, load, prompt_inputs


class Guidance(str, Enum):
    """Kinds of guidance that `draw` offers."""

    default = "default"
    none = "none"
    prompt = "prompt"
    noise = "noise"


def draw(
    text: Annotated[str, typer.Argument(help="What to draw.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write; its ending names the format.")] = Path("out.png"),
    model: Model = None,
    seed: Seed = 0,
    greedy: Annotated[bool, typer.Option("--greedy", help="Take the likeliest codes instead of sampling.")] = False,
    guidance: Annotated[Guidance, typer.Option(help="How to guide; the model's own way by default.")] = Guidance.default,
    guidance_scale: Annotated[float | None, typer.Option(help="Strength of guidance.")] = None,
    temperature: Annotated[float | None, typer.Option(help="Temperature of the codes.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Sample among this many likeliest codes; 0: all.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Sample within this probability mass; 0: all.")] = None,
    enlarge: Annotated[int, typer.Option(min=1, help="Enlarge the saved picture this many times.")] = 1,
    scales_strip: Annotated[Path | None, typer.Option(help="Also save the coarse-to-fine pictures side by side in this file.")] = None,
    device: Device = "auto",
    dtype: DType = "auto",
) -> None:
    """Draw a picture of TEXT.

    \b
    Examples:
      vargpt draw "a red circle above a blue square" -o scene.png
      vargpt draw "a handwritten seven" --seed 3 --enlarge 6 --scales-strip strip.png
    """
    check_writable(output, scales_strip)
    import torch
    from tqdm import tqdm

    vargpt, processor = load(model, device, dtype)
    settings = {
        "image_guidance_type": None if guidance is Guidance.default else guidance.value,
        "image_guidance_scale": guidance_scale,
        "image_temperature": temperature,
        "image_top_k": top_k,
        "image_top_p": top_p,
    }
    inputs = prompt_inputs(processor, [{"role": "user", "content": text}], vargpt.device)
    with tqdm(total=len(vargpt.config.vq_config.scales), desc="Drawing", unit="scale", leave=False) as progress:
        result = vargpt.generate(
            **inputs,
            generation_mode="image",
            max_new_tokens=2,
            do_sample=not greedy,
            generator=torch.Generator(vargpt.device).manual_seed(seed),
            image_streamer=progress_streamer(progress),
            return_dict_in_generate=True,
            **{name: value for name, value in settings.items() if value is not None},
        )
    save(processor.image_processor.post_process(result.images)[0], output, enlarge)
    if scales_strip is not None:
        scales = range(1, len(vargpt.config.vq_config.scales) + 1)
        steps = [vargpt.model.vq_model.decode(result.image_codes, num_scales=count) for count in scales]
        save(processor.image_processor.post_process(torch.cat(steps, dim=3))[0], scales_strip, enlarge)


def progress_streamer(progress):
    """A picture streamer that moves a progress bar by one scale at a time."""
    from ..modeling.decoding_vargpt import VargptImageStreamer

    class Progress(VargptImageStreamer):
        def put(self, images, rows, scale_index) -> None:
            progress.update(1)

        def end(self) -> None:
            progress.close()

    return Progress()


def check_writable(*files: Path | None) -> None:
    """Raises a ValueError for a file that could not be saved, before any work is done for it."""
    from PIL import Image

    for file in filter(None, files):
        if file.suffix.lower() not in Image.registered_extensions():
            raise ValueError(f"{file} does not end in the name of a picture format, such as .png.")
        if not file.parent.is_dir():
            raise ValueError(f"The folder {file.parent} does not exist: create it, or give another file.")


def save(picture, file: Path, enlarge: int) -> None:
    """Writes a picture, enlarged without smoothing, and says so."""
    from PIL import Image

    picture.resize((picture.width * enlarge, picture.height * enlarge), Image.Resampling.NEAREST).save(file)
    typer.echo(f"Saved {file} ({picture.width * enlarge}×{picture.height * enlarge})")
