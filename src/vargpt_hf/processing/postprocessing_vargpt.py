"""What `generate` returned, back to texts, images and chat content."""

from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.processing_utils import ProcessorMixin


class VargptPostProcessingMixin(ProcessorMixin):
    """Methods of [`VargptProcessor`] on what `generate` returned."""

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
            has_images = not isinstance(generated_outputs, (torch.Tensor, np.ndarray, list))
            ids = generated_outputs.sequences if has_images else generated_outputs
            return self.tokenizer.batch_decode(ids, skip_special_tokens=skip_special_tokens, **kwargs)
        if generation_mode != "image":
            raise ValueError(f"generation_mode must be None, 'text' or 'image', got {generation_mode!r}.")
        if isinstance(generated_outputs, (torch.Tensor, np.ndarray, list)):
            raise ValueError("Images are not in the token ids: call generate with return_dict_in_generate=True.")
        rows: list[Image.Image | None] = [None] * len(generated_outputs.sequences)
        for row, _, image, _ in reversed(self._generated_images(generated_outputs)):
            rows[row] = image
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
        images = self._generated_images(generated_outputs)
        image_tokens = {self.output_image_start_token_id, self.output_image_token_id, self.output_image_end_token_id}
        rows = []
        for index, ids in enumerate(sequences):
            parts, cursor, text_ids, told = [], prompt_length, [], ""
            # A forced image starts in the last token of the prompt; earlier ones belong to the prompt.
            found = [entry for entry in images if entry[0] == index and entry[1] >= prompt_length - 1]
            for _, position, image, codes in [*found, (index, len(ids), None, None)]:
                # Decoded from the row's first text on, since tokenizers drop the space before a first word.
                text_ids += [token for token in ids[cursor:position] if token not in image_tokens]
                text = self.tokenizer.decode(text_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
                new, told = text[len(told) :], text
                if not parts:
                    new = new.removeprefix(" ")  # the chat template puts it back
                if new:
                    parts.append({"type": "text", "text": new})
                if codes is not None:
                    part = {"type": "output_image", "image": image, "codes": codes}
                    parts.append({key: value for key, value in part.items() if value is not None})
                cursor = position
            rows.append(parts)
        return rows

    def _generated_images(self, output: Any) -> list[tuple[int, int, Image.Image | None, torch.Tensor]]:
        """(row, index of image-start, image, codes) of all images, by row and position; no image without pixels."""
        codes, pixels = output.get("output_image_codes"), output.get("output_images")  # a ModelOutput leaves out what is None
        if codes is None or len(codes) == 0:
            return []
        codes = codes.cpu()
        images = [None] * len(codes) if pixels is None else self.output_image_processor.post_process(pixels)
        entries = zip(output.output_image_rows.tolist(), output.output_image_positions.tolist(), images, codes, strict=True)
        return sorted(entries, key=lambda entry: entry[:2])


__all__ = ["VargptPostProcessingMixin"]
