"""Work on a folder that several processes share and that resumes where it stopped: files are complete, and nothing is done twice."""

import json
import os
import secrets
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children, get_context, parent_process
from pathlib import Path
from typing import Any, TypeVar

import torch

Item = TypeVar("Item")


def write_whole(file: Path, write: Callable[[Path], Any]) -> None:
    """Lets a file, or a new folder, appear when it is whole; a process that is killed leaves a hidden one (see `remove_unfinished`).

    Raises:
        OSError: it cannot be written, for example because the disk is full; nothing is left of it.
    """
    unfinished = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    try:
        write(unfinished)
        os.replace(unfinished, file)
    except BaseException as error:  # an interrupt, too
        if unfinished.is_dir():
            shutil.rmtree(unfinished, ignore_errors=True)
        else:
            unfinished.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror or str(error), str(file)) from error
        raise


def remove_unfinished(folder: Path, ending: str) -> None:
    """Removes what killed processes left of files with this ending; none may be at work there any more."""
    for unfinished in folder.glob(f".*{ending}.*"):
        unfinished.unlink(missing_ok=True)


def claim_folder(folder: Path, manifest: str, job: dict[str, Any], holds: str) -> None:
    """Notes in a new folder what its files are made of, or checks that an earlier run made it of the same.

    Processes that start together may claim the same folder.

    Args:
        manifest: name of the file with that note.
        job: what the files are made of, as JSON can hold it.
        holds: what the files are, for messages.

    Raises:
        ValueError: a folder made of something else, or one with other things in it.
    """
    file, job = folder / manifest, json.loads(json.dumps(job))  # as the note will hold it
    # Listed before the note is looked for: with the note, which comes first, another process may just have made all of them.
    others = [path.name for path in folder.iterdir() if not path.name.startswith(".")] if folder.exists() else []
    if file.is_file():
        found = json.loads(file.read_text())
        if different := {name: (found.get(name), value) for name, value in job.items() if found.get(name) != value}:
            listed = ", ".join(f"{name} {there} (here {here})" for name, (there, here) in different.items())
            raise ValueError(f"{folder} holds {holds} of something else: {listed}. Choose another folder, or delete this one.")
        return
    if others:
        raise ValueError(f"{folder} is there and holds no {holds}: choose another folder.")
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(file, lambda path: path.write_text(json.dumps(job, indent=2) + "\n"))


def device_of(device: str, number: int) -> str:
    """The device of one of several processes: of "cuda" each takes the next GPU."""
    return f"cuda:{number % torch.cuda.device_count()}" if device == "cuda" else device


def run_each(
    task: Callable[[Item], Any], items: Sequence[Item], num_processes: int, prepare: Callable[[int], None]
) -> Iterator[tuple[Item, Any]]:
    """Does a task for each item, here or in processes; yields items with results as they are done.

    Args:
        task: the work on one item; a function of a module, or a `partial` of one.
        num_processes: 1 works here; more are started anew, each with its share of this process's threads.
        prepare: called once with the process's number, from 0, in every process before its first task.

    Raises:
        ChildProcessError: a process was killed, for example for want of memory.
    """
    num_processes = min(num_processes, len(items))
    if num_processes == 1:
        prepare(0)
    if num_processes <= 1:
        for item in items:
            yield item, task(item)
        return
    context = get_context("spawn")
    counter, threads = context.Value("i", 0), max(1, torch.get_num_threads() // num_processes)
    with ProcessPoolExecutor(num_processes, context, initializer=_begin, initargs=(prepare, counter, threads)) as pool:
        futures = {pool.submit(task, item): item for item in items}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except (KeyboardInterrupt, SystemExit, GeneratorExit):  # a signal, or an error of the caller's: do not wait for what is being done
            for process in active_children():
                process.terminate()
            raise
        except BrokenProcessPool as error:
            raise ChildProcessError(
                f"One of {num_processes} processes ended before its work (killed, perhaps for want of memory). What is done stays: run "
                "again to resume, perhaps with fewer processes or smaller batches."
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)  # after an error, do not first do all the rest


def _begin(prepare: Callable[[int], None], counter: Any, threads: int) -> None:
    """The start of a process of `run_each`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent, which gets it too, ends this process
    # A parent that is killed cannot stop its processes; without this they would wait forever.
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    with counter.get_lock():
        number, counter.value = counter.value, counter.value + 1
    prepare(number)


def _end_with_parent() -> None:
    parent_process().join()
    os._exit(1)
