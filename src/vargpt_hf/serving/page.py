"""The page: draw, edit and chat in a browser, and a gallery of what was drawn; Gradio's."""

import atexit
import os
import secrets
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
from PIL import Image, ImageChops

from ..modeling.image_sampling_vargpt import GUIDANCE_TYPES
from .errors import ApiError
from .page_actions import SETTINGS, Drawing, PageActions, enlarge, message_of_model, message_of_user, restored

if TYPE_CHECKING:
    from gradio.components import Component

    from .settings import ServerSettings

TITLE = "VARGPT: one model that understands images and draws them"
_OWN_WAY = "the model's own"
_FILES_SECONDS = (3600, 24 * 3600)  # between looks for old files, and their age
# Pixels of small images are shown as squares, and the images as large as there is room; on a phone rows become columns by themselves.
_STYLE = """
.gradio-container { width: 100% !important; max-width: 1100px !important; box-sizing: border-box; margin: auto; }
.crisp img { image-rendering: pixelated; object-fit: contain !important; }
.crisp .grid-wrap { padding-top: 2.5rem; }
#edited img { width: 100%; min-height: 256px; }
#talk .message img { width: 240px; }
"""
_PAINT = ("#e6007a", 0.6)  # to be seen on whatever the image shows
_NUMBERS = {
    "guidance_scale": ("Strength of guidance", float),
    "image_temperature": ("Temperature; 0 takes the likeliest", float),
    "image_top_k": ("Top-k; 0 takes all", int),
    "image_top_p": ("Top-p; 0 takes all", float),
}


def launching(settings: "ServerSettings") -> dict[str, Any]:
    """Arguments of `launch`: fonts of the reader's own machine, light or dark as that is, and files no larger than the server takes."""
    return {
        "theme": gr.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        "css": _STYLE,
        "max_file_size": settings.max_body_bytes,
        "footer_links": [],
    }


def keep_files_apart() -> None:
    """Gives Gradio's files a folder of this process until it ends, unless GRADIO_TEMP_DIR names one; before [`build_page`].

    For programs that are a page: where several share a folder, as is usual, whichever ends deletes what others show. Who builds a page inside
    of a larger program has one environment for all of it, which this function changes.
    """
    if "GRADIO_TEMP_DIR" not in os.environ:
        folder = tempfile.TemporaryDirectory(prefix="vargpt-gradio-")
        atexit.register(folder.cleanup)
        os.environ["GRADIO_TEMP_DIR"] = folder.name


def build_page(actions: PageActions, max_waiting: int = 20) -> gr.Blocks:
    """The page; its queue takes as many requests as are given.

    Args:
        actions: what its buttons do; their engine must have been started.
    """
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=_FILES_SECONDS) as page:
        gr.Markdown(f"### {TITLE}\n{actions.name}, images of {', '.join(actions.sizes)}")
        drawn = gr.State([])  # files of this session
        settings = _settings(actions)
        with gr.Tab("Draw"):
            send_to_edit, draw_prompt = _draw_tab(actions, settings, drawn)
        with gr.Tab("Edit"):
            editor = _edit_tab(actions, settings, drawn)
        with gr.Tab("Chat"):
            _chat_tab(actions, settings, drawn)
        with gr.Tab("Gallery"):
            _gallery_tab(settings, drawn, draw_prompt, actions.sizes)
        button, current = send_to_edit
        button.click(lambda image: image, current, editor, api_name="take")
    return page.queue(max_size=max_waiting, default_concurrency_limit=4)


