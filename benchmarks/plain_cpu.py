"""What an image at the paper's size takes on a CPU without units for bfloat16: a table of docs/paper_scale.md.

python benchmarks/plain_cpu.py --threads 2

Models with one layer of true size and with a few draw; all layers of a kind take the same time, so that the whole model's follows from the
differences. Takes 5 GB of memory and some minutes. A larger CPU computes like a plain one here, with AVX2 alone.
"""

import argparse
import json
import os
import subprocess
import sys
import time

import torch
from transformers import AutoModelForMultimodalLM, PreTrainedModel

from vargpt_hf import VargptConfig
from vargpt_hf.inference.mixed import compute_in_float32

PLAIN_CPU = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
FORMATS = ("mixed", "bfloat16")
MEASURED = ((1, 1), (3, 1), (1, 9), (3, 9))  # layers of the language model and of the visual decoder; the last ones check the estimate
LAYERS = (32, 30)
PROMPT = 60  # tokens


def model_of(layers: tuple[int, int], dtype: str) -> PreTrainedModel:
    """The paper's model with fewer layers, of random weights, to draw with in a number format."""
    config = VargptConfig.v1()
    config.text_config.num_hidden_layers, config.visual_decoder_config.num_hidden_layers = layers
    config.vlm_config.vision_config.num_hidden_layers = 2  # which drawing does not use
    torch.manual_seed(0)
    model = AutoModelForMultimodalLM.from_config(config, dtype=torch.bfloat16).eval()
    for name in model.model.image_tokenizer._keep_in_fp32_modules_strict or ():  # as where it is loaded
        model.model.image_tokenizer.get_submodule(name).float()
    return compute_in_float32(model) if dtype == "mixed" else model


@torch.no_grad()
def seconds_of(layers: tuple[int, int], dtype: str, guided: bool, repeats: int) -> dict[str, float]:
    """Least seconds on the clock, and of all cores together, of an image."""
    model, ids = model_of(layers, dtype), torch.randint(3, 30_000, (1, PROMPT))
    guidance = {"output_image_guidance_type": "prompt", "output_image_unconditional_ids": [1]} if guided else {}
    options = {"generation_mode": "image", "max_new_tokens": 2, "do_sample": False, **guidance}
    clock, cores = [], []
    for _ in range(repeats + 1):
        start = time.perf_counter(), time.process_time()
        model.generate(ids, attention_mask=torch.ones_like(ids), **options)
        clock.append(time.perf_counter() - start[0])
        cores.append(time.process_time() - start[1])
    return {"clock": min(clock[1:]), "cores": min(cores[1:])}


def whole(found: dict[tuple[int, int], float]) -> tuple[float, float]:
    """Seconds of the whole model, and those of the last measured one as the others tell them."""
    one, llm, decoder = (found[layers] for layers in MEASURED[:3])
    steps = [(more - one) / (layers[index] - 1) for index, (more, layers) in enumerate(zip((llm, decoder), MEASURED[1:3]))]

    def estimate(layers: tuple[int, int]) -> float:
        return one + sum(step * (number - 1) for step, number in zip(steps, layers))

    return estimate(LAYERS), estimate(MEASURED[3])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--formats", nargs="+", default=["mixed"], choices=FORMATS)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--guided", action="store_true", help="with guidance by a prompt: two rows")
    parser.add_argument("--layers", type=int, nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.layers:
        torch.set_num_threads(arguments.threads)
        print(json.dumps(seconds_of(tuple(arguments.layers), arguments.formats[0], arguments.guided, arguments.repeats)))
        return
    for dtype in arguments.formats:
        found = {}
        for layers in MEASURED:
            command = [sys.executable, __file__, "--formats", dtype, "--threads", str(arguments.threads), "--layers", *map(str, layers)]
            command += ["--repeats", str(arguments.repeats), *(["--guided"] if arguments.guided else [])]
            done = subprocess.run(command, env={**os.environ, **PLAIN_CPU}, capture_output=True, text=True, check=True)
            found[layers] = json.loads(done.stdout.splitlines()[-1])
            print(dtype, layers, found[layers], flush=True)
        for name in ("clock", "cores"):
            seconds, checked = whole({layers: values[name] for layers, values in found.items()})
            print(f"{dtype}: {seconds:.0f} s of {name} for an image; check {checked:.2f}, measured {found[MEASURED[3]][name]:.2f}")


if __name__ == "__main__":
    main()
