"""The notebooks run from start to end, and what they show can be seen."""

import base64
import io
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from PIL import Image

FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = {path.stem: nbformat.read(path, as_version=4) for path in sorted(FOLDER.glob("*.ipynb"))}
SHORTENED = {"lora": ("steps = 40", "steps = 2")}  # training, by which the stored pictures were made
READABLE = 240  # pixels: of a drawing of vargpt-tiny, five for each of its own


def images_of(notebook) -> list[Image.Image]:
    """The pictures among the outputs."""
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    shown = [output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    return [Image.open(io.BytesIO(base64.b64decode(data))) for data in shown]


def printed_by(notebook) -> str:
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")


@pytest.fixture(params=NOTEBOOKS)
def executed(request, tmp_path):
    """(name, notebook as stored, the same after it ran in an empty folder)."""
    stored = NOTEBOOKS[request.param]
    notebook = nbformat.from_dict(stored)
    if request.param in SHORTENED:
        (cell,) = [cell for cell in notebook.cells if SHORTENED[request.param][0] in cell.source]
        cell.source = cell.source.replace(*SHORTENED[request.param])
    client = NotebookClient(notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}})
    return request.param, stored, client.execute()


def test_a_notebook_runs_and_shows_what_is_stored(executed):
    name, stored, ran = executed
    assert len(images_of(ran)) == len(images_of(stored)) >= 4
    assert all(image.height >= READABLE for image in images_of(ran))
    if name not in SHORTENED:
        assert printed_by(ran) == printed_by(stored) != ""


def test_there_are_three_stored_with_their_output():
    assert NOTEBOOKS.keys() == {"first_steps", "inside_a_drawing", "lora"}
    for notebook in NOTEBOOKS.values():
        code = [cell for cell in notebook.cells if cell.cell_type == "code"]
        assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
        assert not [output for cell in code for output in cell.outputs if output.get("name") == "stderr"]
