"""What an image at the paper's size takes on a CPU without units for bfloat16: a table of docs/paper_scale.md.

python benchmarks/plain_cpu.py --threads 2
python benchmarks/plain_cpu.py --threads 2 --whole FOLDER

Models with one layer of true size and with a few draw; all layers of a kind take the same time, so that the whole model's follows from the
differences. Takes 5 GB of memory and some minutes. With `--whole` the whole model draws; its folder, of random weights (18.4 GB), is written
first where it is not there. A larger CPU computes like a plain one here, with AVX2 alone.
"""

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from transformers import AutoModelForMultimodalLM, PreTrainedModel, TorchAoConfig

from vargpt_hf import VargptConfig, VargptForConditionalGeneration
from vargpt_hf.hardware import keep_freed_memory
from vargpt_hf.inference.mixed import compute_in_float32, load_to_infer
from vargpt_hf.peft import unquantized_modules

PLAIN_CPU = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
FORMATS = ("mixed", "bfloat16", "float32", "int8", "int8_activations")  # int8 of torchao: the language model's weights, and what they multiply
INT8 = {"int8": "Int8WeightOnlyConfig", "int8_activations": "Int8DynamicActivationInt8WeightConfig"}
MEASURED = ((1, 1), (3, 1), (1, 9), (3, 9))  # layers of the language model and of the visual decoder; the last ones check the estimate
LAYERS = (32, 30)
PROMPT, PROMPT_IDS = 60, (3, 30_000)  # tokens, and the range of their ids
SHARD = 10**9  # bytes
MEMORY = ("RssAnon", "RssFile")  # of a process: its own memory, and what it uses of mapped files, which the system may drop and read again


def model_of(layers: tuple[int, int], dtype: str) -> PreTrainedModel:
    """The paper's model with fewer layers, of random weights, to draw with in a number format."""
    config = VargptConfig.v1()
    config.text_config.num_hidden_layers, config.visual_decoder_config.num_hidden_layers = layers
    config.vlm_config.vision_config.num_hidden_layers = 2  # which drawing does not use
    torch.manual_seed(0)
    model = AutoModelForMultimodalLM.from_config(config, dtype=torch.bfloat16).eval()
    for name in model.model.image_tokenizer._keep_in_fp32_modules_strict or ():  # as where it is loaded
        model.model.image_tokenizer.get_submodule(name).float()
    if dtype in INT8:
        from torchao.quantization import quantize_

        quantize_(model.model.vlm.language_model, int8_config(dtype))
    return model if dtype == "bfloat16" else model.float() if dtype == "float32" else compute_in_float32(model)


def int8_config(dtype: str) -> object:
    """torchao's configuration of a format of ours."""
    import torchao.quantization

    return getattr(torchao.quantization, INT8[dtype])()


@torch.no_grad()
def seconds_of(layers: tuple[int, int], dtype: str, guided: bool, repeats: int) -> dict[str, float]:
    """Least seconds on the clock, and of all cores together, of an image."""
    model = model_of(layers, dtype)
    keep_freed_memory()
    found = [draw(model, guided) for _ in range(repeats + 1)][1:]
    return {name: min(one[name] for one in found) for name in found[0]}


def draw(model: PreTrainedModel, guided: bool) -> dict[str, float]:
    """Seconds on the clock, and of all cores together, of one image after a prompt of random tokens."""
    ids = torch.randint(*PROMPT_IDS, (1, PROMPT), generator=torch.Generator().manual_seed(0))
    guidance = {"output_image_guidance_type": "prompt", "output_image_unconditional_ids": [1]} if guided else {}
    options = {"generation_mode": "image", "max_new_tokens": 2, "do_sample": False, "return_dict_in_generate": True, **guidance}
    clock, cores = time.perf_counter(), time.process_time()
    images = model.generate(ids, attention_mask=torch.ones_like(ids), **options).output_images
    found = {"clock": time.perf_counter() - clock, "cores": time.process_time() - cores}
    assert images.isfinite().all() and images.std() > 0
    return found


def write_random(folder: Path, config: VargptConfig) -> None:
    """A folder of random bfloat16 weights that are as large as a trained model's, written shard by shard: takes the memory of one shard."""
    with torch.device("meta"):
        model = VargptForConditionalGeneration(config)
    shapes = {name: tensor.bfloat16() for name, tensor in model.state_dict().items()}
    plan = split_torch_state_dict_into_shards(shapes, filename_pattern="model{suffix}.safetensors", max_shard_size=SHARD)
    folder.mkdir(parents=True)
    numbers = 0.02 * torch.randn(2**24, generator=torch.Generator().manual_seed(0)).bfloat16()
    for file, names in plan.filename_to_tensors.items():
        tensors = {name: torch.empty(shapes[name].shape, dtype=torch.bfloat16) for name in names}
        for name, tensor in tensors.items():
            if tensor.ndim < 2:
                tensor.fill_(float(name.endswith("weight")))  # those of norms are one, biases zero
            for part in tensor.view(-1).split(len(numbers)) if tensor.ndim > 1 else ():
                part.copy_(numbers[: len(part)])
        save_file(tensors, folder / file, {"format": "pt"})
    index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config.dtype = torch.bfloat16
    config.save_pretrained(folder)  # last: a folder that has it is complete


