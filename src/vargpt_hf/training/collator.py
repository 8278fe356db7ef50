"""Rows of conversations with images in and out → tensors of one batch."""

import copy
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers.utils.generic import is_flash_attention_requested

from ..modeling.image_tokenizer_vargpt import VargptImageTokenizer
from ..processing.chat_vargpt import clean_chat, image_of_part
from .packing import IGNORE_INDEX, SPANS, bins_of, cut, images_of_parts, pack, parts_of_rows, take, without_fine_scales

if TYPE_CHECKING:
    from ..modeling.configuration_vargpt import VargptConfig
    from ..processing.processing_vargpt import VargptProcessor

IMAGE_COLUMNS = ("images", "output_images", "output_image_codes")
ROW_NUMBER = "row_number"


class VargptDataCollator:
    """Makes model inputs with labels of rows `{"messages", "images", "output_images" | "output_image_codes"}`.

    Images are listed in reading order of the parts that stand for them: `images` for parts of type "image", the other columns for
    parts of type "output_image"; a column that is missing, None or empty has none. Labels are the assistant's tokens: text,
    image-start, image-end and end of sequence, never the placeholders of images. Rows without images, with images of one kind
    or of both stand side by side. A column `source`, the number of a mixture's part, is handed on to the trainer.

    What is random is drawn from `seed`, the epoch and the rows' numbers (`row_number`, which the trainers give; without them, their texts)
    alone, so that a resumed run and any number of loader processes make the same batches, and each epoch others.

    Args:
        processor: makes the tensors.
        assistant_only: label the assistant's tokens only; False labels every token.
        max_length: most tokens of a row; a longer one is cut, at the start of an image rather than inside it. None: no limit.
        packing: lay rows end to end in as few rows as fit into the length of the longest, so that less is padding; no row sees another.
        prompt_dropout: how often the user's text of a row that draws is emptied, for guidance by an unconditional prompt.
        random_crop: cut images to draw at a random position, as in the paper's training, not in the middle.
        scale_dropout: how often an image to draw is left without its finer scales. What the coarse ones show follows from the words alone and
            is learned last; a row without the many positions of the others takes a fraction of the time.
        coarse_scales: how many scales such an image keeps.
        seed: of all that is random.

    The trainers bind it to their model (see `bind`), so that codes of another image tokenizer are refused.

    Raises:
        ValueError: rows without messages, with codes of another image tokenizer, or with other numbers of images than their
            messages have parts.
    """

    image_tokenizer_fingerprint: str | None = None
    pack_in_one_row = False
    no_images: dict[str, torch.Tensor] | None = None
    blank_image: dict[str, torch.Tensor] | None = None

    def __init__(
        self,
        processor: "VargptProcessor",
        assistant_only: bool = True,
        max_length: int | None = None,
        prompt_dropout: float = 0.0,
        random_crop: bool = False,
        seed: int = 0,
        packing: bool = False,
        scale_dropout: float = 0.0,
        coarse_scales: int = 1,
    ):
        for name, share in (("prompt_dropout", prompt_dropout), ("scale_dropout", scale_dropout)):
            if not 0 <= share <= 1:
                raise ValueError(f"`{name}` must be in [0, 1], got {share}.")
        if coarse_scales < 1:
            raise ValueError(f"`coarse_scales` must be at least 1, got {coarse_scales}.")
        self.processor = processor
        self.assistant_only = assistant_only
        self.max_length = max_length
        self.packing = packing
        self.prompt_dropout = prompt_dropout
        self.random_crop = random_crop
        self.scale_dropout = scale_dropout
        self.coarse_scales = coarse_scales
        self.seed = seed
        self._epoch = torch.zeros((), dtype=torch.long)

    def set_epoch(self, epoch: int) -> None:
        """Says which epoch the next batches are of, from 0 on, before a loader starts its processes; the trainers do."""
        self._epoch.fill_(epoch)

    def share_epoch(self) -> None:
        """Lets processes of a loader that live longer than an epoch hear of the next one."""
        self._epoch.share_memory_()

    def bind(self, model: nn.Module, sharded: bool = False) -> "VargptDataCollator":
        """Takes from a model all that its batches depend on; returns the collator itself.

        Codes that its image tokenizer has not made are refused from now on, and rows are packed into one where its attention keeps them
        apart in a batch of one alone (flash attention).

        Args:
            model: a VARGPT, however adapters or engines have wrapped it.
            sharded: its weights are sharded over processes, each of which must run every part of the model in every batch, and as often as
                the others; for kinds of images that a batch lacks, tensors of zero images to draw and a blank image to read then stand in,
                and images of several schedules in one batch are refused.

        Raises:
            ValueError: no VARGPT, or `scale_dropout` where it is sharded, since its decoder runs once for each number of scales.
        """
        if sharded and self.scale_dropout:
            raise ValueError("`scale_dropout` and sharded weights do not go together: leave one of them out.")
        tokenizer = next((module for module in model.modules() if isinstance(module, VargptImageTokenizer)), None)
        if tokenizer is None:
            raise ValueError(f"The collator binds to a VARGPT, got a {type(model).__name__} without an image tokenizer.")
        self.image_tokenizer_fingerprint = tokenizer.fingerprint()
        self.pack_in_one_row = is_flash_attention_requested(model.config.get_text_config())
        self.no_images = no_images(model.config) if sharded else None
        self.blank_image = blank_image(self.processor) if sharded else None
        return self

    def for_evaluation(self) -> "VargptDataCollator":
        """The same without anything random."""
        other = copy.copy(self)
        other.prompt_dropout, other.random_crop, other.scale_dropout = 0.0, False, 0.0
        return other

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        for index, row in enumerate(rows):
            if not row.get("messages"):
                raise ValueError(f"Row {index} of the batch needs a column 'messages' that is not empty; it has {sorted(row)}.")
            made_by = row.get("image_tokenizer_fingerprint")
            if None not in (made_by, self.image_tokenizer_fingerprint) and made_by != self.image_tokenizer_fingerprint:
                raise ValueError(
                    f"Row {index} of the batch has codes of another image tokenizer ({made_by}) than the model's "
                    f"({self.image_tokenizer_fingerprint}): encode the images again with this model (`vargpt encode`)."
                )
        numbers = [row.get(ROW_NUMBER) for row in rows]
        rng = np.random.default_rng([self.seed, int(self._epoch), *([fingerprint(rows)] if None in numbers else numbers)])
        options: dict[str, Any] = {"padding": True, "padding_side": "right"}
        if self.packing or self.scale_dropout or self.max_length is not None:
            options["return_image_spans"] = True
        for column in IMAGE_COLUMNS:
            given = [listed(row, column) for row in rows]
            if any(given):
                options[column] = given
        if {"output_images", "output_image_codes"} <= set(options):
            raise ValueError(
                "Some rows of the batch have images to draw, others codes of such. Turn the images into codes, too "
                "(`vargpt encode`), or train on all of them as images."
            )
        if "output_image_codes" in options:
            schedules = [listed(row, "output_image_schedule_ids") for row in rows]
            if list(map(len, schedules)) == [len(codes) for codes in options["output_image_codes"]]:
                options["output_image_schedule_ids"] = [index for row in schedules for index in row]
        if self.random_crop and "output_images" in options:
            options.update(random_crop=True, generator=int(rng.integers(2**31)))
        inputs = self.processor.apply_chat_template(
            [self._messages(row, rng) for row in rows],
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            return_assistant_tokens_mask=self.assistant_only,
            processor_kwargs=options,
        )
        inputs = self._with_labels(dict(inputs))
        if self.scale_dropout:
            inputs = self._without_fine_scales(inputs, rng)
        inputs = self._cut_and_packed(inputs, rows)
        if self.no_images is not None:
            # Whether pixels or codes are used follows from the columns, which are those of the whole dataset: the same in all processes.
            drawn_from = "output_image_codes" if any("output_image_codes" in row for row in rows) else "output_pixel_values"
            drawn_from = next((name for name in ("output_image_codes", "output_pixel_values") if name in inputs), drawn_from)
            inputs = {drawn_from: self.no_images[drawn_from]} | inputs
            if len(set(inputs.get("output_image_schedule_ids", torch.zeros(0)).tolist())) > 1:
                raise ValueError(
                    "A batch has images to draw of several schedules, for each of which the visual decoder runs once; sharded, it "
                    "must run as often in all of them. Take rows of one schedule, or one row with one image a batch."
                )
        # Into torch's memory, which is aligned: of numpy's, products may round otherwise in every run.
        inputs = {name: value.clone() for name, value in inputs.items()}
        if self.blank_image and "pixel_values" not in inputs:
            inputs["blank_image"] = self.blank_image
        if all(row.get("source") is not None for row in rows):
            inputs["source"] = torch.tensor([row["source"] for row in rows])
        return inputs

    def _messages(self, row: dict[str, Any], rng: np.random.Generator) -> list[dict[str, Any]]:
        """The row's messages; at times without the user's text, where the row draws."""
        messages = row["messages"]
        draws = listed(row, "output_images") or listed(row, "output_image_codes")
        if not draws or rng.random() >= self.prompt_dropout:
            return messages
        return [without_text(message) if message["role"] == "user" else message for message in messages]

    def _without_fine_scales(self, inputs: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """The batch with some of its images to draw cut to their coarsest scales."""
        count = sum(map(len, inputs[SPANS[1]]))
        if not count:
            return inputs
        ids = inputs["output_image_schedule_ids"].tolist() if "output_image_schedule_ids" in inputs else [0] * count
        grids = [self.processor.output_image_processor.grids[index] for index in ids]
        coarse = rng.random(count) < self.scale_dropout
        scales = [min(self.coarse_scales, len(each)) if drops else len(each) for each, drops in zip(grids, coarse)]
        positions = [sum(height * width for height, width in each[:number]) for each, number in zip(grids, scales)]
        inputs["output_image_num_scales"] = torch.tensor(scales)
        return without_fine_scales(inputs, positions, self.processor.tokenizer.pad_token_id)

    def _cut_and_packed(self, inputs: dict[str, Any], rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        lengths = inputs["attention_mask"].sum(1).tolist()
        if not self.packing and (self.max_length is None or max(lengths) <= self.max_length):
            return {name: value for name, value in inputs.items() if name not in SPANS}
        parts = parts_of_rows(inputs, lengths)
        if self.max_length is not None:
            parts = [cut(part, inputs, self.max_length) for part in parts]
        if not self.packing:
            taken = take(inputs, parts, self.processor.tokenizer.pad_token_id)
        else:
            bins = [parts] if self.pack_in_one_row else bins_of(parts)
            parts = [part for one in bins for part in one]
            taken = pack(inputs, bins, self.processor.tokenizer.pad_token_id)
        images = images_of_parts(inputs, parts)
        if images is None:
            of_batch = [image for row in rows for image in images_of(row)]
            images = self.processor.reading_inputs([of_batch[index] for index in part.images] for part in parts)
        return {**taken, **images}

    def _with_labels(self, inputs: dict[str, Any]) -> dict[str, torch.Tensor]:
        ids, counts = inputs["input_ids"], inputs["attention_mask"].bool()
        labelled = counts
        if self.assistant_only:
            labelled = torch.as_tensor(inputs.pop("assistant_masks")).bool() & counts
        for token_id in (self.processor.image_token_id, self.processor.output_image_token_id):
            labelled = labelled if token_id is None else labelled & (ids != token_id)
        inputs["labels"] = ids.masked_fill(~labelled, IGNORE_INDEX)
        return inputs


def listed(row: dict[str, Any], column: str) -> list[Any]:
    """A row's images or codes in a column; [] where that is missing, None or empty, also as an array."""
    given = row.get(column)
    return [] if given is None else list(given)


def images_of(row: dict[str, Any]) -> list[Any]:
    """A row's images to read, from its column or from the parts of its messages."""
    given = listed(row, "images")
    if given:
        return given
    chat, _ = clean_chat(row["messages"], set(), continued=False)
    return [image_of_part(part) for message in chat for part in message["content"] if part["type"] == "image"]


def texts_of(messages: list[dict[str, Any]]) -> list[str]:
    """All texts of a conversation, in reading order."""
    texts = []
    for message in messages:
        content = message["content"]
        texts += [content] if isinstance(content, str) else [part.get("text") or "" for part in content or []]
    return texts


def fingerprint(rows: Sequence[dict[str, Any]]) -> int:
    """A number that depends on the texts of the rows and on their order, the same in every process."""
    return zlib.crc32("\0".join(text for row in rows for text in texts_of(row["messages"])).encode())


def without_text(message: dict[str, Any]) -> dict[str, Any]:
    """The message with empty texts; its images stay."""
    if isinstance(message["content"], str):
        return {**message, "content": ""}
    return {**message, "content": [part for part in message["content"] if part["type"] != "text"]}


def no_images(config: "VargptConfig") -> dict[str, torch.Tensor]:
    """Model inputs of zero images to draw, as pixels and as codes, by their names."""
    tokenizer = config.image_tokenizer_config
    return {
        "output_pixel_values": torch.zeros(0, tokenizer.in_channels, *tokenizer.image_size()),
        "output_image_codes": torch.zeros(0, config.schedules[0].num_positions, dtype=torch.long),
    }


def blank_image(processor: "VargptProcessor") -> dict[str, torch.Tensor]:
    """What the backbone's own processor makes of a small white image; {} where nothing is read."""
    return {} if processor.reader is None else processor.reading_inputs([[Image.new("RGB", (56, 56), "white")]])
