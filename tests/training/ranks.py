"""Several processes of one training, on CPUs over gloo."""

import os
import socket
import subprocess
from pathlib import Path

from ready_processes import IMPORTERS, ReadyProcess

# A rank ends itself, with all work done: gloo's threads at times abort a process that ends in the usual way.
PROGRAM = """
import os, sys
import torch
import torch.distributed as dist

{body}

assert dist.get_world_size() == {world_size}
dist.barrier()
dist.destroy_process_group()
sys.stdout.flush()
os._exit(0)
"""


def run_ranks(folder: Path, body: str, *arguments: object, world_size: int = 2, timeout: float = 120) -> list[str]:
    """Runs a program once a rank, with `arguments` in `sys.argv[1:]`; what each rank said.

    The body must start the process group, or have accelerate do so. A rank that fails, or takes longer than `timeout` seconds, as ranks
    do that wait for each other for ever, fails the test with what all of them said.
    """
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    program = folder / "rank.py"
    program.write_text(PROGRAM.format(body=body, world_size=world_size))
    environment = {**os.environ, "MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "WORLD_SIZE": str(world_size)}
    # Not all of sys.path: remote code that a test has loaded adds Transformers' folder of modules to it.
    paths = os.pathsep.join(filter(None, [*map(str, Path(__file__).parents[:2]), os.environ.get("PYTHONPATH")]))
    environment |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    ranks, outputs = [], [folder / f"rank_{rank}.txt" for rank in range(world_size)]
    for rank, output in enumerate(outputs):
        with output.open("w") as file:
            own = {**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            ranks.append(ReadyProcess([program, *arguments], env=own, stdout=file, stderr=subprocess.STDOUT, importer=IMPORTERS[min(rank, 1)]))
    try:
        codes = [process.wait(timeout) for process in ranks]
    except subprocess.TimeoutExpired:
        codes = ["waits for ever"]
    finally:
        for process in ranks:
            process.kill()
            process.wait()
    said = [output.read_text() for output in outputs]
    assert codes == [0] * world_size, "\n".join([str(codes), *said])
    return said