@contextmanager
def peaks() -> Iterator[dict[str, float]]:
    """The most memory of this process while the block runs, in GB: of each kind, and of both at once."""
    most, ended = dict.fromkeys([*MEMORY, "both"], 0.0), threading.Event()

    def watch() -> None:
        watching = True
        while watching:
            watching = not ended.wait(0.05)
            lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
            now = {name: int(lines[name].split()[0]) * 1024 / 1e9 for name in MEMORY}
            most.update({name: max(size, now.get(name, sum(now.values()))) for name, size in most.items()})

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield most
    finally:
        ended.set()
        thread.join()


def load_whole(folder: Path, dtype: str) -> PreTrainedModel:
    """The whole model as the commands load it, or with a quantized language model as docs/loading.md does."""
    if dtype not in INT8:
        return load_to_infer(folder, dtype)
    quantization = TorchAoConfig(int8_config(dtype), modules_to_not_convert=unquantized_modules())
    return compute_in_float32(VargptForConditionalGeneration.from_pretrained(folder, dtype="auto", quantization_config=quantization))


@torch.no_grad()
def draw_whole(folder: Path, dtype: str, guided: bool, repeats: int) -> None:
    """Loads the whole model as the commands do, and prints what that and each image take."""
    with peaks() as most:
        start = time.perf_counter()
        model = load_whole(folder, dtype).eval()
        seconds = time.perf_counter() - start
    print(f"{dtype}: loaded in {seconds:.1f} s, GB at most: {most}", flush=True)
    keep_freed_memory()  # as the commands do; not while torchao quantizes, since large blocks that it frees would be kept in pieces
    for _ in range(repeats):
        with peaks() as most:
            found = draw(model, guided)
        print(f"{dtype}: an image in {found}, GB at most: {most}", flush=True)


def whole(found: dict[tuple[int, int], float]) -> tuple[float, float]:
    """Seconds of the whole model, and those of the last measured one as the others tell them."""
    one, llm, decoder = (found[layers] for layers in MEASURED[:3])
    steps = [(more - one) / (layers[index] - 1) for index, (more, layers) in enumerate(zip((llm, decoder), MEASURED[1:3]))]

    def estimate(layers: tuple[int, int]) -> float:
        return one + sum(step * (number - 1) for step, number in zip(steps, layers))

    return estimate(LAYERS), estimate(MEASURED[3])


def plainly(*options: object) -> Iterator[str]:
    """What this script prints in a process that computes like a plain CPU, line by line."""
    command = [sys.executable, __file__, "--here", *map(str, options)]
    with subprocess.Popen(command, env={**os.environ, **PLAIN_CPU}, stdout=subprocess.PIPE, text=True) as process:
        yield from process.stdout
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--formats", nargs="+", default=["mixed"], choices=FORMATS)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--guided", action="store_true", help="with guidance by a prompt: two rows")
    parser.add_argument("--whole", type=Path, metavar="FOLDER", help="folder of the whole model; where it is not there, it is written")
    parser.add_argument("--layers", type=int, nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.here:
        return measure(arguments)
    if arguments.whole and not (arguments.whole / "config.json").exists():
        write_random(arguments.whole, VargptConfig.v1())
    for dtype in arguments.formats:
        options = [
            "--threads",
            arguments.threads,
            "--repeats",
            arguments.repeats,
            *(["--guided"] if arguments.guided else []),
            "--formats",
            dtype,
        ]
        if arguments.whole:
            for line in plainly(*options, "--whole", arguments.whole):
                print(line, end="", flush=True)
        else:
            infer(dtype, options)


def measure(arguments: argparse.Namespace) -> None:
    """Measures in this process, and prints what it finds."""
    torch.set_num_threads(arguments.threads)
    (dtype,) = arguments.formats
    if arguments.whole:
        draw_whole(arguments.whole, dtype, arguments.guided, arguments.repeats)
    else:
        print(json.dumps(seconds_of(tuple(arguments.layers), dtype, arguments.guided, arguments.repeats)))


def infer(dtype: str, options: list[object]) -> None:
    """Measures models of a few layers, and prints what follows for the whole one."""
    found = {}
    for layers in MEASURED:
        *_, last = plainly(*options, "--layers", *layers)
        found[layers] = json.loads(last)
        print(dtype, layers, found[layers], flush=True)
    for name in ("clock", "cores"):
        seconds, checked = whole({layers: values[name] for layers, values in found.items()})
        print(f"{dtype}: {seconds:.0f} s of {name} for an image; check {checked:.2f}, measured {found[MEASURED[3]][name]:.2f}")


if __name__ == "__main__":
    main()
