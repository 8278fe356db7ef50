"""Chats and images to what VARGPT reads and draws, and what it generated back to chat content.

Three kinds of content parts: `text`; `image`, an image to read; `output_image`, an image to draw or drawn before (its own kind, because
Transformers and TRL take every `image` part of any turn for an input).

What is read goes through the reader, the backbone's own processor: it writes its placeholders and makes its inputs, which pass through here
unread. An image to draw is `<|image_gen_start|><|image_gen_pad|><|image_gen_end|>` in text; its middle is repeated for the model, once for
each position of the image's schedule.
"""

import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import MultiModalData, ProcessorMixin

from .chat_processing_vargpt import VargptChatProcessingMixin
from .chat_vargpt import (
    OUTPUT_IMAGE_END_TOKEN,
    OUTPUT_IMAGE_START_TOKEN,
    OUTPUT_IMAGE_TOKEN,
    RELEASED_SYSTEM_PROMPT,
    make_chat_template,
    refuse_half_characters,
)
from .codes_vargpt import stack_codes
from .errors_vargpt import in_words
from .fit_vargpt import check_fits
from .image_loading_vargpt import fetch_images
from .image_processing_vargpt import OUTPUT_IMAGE_SETTINGS, VargptImageProcessor
from .placeholders_vargpt import (
    OutputImageTokens,
    compare_counts,
    in_rows,
    is_codes,
    is_image,
    merge_replacements,
    spans_before_to_after,
    split_rows,
    token_spans,
)
from .postprocessing_vargpt import VargptPostProcessingMixin
from .reader_vargpt import PREFIX_READERS, build_reader, reader_settings

TEXT_INPUTS = {"input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids", "labels", "offset_mapping", "text_replacement_offsets"}


