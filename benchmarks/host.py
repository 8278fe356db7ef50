"""What happens around the model: making inputs, loading, importing; each beside the same without this package, in the same run."""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from .commands import seconds_and_peak

ROWS = 16


def median_seconds(work: Callable[[], object], calls: int = 5) -> float:
    """Median of some calls, after one to warm up."""
    work()
    times = []
    for _ in range(calls):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def importing() -> tuple[float, float]:
    """Seconds of importing the package, and of what it stands on; to be called before either."""
    start = time.perf_counter()
    import torch  # noqa: F401
    import transformers  # noqa: F401
    from transformers import (  # noqa: F401
        AutoModelForMultimodalLM,
        AutoProcessor,
        GenerationMixin,
        PreTrainedModel,
        PreTrainedTokenizerFast,
        ProcessorMixin,
    )

    between = time.perf_counter()
    import vargpt_hf  # noqa: F401

    return time.perf_counter() - between, between - start


def loading() -> tuple[float, float]:
    """Seconds of loading a medium model of float32 from a folder, and of reading that folder's weights into memory."""
    from vargpt_hf import VargptForConditionalGeneration

    from .sizes import model_of

    with tempfile.TemporaryDirectory() as folder:
        model_of("medium").save_pretrained(folder)
        (weights,) = Path(folder).glob("*.safetensors")
        return median_seconds(lambda: VargptForConditionalGeneration.from_pretrained(folder)), median_seconds(weights.read_bytes)


def processing() -> tuple[float, float]:
    """Seconds of making a batch of 16 rows, each with an image to read and one to draw, and of resizing their images alone."""
    from transformers import AutoTokenizer

    from vargpt_hf import VargptConfig, VargptProcessor
    from vargpt_hf.processing import VargptCLIPImageProcessor
    from vargpt_hf.processing.reader_vargpt import llava_settings
    from vargpt_hf.tiny import TINY_FOLDER
    from vargpt_hf.training.collator import VargptDataCollator

    random = np.random.default_rng(0)
    images = [Image.fromarray(random.integers(0, 256, (480, 640, 3), dtype=np.uint8)) for _ in range(2 * ROWS)]
    chat = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is it? draw it smaller"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "a red circle"}, {"type": "output_image"}]},
    ]
    rows = [{"messages": chat, "images": [one], "output_images": [other]} for one, other in zip(images[:ROWS], images[ROWS:])]
    vlm_config = VargptConfig.v1().vlm_config
    side = vlm_config.vision_config.image_size
    image_processor = VargptCLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    processor = VargptProcessor(image_processor, AutoTokenizer.from_pretrained(TINY_FOLDER), reader=llava_settings(vlm_config))
    collator = VargptDataCollator(processor)

    def resize() -> None:
        for one, other in zip(images[:ROWS], images[ROWS:]):
            one.resize((448, 336), Image.Resampling.BICUBIC)
            other.resize((384, 288), Image.Resampling.LANCZOS)

    return median_seconds(lambda: collator(rows)), median_seconds(resize)


def drawing() -> tuple[float, float]:
    """Seconds of the whole command `vargpt draw` with vargpt-tiny, and of importing what it stands on, in processes of their own."""
    with tempfile.TemporaryDirectory() as folder:
        return tuple(statistics.median(seconds_and_peak(name, folder)[0] for _ in range(3)) for name in ("draw", "import"))


HOST: dict[str, tuple[str, str, Callable[[], tuple[float, float]]]] = {
    "import": ("importing the package", "torch and Transformers alone", importing),
    "draw": ("`vargpt draw`, from the shell to the file", "torch and Transformers alone", drawing),
    "load": ("loading the medium model", "reading its weights", loading),
    "process": (f"a batch of {ROWS} rows, 2 images of 640×480 each", "resizing the images", processing),
}
