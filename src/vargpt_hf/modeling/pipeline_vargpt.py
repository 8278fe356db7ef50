"""`pipeline("any-to-any")` of VARGPT: text and images in, text and images out, in the order in which they were made."""

import difflib
import inspect
from typing import Any

import torch
from transformers import AnyToAnyPipeline, GenerationConfig, ImageTextToTextPipeline, Pipeline
from transformers.pipelines.any_to_any import Chat, ReturnType
from transformers.processing_utils import ImagesKwargs, ProcessingKwargs, TextKwargs

from .generation_vargpt import RUN_ARGUMENTS, VargptGenerationMixin
from .outputs_vargpt import VargptGenerateOutput
from .settings_vargpt import IMAGE_GENERATION_DEFAULTS, user_turn

_STOCK_NAMES = inspect.signature(AnyToAnyPipeline._sanitize_parameters).parameters.keys() - {"self", "kwargs"}
_PROCESSOR_NAMES = {
    *(name for kind in (ProcessingKwargs, TextKwargs, ImagesKwargs) for name in kind.__annotations__),
    *("chat_template", "tools", "documents", "add_generation_prompt"),
    *("output_images", "output_image_codes", "output_image_schedule_ids", "random_crop"),
}
_GENERATION_NAMES = {
    *(name for name in vars(GenerationConfig()) if not name.startswith("_")),
    *IMAGE_GENERATION_DEFAULTS,
    *RUN_ARGUMENTS,
    *("streamer", "generation_config", "logits_processor", "stopping_criteria"),
}


class DrawnPart(dict):
    """A content part with an image that was drawn; shown without its codes, which are many and say nothing to a reader."""

    def __repr__(self) -> str:
        shown = {name: f"<{len(value)} codes>" if name == "codes" else value for name, value in self.items()}
        return dict.__repr__(shown)


