"""Rows of conversations with pictures in and out → tensors of one batch."""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from ..processing.processing_vargpt import VargptProcessor

IGNORE_INDEX = -100
_PICTURE_COLUMNS = ("images", "output_images", "image_codes")


class VargptDataCollator:
    """Makes model inputs with labels of rows `{"messages", "images", "output_images" | "image_codes"}`.

    Pictures are listed in reading order of the parts that stand for them: `images` for parts of type "image", the other columns for
    parts of type "image_gen". Labels are the assistant's tokens: text, image-start, image-end and end of sequence, never the
    places of pictures. Rows without pictures, with pictures of one kind or of both stand side by side.

    Args:
        processor: makes the tensors.
        assistant_only: label the assistant's tokens only; False labels every token.
        max_length: longest row in tokens; a longer one is refused, since cutting could halve a picture. None: no limit.
        prompt_dropout: how often the user's text of a row that draws is emptied, for guidance by an unconditional prompt.
        seed: of that choice.

    Raises:
        ValueError: rows with other columns, too long, or with other numbers of pictures than their messages have parts.
    """

    def __init__(
        self,
        processor: "VargptProcessor",
        assistant_only: bool = True,
        max_length: int | None = None,
        prompt_dropout: float = 0.0,
        seed: int = 0,
    ):
        if not 0 <= prompt_dropout <= 1:
            raise ValueError(f"`prompt_dropout` must be in [0, 1], got {prompt_dropout}.")
        self.processor = processor
        self.assistant_only = assistant_only
        self.max_length = max_length
        self.prompt_dropout = prompt_dropout
        self.rng = np.random.default_rng(seed)

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        if not rows or "messages" not in rows[0]:
            raise ValueError(f"A row needs a column 'messages'; got {sorted(rows[0]) if rows else 'no rows'}.")
        options: dict[str, Any] = {"padding": True, "padding_side": "right"}
        for column in _PICTURE_COLUMNS:
            pictures = [row.get(column) or [] for row in rows]
            if any(pictures):
                options[column] = pictures
        inputs = self.processor.apply_chat_template(
            [self._messages(row) for row in rows],
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            return_assistant_tokens_mask=self.assistant_only,
            processor_kwargs=options,
        )
        return self._with_labels(dict(inputs))

    def _messages(self, row: dict[str, Any]) -> list[dict[str, Any]]:
        """The row's messages; at times without the user's text, where the row draws."""
        messages = row["messages"]
        draws = row.get("output_images") or row.get("image_codes")
        if not draws or self.rng.random() >= self.prompt_dropout:
            return messages
        return [without_text(message) if message["role"] == "user" else message for message in messages]

    def _with_labels(self, inputs: dict[str, Any]) -> dict[str, torch.Tensor]:
        ids, counts = inputs["input_ids"], inputs["attention_mask"].bool()
        longest = int(counts.sum(1).max())
        if self.max_length is not None and longest > self.max_length:
            raise ValueError(
                f"A row of the batch has {longest} tokens, more than max_length={self.max_length}: raise `max_length`, or leave out or "
                "shorten such rows; they are not cut, because that could halve a picture."
            )
        labelled = counts
        if self.assistant_only:
            labelled = torch.as_tensor(inputs.pop("assistant_masks")).bool() & counts
        for token in (self.processor.image_token, self.processor.image_place_token):
            labelled = labelled & (ids != self.processor.tokenizer.convert_tokens_to_ids(token))
        inputs["labels"] = ids.masked_fill(~labelled, IGNORE_INDEX)
        return inputs


def without_text(message: dict[str, Any]) -> dict[str, Any]:
    """The message with empty texts; its pictures stay."""
    if isinstance(message["content"], str):
        return {**message, "content": ""}
    return {**message, "content": [part for part in message["content"] if part["type"] != "text"]}
