"""Chats and images to the tensors that VARGPT reads, and what it generated back to chat content.

Three kinds of content parts: `text`; `image`, an image to read; `output_image`, an image to draw or generated
before (its own kind, because Transformers and TRL take every `image` part of any turn for an input).

In text an image to read is `<image>`, repeated `image_seq_length` times for the model; an image to draw is
`<|image_gen_start|><|image_gen_pad|><|image_gen_end|>`, whose middle is repeated `num_image_gen_tokens` (L) times.
"""

import bisect
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import MultiModalData, ProcessorMixin

from .chat_vargpt import (
    IMAGE_TOKEN,
    OUTPUT_IMAGE_END_TOKEN,
    OUTPUT_IMAGE_START_TOKEN,
    OUTPUT_IMAGE_TOKEN,
    RELEASED_SYSTEM_PROMPT,
    carried_drawings,
    clean_chat,
    make_chat_template,
    picture_of_part,
    refuse_half_characters,
)


class VargptProcessor(ProcessorMixin):
    """Joins a `VargptImageProcessor`, a tokenizer and a chat template.

    Args:
        image_processor: a `VargptImageProcessor`.
        tokenizer: a fast tokenizer that has the four image tokens, each as one token.
        chat_template: Jinja text; `make_chat_template` with this processor's tokens by default.
        image_seq_length: places of one image to read.
        num_image_gen_tokens: L, places (and codes) of one image to draw.
        image_token, output_image_start_token, output_image_token, output_image_end_token: the image tokens.
    """

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        chat_template: str | None = None,
        image_seq_length: int = 576,
        num_image_gen_tokens: int = 680,
        image_token: str = IMAGE_TOKEN,
        output_image_start_token: str = OUTPUT_IMAGE_START_TOKEN,
        output_image_token: str = OUTPUT_IMAGE_TOKEN,
        output_image_end_token: str = OUTPUT_IMAGE_END_TOKEN,
    ):
        self.image_seq_length = image_seq_length
        self.num_image_gen_tokens = num_image_gen_tokens
        self.image_token = image_token
        self.output_image_start_token = output_image_start_token
        self.output_image_token = output_image_token
        self.output_image_end_token = output_image_end_token
        tokens = (image_token, output_image_start_token, output_image_token, output_image_end_token)
        if chat_template is None:
            chat_template = make_chat_template(None, *tokens)
        super().__init__(image_processor, tokenizer, chat_template=chat_template)
        # Saving sets it, loading drops it: said here, so that a processor is the same before and after both.
        self.auto_map = {"AutoProcessor": "processing_vargpt.VargptProcessor"}
        ids = [self._single_token_id(token) for token in tokens]
        self.image_token_id, self.output_image_start_token_id, self.output_image_token_id, self.output_image_end_token_id = ids
        self._picture_pattern = re.compile(
            f"(?P<image>{re.escape(image_token)})|"
            f"(?P<output_image>{re.escape(output_image_start_token)}((?:{re.escape(output_image_token)})+){re.escape(output_image_end_token)})"
        )

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
    def unused_input_names(self) -> list[str]:
        """`token_type_ids`, which some tokenizers make and the model does not read."""
        return ["token_type_ids"]

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """Saves image processor, tokenizer and chat template as Transformers does, with the code that defines them.

        Not saved is how the tokenizer happened to be loaded, which Transformers would note among its settings: the same processor makes
        the same files, whether it came from a folder or from the Hub, online or offline.
        """
        for circumstance in ("is_local", "local_files_only"):
            self.tokenizer.init_kwargs.pop(circumstance, None)
        super().save_pretrained(save_directory, *args, **kwargs)

    # -- text and images to tensors ---------------------------------------------------------------------------------

    def __call__(
        self,
        text: str | list[str] | None = None,
        images: Any = None,
        output_images: Any = None,
        output_image_codes: Any = None,
        random_crop: bool | None = None,
        generator: torch.Generator | int | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Tokenizes text with its images.

        Args:
            text: one text or a batch, with `<image>` for each image to read and start, pad, end for each
                image to draw. A row may end in a bare start: the prompt that forces an image.
            images: images to read, any form that `VargptImageProcessor.fetch_images` takes; flat, in reading
                order over the batch, or one list a row.
            output_images: images to draw, likewise.
            output_image_codes: instead of `output_images`, the codes of each image: (L,) tensors or lists, flat or one list
                a row; or one tensor (N, L).
            random_crop, generator: see `VargptImageProcessor.preprocess_output`; for training.
            kwargs: options of the tokenizer and image processor (`padding`, `return_tensors`, ...). `videos` and
                `audio`, which the stock pipelines pass, must be None.

        Returns:
            `input_ids`, `attention_mask` (B, T); where given, `pixel_values` (N_in, 3, H, W), `output_pixel_values`
            (N_out, 3, h, w) in [-1, 1], `output_image_codes` (N_out, L) int64.

        Raises:
            ValueError: if images and their places differ in number (in a row, where images are given by row).
        """
        if kwargs.pop("videos", None) is not None or kwargs.pop("audio", None) is not None:
            raise ValueError("VARGPT reads text and images only; videos and audio must be None.")
        if kwargs.get("sanitize_control_tokens"):
            raise ValueError("sanitize_control_tokens is not supported: chats with special tokens in texts are refused.")
        if "padding_side" not in kwargs.get("text_kwargs", {}):
            kwargs.setdefault("padding_side", "left")  # for generation, whatever the tokenizer's own default
        texts = checked_texts(text)
        if images is not None:
            images = self.image_processor.fetch_images(images)
        flat_images, images_per_row = split_rows(images, is_picture)
        num_drawings = [0]
        if texts is not None:
            compare_counts(self.image_token, "images", self._count_images(texts), len(flat_images), images_per_row)
            num_drawings = self._count_drawings(texts)
            if self.tokenizer.bos_token and all(row.startswith(self.tokenizer.bos_token) for row in texts):
                kwargs["add_special_tokens"] = False  # else the tokenizer would put a second one before it
        drawings = self._process_drawings(
            output_images, output_image_codes, num_drawings if texts is not None else None, random_crop, generator
        )
        inputs = {}
        if texts is not None or flat_images or not drawings:
            inputs = in_words(super().__call__, images=flat_images or None, text=texts, **kwargs)
        if sum(num_drawings):
            self._check_not_truncated(num_drawings, inputs["input_ids"])
        return_tensors = kwargs.get("return_tensors", kwargs.get("text_kwargs", {}).get("return_tensors"))
        return BatchFeature({**inputs, **drawings}, tensor_type=return_tensors, skip_tensor_conversion=self.skip_tensor_conversion)

    def _process_drawings(
        self,
        output_images: Any,
        output_image_codes: Any,
        num_places: list[int] | None,
        random_crop: bool | None,
        generator: torch.Generator | int | None,
    ) -> dict[str, np.ndarray]:
        """Images to draw as `output_pixel_values` or `output_image_codes`, counted against their places in the texts.

        {} if there are none. `num_places` None: nothing to count against.
        """
        if output_images is not None:
            output_images = self.image_processor.fetch_images(output_images, "output_images")
        pictures, pictures_per_row = split_rows(output_images, is_picture)
        codes, codes_per_row = split_rows(output_image_codes, is_codes)
        if pictures and codes:
            raise ValueError(
                "Pass output_images or output_image_codes, not both in one call. To mix them, turn the images into codes: "
                "model.model.image_tokenizer.encode(pixels), with pixels from image_processor.preprocess_output."
            )
        if num_places is not None:
            label = f"{self.output_image_start_token}{self.output_image_token}{self.output_image_end_token}"
            per_row = codes_per_row if codes else pictures_per_row
            compare_counts(label, "output_images or output_image_codes", num_places, len(codes or pictures), per_row)
        if codes:
            return {"output_image_codes": self._stack_codes(codes)}
        return dict(self.image_processor.preprocess_output(pictures, bool(random_crop), generator)) if pictures else {}

    def _stack_codes(self, codes: list[Any]) -> np.ndarray:
        """Codes of N images to (N, L) int64."""
        stacked = np.empty((len(codes), self.num_image_gen_tokens), dtype=np.int64)
        for index, code in enumerate(codes):
            try:
                array = np.asarray(code.detach().cpu() if isinstance(code, torch.Tensor) else code)
            except (ValueError, TypeError, RuntimeError) as error:  # of uneven lists, of tensors on no device
                raise ValueError(f"output_image_codes[{index}] are no codes: {error}.") from error
            if array.shape != (self.num_image_gen_tokens,) or array.dtype.kind not in "iu" or array.min() < 0:
                raise ValueError(
                    f"output_image_codes[{index}] has shape {array.shape} and dtype {array.dtype}; an image has "
                    f"{self.num_image_gen_tokens} codes, integers of at least 0."
                )
            stacked[index] = array
        return stacked

    def _count_images(self, texts: Sequence[str]) -> list[int]:
        """Images to read that each text has a place for."""
        return [row.count(self.image_token) for row in texts]

    def _count_drawings(self, texts: Sequence[str]) -> list[int]:
        """Images to draw that each text has a place for; `ValueError` for stray tokens of such images."""
        start, place, end = self.output_image_start_token, self.output_image_token, self.output_image_end_token
        counts = []
        for index, row in enumerate(texts):
            found = [match[0].count(place) for match in self._picture_pattern.finditer(row) if match["output_image"]]
            forced = row.endswith(start)
            if (row.count(start) - forced, row.count(place), row.count(end)) != (len(found), sum(found), len(found)):
                raise ValueError(
                    f"Row {index} of the text has a stray {start}, {place} or {end}. An image to draw is "
                    f"{start}{place}{end}; a {start} alone may only end the text."
                )
            wrong = [num for num in found if num not in (1, self.num_image_gen_tokens)]
            if wrong:
                raise ValueError(
                    f"Row {index} of the text has an image to draw with {wrong[0]} {place}; expected 1, or all {self.num_image_gen_tokens}."
                )
            counts.append(len(found))
        return counts

    def _check_not_truncated(self, num_drawings: list[int], input_ids: Any) -> None:
        """Raises if truncation has cut an image to draw (the base class looks after images to read)."""
        expected = sum(num_drawings) * self.num_image_gen_tokens
        found = sum(int(np.count_nonzero(np.asarray(ids) == self.output_image_token_id)) for ids in input_ids)
        if found != expected:
            raise ValueError(
                f"{found} of the {expected} places of images to draw are left after tokenization, likely by "
                "truncation. Raise max_length or turn truncation off."
            )

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs: Any) -> str:
        """The places of one image to read."""
        return self.image_token * self.image_seq_length

    def get_text_with_replacements(
        self, text: list[str], images_replacements: Sequence[str] = (), *args: Any
    ) -> tuple[list[str], list[list[dict[str, Any]]]]:
        """Puts the full number of places for each image of either kind.

        Returns the texts and, for each row, the replacements with their character spans before and after, from which
        the base class shifts the assistant's spans.
        """
        drawing = self.output_image_start_token + self.output_image_token * self.num_image_gen_tokens + self.output_image_end_token
        images = iter(images_replacements)
        expanded, offsets = [], []
        for row in text:
            pieces, replacements, last, gained = [], [], 0, 0
            for match in self._picture_pattern.finditer(row):
                start, end = match.span()
                new = drawing if match["output_image"] else next(images)
                pieces += [row[last:start], new]
                replacements.append(
                    {
                        "type": match.lastgroup,
                        "span": (start, end),
                        "new_span": (start + gained, start + gained + len(new)),
                        "text": match[0],
                        "replacement": new,
                    }
                )
                gained += len(new) - (end - start)
                last = end
            expanded.append("".join([*pieces, row[last:]]))
            offsets.append(replacements)
        return expanded, offsets

    def _adjust_assistant_masks_indices(self, processed_dict: dict, generation_indices: list) -> dict:
        """Turns the assistant's character spans into `assistant_masks`, as the base class does.

        Here for speed: the base class loops over single tokens, which would cost more than all else.
        """
        offsets, replacements = processed_dict.pop("offset_mapping"), processed_dict.pop("text_replacement_offsets")
        masks = []
        for row_offsets, row_replacements, spans in zip(offsets, replacements, generation_indices, strict=True):
            starts, ends = np.asarray(row_offsets).T
            placeholder_ends = [replacement["span"][1] for replacement in row_replacements]
            gained = [0, *(replacement["new_span"][1] - replacement["span"][1] for replacement in row_replacements)]
            mask = np.zeros(len(starts), dtype=bool)
            for span in spans:
                # Characters move by what the placeholders before them have gained.
                first, last = (char + gained[bisect.bisect_right(placeholder_ends, char)] for char in span)
                mask |= (starts < last) & (ends > first)
            masks.append(mask.astype(np.int64).tolist())
        processed_dict["assistant_masks"] = masks
        return processed_dict

    def _get_num_multimodal_tokens(self, image_sizes: list | None = None, **kwargs: Any) -> MultiModalData:
        """Places and patches of images to read, by which serving engines plan; independent of their sizes."""
        if image_sizes is None:
            return MultiModalData()
        return MultiModalData(num_image_tokens=[self.image_seq_length] * len(image_sizes), num_image_patches=[1] * len(image_sizes))

    # -- chats to text and tensors ------------------------------------------------------------------------------------

    def apply_chat_template(self, conversation: list, chat_template: str | None = None, **kwargs: Any) -> Any:
        """Renders one conversation or a batch; with `tokenize=True` also processes the images that it carries.

        As in the base class, with `output_image` parts in addition. Such a part may carry its image (`image`, `url`,
        `path` or `base64`) or its codes (`codes`, which win where every part has them); if no part carries one, give
        `output_images` or `output_image_codes` in `processor_kwargs`. Keys of parts that are None count as absent.

        Raises `ValueError` for roles and parts that are unknown, for texts that contain a special token of the
        tokenizer, and for counts that differ (see `__call__`).
        """
        if not isinstance(conversation, (list, tuple)):
            raise TypeError(f"The conversation is a {type(conversation).__name__}; give a list of messages, or a list of such lists.")
        if not conversation:
            raise ValueError("The conversation is empty.")
        if kwargs.get("sanitize_control_tokens"):
            raise ValueError("sanitize_control_tokens is not supported: texts with special tokens are refused instead.")
        is_batched = isinstance(conversation[0], (list, tuple))
        own_tokens = (self.image_token, self.output_image_start_token, self.output_image_token, self.output_image_end_token)
        special_tokens = {*own_tokens, *self.tokenizer.all_special_tokens}
        continued = bool(kwargs.get("continue_final_message"))
        chats = [clean_chat(c, special_tokens, continued) for c in (conversation if is_batched else [conversation])]
        cleaned = [chat for chat, _ in chats]
        processor_kwargs = kwargs.pop("processor_kwargs", None)
        if not isinstance(processor_kwargs, Mapping | None):
            raise TypeError(f"processor_kwargs is a {type(processor_kwargs).__name__}; it must be a dict.")
        processor_kwargs = dict(processor_kwargs or {})
        if kwargs.get("tokenize") and processor_kwargs.get("images") is not None:
            if any(picture_of_part(part) is not None for chat in cleaned for message in chat for part in message["content"]):
                raise ValueError("image parts carry images; processor_kwargs must not give `images` too.")
            if not isinstance(processor_kwargs["images"], (list, tuple)):
                processor_kwargs["images"] = [processor_kwargs["images"]]
        if kwargs.get("tokenize"):
            carried = carried_drawings([drawings for _, drawings in chats])
            if carried and not processor_kwargs.keys().isdisjoint(("output_images", "output_image_codes")):
                raise ValueError(f"image_gen parts carry {next(iter(carried))}; processor_kwargs must not give any too.")
            processor_kwargs.update(carried)
        given = cleaned if is_batched else cleaned[0]
        return in_words(super().apply_chat_template, given, chat_template, processor_kwargs=processor_kwargs, **kwargs)

    # -- what was generated -------------------------------------------------------------------------------------------

    def post_process_multimodal_output(
        self,
        generated_outputs: Any,
        skip_special_tokens: bool = True,
        generation_mode: str | None = None,
        **kwargs: Any,
    ) -> list[Any]:
        """One item for each row of what `generate` returned, in the form the stock pipelines expect.

        `generation_mode` None or `"text"`: the decoded text. `"image"`: the row's first image as PIL, or None if it
        has none; needs the output of `generate(..., return_dict_in_generate=True)`. All images of a row, with the
        text between them: `post_process_interleaved`.
        """
        if generation_mode in (None, "text"):
            has_pictures = not isinstance(generated_outputs, (torch.Tensor, np.ndarray, list))
            ids = generated_outputs.sequences if has_pictures else generated_outputs
            return self.tokenizer.batch_decode(ids, skip_special_tokens=skip_special_tokens, **kwargs)
        if generation_mode != "image":
            raise ValueError(f"generation_mode must be None, 'text' or 'image', got {generation_mode!r}.")
        if isinstance(generated_outputs, (torch.Tensor, np.ndarray, list)):
            raise ValueError("Images are not in the token ids: call generate with return_dict_in_generate=True.")
        rows: list[Image.Image | None] = [None] * len(generated_outputs.sequences)
        for row, _, picture, _ in reversed(self._generated_pictures(generated_outputs)):
            rows[row] = picture
        return rows

    def post_process_interleaved(self, generated_outputs: Any, prompt_length: int = 0) -> list[list[dict[str, Any]]]:
        """For each row, the content parts that were generated, in order: the content of an assistant message.

        Args:
            generated_outputs: from `generate(..., return_dict_in_generate=True)`.
            prompt_length: tokens of the prompt, `inputs["input_ids"].shape[1]`; they are left out.

        Returns:
            Parts `{"type": "text", "text": str}` and `{"type": "output_image", "image": PIL, "codes": (L,) int64}`.
        """
        sequences = generated_outputs.sequences.tolist()
        pictures = self._generated_pictures(generated_outputs)
        picture_tokens = {self.output_image_start_token_id, self.output_image_token_id, self.output_image_end_token_id}
        rows = []
        for index, ids in enumerate(sequences):
            parts, cursor, text_ids, told = [], prompt_length, [], ""
            # A forced image starts in the last token of the prompt; earlier ones belong to the prompt.
            found = [entry for entry in pictures if entry[0] == index and entry[1] >= prompt_length - 1]
            for _, position, picture, codes in [*found, (index, len(ids), None, None)]:
                # Decoded from the row's first text on, since tokenizers drop the space before a first word.
                text_ids += [token for token in ids[cursor:position] if token not in picture_tokens]
                text = self.tokenizer.decode(text_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
                new, told = text[len(told) :], text
                if not parts:
                    new = new.removeprefix(" ")  # the chat template puts it back
                if new:
                    parts.append({"type": "text", "text": new})
                if codes is not None:
                    part = {"type": "output_image", "image": picture, "codes": codes}
                    parts.append({key: value for key, value in part.items() if value is not None})
                cursor = position
            rows.append(parts)
        return rows

    def _generated_pictures(self, output: Any) -> list[tuple[int, int, Image.Image | None, torch.Tensor]]:
        """(row, index of image-start, image, codes) of all images, by row and place; no image without pixels."""
        codes, pixels = output.get("output_image_codes"), output.get("output_images")  # a ModelOutput leaves out what is None
        if codes is None or len(codes) == 0:
            return []
        codes = codes.cpu()
        pictures = [None] * len(codes) if pixels is None else self.image_processor.post_process(pixels)
        entries = zip(output.output_image_rows.tolist(), output.output_image_positions.tolist(), pictures, codes, strict=True)
        return sorted(entries, key=lambda entry: entry[:2])


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


def in_words(call: Callable, *args: Any, **kwargs: Any) -> Any:
    """Calls what belongs to libraries, such as a template or a tokenizer; their own kinds of errors become a ValueError in words.

    Raises:
        ValueError: in place of an error of a kind that a user would not know; a plain ValueError, TypeError or OSError stays as it is.
    """
    try:
        return call(*args, **kwargs)
    except Exception as error:
        if type(error) in (ValueError, TypeError) or isinstance(error, OSError):
            raise
        kind = "The chat template" if type(error).__module__.partition(".")[0] == "jinja2" else "The processor"
        raise ValueError(f"{kind} cannot use what it was given ({type(error).__name__}): {error}") from error


def is_picture(given: Any) -> bool:
    """Whether this is one image, and not a list or batch of them."""
    return not isinstance(given, (list, tuple))


def is_codes(given: Any) -> bool:
    """Whether these are the codes of one image, and not a list or batch of them."""
    if isinstance(given, (np.ndarray, torch.Tensor)):
        return given.ndim == 1
    if not isinstance(given, (list, tuple)):
        raise TypeError(f"output_image_codes have a {type(given).__name__}; give lists, arrays or tensors of whole numbers.")
    return len(given) > 0 and not isinstance(given[0], (list, tuple, np.ndarray, torch.Tensor))


def split_rows(given: Any, is_one: Callable[[Any], bool]) -> tuple[list, list[int] | None]:
    """Images (or codes) as a flat list, and how many each row has: None if they did not come by row."""
    if given is None:
        return [], None
    if is_one(given):
        return [given], None
    singles = [is_one(element) for element in given]
    if all(singles):
        return list(given), None
    if any(singles):
        raise ValueError("Images must come either as one flat list or as one list for each row, not as a mixture.")
    return [one for row in given for one in row], [len(row) for row in given]


def compare_counts(label: str, argument: str, places: list[int], total: int, per_row: list[int] | None) -> None:
    """Raises `ValueError` if texts have places for other numbers of images than are given.

    By row where the images came by row (`per_row`), else in `total`.
    """
    message = "the number of {} tokens in the prompts should be the same as the number of {}: there are {} and {}."
    if per_row is None:
        if sum(places) != total:
            raise ValueError("In all, " + message.format(label, f"images in {argument}", sum(places), total))
        return
    if len(per_row) != len(places):
        raise ValueError(
            f"{argument} has {len(per_row)} rows, but there are {len(places)} texts; "
            + message.format(label, f"images in {argument}", sum(places), total)
        )
    for index, (expected, found) in enumerate(zip(places, per_row, strict=True)):
        if expected != found:
            raise ValueError(f"In row {index}, " + message.format(label, f"images in {argument}", expected, found))


VargptProcessor.register_for_auto_class()

__all__ = ["RELEASED_SYSTEM_PROMPT", "VargptProcessor", "make_chat_template"]