class VargptPipeline(AnyToAnyPipeline):
    """The stock any-to-any pipeline, which returns text or an image, with a way to return both; torchvision is not needed.

    Takes a chat or a list of chats, as the stock pipeline does; a plain text or a list of them, each of which is the turn of a user; both
    with an image or list of images of each in `images`, which go into the image parts of a chat that hold none, else before the last text of
    the user; and texts that hold image tokens, which are taken for whole prompts, with `images`.
    Settings of `generate`, such as `do_sample` or `output_image_temperature`, may stand among the arguments or in `generate_kwargs`. What a
    record holds beside `input_text` depends on `generation_mode`, an argument, a setting of `generate`, or the model's own:

    - `"auto"` (where none is named): `generated_content`, the parts `{"type": "text", "text": str}` and `{"type": "output_image", "image": PIL,
      "codes": (L,) int64}` that the model made, in order; with `return_full_text=True` the chat with them as its last turn (of a
      text, a list with the text as its first part). `"text_image"` (a plan, then an image) returns the same.
    - `"text"`: `generated_text`, as in the stock pipeline; nothing is drawn.
    - `"image"`: `generated_image`, one image as PIL.

    `return_tensors=True` gives `generated_token_ids` in their place, in modes other than "image". Chats of one batch (`batch_size`) must
    all bring images, or none.

    Raises:
        TypeError: an input that is none of the above.
        ValueError: a processor that is not the model's, an argument of an unknown name, an unknown `generation_mode` or two different ones,
            `return_full_text` or `return_tensors` in mode "image", an empty text, images that do not fit the chat, videos or audio.
    """

    def __init__(self, *args, **kwargs):
        self._own_config = kwargs.get("generation_config")  # which the base class takes out of what it gives `_sanitize_parameters`
        # The stock class would ask for torchvision, which this model's image processor does without.
        Pipeline.__init__(self, *args, **kwargs)
        self.processor.check_fits(self.model.config)
        self.tokenizer.padding_side = "left"  # by which the base class pads batches

    def __call__(self, text=None, images=None, **kwargs):
        if isinstance(text, (list, tuple)) and not text:
            raise ValueError("There is nothing to answer: the list of chats or texts is empty.")
        _refuse_other_media(kwargs)
        if isinstance(text, (list, tuple)) and all(isinstance(one, str) for one in text):
            text = list(text)
            if all(self._is_plain(one) for one in text):
                text, images = [_chat_of(*pair) for pair in zip(text, _images_of_each(images, len(text), "texts"))], None
        elif isinstance(text, str):
            text, images = (_chat_of(text, images), None) if self._is_plain(text) else (text, images)
        elif images is not None and _is_chat(text):
            text, images = _with_images(text, images), None
        elif images is not None and isinstance(text, (list, tuple)) and all(_is_chat(one) for one in text):
            text, images = [_with_images(*pair) for pair in zip(text, _images_of_each(images, len(text), "chats"))], None
        elif images is not None and text is not None:
            raise ValueError(f"`images` go with texts and chats, but the input is a {type(text).__name__}: let each input hold its own.")
        return super().__call__(text, images=images, **kwargs)

    def _is_plain(self, text: str) -> bool:
        """Whether this is what a user says, and not a prompt with the tokens of images."""
        processor = self.processor
        tokens = (processor.image_token, processor.output_image_start_token, processor.output_image_token, processor.output_image_end_token)
        return not any(token in text for token in tokens if token is not None)

    def preprocess(self, inputs=None, **kwargs):
        """Model inputs of one chat, text, or dict of a text and its images, as datasets and generators give them."""
        given = {"text": inputs} if isinstance(inputs, str) else inputs
        if not isinstance(given, (Chat, dict, list, tuple)):
            raise TypeError(f"An input must be a chat, a text, or a dict with text and images, got {type(inputs).__name__}.")
        if isinstance(given, dict) and not (isinstance(given.get("text"), str) or given.get("images") is not None):
            raise ValueError(f"An input has neither a text nor images, but {sorted(map(str, given))}.")
        if isinstance(given, dict):
            _refuse_other_media(given)
        if isinstance(given, dict) and isinstance(given.get("text"), str) and self._is_plain(given["text"]):
            unknown = sorted(map(str, given.keys() - {"text", "images", "videos", "audio"}))
            if unknown:
                raise ValueError(f"An input with a text takes `images` beside it, not `{unknown[0]}`.")
            inputs = Chat(_chat_of(given["text"], given.get("images")))
        return super().preprocess(inputs, **kwargs)

    def _sanitize_parameters(self, generation_mode: str | None = None, generate_kwargs: dict | None = None, **kwargs):
        settings = self._settings_of_generate(kwargs)
        generate_kwargs = {**settings, **(generate_kwargs or {})}
        generation_mode = self._mode_of(generation_mode, generate_kwargs)
        mixed = generation_mode in ("auto", "text_image")
        stock_mode = "text" if mixed else generation_mode
        preprocess, forward, postprocess = super()._sanitize_parameters(generation_mode=stock_mode, generate_kwargs=generate_kwargs, **kwargs)
        chosen = kwargs.get("return_tensors") or any(kwargs.get(name) is not None for name in ("return_full_text", "return_type"))
        if mixed and not chosen:
            postprocess.pop("return_type", None)
        before = getattr(self, "_forward_params", {}).get("generate_kwargs", {})
        forward["generate_kwargs"] = {
            **before,
            **forward["generate_kwargs"],
            "generation_mode": generation_mode,
            "return_dict_in_generate": True,
        }
        return preprocess, forward, {**postprocess, "generation_mode": generation_mode}

    def _mode_of(self, generation_mode: str | None, generate_kwargs: dict) -> str:
        """The `generation_mode` that a call names, else that which the pipeline was built with, else the model's own."""
        setting = generate_kwargs.get("generation_mode")
        if generation_mode is not None and setting is not None and generation_mode != setting:
            raise ValueError(f"`generation_mode` is {generation_mode!r}, but in `generate_kwargs` it is {setting!r}: give one of them.")
        built_with = getattr(self, "_postprocess_params", {}).get("generation_mode")
        # Any of the configurations may be Transformers' own, which knows no modes.
        configs = (generate_kwargs.get("generation_config"), self._own_config, self.model.generation_config)
        of_call, of_pipeline, of_model = (getattr(config, "generation_mode", None) for config in configs)
        ways = (generation_mode, setting, of_call, built_with, of_pipeline, of_model)
        return next((mode for mode in ways if mode is not None), "auto")

    def _settings_of_generate(self, kwargs: dict) -> dict:
        """Takes the settings of `generate` out of the pipeline's arguments; a ValueError for arguments that nobody knows."""
        image_options = getattr(self.processor.image_processor, "valid_kwargs", ImagesKwargs).__annotations__
        processor_names = _PROCESSOR_NAMES | image_options.keys()
        known = _STOCK_NAMES | processor_names | _GENERATION_NAMES
        for name in [name for name in kwargs if name not in known]:
            near = difflib.get_close_matches(name, known, n=1)
            raise ValueError(f"The pipeline has no argument `{name}`" + (f": do you mean `{near[0]}`?" if near else "."))
        return {name: kwargs.pop(name) for name in kwargs.keys() - _STOCK_NAMES - processor_names}

    def _forward(self, model_inputs, generate_kwargs: dict | None = None) -> dict[str, Any]:
        result = super()._forward(model_inputs, generate_kwargs)
        output, count = result["generated_sequence"], len(result["input_ids"])
        candidates = len(output.sequences) // count
        # By input, since the base class takes batches apart again.
        return {**result, "generated_sequence": [_rows(output, index * candidates, candidates) for index in range(count)]}

    def postprocess(
        self, model_outputs: dict, return_type: ReturnType | None = None, generation_mode: str = "auto", **kwargs
    ) -> list[dict[str, Any]]:
        outputs, prompts = model_outputs["generated_sequence"], model_outputs["prompt_text"]
        outputs = outputs if isinstance(outputs, list) else [outputs]
        if generation_mode == "text" or return_type == ReturnType.TENSORS:
            sequences = torch.cat([output["sequences"] for output in outputs])
            text_outputs = {**model_outputs, "generated_sequence": sequences}
            records = super().postprocess(text_outputs, return_type=return_type, generation_mode="text", **kwargs)
            return records if return_type == ReturnType.TENSORS else _without_first_spaces(records)
        prompt_length = model_outputs["input_ids"].shape[1]
        records = []
        for prompt, output in zip([prompts] if isinstance(prompts, (str, Chat)) else prompts, outputs, strict=True):
            for parts in self.processor.post_process_interleaved(output, prompt_length=prompt_length):
                parts = [DrawnPart(part) if part["type"] == "output_image" else part for part in parts]
                record = {"input_text": prompt.messages if isinstance(prompt, Chat) else prompt}
                if generation_mode == "image":
                    record["generated_image"] = next(part["image"] for part in parts if part["type"] == "output_image")
                else:
                    record["generated_content"] = _with_prompt(prompt, parts) if return_type == ReturnType.FULL_TEXT else parts
                records.append(record)
        return records