class VargptProcessor(VargptChatProcessingMixin, VargptPostProcessingMixin):
    """Joins the processor of the backbone with what is drawn.

    Args:
        image_processor: the reader's; of a model that reads no images the [`VargptImageProcessor`] of those that it draws.
        tokenizer: a fast tokenizer that has the tokens of images to draw, each as one token, and those that the reader needs.
        chat_template: Jinja text, the backbone's own; `make_chat_template` with the tokens of this processor by default.
        reader: a processor of Transformers, or its settings (see `build_reader`); None for a model that reads no images.
        output_image_settings: a [`VargptImageProcessor`] of images to draw, or its settings.
        output_image_start_token, output_image_token, output_image_end_token: the tokens of images to draw.

    Raises:
        ValueError: parts that do not fit, or a tokenizer without the tokens.
        ImportError: a reader that needs a package which is not installed.
    """

    skip_tensor_conversion = [*ProcessorMixin.skip_tensor_conversion, "image_spans", "output_image_spans", "assistant_spans"]

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        chat_template=None,
        reader=None,
        output_image_settings=None,
        output_image_start_token=OUTPUT_IMAGE_START_TOKEN,
        output_image_token=OUTPUT_IMAGE_TOKEN,
        output_image_end_token=OUTPUT_IMAGE_END_TOKEN,
    ):
        if isinstance(reader, ProcessorMixin):
            image_processor = reader.image_processor if image_processor is None else image_processor
            tokenizer = reader.tokenizer if tokenizer is None else tokenizer
            chat_template = reader.chat_template if chat_template is None else chat_template
        drawn = output_image_settings
        if reader is None and drawn is None and isinstance(image_processor, VargptImageProcessor):
            drawn = image_processor
        drawn = VargptImageProcessor(**(drawn or {})) if drawn is None or isinstance(drawn, dict) else drawn
        if reader is None and image_processor not in (None, drawn):
            raise ValueError(
                f"A {type(image_processor).__name__} prepares images to read: give the `reader` that it belongs to, the backbone's processor."
            )
        self.output_image_processor = drawn
        self.output_image_tokens = OutputImageTokens(output_image_start_token, output_image_token, output_image_end_token)
        self.output_image_start_token = output_image_start_token
        self.output_image_token = output_image_token
        self.output_image_end_token = output_image_end_token
        super().__init__(drawn if image_processor is None else image_processor, tokenizer, chat_template=chat_template)
        self.reader = build_reader(reader, image_processor, tokenizer) if isinstance(reader, dict) else reader
        self.image_token = None if self.reader is None else self.reader.image_token
        self.image_token_id = None if self.reader is None else self.reader.image_token_ids[0]
        tokens = (output_image_start_token, output_image_token, output_image_end_token)
        if chat_template is None:
            self.chat_template = make_chat_template(None, self.image_token or "", *tokens)
        # Saving sets it, loading drops it: said here, so that a processor is the same before and after both.
        self.auto_map = {"AutoProcessor": "processing_vargpt.VargptProcessor"}
        ids = [self._single_token_id(token) for token in tokens]
        if self.image_token is not None:
            self._single_token_id(self.image_token)
        self.output_image_start_token_id, self.output_image_token_id, self.output_image_end_token_id = ids

    def _single_token_id(self, token: str) -> int:
        """The id of an image token; `ValueError` if the tokenizer does not know it as one."""
        token_id = self.tokenizer.get_vocab().get(token)
        if token_id is None:
            raise ValueError(
                f"The tokenizer has no token {token!r}. Add it by tokenizer.add_tokens([{token!r}], "
                "special_tokens=True), and give the model's embeddings a row for it."
            )
        return token_id

    @property
    def model_input_names(self) -> list[str]:
        """Names of what `__call__` may return: the reader's, and those of images to draw."""
        read = self.tokenizer.model_input_names if self.reader is None else self.reader.model_input_names
        drawn = ("output_pixel_values", "output_image_codes", "output_image_schedule_ids")
        return list(dict.fromkeys([*(name for name in read if name != "token_type_ids" or "token_type_ids" in self._typed), *drawn]))

    @property
    def _typed(self) -> set[str]:
        """`token_type_ids` where the reader makes them for its model; those that tokenizers make of their own accord say nothing."""
        own = type(self.reader).model_input_names.fget(self.reader) if self.reader is not None else []
        return {"token_type_ids"} if own.count("token_type_ids") > self.tokenizer.model_input_names.count("token_type_ids") else set()

    def to_dict(self) -> dict[str, Any]:
        """What is saved beside tokenizer and chat template."""
        drawn = {name: getattr(self.output_image_processor, name) for name in OUTPUT_IMAGE_SETTINGS}
        return {
            "image_processor": self.image_processor.to_dict(),
            "reader": None if self.reader is None else reader_settings(self.reader),
            "output_image_settings": None if self.reader is None else drawn,
            "output_image_start_token": self.output_image_start_token,
            "output_image_token": self.output_image_token,
            "output_image_end_token": self.output_image_end_token,
            "auto_map": self.auto_map,
            "processor_class": type(self).__name__,
        }

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> list[str]:
        """Saves image processor, tokenizer, chat template and the settings of the reader, with the code that defines them; returns the files.

        Not saved is how the tokenizer happened to be loaded, which Transformers would note among its settings: the same processor makes
        the same files, whether it came from a folder or from the Hub, online or offline.
        """
        for circumstance in ("is_local", "local_files_only"):
            self.tokenizer.init_kwargs.pop(circumstance, None)
        return super().save_pretrained(save_directory, *args, **kwargs)

    def check_fits(self, config: Any) -> None:
        """Raises a `ValueError` unless tokens, schedules and the numbers of image tokens are those of a model's configuration."""
        check_fits(self, config)

    # -- text and images to tensors ---------------------------------------------------------------------------------

    def __call__(
        self,
        text: str | list[str] | None = None,
        images: Any = None,
        output_images: Any = None,
        output_image_codes: Any = None,
        output_image_schedule_ids: Sequence[int] | int | None = None,
        random_crop: bool | None = None,
        generator: torch.Generator | int | None = None,
        return_image_spans: bool | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Tokenizes text with its images.

        Args:
            text: one text or a batch, with the reader's `image_token` for each image to read, and start, pad, end for each image to draw.
                A row may end in a bare start: the prompt that forces an image.
            images: images to read, any form that `fetch_images` takes; flat, in reading order over the batch, or one list a row.
            output_images: images to draw, likewise.
            output_image_codes: instead of `output_images`, the codes of each image: (L,) tensors or lists, flat or one list
                a row; or one tensor (N, L), -1 behind the codes of images with fewer.
            output_image_schedule_ids: scale schedule of each image to draw, or one of all; by default the nearest to the image in aspect
                ratio, or the one that has as many positions as there are codes.
            random_crop, generator: see `VargptImageProcessor.preprocess`; for training.
            return_image_spans: also return `image_spans` and `output_image_spans`, for each row the (first, last + 1) tokens of its images,
                with all that the reader writes around them.
            kwargs: options of the reader, its tokenizer and image processor (`padding`, `return_tensors`, ...). `videos`,
                `audio` and `audios`, which generic callers pass, must be None or hold nothing.

        Returns:
            What the reader returns: `input_ids`, `attention_mask` (B, T), `pixel_values` and what else goes with them; where given,
            `output_pixel_values` (N, 3, h, w) in [-1, 1] or `output_image_codes` (N, L) int64, and `output_image_schedule_ids` (N,) where
            there are several schedules.

        Raises:
            ValueError: images and their placeholders differ in number (in a row, where images are given by row), or do not fit.
        """
        assistant_spans = kwargs.pop("assistant_spans", None)  # on its way from `apply_chat_template` to the masks
        kwargs = self._options(kwargs)
        texts = checked_texts(text)
        suffix = self._suffix(kwargs.pop("suffix", None), texts)
        images = None if images is None else fetch_images(images, "images", self.output_image_processor.max_pixels)
        flat_images, images_per_row = split_rows(images, is_image)
        placeholders = None
        if self.reader is None and flat_images:
            raise ValueError("This model reads no images: leave `images` out. Images that it draws are `output_images`.")
        if texts is not None:
            read_placeholders = [0 if self.image_token is None else row.count(self.image_token) for row in texts]
            compare_counts(self.image_token, "images", read_placeholders, len(flat_images), images_per_row)
            flat_images = in_rows(flat_images, read_placeholders) if flat_images else None
            placeholders = self._drawn_placeholders(texts, suffix)
        drawings, lengths = self._process_drawings(
            output_images, output_image_codes, output_image_schedule_ids, placeholders, bool(random_crop), generator
        )
        inputs = {}
        if texts is not None:
            inputs = self._read(texts, suffix, flat_images, placeholders, lengths, return_image_spans, kwargs)
        elif flat_images:
            options = {**kwargs, **kwargs.get("images_kwargs", {})}
            known = {*self.image_processor.valid_kwargs.__annotations__, "return_tensors"}
            inputs = in_words(self.image_processor, flat_images, **{name: value for name, value in options.items() if name in known})
        elif not drawings:
            raise ValueError("Give a text, images or images to draw.")
        if assistant_spans is not None:
            inputs["assistant_spans"] = assistant_spans
        return_tensors = kwargs.get("return_tensors", kwargs.get("text_kwargs", {}).get("return_tensors"))
        return BatchFeature({**inputs, **drawings}, tensor_type=return_tensors, skip_tensor_conversion=self.skip_tensor_conversion)

    def _options(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Options for the reader, with our defaults."""
        for other in ("videos", "audio", "audios"):
            if not holds_nothing(kwargs.pop(other, None)):
                raise ValueError("VARGPT reads text and images only; videos and audio must be None.")
        if kwargs.get("sanitize_control_tokens"):
            raise ValueError("sanitize_control_tokens is not supported: chats with special tokens in texts are refused.")
        for name, default in (("padding_side", "left"), ("return_token_type_ids", False)):  # whatever the tokenizer's own defaults
            if name not in kwargs.get("text_kwargs", {}):
                kwargs.setdefault(name, default)
        return kwargs

    def _suffix(self, suffix: Any, texts: list[str] | None) -> list[str] | None:
        """Answers that a reader takes as a text of their own, one for each text."""
        if suffix is None:
            return None
        suffix = [suffix] if isinstance(suffix, str) else list(suffix)
        if type(self.reader).__name__ not in PREFIX_READERS or texts is None or len(suffix) != len(texts):
            raise ValueError(f"`suffix` is for readers that take answers apart, such as {PREFIX_READERS[0]}: one for each text.")
        return suffix

    def _drawn_placeholders(self, texts: list[str], suffix: list[str] | None) -> list[list[int]]:
        """Placeholders of each image to draw, by row."""
        placeholders = self.output_image_tokens.count(texts)
        if type(self.reader).__name__ in PREFIX_READERS and any(placeholders):
            raise ValueError("This model reads its prompt in both directions, where nothing can be drawn: images to draw belong into `suffix`.")
        placeholders = placeholders if suffix is None else self.output_image_tokens.count(suffix)
        self.output_image_tokens.check_lengths(placeholders, [self.output_image_processor.num_positions] * sum(map(len, placeholders)))
        return placeholders

    def _read(
        self,
        texts: list[str],
        suffix: list[str] | None,
        images: list[list] | None,
        placeholders: list[list[int]],
        lengths: list[int],
        return_image_spans: bool | None,
        kwargs: dict[str, Any],
    ) -> dict[str, Any]:
        """What the reader makes of the texts, with the placeholders of drawn images written out, and of the images."""
        bos = self.tokenizer.bos_token
        if bos and all(row.startswith(bos) for row in texts):
            kwargs = {**kwargs, "add_special_tokens": False}  # else the tokenizer would put a second one before it
        self.output_image_tokens.check_lengths(placeholders, [[length] for length in lengths])
        replaces = return_image_spans or kwargs.get("return_text_replacement_offsets", False)
        options = {**kwargs, "return_text_replacement_offsets": True} if replaces else kwargs
        options = {**options, "return_offsets_mapping": True} if return_image_spans else options
        if replaces and (tensors := options.get("return_tensors")) is not None:  # some readers would make tensors of replacements, too
            options = {name: value for name, value in options.items() if name != "return_tensors"}
            options["images_kwargs"] = {**options.get("images_kwargs", {}), "return_tensors": tensors}
        replacements = [[] for _ in texts]
        if suffix is None:
            texts, replacements = self.output_image_tokens.write_out(texts, iter(lengths))
        else:
            options = {**options, "suffix": self.output_image_tokens.write_out(suffix, iter(lengths))[0]}
        if self.reader is None:
            inputs = in_words(super().__call__, text=texts, **options)
        else:
            inputs = in_words(self.reader, images=images, text=texts, **options)
        if suffix is None and "labels" in inputs:  # of the answers alone, of which there are none
            inputs.pop("labels")
        self._check_not_truncated(lengths, inputs["input_ids"])
        if replaces:
            read = inputs.pop("text_replacement_offsets", None) or [[] for _ in texts]
            merged = [merge_replacements(*of_row) for of_row in zip(replacements, read, strict=True)]
            if "text_replacement_offsets" in kwargs or kwargs.get("return_text_replacement_offsets"):
                inputs["text_replacement_offsets"] = merged
        if return_image_spans:
            offsets = inputs["offset_mapping"] if kwargs.get("return_offsets_mapping") else inputs.pop("offset_mapping")
            for kind, name in (("image", "image_spans"), ("output_image", "output_image_spans")):
                characters = [[entry["new_span"] for entry in row if entry["type"] == kind] for row in merged]
                inputs[name] = [token_spans(*of_row) for of_row in zip(offsets, characters, strict=True)]
        return inputs

    def reading_inputs(self, images: Iterable[list]) -> dict[str, torch.Tensor]:
        """What the reader makes of images alone, given one list a row: `pixel_values` and what goes with them, {} of no images."""
        rows = [list(row) for row in images]
        if not any(rows):
            return {}
        rows = fetch_images(rows, "images", self.output_image_processor.max_pixels)
        inputs = in_words(self.reader, images=rows, text=[self.image_token * len(row) for row in rows], padding=True, return_tensors="pt")
        return {name: value for name, value in inputs.items() if name not in TEXT_INPUTS}

    def typical_lengths(self) -> dict[str, int]:
        """Tokens of an image of each type of content part: exact where all images have as many, else those of a square of 448 pixels."""
        lengths = {"output_image": self.output_image_processor.num_positions[0] + 2}
        if self.reader is not None:
            inputs = self.reader(images=[[Image.new("RGB", (448, 448))]], text=[self.image_token], add_special_tokens=False)
            lengths["image"] = len(inputs["input_ids"][0])
        return lengths

    # -- images to draw -----------------------------------------------------------------------------------------------

    def _process_drawings(
        self,
        output_images: Any,
        output_image_codes: Any,
        schedule_ids: Sequence[int] | int | None,
        placeholders: list[list[int]] | None,
        random_crop: bool,
        generator: torch.Generator | int | None,
    ) -> tuple[dict[str, np.ndarray], list[int]]:
        """Images to draw as `output_pixel_values` or `output_image_codes`, with their schedules where there are several, and the positions
        of each; counted against their placeholders in the texts.

        {} if there are none. `placeholders` None: nothing to count against.
        """
        if output_images is not None:
            output_images = self.output_image_processor.fetch_images(output_images)
        images, images_per_row = split_rows(output_images, is_image)
        codes, codes_per_row = split_rows(output_image_codes, is_codes)
        if images and codes:
            raise ValueError(
                "Pass output_images or output_image_codes, not both in one call. To mix them, turn the images into codes: "
                "model.encode_images(pixels), with pixels from processor.output_image_processor."
            )
        if placeholders is not None:
            per_row = codes_per_row if codes else images_per_row
            counts = [len(row) for row in placeholders]
            compare_counts(str(self.output_image_tokens), "output_images or output_image_codes", counts, len(codes or images), per_row)
        if codes:
            data, ids = stack_codes(codes, schedule_ids, self.output_image_processor)
        elif images:
            data = dict(self.output_image_processor(images, schedule_ids=schedule_ids, random_crop=random_crop, generator=generator))
            ids = data.get("output_image_schedule_ids", np.zeros(len(images), dtype=np.int64)).tolist()
        else:
            data, ids = {}, []
        return data, [self.output_image_processor.num_positions[index] for index in ids]

    def _check_not_truncated(self, lengths: list[int], input_ids: Any) -> None:
        """Raises if truncation has cut an image to draw (the reader looks after images to read)."""
        expected = sum(lengths)
        found = sum(int(np.count_nonzero(np.asarray(ids) == self.output_image_token_id)) for ids in input_ids) if expected else 0
        if found != expected:
            raise ValueError(
                f"{found} of the {expected} placeholders of images to draw are left after tokenization, likely by "
                "truncation. Raise max_length or turn truncation off."
            )

    def _adjust_assistant_masks_indices(self, processed_dict: dict, generation_indices: list) -> dict:
        """Turns the assistant's spans of characters into `assistant_masks`, as the base class does.

        Here for speed (the base class loops over single tokens, which would cost more than all else), and for chat templates that do not
        mark what the assistant says.
        """
        offsets = processed_dict.pop("offset_mapping")
        replacements = processed_dict.pop("text_replacement_offsets", None) or [[] for _ in offsets]
        generation_indices = processed_dict.pop("assistant_spans", generation_indices)
        masks = []
        for row_offsets, row_replacements, spans in zip(offsets, replacements, generation_indices, strict=True):
            starts, ends = np.asarray(row_offsets).T
            mask = np.zeros(len(starts), dtype=bool)
            for first, last in spans_before_to_after(spans, row_replacements):
                mask |= (starts < last) & (ends > first)
            masks.append(mask.astype(np.int64).tolist())
        processed_dict["assistant_masks"] = masks
        return processed_dict

    def _get_num_multimodal_tokens(self, image_sizes: list | None = None, **kwargs: Any) -> MultiModalData:
        """Placeholders and patches of images to read, by which serving engines plan."""
        return MultiModalData() if self.reader is None else self.reader._get_num_multimodal_tokens(image_sizes, **kwargs)

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs: Any) -> str:
        """What the reader writes in the place of one image to read; serving engines ask for it."""
        return self.reader.replace_image_token(image_inputs, image_idx, **kwargs)


def holds_nothing(given: Any) -> bool:
    """Whether there is nothing in what generic callers pass for media that a batch may not have: None, or lists without any."""
    return given is None or (isinstance(given, (list, tuple)) and all(map(holds_nothing, given)))


def checked_texts(text: Any) -> list[str] | None:
    """The texts of a call as a list; ValueError or TypeError of anything else, and of texts that no tokenizer takes."""
    if text is None:
        return None
    if not isinstance(text, (str, list, tuple)):
        raise TypeError(f"`text` is a {type(text).__name__}; it must be a string or a list of at least one string.")
    texts = [text] if isinstance(text, str) else list(text)
    if not (texts and all(isinstance(row, str) for row in texts)):
        raise ValueError("`text` must be a string or a list of at least one string.")
    for index, row in enumerate(texts):
        refuse_half_characters(row, f"Row {index} of the text")
    return texts


VargptProcessor.register_for_auto_class()

__all__ = ["RELEASED_SYSTEM_PROMPT", "VargptProcessor", "make_chat_template"]
