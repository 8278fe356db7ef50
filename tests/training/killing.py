"""A program that trains by one file, and by another one that it kills again and again; run by a test.

The fifth argument names the module whose `train` does so, of stages by default.

Each run is a process forked off this one, which has imported everything and done nothing yet: that saves the runs their imports, and
libraries whose threads a fork would leave behind have none.
"""

import gc
import importlib
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file

from vargpt_hf.training.guards import checkpoints_of, is_whole


def run(train: Callable[..., None], file: Path, kill_after: float = 600.0) -> int | None:
    """Trains in a process of its own, killed after some seconds; its exit code, None where it was killed."""
    child = os.fork()
    if child == 0:
        try:
            train(file, ["--resume_from_checkpoint", "true"])
            os._exit(0)
        finally:
            os._exit(1)
    start = time.monotonic()
    while time.monotonic() - start < kill_after:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def main(straight: Path, killed: Path, kills: int, seed: int, module: str = "vargpt_hf.training.script") -> None:
    train = importlib.import_module(module).train
    torch.set_num_threads(1)
    gc.freeze()  # what was imported, which each run would look through, and copy
    start = time.monotonic()
    assert run(train, straight / "stage.yaml") == 0, "the run that nobody kills"
    seconds, chance = time.monotonic() - start, random.Random(seed)
    wanted = load_file(straight / "out/model.safetensors")
    survived = halves = 0
    while True:
        last = survived == kills
        code = run(train, killed / "stage.yaml", 600.0 if last else chance.uniform(0.3, 1.0) * seconds)
        if code is None:
            assert not last, "a run takes too long"
            survived += 1
            halves += sum(not is_whole(checkpoint) for checkpoint in checkpoints_of(killed / "out"))
            continue
        # At its end, though, at times, before it was to be killed: then another run begins.
        assert code == 0, "a run that goes on"
        found = load_file(killed / "out/model.safetensors")
        assert set(found) == set(wanted)
        assert all(torch.equal(value, found[name]) for name, value in wanted.items()), "other weights"
        if last:
            break
        shutil.rmtree(killed / "out")
    print(f"survived {survived} kills; {halves} checkpoints were found half written or half deleted")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), *sys.argv[5:])
