"""`pipeline("any-to-any")` of VARGPT: text and pictures in, text and pictures out, in the order in which they were made."""

from typing import Any

from transformers import AnyToAnyPipeline, Pipeline
from transformers.pipelines.any_to_any import Chat, ReturnType


class VargptPipeline(AnyToAnyPipeline):
    """The stock any-to-any pipeline, which returns text or a picture, with a way to return both; torchvision is not needed.

    Takes what the stock pipeline takes: a chat or a list of chats, or `text` with `images`. What a record holds beside
    `input_text` depends on `generation_mode`:

    - `"auto"` (default): `generated_content`, the parts `{"type": "text", "text": str}` and `{"type": "image_gen", "image": PIL,
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
        before = getattr(self, "_forward_params", {}).get("generate_kwargs", {})
        preprocess, forward, postprocess = super()._sanitize_parameters(
            generation_mode=stock_mode, generate_kwargs={**before, **(generate_kwargs or {})}, **kwargs
        )
        if generation_mode == "auto" and kwargs.get("return_full_text") is None and kwargs.get("return_type") is None:
            if not kwargs.get("return_tensors"):
                postprocess.pop("return_type", None)
        forward["generate_kwargs"].update(generation_mode=generation_mode, return_dict_in_generate=True)
        return preprocess, forward, {**postprocess, "generation_mode": generation_mode}

    def postprocess(
        self, model_outputs: dict, return_type: ReturnType | None = None, generation_mode: str = "auto", **kwargs
    ) -> list[dict[str, Any]]:
        output = model_outputs["generated_sequence"]
        if generation_mode == "text" or return_type == ReturnType.TENSORS:
            text_outputs = {**model_outputs, "generated_sequence": output["sequences"]}
            return super().postprocess(text_outputs, return_type=return_type, generation_mode="text", **kwargs)
        prompts = model_outputs["prompt_text"]
        prompts = [prompts] if isinstance(prompts, (str, Chat)) else prompts
        contents = self.processor.post_process_interleaved(output, prompt_length=model_outputs["input_ids"].shape[1])
        candidates = len(contents) // len(prompts)
        records = []
        for index, parts in enumerate(contents):
            prompt = prompts[index // candidates]
            record = {"input_text": prompt.messages if isinstance(prompt, Chat) else prompt}
            if generation_mode == "image":
                record["generated_image"] = next(part["image"] for part in parts if part["type"] == "image_gen")
            else:
                record["generated_content"] = _with_prompt(prompt, parts) if return_type == ReturnType.FULL_TEXT else parts
            records.append(record)
        return records


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
