"""docs/serving.md tells the truth: its commands and its code run, asking a server of these tests in place of the one that it starts."""

import os
import re
import subprocess
import sys
from pathlib import Path

from PIL import Image

PAGE = (Path(__file__).parents[2] / "docs/serving.md").read_text()


def blocks(kind):
    return re.findall(rf"^```{kind}\n(.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE)


def test_the_page_s_commands_and_code_run(address, tmp_path, monkeypatch):
    """One after the other in one folder. The first command is what test_load.py does, at another port."""
    first, *commands = blocks("bash")
    assert first == "vargpt serve --port 8000\n" and commands
    monkeypatch.chdir(tmp_path)
    Image.effect_noise((48, 48), 64).convert("RGB").save("scene.png")
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    half = Image.new("L", (48, 48))
    half.paste(255, (24, 0, 48, 48))
    half.save("mask.png")
    for command in commands:
        command = command.replace("http://localhost:8000", address)
        done = subprocess.run(["bash", "-euo", "pipefail", "-c", command], capture_output=True, text=True)
        assert done.returncode == 0 and '"error"' not in done.stdout, (command, done.stdout[-500:], done.stderr)
    names = {"__name__": "__main__"}
    for code in blocks("python"):
        exec(compile(code.replace("http://localhost:8000", address), "serving.md", "exec"), names)
    assert Image.open("circle.png").size == Image.open("edited.png").size == (48, 48)