def _settings(actions: PageActions) -> dict[str, "Component"]:
    """The settings of images, by name; common to all tabs."""
    with gr.Accordion("Settings", open=False):
        with gr.Row():
            seed = gr.Number(0, label="Seed", precision=0, minimum=0)
            dice = gr.Button("🎲 Roll", min_width=60)
            rolls = gr.Checkbox(True, label="Roll anew each time")
            size = gr.Dropdown(actions.sizes, value=actions.sizes[0], label="Size", visible=len(actions.sizes) > 1)
        with gr.Row():
            guidance_type = gr.Dropdown([_OWN_WAY, *GUIDANCE_TYPES], value=_OWN_WAY, label="Guidance")
            guidance_scale = _number("guidance_scale")
            negative_prompt = gr.Textbox("", label="What not to draw")
        with gr.Row():
            image_temperature, image_top_k, image_top_p = map(_number, ("image_temperature", "image_top_k", "image_top_p"))
    dice.click(_roll, None, seed, api_visibility="private")
    settings = {
        **{"seed": seed, "size": size, "negative_prompt": negative_prompt, "guidance_type": guidance_type, "guidance_scale": guidance_scale},
        **{"image_temperature": image_temperature, "image_top_k": image_top_k, "image_top_p": image_top_p},
    }
    assert tuple(settings) == SETTINGS
    return {**settings, "rolls": rolls}


def _number(name: str) -> gr.Textbox:
    """A field for a number that is the model's own where nothing is written; Gradio's own field for numbers shows 0 there."""
    return gr.Textbox("", label=_NUMBERS[name][0], placeholder=_OWN_WAY, max_lines=1)


def _roll() -> int:
    return secrets.randbelow(2**31)


def chosen(values: tuple[Any, ...]) -> dict[str, Any]:
    """The settings that are set, of the values of [`SETTINGS`] and whether the seed is rolled anew.

    Raises:
        ApiError: 400 for a text that should be a number.
    """
    *values, rolls = values
    given = dict(zip(SETTINGS, values))
    given["seed"] = None if rolls else given["seed"]
    given["guidance_type"] = None if given["guidance_type"] == _OWN_WAY else given["guidance_type"]
    given["negative_prompt"] = given["negative_prompt"] or None
    for name, (label, kind) in _NUMBERS.items():
        text = str(given[name] or "").strip()
        try:
            given[name] = kind(text) if text else None
        except ValueError as error:
            raise ApiError(400, f"{label.partition(';')[0]} is {text[:40]!r}: give a number, or nothing for the model's own.") from error
    return {name: value for name, value in given.items() if value is not None}


def _told(error: ApiError) -> gr.Error:
    """An error as a sentence on the page."""
    return gr.Error(error.message, duration=15, print_exception=False)


def _shown(drawings: list[Drawing]) -> tuple[list, list, list]:
    """The images so far, the film strip of the first, and frames of all."""
    images = [(drawing.file or enlarge(drawing.frames[-1]), f"seed {drawing.seed}") for drawing in drawings if drawing.frames]
    strip = [enlarge(frame) for frame in drawings[0].frames]
    return images, strip, [[enlarge(frame) for frame in drawing.frames] for drawing in drawings]


def _gallery(label: str, columns: int, elem_id: str | None = None) -> gr.Gallery:
    """Images side by side as large as there is room, the pixels of small ones as squares."""
    return gr.Gallery(
        label=label,
        columns=columns,
        fit_columns=False,
        height="auto",
        format="png",
        elem_classes="crisp",
        elem_id=elem_id,
        interactive=False,
    )


