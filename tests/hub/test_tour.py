"""docs/tour.md works word for word: every block in a process of its own, against a Hub on this machine."""

import re
from pathlib import Path

import pytest
from fake_hub import FakeHub
from PIL import Image
from ready_processes import Importer, run

from vargpt_hf.tiny.judges import detect

TOUR = (Path(__file__).parents[2] / "docs" / "tour.md").read_text()
# What every block imports, most of all the second one, which runs without this package.
IMPORTED = ("torch", "transformers.pipelines", "transformers.models.llava.modeling_llava", "transformers.models.llava.processing_llava")
WITHOUT_PACKAGE = "import sys; sys.modules['vargpt_hf'] = None\n"


def sections():
    """(number, Python block) of every block, in order."""
    for section in re.split(r"^## ", TOUR, flags=re.MULTILINE)[1:]:
        for block in re.findall(r"^```python\n(.*?)^```$", section, flags=re.DOTALL | re.MULTILINE):
            yield int(section[0]), block


@pytest.fixture(scope="module")
def tour(tmp_path_factory):
    """The folder after the tour, and what each block printed."""
    folder = tmp_path_factory.mktemp("tour")
    printed = []
    with FakeHub() as hub:
        importer = Importer(IMPORTED, hub.environment(folder / "home"))
        for number, block in sections():
            script = WITHOUT_PACKAGE + block if "vargpt_hf" not in block else block
            assert (script is block) == (number in (1, 3, 4))
            (folder / "block.py").write_text(script)
            done = run([folder / "block.py"], cwd=folder, env=importer.environment, importer=importer, timeout=300)
            assert done.returncode == 0, f"section {number}:\n{done.stderr}"
            printed.append(done.stdout)
    return folder, printed


def seen(file):
    return [(item.colour, item.shape) for item in sorted(detect(Image.open(file)), key=lambda item: item.centre[1])]


def test_it_draws_and_answers(tour):
    folder, printed = tour
    assert seen(folder / "scene.png") == [("red", "circle"), ("blue", "square")]
    assert printed[1].splitlines() == ["a red circle above a blue square", "[{'type': 'text', 'text': 'a red circle'}]"]
    assert Image.open(folder / "seven.png").size == (48, 48)


def test_the_adapter_draws_the_same_everywhere(tour):
    folder, _ = tour
    (sun,) = detect(Image.open(folder / "sun.png"))
    assert (sun.colour, sun.shape) == ("yellow", "circle") and sun.centre[0] > 32 and sun.centre[1] < 16
    for other in ("sun-again.png", "sun-from-the-hub.png"):
        assert Image.open(folder / other).tobytes() == Image.open(folder / "sun.png").tobytes()
