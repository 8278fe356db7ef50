"""Python programs in processes that begin with everything imported: torch, Transformers, TRL and this package.

    process = ReadyProcess([VARGPT, "draw", "a red circle"], cwd=folder, stdout=PIPE, stderr=STDOUT)
    said, _ = process.communicate()

Importing takes seconds, which are most of what a short command takes. Here one process imports, computes nothing, and forks off itself, once
for each command, one that runs the command's program as its main module, and ends as an interpreter ends. Such a process has a session,
environment, working folder, files and limits of its own, and nothing of the commands before it. What it cannot show is how an interpreter
starts: what importing says, needs, or makes of the environment. Tests of that start interpreters.

A program may start `vargpt` itself. With `vargpt_too` it finds one beside its `sys.executable` that asks the program's own process, which
forks that one off.
"""

import atexit
import gc
import io
import json
import os
import re
import resource
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from functools import cached_property
from importlib import import_module
from pathlib import Path
from subprocess import PIPE, STDOUT, TimeoutExpired
from types import ModuleType
from typing import IO, NoReturn, TextIO

VARGPT = Path(sys.executable).with_name("vargpt")  # of this environment, active or not
# What `vargpt draw`, `encode`, `train` and `tokenizer train` import; the first silences what the others' libraries say while being imported.
IMPORTED = (
    "vargpt_hf_command",
    "vargpt_hf.cli",
    "vargpt_hf.inference.prompts",
    "vargpt_hf.training.codes",
    "vargpt_hf.training.script",
    "vargpt_hf.training.image_tokenizer.script",
    "transformers.models.llava.modeling_llava",  # vargpt-tiny's side that reads
    "transformers.models.llava.processing_llava",
    "pydantic.type_adapter",
)
ENVIRONMENT = dict(os.environ)  # before any test has changed it
# Variables that are read while importing, so that they are those of the process that has imported. Not all that begin so, since libraries that
# tests import set some.
_OF_HUGGING_FACE = r"HF_(HOME|TOKEN|ENDPOINT|HUB_CACHE|HUB_OFFLINE)|TRANSFORMERS_OFFLINE"
_OF_CPUS = r"ATEN_CPU_CAPABILITY|ONEDNN_MAX_CPU_ISA|MKL_ENABLE_INSTRUCTIONS|CUDA_VISIBLE_DEVICES"
_OF_SYSTEMS = r"HOME|TMPDIR|XDG_CACHE_HOME|LD_PRELOAD|MALLOC_\w+|GLIBC_TUNABLES|PYTHONHASHSEED"
READ_WHILE_IMPORTING = re.compile(f"({_OF_HUGGING_FACE}|{_OF_CPUS}|{_OF_SYSTEMS})$")


