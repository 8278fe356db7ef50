"""docs/serving.md tells the truth: its commands and its code run, asking a server of these tests in place of the one that it starts."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from noise_images import noise_image
from PIL import Image
from served import ask, vargpt

from vargpt_hf.tiny import TINY_FOLDER, TINY_NAME

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "serving.md").read_text()
GUARDED = "VARGPT_API_KEY=secret vargpt serve --host 0.0.0.0 --model ./my-vargpt\n"


def blocks(kind, text=PAGE):
    return re.findall(rf"^```{kind}\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)


def test_the_page_s_commands_and_code_run(address, tmp_path, monkeypatch):
    """One after the other in one folder, but for those that start servers: test_load.py, the test below and test_ray_serve.py do that."""
    first, *commands, guarded, ray = blocks("bash")
    assert first == "vargpt serve --port 8000\n" and ray.startswith("python examples/ray_serve.py") and guarded == GUARDED
    assert len(commands) == 3
    monkeypatch.chdir(tmp_path)
    noise_image(0).save("scene.png")
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    half = Image.new("L", (48, 48))
    half.paste(255, (24, 0, 48, 48))
    half.save("mask.png")
    for command in commands:
        command = command.replace("http://localhost:8000", address)
        done = subprocess.run(["bash", "-euo", "pipefail", "-c", command], capture_output=True, text=True)
        assert done.returncode == 0 and '"error"' not in done.stdout, (command, done.stdout[-500:], done.stderr)
    assert done.stdout.endswith("data: [DONE]\n\n") and done.stdout.count("data: ") > 5
    names = {"__name__": "__main__"}
    for code in blocks("python"):
        code = code.replace("http://localhost:8000", address).replace("vargpt-emoji", TINY_NAME)
        exec(compile(code, "serving.md", "exec"), names)
    assert Image.open("turtle.png").size == Image.open("edited.png").size == (48, 48)


def commands_for_others():
    """The words of the commands that let others in, at a free port: the page's, and the container's of docs/deploying.md."""
    (dockerfile,) = blocks("dockerfile", (DOCS / "deploying.md").read_text())
    container = json.loads(re.search(r"^CMD (.*)$", dockerfile, flags=re.MULTILINE)[1])
    for words in (shlex.split(GUARDED)[1:], container):
        assert words[:4] == ["vargpt", "serve", "--host", "0.0.0.0"]
        yield [*words[1:], "--port", "0"]


@pytest.mark.parametrize("arguments", commands_for_others(), ids=["page", "container"])
def test_whoever_lets_others_in_needs_a_key(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VARGPT_API_KEY", raising=False)
    (tmp_path / "my-vargpt").symlink_to(TINY_FOLDER)
    script = Path(sys.executable).with_name("vargpt")
    done = subprocess.run([script, *arguments], capture_output=True, text=True)
    assert done.returncode == 1 and "there is no API key: set the environment variable VARGPT_API_KEY" in done.stderr
    process, address = vargpt(*arguments, VARGPT_API_KEY="secret")
    try:
        address = address.replace("0.0.0.0", "127.0.0.1")
        assert ask(address, "/v1/models")[0] == 401
        assert ask(address, "/v1/models", headers={"Authorization": "Bearer secret"})[0] == 200
    finally:
        process.kill()
        process.communicate()