class VargptImageTextPipeline(ImageTextToTextPipeline):
    """The stock image-text-to-text pipeline, which writes and never draws.

    Answers to chats do not begin with the space that our own templates write; with the template of another model they are what it says.
    """

    def _forward(self, model_inputs, generate_kwargs: dict | None = None) -> dict[str, Any]:
        generate_kwargs = generate_kwargs or {}
        mode = generate_kwargs.get("generation_mode")
        if mode not in (None, "text"):
            raise ValueError(f'This pipeline only writes, but `generation_mode` is {mode!r}: take pipeline("any-to-any"), which draws, too.')
        return super()._forward(model_inputs, {**generate_kwargs, "generation_mode": "text"})

    def postprocess(self, model_outputs: dict, *args, **kwargs) -> list[dict[str, Any]]:
        records = super().postprocess(model_outputs, *args, **kwargs)
        return _without_first_spaces(records) if "output_image" in str(self.processor.chat_template) else records


class AnyToAnyOfAll(AnyToAnyPipeline):
    """What `pipeline("any-to-any")` makes where this package is installed: a VargptPipeline of a VARGPT, else the stock one."""

    def __new__(cls, model, **kwargs):
        return (VargptPipeline if isinstance(model, VargptGenerationMixin) else AnyToAnyPipeline)(model=model, **kwargs)


class ImageTextToTextOfAll(ImageTextToTextPipeline):
    """What `pipeline("image-text-to-text")` makes where this package is installed, likewise."""

    def __new__(cls, model, **kwargs):
        return (VargptImageTextPipeline if isinstance(model, VargptGenerationMixin) else ImageTextToTextPipeline)(model=model, **kwargs)


def _chat_of(text: str, images: Any) -> list[dict]:
    """A user's turn with a text and one image, several or none, in forms that the processor reads."""
    (turn,) = user_turn(text)
    images = [] if images is None else images if isinstance(images, (list, tuple)) else [images]
    parts = [*({"type": "image", "image": image} for image in images), {"type": "text", "text": turn["content"]}]
    return [{**turn, "content": parts}]


