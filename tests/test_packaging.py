"""What is published: the wheel, the source archive, and their metadata."""

import configparser
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_string
from pathlib import Path

import pytest

from vargpt_hf.tiny.shapes import Scene, SceneObject, render

ROOT = Path(__file__).parent.parent
NOT_PUBLISHED = shutil.ignore_patterns(".*", "build", "dist", "runs", "*.egg-info", "__pycache__")


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """The wheel and the source archive, built from a copy of the tree."""
    parent = tmp_path_factory.mktemp("published")
    shutil.copytree(ROOT, parent / "tree", ignore=NOT_PUBLISHED, symlinks=True)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", parent / "dist", parent / "tree"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (wheel,), (source,) = (parent / "dist").glob("*.whl"), (parent / "dist").glob("*.tar.gz")
    return wheel, source


@pytest.fixture(scope="module")
def metadata(archives):
    with zipfile.ZipFile(archives[0]) as wheel:
        (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
        return message_from_string(wheel.read(name).decode())


def test_the_wheel_holds_the_package_and_nothing_else(archives):
    with zipfile.ZipFile(archives[0]) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    folder = ROOT / "src/vargpt_hf"
    wanted = {path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    wanted = {path.relative_to(ROOT / "src").as_posix() for path in wanted} | {"vargpt_hf_command.py", "vargpt_hf/py.typed"}
    examples = {path for path in (ROOT / "examples").rglob("*") if path.suffix in (".py", ".yaml")}
    wanted |= {f"vargpt_hf/{path.relative_to(ROOT).as_posix()}" for path in examples}
    assert names == wanted


def test_the_source_archive_holds_all_that_the_tests_need(archives):
    with tarfile.open(archives[1]) as source:
        names = {name.partition("/")[2] for name in source.getnames()}
    for name in ("README.md", "CHANGELOG.md", "LICENSE", "constraints.txt", "setup.cfg", "pyproject.toml", "src/vargpt_hf/__init__.py"):
        assert name in names
    for name in ("examples/lora.yaml", "docs/drawn.png", "tests/conftest.py", "tests/golden/decoder.safetensors", "benchmarks/__main__.py"):
        assert name in names
    assert not any("__pycache__" in name or name.endswith(".pyc") for name in names)


def test_the_metadata(metadata):
    assert metadata["License-Expression"] == "Apache-2.0" and metadata["License"] is None and metadata["Author"]
    assert not [name for name in metadata.get_all("Classifier") if name.startswith("License")]
    urls = dict(entry.split(", ", 1) for entry in metadata.get_all("Project-URL"))
    assert {"Source", "Issues", "Changelog", "Paper"} <= set(urls) and all(url.startswith("https://") for url in urls.values())
    versions = {name.rsplit(" ", 1)[1] for name in metadata.get_all("Classifier") if re.search(r"Python :: 3\.\d", name)}
    assert {"3.10", "3.11", "3.12"} <= versions and metadata["Requires-Python"] == ">=3.10"
    for name in ("transformers", "trl", "peft"):  # whose ways we rely on
        assert any(re.match(rf"{name}[^;]*<\d", entry) for entry in metadata.get_all("Requires-Dist")), name


def test_every_needed_package_that_tests_pin_is_pinned():
    options = configparser.ConfigParser()
    options.read(ROOT / "setup.cfg")
    listed = "\n".join([options["options"]["install_requires"], *options["options.extras_require"].values()]).lower()
    names = {re.match(r"[\w-]+", line).group().replace("_", "-") for line in listed.split() if re.match(r"[\w-]+", line)} - {"vargpt-hf"}
    pinned = {line.partition("==")[0].lower().replace("_", "-") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line}
    assert names <= pinned, names - pinned


def test_twine_has_no_objection(archives):
    command = [sys.executable, "-m", "twine", "check", "--strict", *archives]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_links_of_the_description_work_away_from_the_repository(metadata):
    """Images and pages are named in full, and are files of this repository."""
    urls = dict(entry.split(", ", 1) for entry in metadata.get_all("Project-URL"))
    owner = urls["Source"].removeprefix("https://github.com/")
    links = re.findall(r"\]\(([^)]+)\)", metadata.get_payload())
    assert links and all(link.startswith("https://") for link in links)
    images = f"https://raw.githubusercontent.com/{owner}/main/"
    ours = [link.removeprefix(start) for start in (images, f"{urls['Source']}/blob/main/") for link in links if link.startswith(start)]
    assert len(ours) > 5 and all((ROOT / name).is_file() for name in ours)
    assert all(link.startswith(images) for link in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", metadata.get_payload()))


def test_readme_s_training_command_works_from_the_wheel_in_any_folder(archives, tmp_path):
    with zipfile.ZipFile(archives[0]) as wheel:
        wheel.extractall(tmp_path / "installed")
    (tmp_path / "elsewhere/my-images").mkdir(parents=True)
    for number, colour in enumerate(("red", "blue")):
        file = tmp_path / f"elsewhere/my-images/{number}.png"
        render(Scene((SceneObject("circle", colour, "large", (1, 1)),))).save(file)
        file.with_suffix(".txt").write_text(f"a {colour} circle")
    (line,) = re.findall(r"^vargpt (train .*)$", (ROOT / "README.md").read_text(), flags=re.MULTILINE)
    assert line == "train examples/lora.yaml --train_data ./my-images --output_dir ./mine"
    code = "import vargpt_hf_command; print(vargpt_hf_command.__file__); vargpt_hf_command.main()"
    command = [sys.executable, "-c", code, *line.split(), "--max_steps", "1", "--sample_prompts", "a red circle"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "installed")}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path / "elsewhere", env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(tmp_path / "installed"))
    assert (tmp_path / "elsewhere/mine/adapter_model.safetensors").is_file()