def _draw_tab(actions: PageActions, settings: dict, drawn: gr.State) -> tuple[tuple, gr.Textbox]:
    prompt = gr.Textbox(label="What to draw", lines=2, max_lines=6)
    if actions.prompts:
        gr.Examples([[one] for one in actions.prompts], prompt, label="For example", api_visibility="private", api_name=None)
    with gr.Row():
        number = gr.Slider(1, actions.engine.settings.max_drawings, 1, step=1, label="Images")
        draw, stop = gr.Button("Draw", variant="primary"), gr.Button("Stop", variant="stop")
    with gr.Row():
        with gr.Column():
            current = gr.Image(label="Image", type="pil", format="png", interactive=False, elem_classes="crisp", elem_id="current")
            scale = gr.Slider(1, actions.num_scales, actions.num_scales, step=1, label="Scale, coarse to fine", elem_id="scale")
            edit = gr.Button("Edit this image")
        with gr.Column():
            images = _gallery("Images", 3, elem_id="images")
            strip = _gallery("Scales", 5, elem_id="strip")
    frames, selected = gr.State([]), gr.State(0)

    def drawing(request: gr.Request, prompt: str, number: int, files: list, *values: Any) -> Iterator[tuple]:
        try:
            for drawings in actions.draw(request.session_hash or "", prompt, int(number), chosen(values)):
                done = [drawing.file for drawing in drawings if drawing.file]
                shown, strip_, frames_ = _shown(drawings)
                yield frames_[0][-1] if frames_[0] else None, shown, strip_, frames_, 0, max(1, len(frames_[0])), [*done, *files]
        except ApiError as error:
            raise _told(error) from error

    outputs = [current, images, strip, frames, selected, scale, drawn]
    inputs = [prompt, number, drawn, *settings.values()]
    running = gr.on([draw.click, prompt.submit], drawing, inputs, outputs, api_name="draw", show_progress="minimal")
    _stop_by(stop, actions, [running], "stop")

    def scrubbed(scale: int, frames: list, selected: int) -> Image.Image | None:
        of_one = frames[selected] if selected < len(frames) else []
        return of_one[min(int(scale), len(of_one)) - 1] if of_one else None

    def picked(frames: list, event: gr.SelectData) -> tuple:
        of_one = frames[event.index] if event.index < len(frames) else []
        return (
            of_one[-1] if of_one else None,
            of_one,
            event.index,
            max(1, len(of_one)),
        )

    scale.release(scrubbed, [scale, frames, selected], current, api_name="scrub", show_progress="hidden")
    images.select(picked, [frames], [current, strip, selected, scale], api_visibility="private")
    return (edit, current), prompt


def _stop_by(button: gr.Button, actions: PageActions, running: list, name: str | None) -> None:
    """Lets a button end what its session has running, at once."""

    def stop(request: gr.Request) -> None:
        actions.stop(request.session_hash or "")

    button.click(stop, None, None, cancels=running, queue=False, api_name=name, api_visibility="public" if name else "private")


def _edit_tab(actions: PageActions, settings: dict, drawn: gr.State) -> gr.ImageEditor:
    gr.Markdown("Drop an image, or take one that was drawn, and paint over what is to change. Without paint the model reads the image instead.")
    with gr.Row():
        with gr.Column():
            brush = gr.Brush(default_size=40, colors=[_PAINT], default_color=_PAINT, color_mode="fixed")
            editor = gr.ImageEditor(
                label="Image", type="pil", image_mode="RGBA", format="png", brush=brush, layers=False, transforms=(), elem_id="editor"
            )
            prompt = gr.Textbox(label="What to draw there", lines=2)
            with gr.Row():
                edit, stop = gr.Button("Draw there", variant="primary"), gr.Button("Stop", variant="stop")
        with gr.Column():
            result = gr.Image(label="Edited", type="filepath", format="png", interactive=False, elem_classes="crisp", elem_id="edited")
            strip = _gallery("Scales", 5)

    def editing(request: gr.Request, painted: dict | None, prompt: str, files: list, *values: Any) -> Iterator[tuple]:
        image, area = painted_area(painted)
        try:
            for drawings in actions.edit(request.session_hash or "", image, area, prompt, chosen(values)):
                shown, strip_, _ = _shown(drawings)
                done = [drawing.file for drawing in drawings if drawing.file]
                yield shown[0][0] if shown else None, strip_, [*done, *files]
        except ApiError as error:
            raise _told(error) from error

    running = edit.click(editing, [editor, prompt, drawn, *settings.values()], [result, strip, drawn], api_name="edit", show_progress="minimal")
    _stop_by(stop, actions, [running], None)
    return editor