def _is_chat(text: Any) -> bool:
    """Whether this is one chat, as the stock pipeline tells it from a batch."""
    return isinstance(text, (list, tuple)) and bool(text) and isinstance(text[0], dict) and "role" in text[0]


def _images_of_each(images: Any, count: int, what: str) -> list:
    """What `images` holds for each of several inputs; one image is for all of them."""
    of_each = list(images) if isinstance(images, (list, tuple)) else [images] * count
    if len(of_each) != count:
        raise ValueError(f"There are {count} {what} and `images` for {len(of_each)}: give one, or one list, for each of the {what}.")
    return of_each


def _with_images(chat: list[dict], images: Any) -> list[dict]:
    """A chat with one image, several or none: in its image parts that bring none, else before the last text of the user."""
    images = [] if images is None else images if isinstance(images, (list, tuple)) else [images]
    parts = [{"type": "image", "image": image} for image in images]
    messages = Chat(chat).messages
    chat = [{**one, "content": list(one["content"])} if isinstance(one["content"], (list, tuple)) else one for one in messages]
    contents = [message["content"] for message in chat if isinstance(message["content"], list)]
    places = [(content, index) for content in contents for index, part in enumerate(content) if _is_bare(part)]
    if len(places) not in (0, len(parts)):
        raise ValueError(f"The chat has {len(places)} image parts without an image, and `images` has {len(parts)}: give as many.")
    for (content, index), part in zip(places, parts):
        content[index] = part
    if places or not parts:
        return chat
    last = next((index for index in reversed(range(len(chat))) if chat[index]["role"] == "user"), None)
    if last is None:
        raise ValueError("The chat has no turn of a user that `images` could stand in: put them into its parts.")
    content = chat[last]["content"]
    content = content if isinstance(content, list) else [{"type": "text", "text": content or ""}]
    first = next((index for index, part in enumerate(content) if isinstance(part, dict) and part.get("type") == "text"), len(content))
    chat[last] = {**chat[last], "content": [*content[:first], *parts, *content[first:]]}
    return chat


def _is_bare(part: Any) -> bool:
    """Whether a content part is the place of an image that is given beside the chat."""
    return isinstance(part, dict) and part.get("type") == "image" and all(value is None for name, value in part.items() if name != "type")


def _refuse_other_media(given: dict) -> None:
    for name in ("videos", "audio"):
        value = given.get(name)
        if value is not None and not (isinstance(value, (list, tuple)) and not value):
            raise ValueError(f"`{name}` was given, but the model reads text and images alone: leave it out.")


def _without_first_spaces(records: list[dict]) -> list[dict]:
    """Answers without the space that the chat template writes before them; what continues a turn keeps it."""
    for record in records:
        prompt, said = record["input_text"], record.get("generated_text")
        if not isinstance(prompt, list) or prompt[-1]["role"] == "assistant" or said is None:
            continue
        if isinstance(said, str):
            record["generated_text"] = said.removeprefix(" ")
        elif isinstance(said[-1]["content"], str):
            record["generated_text"] = [*said[:-1], {**said[-1], "content": said[-1]["content"].removeprefix(" ")}]
    return records


def _rows(output: VargptGenerateOutput, first: int, count: int) -> VargptGenerateOutput:
    """`count` rows of what was generated, with their images."""
    chosen = ((output.output_image_rows >= first) & (output.output_image_rows < first + count)).nonzero().squeeze(1)
    images = output.output_images
    return VargptGenerateOutput(
        sequences=output.sequences[first : first + count],
        output_image_codes=output.output_image_codes[chosen],
        output_image_schedule_ids=output.output_image_schedule_ids[chosen],
        output_image_rows=output.output_image_rows[chosen] - first,
        output_image_positions=output.output_image_positions[chosen],
        output_images=[images[index] for index in chosen.tolist()] if isinstance(images, list) else images[chosen],
    )


def _with_prompt(prompt: "str | Chat", parts: list[dict]) -> list[dict]:
    """What was asked, and what was generated after it."""
    if isinstance(prompt, str):
        return [{"type": "text", "text": prompt}, *parts]
    *earlier, last = prompt.messages
    if last["role"] != "assistant":
        return [*prompt.messages, {"role": "assistant", "content": parts}]
    begun = [{"type": "text", "text": last["content"]}] if isinstance(last["content"], str) else last["content"]
    return [*earlier, {**last, "content": [*begun, *parts]}]


__all__ = ["VargptPipeline"]
