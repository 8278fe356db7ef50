"""README and docs/ tell the truth: Python runs, commands take the options shown, links lead somewhere, the tree lists every file."""

import os
import re
import shlex
import subprocess
import sys
from collections import Counter
from itertools import dropwhile
from pathlib import Path

import pytest
import typer
import yaml
from typer.testing import CliRunner

from vargpt_hf.cli import app
from vargpt_hf.modeling.configuration_vargpt import IMAGE_TOKENIZERS, VISUAL_DECODERS
from vargpt_hf.modeling.image_sampling_vargpt import GUIDANCE_TYPES
from vargpt_hf.tiny.shapes import Scene, SceneObject, render

ROOT = Path(__file__).parent.parent
FOLDERS = {"README.md": ROOT, "CONTRIBUTING.md": ROOT}  # of pages outside of docs/
DOCS = {name: (ROOT / name).read_text() for name in FOLDERS}
DOCS |= {path.relative_to(ROOT / "docs").as_posix(): path.read_text() for path in sorted((ROOT / "docs").rglob("*.md"))}
README = DOCS["README.md"]
# Pages whose blocks another test runs.
RUN_ELSEWHERE = {
    "any_vlm.md": "tests/examples/test_any_vlm_page.py",
    "emoji.md": "tests/emoji/test_emoji_page.py",
    "image_tokenizer.md": "tests/training/image_tokenizer/test_tokenizer_command.py",
    "serving.md": "tests/serving/test_serving_docs.py",
    "tour.md": "tests/hub/test_tour.py",
}
# Blocks that cannot run offline, by page, with the word after their fence that says why.
NOT_RUN = {"vargpt_v1_1.md": {"weights": 1}}
# Pages whose commands are only parsed here, as `test_shell_commands_exist_and_take_these_options` does with all, and why that must do.
COMMANDS_NOT_RUN = {
    "CONTRIBUTING.md": "they run all tests; .ci/run does the same",
    "README.md": ".ci/run runs those that install; tests/test_packaging.py trains",
    "converting.md": "released weights of gigabytes; tests/conversion has small ones in their formats",
    "evaluation.md": "minutes to hours, and data sets that are not here; tests/evaluation has small ones",
    "lora.md": "README's command, which tests/test_packaging.py runs",
    "multi_node.md": "several machines and GPUs; tests/training has several processes",
    "notebooks.md": "stores them anew; tests/test_notebooks.py runs them",
    "paper_scale.md": "released weights of gigabytes; tests/test_paper_scale.py runs the stages at a small size",
    "releasing.md": "tests/test_packaging.py builds and checks; .ci/run installs",
    "vargpt_v1_1.md": "released weights of gigabytes; tests/hub/test_v11_whole_way.py converts small ones",
}
COMMANDS_RUN_ELSEWHERE = {"demo.md": "tests/serving/test_page_processes.py"} | {
    name: test for name, test in RUN_ELSEWHERE.items() if name != "tour.md"
}
# Blocks of other kinds than Python, bash and YAML: what is shown, and what reads it.
OTHER_BLOCKS = {
    "any_vlm.md": {"text": "what a command prints; the page's test reads it"},
    "architecture.md": {"text": "a drawing of parts", "text tree": "test_the_tree_lists_every_file"},
    "deploying.md": {"dockerfile": "tests/serving/test_serving_docs.py runs its last command", "text": "needs Docker"},
}
REPOSITORY = "https://github.com/vargpt-hf/vargpt-hf/blob/main/"
TREE_ROOTS = ("src", "examples", "benchmarks")