class Importer:
    """A process that imports, and then waits for commands until the tests end. It is started when it is first asked.

    Args:
        modules: what it imports.
        environment: what it does so in; by default that in which the tests began.
    """

    def __init__(self, modules: Sequence[str] = IMPORTED, environment: Mapping[str, str] = ENVIRONMENT) -> None:
        self.modules, self.environment = modules, environment

    @cached_property
    def address(self) -> str:
        """Where it waits."""
        folder = tempfile.mkdtemp()
        listening, (until, ends) = listen(folder), os.pipe()
        environment = {**self.environment, "OMP_NUM_THREADS": "1"}  # else libraries start threads while being imported: none of a fork's
        environment.pop("PYTHONUNBUFFERED", None)  # each command has its own
        # Shells let what they start in the background ignore SIGINT, which children inherit.
        prepare = {"start_new_session": True, "preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
        command = [sys.executable, __file__, str(listening.fileno()), str(until), *self.modules]
        files = {"pass_fds": [listening.fileno(), until], "stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
        process = subprocess.Popen(command, env=environment, **files, **prepare)
        os.close(until)
        atexit.register(lambda: (os.close(ends), process.wait()))
        address = listening.getsockname()
        listening.close()
        return address


# Two: what the one and the other start gives strings other hashes, as every interpreter does; for processes that work together.
IMPORTERS = (Importer(), Importer())


class ReadyProcess:
    """A program in a process of its own that has imported already; used like `subprocess.Popen`, with text.

    Args:
        command: a Python program's file (such as the script `vargpt`), and its arguments.
        cwd: working folder; this process's by default.
        env: environment; this process's by default. What is read while importing cannot be other than the importer's.
        stdout: a file, or `PIPE` for `communicate` to read; by default what this process writes to.
        stderr: as `stdout`, or `STDOUT`.
        limits: by number, such as `resource.RLIMIT_NOFILE`, the soft and the hard limit.
        importer: the process that has imported.
        vargpt_too: whether `vargpt` is a ready process, too, where the program starts it from beside its `sys.executable`.

    Raises:
        ValueError: if `env` has another value of something that is read while importing.
    """

    def __init__(
        self,
        command: Sequence[object],
        *,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        stdout: IO | int | None = None,
        stderr: IO | int | None = None,
        limits: Mapping[int, tuple[int, int]] | None = None,
        importer: Importer = IMPORTERS[0],
        vargpt_too: bool = False,
    ) -> None:
        self.args, self.returncode = list(map(str, command)), None
        environment = dict(os.environ if env is None else env)
        changed = {name for name, _ in importer.environment.items() ^ environment.items() if READ_WHILE_IMPORTING.match(name)}
        if changed:
            raise ValueError(f"{', '.join(sorted(changed))}: read while importing, so start an interpreter for another value.")
        self._stdout = tempfile.TemporaryFile("w+") if stdout == PIPE else None
        self._stderr = tempfile.TemporaryFile("w+") if stderr == PIPE else None
        out = _number_of(self._stdout or stdout, 1)
        outputs = [out, out if stderr == STDOUT else _number_of(self._stderr or stderr, 2)]
        asked = {"command": self.args, "folder": os.fspath(cwd or os.getcwd()), "environment": environment, "own_session": True}
        asked |= {"limits": [(kind, *limit) for kind, limit in (limits or {}).items()], "vargpt_too": vargpt_too}
        with open(os.devnull) as nothing:
            self._told = ask(importer.address, asked, [nothing.fileno(), *outputs])
        self.pid = _next_number(self._told)

    def poll(self) -> int | None:
        """The exit code, minus a signal's number where that ended it; None while the process runs."""
        try:
            return self.wait(0)
        except TimeoutExpired:
            return None

    def wait(self, timeout: float | None = None) -> int:
        """Waits for the end, at most so many seconds; the exit code."""
        if self.returncode is None:
            if not select.select([self._told], [], [], timeout)[0]:
                raise TimeoutExpired(self.args, timeout)
            self.returncode = _next_number(self._told)
            self._told.close()
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str | None, str | None]:
        """Waits for the end; what was written to stdout and stderr, None where that is no pipe."""
        self.wait(timeout)
        return _all_of(self._stdout), _all_of(self._stderr)

    def send_signal(self, number: int) -> None:
        """Sends a signal to the process, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Ends the process by SIGKILL, unless it has ended."""
        self.send_signal(signal.SIGKILL)


def run(command: Sequence[object], *, timeout: float | None = None, **arguments) -> subprocess.CompletedProcess:
    """Runs a program to its end, as `subprocess.run` does with `capture_output=True, text=True`; see `ReadyProcess`."""
    process = ReadyProcess(command, **{"stdout": PIPE, "stderr": PIPE, **arguments})
    try:
        said = process.communicate(timeout)
    finally:
        process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, *said)


def _number_of(file: IO | int | None, inherited: int) -> int:
    return inherited if file is None else file if isinstance(file, int) else file.fileno()


def _all_of(file: IO | None) -> str | None:
    if file is None:
        return None
    file.seek(0)
    return file.read()