def painted_area(painted: dict | None) -> tuple[Image.Image | None, Image.Image | None]:
    """The image under an editor's paint, and where the paint is, "L"."""
    if not painted or painted.get("background") is None:
        return None, None
    image = painted["background"].convert("RGB")
    area = Image.new("L", image.size)
    for layer in painted.get("layers") or []:
        paint = layer.convert("RGBA").getchannel("A").resize(image.size, Image.Resampling.NEAREST)
        area = ImageChops.lighter(area, paint)
    return image, area


def _chat_tab(actions: PageActions, settings: dict, drawn: gr.State) -> None:
    talk = gr.Chatbot(label="Chat", height=480, elem_classes="crisp", elem_id="talk", buttons=["copy"])
    messages = gr.State([])  # as OpenAI has them
    box = gr.MultimodalTextbox(
        placeholder="Say something; add images by the clip", file_types=["image"], file_count="multiple", show_label=False
    )
    with gr.Row():
        draws = gr.Checkbox(True, label="May draw")
        limit = actions.engine.settings.max_tokens
        max_tokens = gr.Slider(2, limit, min(256, limit), step=1, label="Tokens at most", min_width=240)
        stop, clear = gr.Button("Stop", variant="stop"), gr.Button("New chat")

    def answering(
        request: gr.Request, said: dict, talk: list, messages: list, draws: bool, max_tokens: int, files: list, *values: Any
    ) -> Iterator[tuple]:
        text, images = said.get("text") or "", list(said.get("files") or [])
        asked = [*messages, message_of_user(text, images)]
        shown = [*talk, *({"role": "user", "content": {"path": file}} for file in images)]
        shown += [{"role": "user", "content": text}] if text.strip() else []
        yield shown, messages, {"text": "", "files": []}, files
        try:
            parts: list = []
            for parts in actions.chat(request.session_hash or "", asked, draws, int(max_tokens), chosen(values)):
                answer = [{"role": "assistant", "content": part if isinstance(part, str) else {"path": str(part)}} for part in parts]
                new = [str(part) for part in parts if isinstance(part, Path)]
                yield [*shown, *answer], [*asked, message_of_model(parts)], gr.skip(), [*new, *files]
        except ApiError as error:
            raise _told(error) from error

    inputs = [box, talk, messages, draws, max_tokens, drawn, *settings.values()]
    running = box.submit(answering, inputs, [talk, messages, box, drawn], api_name="chat")
    _stop_by(stop, actions, [running], None)
    clear.click(lambda: ([], []), None, [talk, messages], api_visibility="private")


def _gallery_tab(settings: dict, drawn: gr.State, prompt: gr.Textbox, sizes: Sequence[str]) -> None:
    gr.Markdown("What was drawn on this page. Each PNG says what it was drawn from: drop one below to have its prompt and settings back.")
    gallery = gr.Gallery(label="Drawn", columns=6, format="png", elem_classes="crisp", interactive=False)
    drawn.change(lambda files: files, drawn, gallery, api_visibility="private")
    file = gr.File(label="Restore the settings of a PNG", file_types=[".png"])

    def restoring(file: str | None, *values: Any) -> tuple:
        if file is None:
            return ("", *values)
        try:
            facts = restored(file)
        except ApiError as error:
            raise _told(error) from error
        if facts.get("size") not in sizes:  # of another model, whose size this one does not draw
            facts.pop("size", None)
        unset = {"guidance_type": _OWN_WAY, "negative_prompt": "", **dict.fromkeys(_NUMBERS, "")}
        restored_values = [facts.get(name, unset.get(name, value)) for name, value in zip(SETTINGS, values)]
        return (facts.get("prompt", ""), *restored_values, False)

    file.upload(restoring, [file, *settings.values()], [prompt, *settings.values()], api_name="restore")


__all__ = ["build_page", "chosen", "keep_files_apart", "launching", "painted_area"]
