"""`vargpt serve` and `vargpt demo` as commands: what is not safe or not there is refused in one line. tests/serving has the rest."""

import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import vargpt_hf.cli
from vargpt_hf.cli import app

PAGE = (Path(__file__).parents[2] / "docs/serving.md").read_text()


@pytest.mark.parametrize("command", ["serve", "demo"])
def test_what_is_not_safe_or_not_there_is_refused_in_one_line(command, monkeypatch):
    def refusal(*arguments):
        monkeypatch.setattr(sys, "argv", ["vargpt", command, *arguments])
        with pytest.raises(SystemExit) as refused:
            vargpt_hf.cli.main()
        return refused.value.code

    monkeypatch.delenv("VARGPT_API_KEY", raising=False)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    assert "there is no API key: set the environment variable VARGPT_API_KEY" in refusal("--host", "0.0.0.0")
    assert "`max_tokens` must be at least 2" in refusal("--max-tokens", "1")
    if command == "serve":
        with socket.create_server(("localhost", 0)) as taken:
            port = str(taken.getsockname()[1])
            assert f"Nobody can listen at localhost:{port}" in refusal("--port", port)
    monkeypatch.setenv("VARGPT_API_KEY", "")
    assert "The API key is empty" in refusal()


@pytest.mark.parametrize(("command", "package", "extra"), [("serve", "fastapi", "serve"), ("demo", "gradio", "demo")])
def test_a_missing_package_is_named(command, package, extra):
    code = f"import sys; sys.modules[{package!r}] = None; from vargpt_hf_command import main; main()"
    done = subprocess.run([sys.executable, "-c", code, command], capture_output=True, text=True)
    assert done.returncode == 1 and package in done.stderr
    assert done.stderr.strip().splitlines()[-1].endswith(f'pip install "vargpt-hf[{extra}]".')


def test_the_page_lists_every_option():
    listed = set(re.findall(r"^\| `(--[a-z-]+)`", PAGE, flags=re.MULTILINE))
    shown = CliRunner().invoke(app, ["serve", "--help"], env={"COLUMNS": "200"}).output
    options = set(re.findall(r"^\s+(?:-m, )?(--[a-z-]+)|, (--[a-z-]+) ", shown, flags=re.MULTILINE))
    assert listed == {name for pair in options for name in pair if name} - {"--help", "--model", "--device", "--dtype"}
