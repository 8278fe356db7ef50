"""`pipeline("any-to-any")` of VARGPT: text and pictures in, text and pictures out, in the order in which they were made."""

from typing import Any

import torch
from transformers import AnyToAnyPipeline, Pipeline
from transformers.pipelines.any_to_any import Chat, ReturnType

from .generation_vargpt import VargptGenerateOutput


class VargptPipeline(AnyToAnyPipeline):
    """The stock any-to-any pipeline, which returns text or a picture, with a way to return both; torchvision is not needed.

    Takes what the stock pipeline takes: a chat or a list of chats, or `text` with `images`. What a record holds beside
    `input_text` depends on `generation_mode`:

    - `"auto"` (default): `generated_content`, the parts `{"type": "text", "text": str}` and `{"type": "output_image", "image": PIL,
      "codes": (L,) int64}` that the model made, in order; with `return_full_text=True` the chat with them as its last turn (of a
      text, a list with the text as its first part).
    - `"text"`: `generated_text`, as in the stock pipeline; nothing is drawn.
    - `"image"`: `generated_image`, one picture as PIL.

    `return_tensors=True` gives `generated_token_ids` in their place, in modes "auto" and "text". Chats of one batch (`batch_size`) must
    all bring pictures, or none.

    Raises:
        ValueError: an unknown `generation_mode`, or `return_full_text` or `return_tensors` in mode "image".
    """

    def __init__(self, *args, **kwargs):
        # The stock class would ask for torchvision, which this model's image processor does without.
        Pipeline.__init__(self, *args, **kwargs)
        self.tokenizer.padding_side = "left"  # by which the base class pads batches

    def _sanitize_parameters(self, generation_mode: str | None = None, generate_kwargs: dict | None = None, **kwargs):
        if generation_mode is None:  # what the pipeline was built with, or the model's own way
            generation_mode = getattr(self, "_postprocess_params", {}).get("generation_mode", "auto")
        stock_mode = "text" if generation_mode == "auto" else generation_mode
        preprocess, forward, postprocess = super()._sanitize_parameters(
            generation_mode=stock_mode, generate_kwargs=dict(generate_kwargs or {}), **kwargs
        )
        chosen = kwargs.get("return_tensors") or any(kwargs.get(name) is not None for name in ("return_full_text", "return_type"))
        if generation_mode == "auto" and not chosen:
            postprocess.pop("return_type", None)
        before = getattr(self, "_forward_params", {}).get("generate_kwargs", {})
        forward["generate_kwargs"] = {
            **before,
            **forward["generate_kwargs"],
            "generation_mode": generation_mode,
            "return_dict_in_generate": True,
        }
        return preprocess, forward, {**postprocess, "generation_mode": generation_mode}

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
            return super().postprocess(text_outputs, return_type=return_type, generation_mode="text", **kwargs)
        prompt_length = model_outputs["input_ids"].shape[1]
        records = []
        for prompt, output in zip([prompts] if isinstance(prompts, (str, Chat)) else prompts, outputs, strict=True):
            for parts in self.processor.post_process_interleaved(output, prompt_length=prompt_length):
                record = {"input_text": prompt.messages if isinstance(prompt, Chat) else prompt}
                if generation_mode == "image":
                    record["generated_image"] = next(part["image"] for part in parts if part["type"] == "output_image")
                else:
                    record["generated_content"] = _with_prompt(prompt, parts) if return_type == ReturnType.FULL_TEXT else parts
                records.append(record)
        return records


def _rows(output: VargptGenerateOutput, first: int, count: int) -> VargptGenerateOutput:
    """`count` rows of what was generated, with their pictures."""
    chosen = (output.output_image_rows >= first) & (output.output_image_rows < first + count)
    return VargptGenerateOutput(
        sequences=output.sequences[first : first + count],
        output_image_codes=output.output_image_codes[chosen],
        output_image_rows=output.output_image_rows[chosen] - first,
        output_image_positions=output.output_image_positions[chosen],
        images=output.output_images[chosen],
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