def python_blocks(text: str) -> list[tuple[str, str]]:
    """(word after the fence, code) of every block of Python."""
    return re.findall(r"^```python(?: ([^\n]*))?\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)


RUN_HERE = [name for name, text in DOCS.items() if name not in RUN_ELSEWHERE and any(not word for word, _ in python_blocks(text))]


@pytest.fixture
def tables():
    """What a page adds to the tables of parts is gone after it."""
    for table in (found := (IMAGE_TOKENIZERS, VISUAL_DECODERS, GUIDANCE_TYPES)):
        assert table, "an emptied table"
    before = [dict(table) for table in found]
    yield
    for table, entries in zip(found, before):
        table.clear()
        table.update(entries)


@pytest.mark.parametrize("page", RUN_HERE)
def test_python_runs(page, tables, tmp_path, monkeypatch):
    """The blocks of a page run one after the other, as somebody reads them, in one folder."""
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    for word, code in python_blocks(DOCS[page]):
        compiled = compile(code, page, "exec")
        if not word:
            exec(compiled, names)


def test_blocks_that_are_not_run_are_listed_with_the_reason():
    found = {name: dict(Counter(word for word, _ in python_blocks(text) if word)) for name, text in DOCS.items()}
    assert {name: words for name, words in found.items() if words} == NOT_RUN
    assert all((ROOT / test).is_file() for test in RUN_ELSEWHERE.values())


def test_readme_s_quick_start_shows_what_it_says(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(compile(python_blocks(README)[0][1], "README.md", "exec"), {})
    said, answer = capsys.readouterr().out.splitlines()
    assert said == "['an image', 'a red circle above a blue square']" and answer.strip() == "a red circle"


def shell_commands(text: str) -> list[list[str]]:
    """The words of every command in blocks of bash, without variables set before it; `&&` and the end of a line end a command."""
    blocks = re.findall(r"^ *```bash\n(.*?)^ *```$", text, flags=re.DOTALL | re.MULTILINE)
    lines = "".join(blocks).replace("\\\n", " ").replace("&&", "\n").splitlines()
    commands = [list(dropwhile(re.compile(r"[A-Z_]+=").match, shlex.split(line, comments=True))) for line in lines]
    return [words for words in commands if words]


@pytest.mark.parametrize("page", [name for name, text in DOCS.items() if shell_commands(text)])
def test_shell_commands_exist_and_take_these_options(page):
    """`vargpt` commands are parsed, not run; files of this repository that a command names are there."""
    for words in shell_commands(DOCS[page]):
        for name in (word for word in words if word.startswith(("examples/", "notebooks/", "tests/", ".ci/"))):
            assert list(ROOT.glob(name)), " ".join(words)
        if Path(words[0]).name != "vargpt":
            continue
        command, rest = typer.main.get_command(app), words[1:]
        while rest and hasattr(command, "commands"):
            assert rest[0] in command.commands, " ".join(words)
            command, rest = command.commands[rest[0]], rest[1:]
        command.make_context(words[0], rest)


@pytest.mark.parametrize("page", ["start.md", "asking.md"])
def test_commands_run(page, tmp_path, monkeypatch):
    """In one folder, which the page before it left an image in; what installs the package runs in .ci/run."""
    monkeypatch.chdir(tmp_path)
    if page == "asking.md":
        render(Scene((SceneObject("circle", "red", "large", (0, 0)), SceneObject("square", "blue", "large", (1, 0))))).save("scooter.png")
    ran = [words[1:] for words in shell_commands(DOCS[page]) if words[0] == "vargpt"]
    assert ran
    for arguments in ran:
        done = CliRunner().invoke(app, arguments, input="what can you do\n")
        assert done.exit_code == 0, (arguments, done.output, done.exception)


@pytest.mark.slow
def test_the_prompts_page_s_commands_run(tmp_path):
    (block,) = re.findall(r"^```bash\n(.*?)^```$", DOCS["prompts.md"], flags=re.DOTALL | re.MULTILINE)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    subprocess.run(["bash", "-euo", "pipefail", "-c", block], cwd=tmp_path, env={**os.environ, "PATH": path}, check=True)
    assert len(list((tmp_path / "images").glob("*.png"))) == 2


def test_every_block_is_run_or_listed_with_the_reason():
    """Python's blocks have a list of their own, and those of YAML are read below."""
    with_commands = {name for name, text in DOCS.items() if shell_commands(text)}
    run = {"start.md", "asking.md", "prompts.md"} | COMMANDS_RUN_ELSEWHERE.keys()
    assert with_commands == run | COMMANDS_NOT_RUN.keys() and not run & COMMANDS_NOT_RUN.keys()
    assert all((ROOT / test).is_file() for test in COMMANDS_RUN_ELSEWHERE.values())
    opened = {name: re.findall(r"^ *```(.*)\n(?:.*\n)*?^ *```$", text, flags=re.MULTILINE) for name, text in DOCS.items()}
    other = {name: {kind for kind in kinds if kind.split()[:1] not in (["python"], ["bash"], ["yaml"])} for name, kinds in opened.items()}
    assert {name: kinds for name, kinds in other.items() if kinds} == {name: set(kinds) for name, kinds in OTHER_BLOCKS.items()}


@pytest.mark.parametrize("page", [name for name, text in DOCS.items() if "```yaml" in text])
def test_yaml_can_be_read(page):
    for block in re.findall(r"^```yaml\n(.*?)^```$", DOCS[page], flags=re.DOTALL | re.MULTILINE):
        assert yaml.safe_load(block)


def test_issue_forms_can_be_filled_in():
    forms = {path.stem: yaml.safe_load(path.read_text()) for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")}
    assert forms.pop("config")["blank_issues_enabled"] and len(forms) == 3
    for form in forms.values():
        assert form["name"] and form["description"] and any(field["validations"]["required"] for field in form["body"][:1])
        assert len({field["id"] for field in form["body"]}) == len(form["body"])


def test_the_changelog_keeps_its_form():
    """That of keepachangelog.com: a section for each version, of six kinds of changes."""
    text = (ROOT / "CHANGELOG.md").read_text()
    versions = re.findall(r"^## (.*)$", text, flags=re.MULTILINE)
    assert versions[0] == "Unreleased" and all(re.match(r"\d+\.\d+\.\d+", version) for version in versions[1:])
    assert set(re.findall(r"^### (.*)$", text, flags=re.MULTILINE)) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_readme_is_short_and_in_order():
    assert len(README.splitlines()) < 200
    headings = re.findall(r"^## (.*)$", README, flags=re.MULTILINE)
    wanted = ["Install and draw", "Quick start", "Pipelines and the Hub", "Train", "Documentation", "Limits", "Install and test"]
    assert [heading for heading in headings if heading in wanted] == wanted


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_options_of_examples_exist(example):
    """Those of the command in an example's docstring, and of its commands in the docs."""
    text = example.read_text()
    commands = [line for page in (text, *DOCS.values()) for line in re.findall(rf"examples/{example.name}([^`\n]*)", page)]
    assert commands
    for option in re.findall(r"--[\w-]+", " ".join(commands)):
        assert f'"{option}"' in text, option


TIMES = r"\b(?:[\d.]+|two|three|few) (?:s|ms|seconds|minutes|hours)\b|\| (?:seconds|minutes) \|"


@pytest.mark.parametrize("page", [name for name, text in DOCS.items() if re.search(TIMES, text)])
def test_what_takes_time_names_the_cpu(page):
    assert re.search("Xeon|EPYC", DOCS[page])


@pytest.mark.parametrize("page", DOCS)
def test_links_lead_somewhere(page):
    folder = FOLDERS.get(page, (ROOT / "docs" / page).parent)
    for target in re.findall(r"\]\(([^)\s]+)\)", DOCS[page]):
        if target.startswith(REPOSITORY):
            assert (ROOT / target.removeprefix(REPOSITORY)).exists(), target
        elif "://" not in target and not target.startswith("#"):
            assert (folder / target.partition("#")[0]).exists(), target


def test_every_page_is_in_the_table_of_contents():
    listed = set(re.findall(r"\]\(([\w./]+\.md)\)", DOCS["index.md"]))
    assert {name for name in listed if not name.startswith("../")} == DOCS.keys() - {*FOLDERS, "index.md"}


def tree() -> set[str]:
    """Files of the line-a-file tree, by their paths."""
    (block,) = re.findall(r"^```text tree\n(.*?)^```$", DOCS["architecture.md"], flags=re.DOTALL | re.MULTILINE)
    files, folders = set(), []
    for line in block.splitlines():
        name = line.split()[0]
        depth = (len(line) - len(line.lstrip())) // 2
        folders = [*folders[:depth], name]
        if not name.endswith("/"):
            files.add("".join(folders))
    return files


def test_the_tree_lists_every_file():
    """All but what only marks a folder as a package, and the link from src/ to examples/."""
    found = (path.relative_to(ROOT) for root in TREE_ROOTS for path in (ROOT / root).rglob("*") if path.suffix in (".py", ".yaml"))
    files = {path.as_posix() for path in found if path.name != "__init__.py" and path.parts[:3] != ("src", "vargpt_hf", "examples")}
    assert tree() - {"src/vargpt_hf/__init__.py"} == files
