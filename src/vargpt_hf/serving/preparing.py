"""From requests to jobs: chats, settings of `generate`, sizes and masks, all checked before anything waits."""

import copy
import re
import secrets
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image, ImageOps

from ..inference.drawing import prompt_inputs
from ..modeling.image_sampling_vargpt import redrawn_positions
from ..modeling.settings_vargpt import check_room, check_settings, guided, image_tokens, max_positions, user_turn
from .bodies import ChatBody, ImageBody, RequestBody
from .chats import read_chat
from .errors import ApiError
from .jobs import Edit, Job
from .reading import RequestImages
from .settings import ServerSettings

if TYPE_CHECKING:
    from ..modeling.modeling_vargpt import VargptForConditionalGeneration
    from ..processing.processing_vargpt import VargptProcessor

_MASKED = 128  # levels from which on a mask without transparency says: draw here
_LEAST_COVERAGE = 1e-3
_SEEDS = 2**31  # from which one is taken where a request names none: short enough to be written down


class Preparer:
    """Makes jobs of requests.

    Args:
        model, processor: what will answer.
        settings: limits.
    """

    def __init__(self, model: "VargptForConditionalGeneration", processor: "VargptProcessor", settings: ServerSettings):
        self.config = model.config
        self.defaults = model.generation_config
        # A copy, used by one thread at a time: to pad, tokenizers are changed, which must not happen while the engine's thread tokenizes.
        self.processor = copy.deepcopy(processor)
        self.settings = settings
        self._tokenizing = threading.Lock()

    # ---- requests

    def drawings(self, body: ImageBody, images: Sequence[Image.Image] = (), edit: Edit | None = None) -> list[Job]:
        """Jobs of a request for images.

        Args:
            body: the request.
            images: that the model reads with the prompt.
            edit: an image to draw again in part.

        Raises:
            ApiError: 400 or 413 for what cannot be drawn.
        """
        self._check_texts([body.prompt, body.negative_prompt or ""])
        try:
            (turn,) = user_turn(body.prompt)
        except ValueError as error:
            raise ApiError(400, f"{str(error).capitalize()}.", "invalid_value", "prompt") from error
        turn["content"] = [*({"type": "image", "image": image} for image in images), {"type": "text", "text": turn["content"]}]
        schedule_id = self.schedule_id(body.size, None if edit is None else edit.image.size)
        settings = self._image_settings(body, sampled=True)
        num_scales = len(self.config.schedules[schedule_id])
        scales = partial_scales(num_scales, body.partial_images) if body.stream else frozenset()
        pixels = sum(image.width * image.height for image in (*images, *([edit.image] * 2 if edit else [])))
        shared = {"schedule_id": schedule_id, "edit": edit, "scales": scales, "pixels": pixels}
        return self._jobs(body, [turn], "image", settings, streams=bool(body.stream), **shared)

    def answers(self, body: ChatBody) -> list[Job]:
        """Jobs of a request for chat.

        Raises:
            ApiError: 400 or 413 for what cannot be answered.
        """
        if len(body.messages) > (room := max_positions(self.config)):  # each takes a token at least, and time to be turned into some
            message = f"There are {len(body.messages):,} messages, and the model has room for {int(room)} tokens: leave out old ones."
            raise ApiError(400, message, "invalid_value", "messages")
        images = RequestImages(self.settings)
        chat, texts = read_chat(body.messages, images)
        self._check_texts([*texts, body.negative_prompt or ""])
        wanted = set(body.modalities or ["text"])
        mode = "auto" if wanted == {"text", "image"} else "image" if wanted == {"image"} else "text"
        stops = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
        if len(stops) > 4 or not all(0 < len(stop) <= 256 for stop in stops):
            raise ApiError(400, "`stop` must be up to 4 texts of 1 to 256 characters.", "invalid_value", "stop")
        settings = self._chat_settings(body)
        limit = self.settings.max_tokens if mode != "image" else 2
        max_tokens = limit if mode == "image" else body.max_completion_tokens or body.max_tokens or limit
        shared = {"schedule_id": self.schedule_id(body.size), "pixels": images.pixels, "streams": bool(body.stream)}
        return self._jobs(body, chat, mode, settings, max_tokens=max_tokens, stop=stops, **shared)

    def edit(self, opened: Image.Image, image: Image.Image, mask: Image.Image | None, size: str | None) -> Edit | None:
        """The image to edit and its mask, both of the size in which it is drawn; None where no mask says what to draw anew.

        Args:
            opened: the image as it was sent, whose transparent parts are a mask where there is no other.
            image: the same in RGB.
            mask: transparent where to draw; of an image without transparency, white.
            size: that the request asks for; the nearest to the image by default.

        Raises:
            ApiError: 400 for a mask of another size, or one that leaves nothing to draw.
        """
        if mask is None and not opened.has_transparency_data:
            return None
        area = self._area(opened if mask is None else mask)
        if mask is None and area.getbbox() is None:
            return None
        if area.size != image.size:
            raise ApiError(
                400, f"The mask is {_shown(area.size)}, the image {_shown(image.size)}: give both the same size.", "invalid_mask", "mask"
            )
        height, width = self.processor.output_image_processor.sizes[self.schedule_id(size, image.size)]
        area = ImageOps.fit(area, (width, height), Image.Resampling.BOX).point(lambda level: 255 if level >= _MASKED else 0)
        if area.getbbox() is None:
            raise ApiError(400, "The mask leaves nothing to draw: make the parts to draw transparent, or white.", "invalid_mask", "mask")
        fitted = ImageOps.fit(image, (width, height), Image.Resampling(self.processor.output_image_processor.resample))
        schedule = self.config.schedules[self.schedule_id(size, image.size)]
        mask = torch.frombuffer(bytearray(area.tobytes()), dtype=torch.uint8).view(1, height, width)
        # A mask that covers no position by half still means that something is to be drawn: then all that it touches.
        return Edit(fitted, area) if redrawn_positions(mask, schedule).any() else Edit(fitted, area, _LEAST_COVERAGE)

    def schedule_id(self, size: str | None, nearest_to: tuple[int, int] | None = None) -> int:
        """The schedule whose images come nearest to a size, "WIDTHxHEIGHT" or "auto".

        Raises:
            ApiError: 400 for a size of another form.
        """
        if size in (None, "auto"):
            return 0 if nearest_to is None else self.processor.output_image_processor.nearest_schedule(nearest_to[1], nearest_to[0])
        found = re.fullmatch(r"([1-9]\d{0,4})[x×]([1-9]\d{0,4})", size)
        if found is None:
            sizes = ", ".join(_shown((width, height)) for height, width in self.processor.output_image_processor.sizes)
            raise ApiError(400, f'`size` is {size[:40]!r}; give "auto" or WIDTHxHEIGHT. This model draws {sizes}.', "invalid_value", "size")
        return self.processor.output_image_processor.nearest_schedule(int(found[2]), int(found[1]))

    def size_of(self, schedule_id: int) -> str:
        """Size of a schedule's images as OpenAI writes it."""
        height, width = self.processor.output_image_processor.sizes[schedule_id]
        return _shown((width, height))

    # ---- parts of them

    def _jobs(self, body: RequestBody, chat: list[dict], mode: str, settings: dict[str, Any], **shared) -> list[Job]:
        """One job for each answer that is asked for, with seeds that follow one another."""
        seed = secrets.randbelow(_SEEDS) if body.seed is None else body.seed
        config, schedule_ids = self.config, [shared["schedule_id"]]
        try:
            check_settings(settings, config.text_config.vocab_size)
            tokens = self._tokens(chat).shape[1]
            check_room(config, tokens, image_tokens(config, schedule_ids) if mode == "image" else 0)
        except (ValueError, TypeError) as error:
            raise ApiError(400, str(error)) from error
        deadline = time.monotonic() + self.settings.max_seconds
        common = {"settings": settings, "prompt_tokens": tokens, "deadline": deadline, **shared}
        return [Job(chat, mode, seed=seed + index, **common) for index in range(body.n or 1)]

    def _image_settings(self, body: RequestBody, sampled: bool) -> dict[str, Any]:
        """Settings of `generate` for images. All is sampled, where not from many codes then from the likeliest one."""
        settings: dict[str, Any] = {"do_sample": True}
        sampled |= body.image_temperature is not None or body.image_top_k is not None or body.image_top_p is not None
        if body.image_temperature == 0 or not sampled:
            settings.update(output_image_temperature=1.0, output_image_top_k=1, output_image_top_p=0.0)
        else:
            given = {
                "output_image_temperature": body.image_temperature,
                "output_image_top_k": body.image_top_k,
                "output_image_top_p": body.image_top_p,
            }
            settings.update({name: value for name, value in given.items() if value is not None})
        kind = body.guidance_type
        if body.negative_prompt is not None:
            if kind not in (None, "prompt"):
                raise ApiError(400, f'A `negative_prompt` needs `guidance_type` "prompt", not {kind[:40]!r}.', "invalid_value", "guidance_type")
            kind, negative = "prompt", [{"role": "user", "content": body.negative_prompt}]
            try:
                settings["output_image_unconditional_ids"] = self._tokens(negative)[0].tolist()
            except ValueError as error:
                raise ApiError(400, f"`negative_prompt`: {error}", "invalid_value", "negative_prompt") from error
        if body.guidance_scale is not None:
            settings["output_image_guidance_scale"] = body.guidance_scale
        if kind is not None:
            settings["output_image_guidance_type"] = kind
        return guided(settings, vars(self.defaults))

    def _chat_settings(self, body: ChatBody) -> dict[str, Any]:
        """Settings of `generate` for texts and images; a temperature of 0 takes the likeliest token."""
        sampled = bool(self.defaults.do_sample)
        settings = self._image_settings(body, sampled)
        sampled |= body.temperature is not None or body.top_p is not None or body.top_k is not None
        if body.temperature == 0 or not sampled:
            settings.update(temperature=1.0, top_k=1)
        else:
            given = {"temperature": body.temperature, "top_p": body.top_p, "top_k": body.top_k}
            settings.update({name: value for name, value in given.items() if value is not None})
        for name in ("repetition_penalty", "max_output_images"):
            if getattr(body, name) is not None:
                settings[name] = getattr(body, name)
        return settings

    def _tokens(self, chat: list[dict[str, Any]]) -> torch.LongTensor:
        """Token ids (1, T) of a chat that is to be answered."""
        with self._tokenizing:
            return prompt_inputs(self.processor, [chat])["input_ids"]

    def _area(self, mask: Image.Image) -> Image.Image:
        """Where a mask says to draw, 255, else 0."""
        if mask.has_transparency_data:
            return mask.convert("RGBA").getchannel("A").point(lambda level: 0 if level >= _MASKED else 255)
        return mask.convert("L").point(lambda level: 255 if level >= _MASKED else 0)

    def _check_texts(self, texts: Sequence[str]) -> None:
        if (length := sum(map(len, texts))) > self.settings.max_prompt_chars:
            raise ApiError(
                413, f"The texts have {length:,} characters; this server reads up to {self.settings.max_prompt_chars:,}.", "prompt_too_long"
            )


def partial_scales(num_scales: int, wanted: int | None) -> frozenset[int]:
    """The scales, of those before the last, after which partial images are shown: as many as wanted, evenly spaced; all by default."""
    before = num_scales - 1
    count = before if wanted is None else min(wanted, before)
    return frozenset(before - 1 - round(index * before / count) for index in range(count)) if count else frozenset()


def _shown(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


__all__ = ["Preparer", "partial_scales"]
