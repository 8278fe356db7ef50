"""Commands that are interrupted, or get no room, no rights, few file handles, or a folder in use: they end soon, in one line, and leave
nothing half done."""

import os
import re
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from PIL import Image
from ready_processes import PIPE, VARGPT, ReadyProcess

from vargpt_hf.tiny.shapes import COLOURS, Scene, SceneObject, render
from vargpt_hf.training.guards import checkpoints_of, is_whole

SECONDS_TO_BEGIN, SECONDS_TO_END = 120, 15  # much more than either takes, on a machine that has other things to do
ENDLESS = 100_000
SIGNALS = pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["SIGINT", "SIGTERM"])
Limits = dict[int, tuple[int, int]]  # as of `ReadyProcess`


def start(*arguments: object, folder: Path, limits: Limits | None = None) -> ReadyProcess:
    """The command in a process, and a process group, of its own."""
    return ReadyProcess([VARGPT, *arguments], cwd=folder, limits=limits, stdout=PIPE, stderr=PIPE)


def run(*arguments: object, folder: Path, limits: Limits | None = None) -> tuple[int, str]:
    """Exit code of the command and what it said, bars left out."""
    process = start(*arguments, folder=folder, limits=limits)
    message = said(process)
    return process.returncode, message


def run_anew(*arguments: object, folder: Path, limits: Limits | None = None) -> tuple[int, str]:
    """As `run`, in an interpreter that imports what the command needs under the same conditions."""

    def prepare() -> None:
        for kind, limit in (limits or {}).items():
            resource.setrlimit(kind, limit)

    pipes = {"capture_output": True, "text": True, "timeout": SECONDS_TO_BEGIN}
    done = subprocess.run([VARGPT, *map(str, arguments)], cwd=folder, preexec_fn=prepare, **pipes)
    return done.returncode, without_bars(done.stderr)


def said(process: ReadyProcess) -> str:
    """Waits for the end; what the command wrote to stderr, bars left out."""
    _, errors = process.communicate(timeout=SECONDS_TO_BEGIN)
    return without_bars(errors)


def without_bars(errors: str) -> str:
    lines = errors.replace("\r", "\n").splitlines()
    return "\n".join(line for line in lines if line.strip() and not re.search(r"\d+%\||\d \[\d\d:", line))


def wait_until(true: Callable[[], bool], process: ReadyProcess) -> None:
    deadline = time.monotonic() + SECONDS_TO_BEGIN
    while not true():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "it does not begin"
        time.sleep(0.02)


def is_one_line(message: str) -> bool:
    """Whether all that was said is one line of the command's own."""
    return message.startswith("vargpt: ") and len(message.splitlines()) == 1


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


@contextmanager
def mounted(folder: Path, *options: str) -> Iterator[bool]:
    """The folder as a small file system in memory, where this user may mount one; whether it is one."""
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", folder], capture_output=True)
    try:
        yield done.returncode == 0
    finally:
        if done.returncode == 0:
            subprocess.run(["umount", folder], check=True)


@contextmanager
def small_disk(folder: Path, kib: int) -> Iterator[Limits | None]:
    """The folder with room for so much; where nothing can be mounted, what keeps a process from writing longer files."""
    with mounted(folder, f"size={kib}k") as small:
        limit = (kib * 1024, resource.getrlimit(resource.RLIMIT_FSIZE)[1])
        yield None if small else {resource.RLIMIT_FSIZE: limit}


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """The folder, in which nothing can be written: by its file system, or for users who cannot mount one by its mode."""
    with mounted(folder, "ro", "size=64k"):
        folder.chmod(0o555) if os.access(folder, os.W_OK) else None
        yield


def assert_images_are_whole(folder: Path) -> None:
    for file in folder.glob("*.png"):
        Image.open(file).load()
    assert not list(folder.glob(".*")), "half an image is left"


@SIGNALS
@pytest.mark.parametrize("num_processes", [1, 2])
def test_drawing_that_is_stopped_leaves_whole_images(work, number, code, num_processes):
    options = ("--batch-size", 4, "--num-processes", num_processes, "-o", "images")
    process = start("draw", "--prompts", "prompts.txt", *options, folder=work)
    wait_until(lambda: len(list((work / "images").glob("*.png"))) >= 8, process)
    family = psutil.Process(process.pid).children(recursive=True)
    # From a keyboard all processes get the signal; who stops a service sends it to the first.
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
    began = time.monotonic()
    message = said(process)
    assert time.monotonic() - began < SECONDS_TO_END
    assert process.returncode == code and "Traceback" not in message, message
    assert not psutil.wait_procs(family, timeout=SECONDS_TO_END)[1], "processes are left"
    images = list((work / "images").glob("*.png"))
    assert 8 <= len(images) < 600
    for file in images:
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


