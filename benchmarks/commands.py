"""Seconds and peak memory of what the README shows, each in a process of its own.

    python benchmarks/commands.py

Seconds are also given as a ratio to a bare import of torch and Transformers in the same run, which carries over to other machines.
"""

import json
import os
import subprocess
import sys
import tempfile

REFERENCE = "import torch, transformers; from transformers import GenerationMixin, PreTrainedModel"
SCENE, DIGIT = "scene.png", "digit.png"
MAKE_DIGIT = f"from vargpt_hf.tiny.digits import digit_image, load_split; digit_image(load_split('test')[0][0]).save('{DIGIT}')"
MEASURED = {
    "import": [sys.executable, "-c", REFERENCE],
    "draw": ["vargpt", "draw", "a red circle above a blue square", "-o", SCENE],
    "ask": ["vargpt", "ask", SCENE, "what is above the blue square"],
    "digit": ["vargpt", "ask", DIGIT, "which digit is this"],
    "evaluate": ["vargpt", "evaluate", "--number", "100"],
}
# Runs a command and prints what it took: a process of its own, so that the peak is that of one command.
WRAPPER = """
import json, resource, subprocess, sys, time
start = time.perf_counter()
subprocess.run(json.loads(sys.argv[1]), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
print(json.dumps([time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss]))
"""
WITHIN = """
import time, torch
from vargpt_hf import VargptForConditionalGeneration, VargptProcessor
from vargpt_hf.tiny import TINY_FOLDER
from vargpt_hf.inference.drawing import prompt_inputs
model = VargptForConditionalGeneration.from_pretrained(TINY_FOLDER, dtype="float32").eval()
processor = VargptProcessor.from_pretrained(TINY_FOLDER)
def seconds(batch):
    inputs = prompt_inputs(processor, ["a red circle above a blue square"] * batch)
    start = time.perf_counter()
    model.generate(**inputs, generation_mode="image", max_new_tokens=2)
    return time.perf_counter() - start
print("first image after loading: %.2f s" % seconds(1))
one, many = min(seconds(1) for _ in range(5)), min(seconds(32) for _ in range(3))
print("every further one: %.3f s; 32 in one batch take %.1f times as long" % (one, many / one))
"""


def seconds_and_peak(name: str, folder: str) -> tuple[float, int]:
    """Seconds and peak bytes of one of the commands, run in a folder; without a network."""
    arguments = [sys.executable, "-c", WRAPPER, json.dumps(MEASURED[name])]
    output = subprocess.run(arguments, cwd=folder, env=environment(), check=True, capture_output=True, text=True).stdout
    seconds, peak = json.loads(output)
    return seconds, peak * (1 if sys.platform == "darwin" else 1024)


def environment() -> dict[str, str]:
    return {**os.environ, "HF_HUB_OFFLINE": "1", "VARGPT_MODEL": "vargpt-tiny"}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-c", MAKE_DIGIT], cwd=folder, env=environment(), check=True)
        reference = None
        print(f"{'command':12}{'seconds':>9}{'ratio':>8}{'peak MiB':>10}")
        for name in MEASURED:
            seconds, peak = seconds_and_peak(name, folder)
            reference = reference or seconds
            print(f"{name:12}{seconds:>9.2f}{seconds / reference:>8.2f}{peak / 2**20:>10.0f}")
        subprocess.run([sys.executable, "-c", WITHIN], cwd=folder, env=environment(), check=True)


if __name__ == "__main__":
    main()
