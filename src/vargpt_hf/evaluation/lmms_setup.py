"""A VARGPT as `--model_args` of lmms-eval describe it."""

import difflib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..hardware import default_device, loading_dtype
from ..modeling.settings_vargpt import GENERATION_MODES
from ..shipped import DEFAULT_NAME, folder_of

if TYPE_CHECKING:
    from ..modeling.modeling_vargpt import VargptForConditionalGeneration
    from ..processing.processing_vargpt import VargptProcessor


@dataclass
class Setup:
    """A loaded model and how it answers.

    Attributes:
        model, processor: ready to generate.
        batch_size: requests that are answered together.
        generation_mode: "text" to answer in words; "image", "text_image" or "auto" for tasks that want drawings.
        max_new_tokens: of an answer where the task says nothing, or of a plan before an image.
        output_dir: where drawn images go.
        system_prompt: put before every chat without one.
        seed: of the first request's image; each further one has the next.
    """

    model: "VargptForConditionalGeneration"
    processor: "VargptProcessor"
    batch_size: int = 1
    generation_mode: str = "text"
    max_new_tokens: int = 1024
    output_dir: Path = Path("logs/vargpt_images")
    system_prompt: str | None = None
    seed: int = 0


def load_setup(
    pretrained: str | Path = DEFAULT_NAME,
    dtype: str = "auto",
    device: str | None = None,
    batch_size: int | str = 1,
    peft: str | None = None,
    **settings: Any,
) -> Setup:
    """Loads a model as lmms-eval's arguments say.

    Args:
        pretrained: folder or Hub id, or the name of a model that comes with this package.
        dtype: number format of the weights, such as "bfloat16"; "auto" as stored, or float32 where the device has no units for that.
        device: "cpu", "cuda:0", …; a GPU where there is one by default.
        batch_size: requests that are answered together.
        peft: folder or Hub id of an adapter, which is merged into the model.
        settings: generation_mode, max_new_tokens, output_dir, system_prompt, seed; see `Setup`.

    Raises:
        TypeError, ValueError: a setting that is unknown, or out of range.
        OSError: a folder or Hub id that cannot be read.
    """
    from transformers import AutoConfig

    from ..inference.mixed import load_to_infer
    from ..processing.processing_vargpt import VargptProcessor

    known = {field.name for field in fields(Setup)} - {"model", "processor", "batch_size"}
    for name in settings.keys() - known:
        near = difflib.get_close_matches(name, [*known, "pretrained", "dtype", "device", "batch_size", "peft"], n=1)
        raise ValueError(f"The model vargpt has no argument {name!r} in --model_args" + (f": do you mean {near[0]!r}?" if near else "."))
    if not str(batch_size).isdecimal() or int(batch_size) < 1:
        raise ValueError(f"The batch size must be a whole number from 1, got {batch_size!r}.")
    if settings.get("generation_mode", "text") not in GENERATION_MODES:
        raise ValueError(f"generation_mode must be one of {GENERATION_MODES}, got {settings['generation_mode']!r}.")
    folder = folder_of(pretrained)
    device = device or default_device()
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if config.model_type != "vargpt":
        raise ValueError(f"{pretrained} holds a model of type {config.model_type!r}, not a VARGPT.")
    model = load_to_infer(folder, loading_dtype(str(dtype), config.dtype, device, config.least_parameters()))
    if peft is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, peft).merge_and_unload()
    processor = VargptProcessor.from_pretrained(folder)
    processor.check_fits(model.config)
    if "output_dir" in settings:
        settings["output_dir"] = Path(settings["output_dir"])
    return Setup(model.to(device).eval(), processor, int(batch_size), **settings)


__all__ = ["Setup", "load_setup"]