def ask(address: str, asked: dict, files: list[int]) -> IO[bytes]:
    """Asks a process that has imported for a command with these standard files; what it tells: the command's process, its exit code."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        told = connection.makefile("rb", buffering=0)
        socket.send_fds(connection, [json.dumps(asked).encode() + b"\n"], files)
        return told


def _next_number(told: IO[bytes]) -> int:
    line = told.readline()
    assert line, "What has imported, and was to start the command, has ended."
    return int(line)


def pass_on(address: str) -> NoReturn:
    """What the script `vargpt` does that asks a process which has imported: runs the real one there, in the session of who started this."""
    asked = {"command": [str(VARGPT), *sys.argv[1:]], "folder": os.getcwd(), "environment": dict(os.environ)}
    asked |= {"own_session": False, "limits": [], "vargpt_too": False}
    told = ask(address, asked, [0, 1, 2])
    _next_number(told)
    end_as(_next_number(told))


def end_as(code: int) -> NoReturn:
    """Ends this process at once, by the signal that a negative exit code names."""
    if code < 0:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


def listen(folder: str) -> socket.socket:
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(os.path.join(folder, "ready"))
    listening.listen()
    return listening


def serve(listening: socket.socket, until: int) -> dict | None:
    """Forks off a process for each command, which returns what is asked of it, with its standard files open; the process itself returns
    None when the pipe `until` is closed."""
    waiting = []
    while until not in select.select([listening, until], [], [])[0]:
        connection, _ = listening.accept()
        waiting = [process for process in waiting if os.waitpid(process, os.WNOHANG) == (0, 0)]
        waiting.append(os.fork())
        if waiting[-1] == 0:
            listening.close()
            os.close(until)
            asked, files, _, _ = socket.recv_fds(connection, 1 << 20, 3)
            while not asked.endswith(b"\n"):
                asked += connection.recv(1 << 20)
            for number, file in enumerate(files):
                os.dup2(file, number)
                os.close(file)
            command = os.fork()
            if command == 0:
                connection.close()
                return json.loads(asked)
            for number in range(3):
                os.close(number)  # which who reads them waits for
            connection.sendall(b"%d\n" % command)
            connection.sendall(b"%d\n" % os.waitstatus_to_exitcode(os.waitpid(command, 0)[1]))
            os._exit(0)
        connection.close()
    for process in waiting:
        os.waitpid(process, os.WNOHANG)
    return None


def with_vargpt(asked: dict, scratch: str) -> dict:
    """Forks off the process of a program that starts `vargpt`, which returns what is asked of it, and those that it starts so, which return
    what it asks of them. All are in one session, so that signals to its processes reach them, and end with the program."""
    folder = tempfile.mkdtemp(dir=scratch)
    listening, (until, ends) = listen(folder), os.pipe()
    program = os.fork()
    if program:
        os.close(ends)
        return serve(listening, until) or end_as(os.waitstatus_to_exitcode(os.waitpid(program, 0)[1]))
    os.close(until)
    address = listening.getsockname()
    listening.close()
    import_it = f"import sys\nsys.path.insert(0, {os.path.dirname(__file__)!r})\nfrom ready_processes import pass_on\n"
    for name, text in (
        ("python", f'#!/bin/sh\nexec {sys.executable} "$@"\n'),
        ("vargpt", f"#!{sys.executable} -SE\n{import_it}pass_on({address!r})\n"),
    ):
        file = Path(folder, name)
        file.write_text(text)
        file.chmod(0o755)
    sys.executable = os.path.join(folder, "python")
    return asked


def searched(environment: Mapping[str, str]) -> list[str]:
    """The folders of modules that an environment names."""
    return list(filter(None, environment.get("PYTHONPATH", "").split(os.pathsep)))


def unbuffered(file: TextIO) -> TextIO:
    """The same file, to which all is written at once; opened anew, since the object may know things of the file that it had before."""
    return io.TextIOWrapper(open(file.fileno(), "wb", buffering=0, closefd=False), file.encoding, file.errors, write_through=True)


def become(asked: dict, scratch: str) -> None:
    """Makes of this process one that was started as is asked, and runs the command's program as its main module.

    Args:
        scratch: a folder that is removed when the tests end.
    """
    if asked["own_session"]:
        os.setsid()
    if asked["vargpt_too"]:
        asked = with_vargpt(asked, scratch)
    import numpy
    import torch

    environment = asked["environment"]
    os.chdir(asked["folder"])
    os.environ.clear()
    os.environ.update(environment)
    for kind, soft, hard in asked["limits"]:
        resource.setrlimit(kind, (soft, hard))
    if "PYTHONUNBUFFERED" in environment:
        sys.stdin.reconfigure(write_through=True)  # of which nothing follows, but so an interpreter begins
        sys.stdout = unbuffered(sys.stdout)
        sys.stderr = unbuffered(sys.stderr)
    torch.set_num_threads(int(environment.get("OMP_NUM_THREADS", os.cpu_count())))
    numpy.random.seed()  # every interpreter draws these anew; `random` does so itself
    torch.seed()
    sys.argv = asked["command"]
    program = sys.argv[0]
    sys.path[: 1 + len(searched(ENVIRONMENT))] = [os.path.dirname(program), *searched(environment)]
    main = sys.modules["__main__"] = ModuleType("__main__")
    main.__file__ = program
    exec(compile(Path(program).read_bytes(), program, "exec", dont_inherit=True), vars(main))


def import_and_serve(listening: socket.socket, until: int, modules: Sequence[str]) -> None:
    """What an importer does; returns when the tests end, and in the processes of commands when these have run."""
    for name in modules:
        import_module(name)
    gc.collect()
    gc.freeze()  # what was imported, which each process would look through, and copy
    assert threading.active_count() == 1, "threads are left behind by a fork"
    folder = os.path.dirname(listening.getsockname())
    asked = serve(listening, until)
    if asked is None:
        shutil.rmtree(folder)
    else:
        become(asked, folder)


if __name__ == "__main__":
    import_and_serve(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]), sys.argv[3:])
