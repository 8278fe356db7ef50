"""Commands that are interrupted: they end soon, and leave nothing half done."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from PIL import Image

from vargpt_hf.tiny.shapes import COLOURS, Scene, SceneObject, render
from vargpt_hf.training.safety import checkpoints_of, is_whole

COMMAND = [sys.executable, "-c", "from vargpt_hf_command import main; main()"]
SECONDS_TO_BEGIN, SECONDS_TO_END = 120, 15  # much more than either takes, on a machine that has other things to do
ENDLESS = 100_000
SIGNALS = pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["SIGINT", "SIGTERM"])


def start(*arguments: object, folder: Path, before: Callable[[], None] | None = None) -> subprocess.Popen:
    """The command in a process, and a process group, of its own."""
    command = [*COMMAND, *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=folder, start_new_session=True, preexec_fn=before, **pipes)


def said(process: subprocess.Popen, timeout: float = SECONDS_TO_BEGIN) -> str:
    """Waits for the end; what the command wrote to stderr, bars left out."""
    _, errors = process.communicate(timeout=timeout)
    lines = errors.replace("\r", "\n").splitlines()
    return "\n".join(line for line in lines if line.strip() and not re.search(r"\d+%\||\d \[\d\d:", line))


def wait_until(true: Callable[[], bool], process: subprocess.Popen) -> None:
    deadline = time.monotonic() + SECONDS_TO_BEGIN
    while not true():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "it does not begin"
        time.sleep(0.02)


@pytest.fixture
def work(tmp_path) -> Path:
    """A folder with endless prompts, and a stage on a few images that does not end by itself."""
    (tmp_path / "prompts.txt").write_text("a red circle\n" * 600)
    (tmp_path / "rows").mkdir()
    for number, colour in enumerate(COLOURS):
        render(Scene((SceneObject("circle", colour, "large", (1, 1)),))).save(tmp_path / f"rows/{number}.png")
        (tmp_path / f"rows/{number}.txt").write_text(f"a {colour} circle")
    return tmp_path


def stage(folder: Path, output: Path, **keys: object) -> Path:
    given = {"stage": "stage1", "model_name_or_path": "vargpt-tiny", "train_data": folder / "rows", "output_dir": output}
    given |= {"max_steps": ENDLESS, "save_steps": 3, "save_total_limit": 2, "per_device_train_batch_size": 2, "use_cpu": "true"}
    given |= {"gradient_accumulation_steps": 1, "sample_prompts": "[]", **keys}
    file = folder / "stage.yaml"
    file.write_text("".join(f"{key}: {value}\n" for key, value in given.items()))
    return file


@SIGNALS
@pytest.mark.parametrize("num_processes", [1, 2])
def test_drawing_that_is_stopped_leaves_whole_pictures(work, number, code, num_processes):
    options = ("--batch-size", 4, "--num-processes", num_processes, "-o", "pictures")
    process = start("draw", "--prompts", "prompts.txt", *options, folder=work)
    wait_until(lambda: len(list((work / "pictures").glob("*.png"))) >= 8, process)
    family = psutil.Process(process.pid).children(recursive=True)
    # From a keyboard all processes get the signal; who stops a service sends it to the first.
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
    began = time.monotonic()
    message = said(process)
    assert time.monotonic() - began < SECONDS_TO_END
    assert process.returncode == code and "Traceback" not in message, message
    assert not psutil.wait_procs(family, timeout=SECONDS_TO_END)[1], "processes are left"
    pictures = list((work / "pictures").glob("*.png"))
    assert 8 <= len(pictures) < 600
    for file in pictures:
        Image.open(file).load()


@SIGNALS
def test_training_that_is_stopped_leaves_whole_checkpoints(work, number, code):
    process = start("train", stage(work, work / "out"), folder=work)
    wait_until(lambda: any(map(is_whole, checkpoints_of(work / "out"))), process)
    process.send_signal(number)
    began = time.monotonic()
    message = said(process)
    assert time.monotonic() - began < SECONDS_TO_END
    assert process.returncode == code and "Traceback" not in message, message
    checkpoints = checkpoints_of(work / "out")
    assert checkpoints and is_whole(checkpoints[-1]), checkpoints
    assert not (work / "out/model.safetensors").exists() and not list((work / "out").glob(".*"))
