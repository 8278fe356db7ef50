"""What `.ci/run` makes of the README: its commands, in the environment of a newcomer."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / ".ci/run"
pytestmark = pytest.mark.skipif(not SCRIPT.is_file(), reason="the source archive leaves it out")


def in_script(call: str, **environment: str) -> str:
    """What a function of the script prints."""
    head, _, _ = SCRIPT.read_text().partition("\necho ")
    head = head.replace('"$(dirname "$0")/.."', f'"{ROOT}"')
    done = subprocess.run(["bash", "-c", f"{head}\n{call}"], capture_output=True, text=True, env={**os.environ, **environment})
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(("heading", "command"), [("Install and test", "pytest"), ("Install and draw", "vargpt draw")])
def test_the_commands_are_those_of_the_readme(heading, command):
    found = in_script(f"readme_command '{heading}'")
    assert command in found and "/venv/bin/" in found and ".venv" not in found
    line = next(line for line in found.splitlines() if command in line)
    assert line.split("/venv/bin/")[1] in (ROOT / "README.md").read_text()


def test_a_newcomer_s_environment_is_empty():
    found = in_script("newcomer env", HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1", PIP_RETRIES="3")
    names = {line.partition("=")[0] for line in found.splitlines() if not line.startswith("PIP_")}
    assert names == {"PATH", "HOME"} and "PIP_RETRIES=3" in found