def test_a_full_disk_while_drawing(work):
    with small_disk(work / "disk", 48) as limits:
        code, message = run("draw", "a red circle", "--enlarge", 60, "-o", "disk/circle.bmp", folder=work, limits=limits)
        assert code == 1 and is_one_line(message) and "disk/circle.bmp" in message, message
        assert not os.listdir(work / "disk")
    with small_disk(work / "other", 256) as limits:
        prompts = ("draw", "--prompts", "prompts.txt", "--batch-size", 8)
        enlarge = 8 if limits is None else 150
        code, message = run(*prompts, "--enlarge", enlarge, "-o", "other/images", folder=work, limits=limits)
        assert code == 1 and is_one_line(message) and "images" in message, message
        assert_images_are_whole(work / "other/images")


@pytest.mark.parametrize("mib", [8, 40], ids=["before the first checkpoint", "before the second one"])
def test_a_full_disk_while_training(work, mib):
    with small_disk(work / "disk", mib * 1024) as limits:
        code, message = run("train", stage(work, work / "disk/out", max_steps=9, save_total_limit=9), folder=work, limits=limits)
        if limits is not None and mib == 40:  # each file has its room: only file systems fill up
            assert code == 0, message
        else:
            assert code == 1 and is_one_line(message) and "could not be written" in message and "GiB are free" in message, message
        checkpoints = checkpoints_of(work / "disk/out")
        assert all(map(is_whole, checkpoints)) and bool(checkpoints) == (mib == 40)


def test_a_full_disk_at_the_end_of_training(work):
    with small_disk(work / "disk", 8 * 1024) as limits:
        keys = {"max_steps": 1, "save_strategy": '"no"'}
        code, message = run("train", stage(work, work / "disk/out", **keys), folder=work, limits=limits)
        assert code == 1 and is_one_line(message) and "The model could not be written" in message, message
        assert not list((work / "disk/out").glob("*.safetensors"))


def test_a_folder_that_cannot_be_written_to(work):
    with read_only(work / "disk"):
        for arguments, runs in (
            (("draw", "a red circle", "-o", "disk/circle.png"), run),
            (("draw", "--prompts", "prompts.txt", "-o", "disk/images"), run),
            (("train", stage(work, work / "disk/out")), run_anew),  # which shows that libraries say nothing while being imported
            (("encode", "rows", "disk/codes"), run),
        ):
            code, message = runs(*arguments, folder=work)
            assert code == 1 and is_one_line(message) and "disk" in message, (arguments, message)
        assert not os.listdir(work / "disk")


@pytest.mark.parametrize(("handles", "runs"), [(12, run_anew), (24, run)], ids=["12, also for imports", "24"])
def test_few_file_handles(work, handles, runs):
    """What they are enough for works; otherwise one line says what is wanting."""
    few = {resource.RLIMIT_NOFILE: (handles, handles)}
    (work / "prompts.txt").write_text("a red circle\n" * 4)
    for arguments in (
        ("draw", "--prompts", "prompts.txt", "-o", "images"),
        ("train", stage(work, work / "out", max_steps=2, dataloader_num_workers=2)),
    ):
        code, message = runs(*arguments, folder=work, limits=few)
        # Above the line may stand what torch's loader says when it is deleted half made: Python prints it, no code of ours can.
        *_, last = message.splitlines() or [""]
        assert code == 0 or code == 1 and is_one_line(last) and "open files" in last, (arguments, message)
    if (work / "images").exists():
        assert_images_are_whole(work / "images")


def test_a_second_training_into_a_folder_is_refused_while_the_first_goes_on(work):
    first = start("train", stage(work, work / "out"), folder=work)
    try:
        wait_until(lambda: any(map(is_whole, checkpoints_of(work / "out"))), first)
        code, message = run("train", work / "stage.yaml", folder=work)
        assert code == 1 and is_one_line(message) and "Another run trains into" in message, message
        assert first.poll() is None
    finally:
        first.kill()
        first.communicate()
    code, message = run("train", stage(work, work / "out", max_steps=1, save_strategy='"no"'), "--resume_from_checkpoint", "true", folder=work)
    assert code == 0, message
