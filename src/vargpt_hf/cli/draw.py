"""`vargpt draw`: a sentence in, an image out, drawn anew or edited; or a file of sentences in, a folder of images out."""

import os
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from .options import Device, DType, Model, Seed, check_device, check_model, load


class Guidance(str, Enum):
    """Kinds of guidance that `draw` offers."""

    default = "default"
    none = "none"
    prompt = "prompt"
    noise = "noise"
    scale = "scale"


def draw(
    text: Annotated[str | None, typer.Argument(help="What to draw; with --benchmark the folder for the images.", show_default=False)] = None,
    prompts: Annotated[
        Path | None, typer.Option(help='Instead of TEXT: a .txt with a prompt a line, or a .jsonl of {"prompt", "id"?, "seed"?}.')
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File to write, out.png by default; its ending names the format. With --prompts a folder."),
    ] = None,
    image: Annotated[
        list[Path] | None, typer.Option("--image", help="Image that is read with TEXT, such as one to edit; may be given several times.")
    ] = None,
    mask: Annotated[
        Path | None, typer.Option(help="Image as large as the first --image, bright where that is drawn anew; else it keeps its codes.")
    ] = None,
    height: Annotated[int | None, typer.Option(min=1, help="With --width: draw in the model's size nearest to so many pixels.")] = None,
    width: Annotated[int | None, typer.Option(min=1, help="See --height. By default the model's first size, or the first --image's.")] = None,
    benchmark: Annotated[
        str | None, typer.Option(help="Draw the --prompts of a benchmark into its official layout: geneval, wise, …, see docs/evaluation.md.")
    ] = None,
    images_per_prompt: Annotated[int | None, typer.Option(min=1, help="With --benchmark; as its authors draw by default.")] = None,
    template: Annotated[str, typer.Option(help="With --benchmark: around each prompt, with {} in its place.")] = "{}",
    rewrites: Annotated[
        Path | None, typer.Option(help='With --benchmark: a .jsonl of {"prompt", "rewritten"}, to draw in their place.')
    ] = None,
    originals: Annotated[Path | None, typer.Option(help="With --benchmark: folder of the images to edit.")] = None,
    think: Annotated[int, typer.Option(min=0, help="With --benchmark: let the model plan in up to so many tokens before it draws.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts that are drawn together, with --prompts.")] = 16,
    num_processes: Annotated[int, typer.Option(min=1, help="Processes that draw at the same time, with --prompts.")] = 1,
    model: Model = None,
    seed: Seed = 0,
    greedy: Annotated[bool, typer.Option("--greedy", help="Take the likeliest codes instead of sampling.")] = False,
    guidance: Annotated[Guidance, typer.Option(help="How to guide; the model's own way by default.")] = Guidance.default,
    guidance_scale: Annotated[
        float | None, typer.Option(help="Strength of guidance; by prompt where neither --guidance nor the model says how.")
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="Temperature of the codes.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Sample among this many likeliest codes; 0: all.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Sample within this probability mass; 0: all.")] = None,
    enlarge: Annotated[int, typer.Option(min=1, help="Enlarge the saved image this many times.")] = 1,
    scales_strip: Annotated[Path | None, typer.Option(help="Also save the coarse-to-fine images side by side in this file.")] = None,
    device: Device = "auto",
    dtype: DType = "auto",
) -> None:
    """Draw an image of TEXT, or one of each prompt in a file.

    With --prompts, images (000000.png, … or the ids) and results.jsonl are written to the folder; an interrupted run resumes there. Prompt
    number n has the seed SEED + n. On GPUs each process takes the next one. `accelerate launch --no_python vargpt draw …` and torchrun
    spread the work over machines with a common folder.

    \b
    Examples:
      vargpt draw "a turtle in the flat look" -o turtle.png
      vargpt draw "a handwritten seven" --seed 3 --enlarge 6 --scales-strip strip.png
      vargpt draw "make the red circle green" --image scene.png --mask mask.png --model ./my-editor
      vargpt draw --prompts prompts.txt --num-processes 2 -o images
      vargpt draw --benchmark geneval --prompts evaluation_metadata.jsonl geneval
    """
    settings = {
        "output_image_guidance_type": None if guidance is Guidance.default else guidance.value,
        "output_image_guidance_scale": guidance_scale,
        "output_image_temperature": temperature,
        "output_image_top_k": top_k,
        "output_image_top_p": top_p,
    }
    settings = {"do_sample": not greedy, **{name: value for name, value in settings.items() if value is not None}}
    if greedy and not (temperature is None and top_k is None and top_p is None):
        raise ValueError(
            "--greedy takes the likeliest codes, which --temperature, --top-k and --top-p cannot change: leave out one or the others."
        )
    if (height is None) != (width is None):
        raise ValueError("Give both --height and --width, or neither.")
    if height is not None:
        settings["output_image_size"] = [height, width]
    of_benchmarks = {"per_prompt": images_per_prompt, "template": template, "rewrites": rewrites, "images": originals, "think": think}
    if benchmark is not None:
        if prompts is None or (text is None) == (output is None) or image or mask or scales_strip or enlarge > 1:
            raise ValueError(
                "--benchmark needs --prompts and a folder for the images, and takes no --image, --mask, --enlarge or --scales-strip."
            )
        common = {"seed": seed, "batch_size": batch_size, "num_processes": num_processes, "device": device}
        return draw_benchmark(benchmark, prompts, model, output or Path(text), dtype, **common, **of_benchmarks, **settings)
    if list(of_benchmarks.values()) != [None, "{}", None, None, 0]:
        raise ValueError("--images-per-prompt, --template, --rewrites, --originals and --think go with --benchmark.")
    if (text is None) == (prompts is None):
        raise ValueError("Give either a TEXT to draw or --prompts with a file of them" + (", not both." if text else "."))
    if prompts is not None and (image or mask):
        raise ValueError("--prompts draws sentences alone: leave out --image and --mask.")
    if mask is not None and (not image or height is not None):
        raise ValueError("--mask needs an --image that it belongs to, whose size is the drawing's: leave out --height and --width.")
    if prompts is not None:
        if output is None or scales_strip is not None:
            raise ValueError("--prompts needs a folder for the images, as in -o images, and takes no --scales-strip.")
        common = {"seed": seed, "batch_size": batch_size, "num_processes": num_processes, "device": device, "enlarge": enlarge}
        return draw_file(prompts, model, output, dtype, **common, **settings)
    if num_processes > 1:
        raise ValueError(f"--num-processes is {num_processes}, but one TEXT is drawn by one process; it goes with --prompts.")
    output = output or Path("out.png")
    check_writable(output, scales_strip)
    for file in [*(image or ()), *filter(None, [mask])]:
        if not file.is_file():
            raise ValueError(f"There is no file {file}.")
    draw_one(text, output, image or [], mask, (model, device, dtype), seed, enlarge, scales_strip, settings)


