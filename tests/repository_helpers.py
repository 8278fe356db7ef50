"""Runs scripts where this package is not installed."""

import os
import subprocess
import sys
from pathlib import Path


def run_without_package(script: str, tmp_path: Path, *arguments, torchvision: bool = False) -> str:
    """What a script prints last, in a process with transformers, torch and pillow, without vargpt_hf, and without torchvision or beside it."""
    blocked = tmp_path / "blocked" / "vargpt_hf"  # stands before an installed package
    blocked.mkdir(parents=True)
    (blocked / "__init__.py").write_text("raise ImportError('the package must not be needed')\n")
    paths = [str(blocked.parent), *([str(Path(__file__).parent)] if torchvision else [])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    first = "import torchvision_operators" if torchvision else 'import sys; sys.modules["torchvision"] = None'
    # -P: the working directory is no place of modules
    command = [sys.executable, "-P", "-c", f"{first}\n{script}", *map(str, arguments)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]
