"""Draws a file of prompts on all machines of a Ray cluster, or on this one.

pip install "vargpt-hf[ray]"
python examples/ray_draw.py prompts.txt images --workers 4            # a local Ray, four processes
python examples/ray_draw.py prompts.txt /shared/images --workers 64 --gpus 1 --address auto

Images and results.jsonl are those of `vargpt draw --prompts` (a level of brightness apart at most, as batches are cut otherwise): each comes
from its own seed, and a run that was stopped goes on. The folder must be one that all machines see. Prints how many images were drawn.
"""

import argparse
from dataclasses import asdict
from pathlib import Path

import ray
from transformers import AutoConfig

from vargpt_hf import VargptProcessor
from vargpt_hf.hardware import loading_dtype
from vargpt_hf.inference.mixed import load_to_infer
from vargpt_hf.inference.prompts import Prompt, check_prompts, claim_images, draw_batch, read_prompts, save_images, write_results
from vargpt_hf.shipped import folder_of, shipped_model


class Drawer:
    """A worker with its own model: takes batches of prompts, writes their images, gives back what results.jsonl says of them."""

    def __init__(self, model: str, dtype: str, output: str, device: str):
        self.model = load_to_infer(model, dtype).to(device).eval()
        self.processor = VargptProcessor.from_pretrained(model)
        self.output = Path(output)

    def __call__(self, batch: dict) -> dict:
        prompts = [Prompt(text, name, int(seed)) for text, name, seed in zip(batch["text"], batch["name"], batch["seed"])]
        save_images(self.output, prompts, draw_batch(self.model, self.processor, prompts, do_sample=True))
        return {"file": [prompt.file for prompt in prompts]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompts", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--model", help="a folder that all machines see, or a Hub id; vargpt-emoji by default")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2, help="processes that draw at the same time")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--gpus", type=float, default=0, help="GPUs of each worker")
    parser.add_argument("--address", help='cluster to join, such as "auto"; a Ray of its own by default')
    arguments = parser.parse_args()

    output, device = arguments.output.resolve(), "cuda" if arguments.gpus else "cpu"
    model, dtype = folder_of(arguments.model), arguments.dtype
    config = AutoConfig.from_pretrained(model)
    if dtype == "auto" and shipped_model(arguments.model):
        dtype = "float32"  # as for the commands
    dtype = loading_dtype(dtype, config.dtype, device, config.least_parameters())
    prompts = check_prompts(read_prompts(arguments.prompts, arguments.seed), VargptProcessor.from_pretrained(model), config)
    claim_images(output, prompts, model, device, dtype, do_sample=True)
    there = {path.name for path in output.iterdir()}
    missing = [asdict(prompt) for prompt in prompts if prompt.error is None and prompt.file not in there]
    if missing:
        ray.init(address=arguments.address, num_cpus=None if arguments.address else arguments.workers + 1)
        drawn = ray.data.from_items(missing, override_num_blocks=-(-len(missing) // arguments.batch_size)).map_batches(
            Drawer,
            fn_constructor_args=(model, dtype, str(output), device),
            batch_size=arguments.batch_size,
            compute=ray.data.ActorPoolStrategy(size=arguments.workers),
            num_gpus=arguments.gpus or None,
        )
        print(f"Drew {len(drawn.take_all())} images")
    write_results(output, prompts)


if __name__ == "__main__":
    main()
