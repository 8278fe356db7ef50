"""Chats to text and tensors: the part of [`VargptProcessor`] that renders chat templates."""

import functools
from collections.abc import Mapping
from typing import Any

from transformers.processing_utils import ProcessorMixin

from .chat_vargpt import (
    assistant_spans,
    carried_drawings,
    clean_chat,
    drawings_as_text,
    image_of_part,
    marks_assistants,
    only_texts,
    refuse_images,
)
from .errors_vargpt import in_words


class VargptChatProcessingMixin(ProcessorMixin):
    """`apply_chat_template` with images to draw, for [`VargptProcessor`]."""

    def apply_chat_template(self, conversation: list, chat_template: str | None = None, **kwargs: Any) -> Any:
        """Renders one conversation or a batch; with `tokenize=True` also processes the images that it carries.

        As in the base class, with `output_image` parts in addition. Such a part may carry its image (`image`, `url`,
        `path` or `base64`) or its codes (`codes`, which win where every part has them); if no part carries one, give
        `output_images` or `output_image_codes` in `processor_kwargs`. Keys of parts that are None count as absent.
        A template that does not know `output_image` parts, as those of other models, gets them as text.

        Raises `ValueError` for roles and parts that are unknown, for texts that contain a special token of the
        tokenizer, for counts that differ (see `__call__`), and for what the template refuses.
        """
        if not isinstance(conversation, (list, tuple)):
            raise TypeError(f"The conversation is a {type(conversation).__name__}; give a list of messages, or a list of such lists.")
        if not conversation:
            raise ValueError("The conversation is empty.")
        if kwargs.get("sanitize_control_tokens"):
            raise ValueError("sanitize_control_tokens is not supported: texts with special tokens are refused instead.")
        is_batched = isinstance(conversation[0], (list, tuple))
        own_tokens = (self.image_token, self.output_image_start_token, self.output_image_token, self.output_image_end_token)
        special_tokens = {token for token in (*own_tokens, *self.tokenizer.all_special_tokens) if token}
        continued = bool(kwargs.get("continue_final_message"))
        chats = [clean_chat(c, special_tokens, continued) for c in (conversation if is_batched else [conversation])]
        processor_kwargs = kwargs.pop("processor_kwargs", None)
        if not isinstance(processor_kwargs, Mapping | None):
            raise TypeError(f"processor_kwargs is a {type(processor_kwargs).__name__}; it must be a dict.")
        processor_kwargs = dict(processor_kwargs or {})
        if kwargs.get("tokenize") and processor_kwargs.get("images") is not None:
            if any(image_of_part(part) is not None for chat, _ in chats for message in chat for part in message["content"]):
                raise ValueError("image parts carry images; processor_kwargs must not give `images` too.")
            if not isinstance(processor_kwargs["images"], (list, tuple)):
                processor_kwargs["images"] = [processor_kwargs["images"]]
        if kwargs.get("tokenize"):
            carried = carried_drawings([drawings for _, drawings in chats])
            if carried and not processor_kwargs.keys().isdisjoint(("output_images", "output_image_codes")):
                raise ValueError(f"output_image parts carry {next(iter(carried))}; processor_kwargs must not give any too.")
            processor_kwargs.update(carried)
        cleaned, template = [chat for chat, _ in chats], self._template(chat_template)
        if self.reader is None:
            refuse_images(cleaned)
        if "output_image" not in template:
            cleaned = [drawings_as_text(chat, str(self.output_image_tokens)) for chat in cleaned]
            cleaned = [only_texts(chat) for chat in cleaned] if self.reader is None else cleaned
        render = functools.partial(in_words, super().apply_chat_template)
        if kwargs.get("return_assistant_tokens_mask") and not marks_assistants(template):
            others = {name: value for name, value in kwargs.items() if name in ("tools", "documents")}
            rendered = functools.partial(render, chat_template=template, **others)
            processor_kwargs["assistant_spans"] = [assistant_spans(chat, rendered) for chat in cleaned]
        return render(cleaned if is_batched else cleaned[0], template, processor_kwargs=processor_kwargs, **kwargs)

    def _template(self, chat_template: str | None) -> str:
        """The text of a template, given as such, by its name among several, or not at all."""
        if isinstance(self.chat_template, dict):
            name = "default" if chat_template is None else chat_template
            if chat_template is None and name not in self.chat_template:
                raise ValueError(f"Give a `chat_template`: there is no default among {', '.join(self.chat_template)}.")
            return self.chat_template.get(name, name)
        return self.chat_template if chat_template is None else chat_template


__all__ = ["VargptChatProcessingMixin"]
