"""What a device computes fast: measured in milliseconds, on CPUs with units for bfloat16 and on plain ones."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

from vargpt_hf import VargptForConditionalGeneration, VargptProcessor, hardware
from vargpt_hf.cli import app
from vargpt_hf.hardware import disable_cudnn_attention, is_fast, loading_dtype, product_rate, slowness, speed_over_float32, warn_if_slow
from vargpt_hf.tiny import TINY_FOLDER

# What makes a larger CPU like a plain one: torch's own kernels, and those of its two libraries, without AVX-512 and AMX.
PLAIN_CPU = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
MEASURE = """
import json, time, torch
from vargpt_hf.hardware import is_fast, product_rate, slowness, speed_over_float32
torch.ones(8, 8).bfloat16() @ torch.ones(8, 8).bfloat16()
start = time.perf_counter()
is_fast("cpu", torch.bfloat16)
middle = time.perf_counter()
product_rate("cpu", torch.bfloat16)
end = time.perf_counter()
found = {"fast": is_fast("cpu", torch.bfloat16), "speed": speed_over_float32(torch.bfloat16), "words": slowness("cpu", torch.bfloat16)}
print(json.dumps({**found, "seconds": [middle - start, end - middle]}))
"""


def test_a_plain_cpu_is_told_in_milliseconds():
    """There torch multiplies bfloat16 number by number; nothing that asks for it may take its time."""
    done = subprocess.run([sys.executable, "-c", MEASURE], env={**os.environ, **PLAIN_CPU}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert not found["fast"] and found["speed"] < 0.2
    assert found["words"] == f"this CPU multiplies bfloat16 {1 / found['speed']:.3g} times as slowly as float32"
    assert max(found["seconds"]) < 0.5  # 0.05 on a machine with nothing else to do


def test_a_measurement_ends_whatever_a_product_takes(monkeypatch):
    """On a clock of our own: of a device so slow that one product takes a second, one is measured, and no larger one."""
    now, sides = [0.0], []

    def product(matrix: torch.Tensor) -> float:
        sides.append(len(matrix))
        now[0] += (len(matrix) / 64) ** 3 * seconds
        return (len(matrix) / 64) ** 3 * seconds

    monkeypatch.setattr(hardware, "_seconds_of_product", product)
    monkeypatch.setattr(hardware, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    for seconds, most in ((1.0, [64, 64]), (0.001, None)):
        now[0], sides[:] = 0.0, []
        assert product_rate("cpu", torch.float32) == pytest.approx(2 * 64**3 / seconds * torch.get_num_threads())
        assert most is None or sides == most
        assert now[0] <= 0.05 + 2 * seconds
        now[0], sides[:] = 0.0, []
        speed_over_float32.__wrapped__(torch.bfloat16)
        assert len(sides) == 4 or now[0] <= 0.05 + 4 * 64 * seconds


def test_what_setting_up_takes_is_not_measured(monkeypatch):
    """The first product of a format on a machine that has just started reads the library from the disk, which took longer than the probe."""
    now, seen = [0.0], set()

    def product(matrix: torch.Tensor) -> float:
        seconds = {torch.float32: 0.002, torch.bfloat16: 0.001}[matrix.dtype] if matrix.dtype in seen else 3.0
        seen.add(matrix.dtype)
        now[0] += seconds
        return seconds

    monkeypatch.setattr(hardware, "_seconds_of_product", product)
    monkeypatch.setattr(hardware, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    for warm in (set(), {torch.float32}, {torch.bfloat16}):
        seen = set(warm)
        assert speed_over_float32.__wrapped__(torch.bfloat16) == pytest.approx(2.0)


def test_the_verdict_is_of_torch_and_of_a_product(monkeypatch):
    assert is_fast("cpu", torch.float32) and slowness("cpu", torch.float32) is None
    for speed, supported, fast in ((2.0, True, True), (0.5, True, False), (2.0, False, False)):
        monkeypatch.setattr(hardware, "speed_over_float32", lambda dtype, speed=speed: speed)
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda supported=supported: supported)
        assert is_fast("cpu", torch.bfloat16) == fast


def test_of_gpus_torch_knows_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    assert not is_fast("cuda", torch.bfloat16) and is_fast("cuda:1", torch.float16)
    assert slowness("cuda", torch.bfloat16) == "this device has no units for bfloat16"


@pytest.fixture(params=[4.0, 1 / 32], ids=["units", "plain"])
def speed(request, monkeypatch):
    """A CPU with units for bfloat16 and one without, whatever this one has."""
    monkeypatch.setattr(hardware, "speed_over_float32", lambda dtype: request.param)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: request.param > 1)
    return request.param


def test_weights_are_loaded_in_a_format_that_fits(speed):
    fits = speed > 1
    assert loading_dtype("auto", torch.bfloat16, "cpu") == ("auto" if fits else "float32")
    assert loading_dtype("bfloat16", torch.float32, "cpu") == "bfloat16"
    assert loading_dtype("auto", torch.float32, "cpu") == loading_dtype("auto", None, "cpu") == "auto"


def test_a_format_that_somebody_chose_is_kept_with_a_warning(speed, recwarn):
    warn_if_slow("cpu", torch.bfloat16, "bf16=True", "give False")
    said = [str(warning.message) for warning in recwarn]
    assert said == ([] if speed > 1 else ["bf16=True: this CPU multiplies bfloat16 32 times as slowly as float32; give False."])


def test_commands_draw_and_ask_in_a_format_that_fits(speed, tmp_path, monkeypatch):
    VargptForConditionalGeneration.from_pretrained(TINY_FOLDER, dtype="bfloat16").save_pretrained(tmp_path / "model")
    VargptProcessor.from_pretrained(TINY_FOLDER).save_pretrained(tmp_path / "model")
    seen = []
    generate = VargptForConditionalGeneration.generate
    monkeypatch.setattr(VargptForConditionalGeneration, "generate", lambda self, *a, **k: seen.append(self.dtype) or generate(self, *a, **k))
    image, told = tmp_path / "out.png", "this CPU multiplies bfloat16 32 times as slowly as float32"
    model = ["--model", str(tmp_path / "model")]
    (tmp_path / "prompts.txt").write_text("a red circle\n")
    drawn = CliRunner().invoke(app, ["draw", "a red circle", "-o", str(image), *model])
    asked = CliRunner().invoke(app, ["ask", str(image), "what is it", *model])
    listed = CliRunner().invoke(app, ["draw", "--prompts", str(tmp_path / "prompts.txt"), "-o", str(tmp_path / "many"), *model])
    chosen = CliRunner().invoke(app, ["draw", "a red circle", "-o", str(image), "--dtype", "bfloat16", *model])
    assert [run.exit_code for run in (drawn, asked, listed, chosen)] == [0, 0, 0, 0]
    fits = speed > 1
    assert seen == [torch.bfloat16 if fits else torch.float32] * 3 + [torch.bfloat16]
    for run in (drawn, asked, listed):
        assert (f"Loading in float32: {told}." in run.stderr.splitlines()) == (not fits)
    assert (f"--dtype bfloat16: {told}; give float32, or leave it out." in chosen.stderr.splitlines()) == (not fits)


FAULTS = """
import resource, sys, torch
from vargpt_hf.hardware import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()
torch.zeros(2**24).add_(1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.zeros(2**24).add_(1)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def under_own_allocator(script: str, kind: str) -> int:
    """The number that a script prints where nobody has set glibc's allocator."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    return int(subprocess.run([sys.executable, "-c", script, kind], env=environment, capture_output=True, text=True, check=True).stdout)


def test_freed_memory_is_kept():
    """Large blocks that are freed and allocated again cause no new page faults; under the default settings they do every time."""
    done = {kind: under_own_allocator(FAULTS, kind) for kind in ("kept", "default")}
    assert 5 * done["kept"] < done["default"]


THREADS = """
import sys, threading
from pathlib import Path
import numpy
import vargpt_hf_command
vargpt_hf_command.starting = True  # so that the package leaves importing Transformers for later
from vargpt_hf.hardware import keep_freed_memory, share_freed_memory
assert sys.argv[1] != "shared" or share_freed_memory()
keep_freed_memory()
pages = lambda: int(Path("/proc/self/statm").read_text().split()[1])
before = pages()
alive, turn = threading.Barrier(6), threading.Lock()
def work():
    alive.wait()
    with turn:
        numpy.ones(2**25, numpy.uint8)
    alive.wait()
threads = [threading.Thread(target=work) for _ in range(6)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(pages() - before)
"""


def test_freed_memory_is_shared_by_threads():
    """Six threads that hold 32 MiB one after the other take the room of one; under the default settings each keeps its own."""
    done = {kind: under_own_allocator(THREADS, kind) for kind in ("shared", "default")}
    assert 3 * done["shared"] < done["default"]


@pytest.mark.parametrize("name", ["MALLOC_ARENA_MAX", "LD_PRELOAD", "GLIBC_TUNABLES"])
def test_an_allocator_that_was_chosen_is_left_alone(monkeypatch, name):
    monkeypatch.setenv(name, "")
    assert not hardware.keep_freed_memory() and not hardware.share_freed_memory()


def test_without_cudnn_attention_has_other_kernels():
    before = torch.backends.cuda.cudnn_sdp_enabled()
    try:
        disable_cudnn_attention()
        assert not torch.backends.cuda.cudnn_sdp_enabled() and torch.backends.cuda.mem_efficient_sdp_enabled()
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)
