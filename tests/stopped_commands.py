"""Commands that run until something that they make is there, and are stopped then with all that they have started."""

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

from ready_processes import STDOUT, ReadyProcess


def run_until(command: Sequence[object], log: Path, end: Path | None, number: signal.Signals) -> tuple[int, str]:
    """A command's exit code and what it said; stopped by a signal, with all that it has started, when a file or folder is there.

    Args:
        command: a Python program's file, which may start `vargpt`, and its arguments.
        log: file that takes what the command says.
        end: the file or folder; None lets the command come to its own end.
    """
    with log.open("w") as file:
        process = ReadyProcess(command, stdout=file, stderr=STDOUT, vargpt_too=True)
    try:
        while process.poll() is None and not (end and end.exists()):
            time.sleep(0.02)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, number)
            process.wait()
    return process.returncode, log.read_text()