def draw_one(
    text: str,
    output: Path,
    images: list[Path],
    mask: Path | None,
    loaded_as: tuple[str | None, str, str],
    seed: int,
    enlarge: int,
    scales_strip: Path | None,
    settings: dict,
) -> None:
    """Draws one image, from a text and perhaps images that are read with it, by a model, device and number format; see `draw`."""
    vargpt, processor = load(*loaded_as)
    import torch
    from tqdm import tqdm

    from ..inference.drawing import answer
    from ..inference.inpainting import keep_outside
    from ..modeling.settings_vargpt import user_turn

    (turn,) = user_turn(text)
    if images:
        turn["content"] = [*({"type": "image", "path": str(file)} for file in images), {"type": "text", "text": turn["content"]}]
        first = processor.output_image_processor.fetch_images(str(images[0]), str(images[0]))
        settings.setdefault("output_image_size", [first.height, first.width])
    if mask is not None:
        settings |= keep_outside(vargpt, processor, [first], [str(mask)]) | {"output_image_size": settings["output_image_size"]}
    size = settings.get("output_image_size")
    chosen = 0 if size is None else processor.output_image_processor.nearest_schedule(*size)
    with tqdm(total=len(vargpt.config.schedules[chosen]), desc="Drawing", unit="scale", leave=False) as progress:
        settings["output_image_streamer"] = progress_streamer(progress)
        drawn = answer(vargpt, processor, [[turn]], "image", seeds=[seed], **settings)
    save(drawn.images[0], output, enlarge)
    if scales_strip is not None:
        codes, schedule = drawn.output.output_image_codes, vargpt.config.schedules[chosen]
        steps = [vargpt.model.image_tokenizer.decode(codes, schedule, count + 1) for count in range(len(schedule))]
        save(processor.output_image_processor.post_process(torch.cat(steps, dim=3))[0], scales_strip, enlarge)


def draw_file(prompts: Path, model: str | None, output: Path, dtype: str, device: str, **options) -> None:
    """Draws the prompts of a file; raises a ValueError at the end if some could not be drawn."""
    model, dtype = check_model(model, dtype, device)
    from ..inference.prompts import RESULTS, draw_prompts

    results = draw_prompts(prompts, model, output, dtype=dtype, device=check_device(device), **options)
    broken = sum(row["error"] is not None for row in results)
    if broken:
        raise ValueError(f"{broken} of {len(results)} prompts could not be drawn; {output / RESULTS} says why. The others are there.")
    typer.echo(f"Saved {output}" if results else "This process has drawn its share; others have not yet.")


def draw_benchmark(name: str, prompts: Path, model: str | None, output: Path, dtype: str, device: str, **options) -> None:
    """Draws a benchmark's prompts into its official layout."""
    model, dtype = check_model(model, dtype, device)
    from ..evaluation.drawn_suites import draw_suite

    drawn = draw_suite(name, prompts, model, output, dtype=dtype, device=check_device(device), **options)
    typer.echo(f"Saved {len(drawn)} images in {output}" if drawn else "This process has drawn its share; others have not yet.")


def progress_streamer(progress):
    """An image streamer that moves a progress bar by one scale at a time."""
    from ..modeling.drawing_plan_vargpt import VargptImageStreamer

    class Progress(VargptImageStreamer):
        wants_pixels = False

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
            raise ValueError(f"{file} does not end in the name of an image format, such as .png.")
        if not file.parent.is_dir():
            raise ValueError(f"The folder {file.parent} does not exist: create it, or give another file.")
        if not os.access(file.parent, os.W_OK):
            raise OSError(f"The folder {file.parent} cannot be written to: give another one.")


def save(image, file: Path, enlarge: int) -> None:
    """Writes an image, enlarged without smoothing, and says so."""
    from PIL import Image

    from ..inference.prompts import enlarged
    from ..restartable import write_whole

    image = enlarged(image, enlarge)
    write_whole(file, lambda path: image.save(path, format=Image.registered_extensions()[file.suffix.lower()]))
    typer.echo(f"Saved {file} ({image.width}×{image.height})")
