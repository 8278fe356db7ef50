"""What `vargpt` imports, prints and takes before and beside its work."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import vargpt_hf
from vargpt_hf.cli import app

SCRIPT = Path(sys.executable).with_name("vargpt")
COMMANDS = [command.callback.__name__ for command in app.registered_commands]
# Runs the script's own function, and says at the end what was imported, and how much CPU time all of it took.
PROBE = """
import json, sys, time
from vargpt_hf_command import main
code = 0
try:
    main()
except SystemExit as end:
    code = end.code
heavy = sorted({name.partition(".")[0] for name in sys.modules} & {"torch", "transformers", "numpy", "PIL", "trl", "datasets"})
print(json.dumps([code, heavy, time.process_time()]), file=sys.stderr)
"""


def probe(arguments: list[str], **environment: str) -> tuple[int, list[str], float, str]:
    """Exit code, heavy packages that were imported, seconds of CPU time, what was printed."""
    command = [sys.executable, "-c", PROBE, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
    *said, last = done.stderr.splitlines()
    return *json.loads(last), done.stdout + "\n".join(said)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--help"], 0, "one model that understands images"),
        *(([name, "--help"], 0, f"vargpt {name}") for name in COMMANDS),
        (["data", "--help"], 0, "check"),
        (["data", "check", "--help"], 0, "Exits with 1"),
        (["tokenizer", "--help"], 0, "evaluate"),
        (["tokenizer", "train", "--help"], 0, "Prints a plan"),
        (["tokenizer", "evaluate", "--help"], 0, "rFID"),
        (["--version"], 0, f"vargpt-hf {vargpt_hf.__version__}"),
        (["--show-completion", "bash"], 0, ""),
        ([], 2, "Usage:"),
        (["drawe"], 2, "No such command"),
        (["draw", "x", "--nothing"], 2, "No such option"),
        (["draw", "x", "--seed", "x"], 2, "Invalid value"),
        (["draw"], "vargpt: ", "Give either a TEXT"),
        (["draw", "x", "--dtype", "int3"], "vargpt: ", "--dtype is 'int3'"),
        (["draw", "x", "--model", "./nothing"], "vargpt: ", "not a folder"),
    ],
    ids=lambda value: " ".join(value) or "nothing" if isinstance(value, list) else "",
)
def test_help_and_wrong_calls_import_nothing_heavy(arguments, code, said):
    ended, heavy, seconds, printed = probe(arguments)
    if isinstance(code, str):  # a message in place of a number, which Python prints on the way out
        assert ended.startswith(code) and said in ended
    else:
        assert ended == code and said in printed
    assert not set(heavy) - {"PIL"} and seconds < 0.4, (heavy, seconds)


def test_completion_imports_nothing_heavy():
    _, heavy, seconds, printed = probe([], _VARGPT_COMPLETE="complete_bash", COMP_WORDS="vargpt dr", COMP_CWORD="1")
    assert "draw" in printed and not heavy and seconds < 0.4


def test_the_script_names_itself():
    done = subprocess.run([SCRIPT, "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"vargpt-hf {vargpt_hf.__version__}\n", "")


def test_the_public_names_are_all_that_is_shown():
    assert sorted(dir(vargpt_hf)) == sorted([*vargpt_hf.__all__, "__version__"])
    assert all(getattr(vargpt_hf, name).__name__ == name for name in vargpt_hf.__all__)
    with pytest.raises(AttributeError, match="no attribute 'VargptNothing'"):
        vargpt_hf.VargptNothing  # noqa: B018


def test_importing_the_package_registers_its_classes():
    code = """
import vargpt_hf
from transformers import AutoConfig, AutoModelForMultimodalLM
from vargpt_hf.tiny import TINY_FOLDER
print(type(AutoModelForMultimodalLM.from_pretrained(TINY_FOLDER)).__module__)
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "vargpt_hf.modeling.modeling_vargpt\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["draw", "a red circle", "-o", "scene.png"],
        ["draw", "--prompts", "prompts.txt", "-o", "images", "--num-processes", "2"],
        ["ask", "digit.png", "which digit is this"],
        ["info"],
        ["evaluate", "-n", "1"],
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_a_normal_run_says_nothing_but_its_own(arguments, tmp_path):
    """Libraries' warnings and bars of loading: none; bars of our own work are there."""
    from vargpt_hf.tiny.digits import digit_image, load_split

    digit_image(load_split("test")[0][0]).save(tmp_path / "digit.png")
    (tmp_path / "prompts.txt").write_text("a red circle\na blue square\n")
    done = subprocess.run([SCRIPT, *arguments], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = [line.strip() for line in done.stderr.replace("\r", "\n").splitlines() if line.strip()]
    assert all(line.startswith(("Drawing:", "Answering:")) for line in lines), lines
