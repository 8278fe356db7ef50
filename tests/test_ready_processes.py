"""Commands in processes that have imported already: each is what an interpreter would have made of it."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from ready_processes import IMPORTED, IMPORTERS, PIPE, STDOUT, Importer, ReadyProcess, TimeoutExpired, run

# What a process can see of how it was started, and of what has been set since.
STATE = f"""
import {", ".join(IMPORTED)}
import gc, json, locale, logging, multiprocessing, os, random, resource, signal, sys, threading, warnings
import torch

print(json.dumps({{
    "main": [__name__, __file__, sys.argv, sys.modules["__main__"].__dict__ is globals(), type(__spec__).__name__],
    "interpreter": [sys.executable, sys.prefix, str(sys.flags), sys.getrecursionlimit(), sys.path],
    "environment": dict(os.environ),
    "place": [os.getcwd(), os.umask(0o22), os.getsid(0) == os.getpgid(0) == os.getpid()],
    "files": [(file.encoding, file.errors, file.line_buffering, file.write_through) for file in (sys.stdin, sys.stdout, sys.stderr)],
    "open": sorted(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None,
    "stdin": sys.stdin.read(),
    "signals": [str(signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD, signal.SIGPIPE)],
    "limits": [resource.getrlimit(kind) for kind in (resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE)],
    "threads": [torch.get_num_threads(), threading.active_count(), threading.current_thread() is threading.main_thread()],
    "processes": [multiprocessing.get_start_method(), multiprocessing.current_process().name, str(multiprocessing.parent_process())],
    "logging": [logging.root.level, str(logging.root.handlers), logging.getLogger("torchao").level],
    "warnings": [str(entry) for entry in warnings.filters],
    "torch": [str(torch.get_default_dtype()), torch.is_grad_enabled()],
    "starting": vargpt_hf_command.starting,
    "locale": locale.getlocale(),
}}))
"""


def program(folder: Path, text: str) -> Path:
    file = folder / "program.py"
    file.write_text(text)
    return file


def test_a_process_finds_what_an_interpreter_finds(tmp_path):
    file = program(tmp_path, STATE)
    own = {**os.environ, "OMP_NUM_THREADS": "2", "PYTHONPATH": str(tmp_path / "more"), "RANK": "1"}
    limits = {resource.RLIMIT_NOFILE: (200, 300)}
    (tmp_path / "place").mkdir()
    common = {"cwd": tmp_path / "place", "env": own}
    ready = run([file, "a b", 3], limits=limits, **common)

    def prepare() -> None:
        resource.setrlimit(*limits.popitem())
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # shells let what they start in the background ignore it, which children inherit

    files = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "start_new_session": True}
    anew = subprocess.run([sys.executable, file, "a b", "3"], **files, **common, preexec_fn=prepare)
    assert ready.returncode == anew.returncode == 0, ready.stderr + anew.stderr
    found, wanted = json.loads(ready.stdout), json.loads(anew.stdout)
    for name in wanted:
        assert found[name] == wanted[name], name


ENDS = {
    "by itself": ("print('said')", 0, "said\n", ""),
    "with a number": ("import sys; print('said'); sys.exit(3)", 3, "said\n", ""),
    "with a message": ("raise SystemExit('said')", 1, "", "said\n"),
    "by an error": ("print('said'); 1 / 0", 1, "said\n", "Traceback (most recent call last):"),
    "after its functions for that": ("import atexit; atexit.register(print, 'then'); print('said')", 0, "said\nthen\n", ""),
    "after its threads": ("import threading; threading.Timer(0.1, print, ['then']).start(); print('said')", 0, "said\nthen\n", ""),
    "at once, with what it has not written yet": ("import os; print('said'); os._exit(4)", 4, "", ""),
    "by SIGINT": ("import os, signal; os.kill(os.getpid(), signal.SIGINT)", -signal.SIGINT, "", "KeyboardInterrupt"),
    "by SIGTERM": ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM, "", ""),
    "by SIGKILL": ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL, "", ""),
}


@pytest.mark.parametrize("way", ENDS)
def test_a_process_ends_as_an_interpreter_ends(tmp_path, way):
    text, code, said, errors = ENDS[way]
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = run([program(tmp_path, text)], env=buffered)
    assert (done.returncode, done.stdout) == (code, said)
    assert errors in done.stderr and bool(errors) == bool(done.stderr), done.stderr


def test_nothing_is_left_of_the_process_before(tmp_path):
    """Neither what it set, nor its random numbers."""
    text = """
import json, os, random, sys
import numpy, torch, transformers
print([random.random(), numpy.random.random(), torch.rand(1).item()])
print(json.dumps([hasattr(transformers, "mine"), "MINE" in os.environ, torch.get_num_threads()]))
transformers.mine = os.environ["MINE"] = "mine"
torch.set_num_threads(3)
sys.path.clear()
"""
    done = [run([program(tmp_path, text)], env={**os.environ, "OMP_NUM_THREADS": "1"}).stdout.splitlines() for _ in range(2)]
    (first, found), (second, found_again) = (map(json.loads, lines) for lines in done)
    assert all(number != other for number, other in zip(first, second))
    assert found == found_again == [False, False, 1]


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="no list of threads here")
def test_what_imports_has_no_threads_that_a_fork_would_leave_behind(tmp_path):
    """None of the libraries' either, but for the one of pyarrow's allocator, which is made for forks."""
    text = """
import psutil
from pathlib import Path
for process in psutil.Process().parents()[:2]:  # what waits for this one, and what has imported
    print([file.read_text().strip() for file in Path(f"/proc/{process.pid}/task").glob("*/comm") if process.pid != int(file.parent.name)])
"""
    assert set(run([program(tmp_path, text)]).stdout.splitlines()) <= {"[]", "['jemalloc_bg_thd']"}


def test_strings_have_other_hashes_where_another_process_has_imported(tmp_path):
    file = program(tmp_path, "print(hash('a'))")
    first, again, other = (run([file], importer=importer).stdout for importer in (IMPORTERS[0], IMPORTERS[0], Importer(["torch"])))
    assert (first == again) and (other != first or "PYTHONHASHSEED" in os.environ)


def test_what_is_read_while_importing_cannot_be_another(tmp_path):
    with pytest.raises(ValueError, match="HF_HOME: read while importing, so start an interpreter"):
        run([program(tmp_path, "")], env={**os.environ, "HF_HOME": "elsewhere"})
    assert run([program(tmp_path, "")], env={**os.environ, "ANYTHING": "elsewhere"}).returncode == 0


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_process_starts_further_ones(tmp_path, method):
    """Those import the program as `__mp_main__`, and find its functions there."""
    text = """
import multiprocessing, sys
print(__name__, flush=True)
def double(number):
    return 2 * number
if __name__ == "__main__":
    with multiprocessing.get_context(sys.argv[1]).Pool(2) as pool:
        print(pool.map(double, [1, 2]))
"""
    done = run([program(tmp_path, text), method], timeout=60)
    assert done.returncode == 0, done.stderr
    first, *others, said = done.stdout.splitlines()
    assert (first, said) == ("__main__", "[2, 4]") and set(others) == ({"__mp_main__"} if method == "spawn" else set())


def test_it_is_waited_for_and_stopped_as_others_are(tmp_path):
    file = program(tmp_path, "import sys, time; print('said', flush=True); print('no', file=sys.stderr, flush=True); time.sleep(600)")
    with (tmp_path / "log.txt").open("w") as log:
        process = ReadyProcess([file], stdout=log, stderr=STDOUT)
    while "no" not in (tmp_path / "log.txt").read_text():
        assert process.poll() is None
        time.sleep(0.01)
    with pytest.raises(TimeoutExpired):
        process.wait(0.01)
    assert psutil.Process(process.pid).is_running()
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == process.poll() == process.returncode == -signal.SIGTERM
    assert process.communicate() == (None, None) and (tmp_path / "log.txt").read_text() == "said\nno\n"
    process.kill()  # which ended long ago
    process = ReadyProcess([file], stdout=PIPE, stderr=PIPE)
    with pytest.raises(TimeoutExpired):
        process.communicate(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    with pytest.raises(TimeoutExpired):
        run([file], timeout=0.01)


def test_what_is_not_buffered_is_there_at_once(tmp_path):
    text = "import os; print('said'); os._exit(4)"
    assert run([program(tmp_path, text)], env={**os.environ, "PYTHONUNBUFFERED": "1"}).stdout == "said\n"


STARTS = """
import subprocess, sys
from pathlib import Path
vargpt = Path(sys.executable).with_name("vargpt")
done = [subprocess.run([vargpt, "info", *more], capture_output=True, text=True) for more in ([], ["--model", "nothing"])]
print([(each.returncode, len(each.stdout.splitlines()) > 3, each.stderr[:8]) for each in done], flush=True)
subprocess.run([sys.executable, "-c", "import sys; print(sys.executable, sys.argv)", "a b"])
process = subprocess.Popen([vargpt, "draw", "--prompts", "prompts.txt", "-o", "images"])
print(process.wait(), flush=True)
sys.exit(5)
"""


def test_a_program_starts_the_command(tmp_path):
    (tmp_path / "prompts.txt").write_text("a red circle\n")
    done = run([program(tmp_path, STARTS)], cwd=tmp_path, vargpt_too=True)
    assert done.returncode == 5 and "Drawing:" in done.stderr, done.stderr
    assert done.stdout.splitlines() == ["[(0, True, ''), (1, False, 'vargpt: ')]", f"{sys.executable} ['-c', 'a b']", "Saved images", "0"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_program_is_stopped_with_the_command_that_it_has_started(tmp_path, number):
    (tmp_path / "prompts.txt").write_text("a red circle\n" * 2000)
    process = ReadyProcess([program(tmp_path, STARTS)], cwd=tmp_path, vargpt_too=True)
    while not list(tmp_path.glob("images/*.png")):
        assert process.poll() is None
        time.sleep(0.01)
    session = [each for each in psutil.process_iter() if os.getsid(each.pid) == process.pid]
    os.killpg(process.pid, number)
    assert len(session) == 5  # what serves, the program, the script `vargpt`, what draws, and what waits for that
    assert process.wait(60) == -number
    assert not psutil.wait_procs(session, timeout=60)[1]
