"""The site: it builds without a warning, its links and pictures lead somewhere, and the figures are what their script draws."""

import importlib.util
import os
import re
import subprocess
import sys
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


class Page(HTMLParser):
    """Links, pictures, ids and the visible text of a page, but for code."""

    def __init__(self, text: str):
        super().__init__()
        self.targets, self.ids, self.words, self.inside = [], set(), [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.targets += [attributes[name] for name in ("href", "src") if attributes.get(name)]
        self.ids |= {attributes[name] for name in ("id", "name") if attributes.get(name)}
        if tag in ("code", "script", "style"):
            self.inside.append(tag)

    def handle_endtag(self, tag):
        if self.inside and self.inside[-1] == tag:
            self.inside.pop()

    def handle_data(self, data):
        if not self.inside:
            self.words.append(data)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", folder]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"})
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stdout + done.stderr
    return {path.relative_to(folder).as_posix(): Page(path.read_text()) for path in folder.rglob("*.html")} | {"": folder}


def test_every_page_is_built_and_in_the_navigation(site):
    pages = {path.relative_to(DOCS).with_suffix("").as_posix() for path in DOCS.rglob("*.md")} - {"index"}
    assert pages == {name.removesuffix("/index.html") for name in site if name.endswith("/index.html")}
    listed = {target.removeprefix("./").rstrip("/") for target in site["index.html"].targets}
    assert pages <= listed


def test_links_and_pictures_lead_somewhere(site):
    for name, page in site.items():
        if name in ("", "404.html"):  # whose links are those of the server's root
            continue
        for target in page.targets:
            path, _, anchor = unquote(unescape(target)).partition("#")
            if "://" in target or target.startswith(("mailto:", "data:")):
                continue
            file = (site[""] / name).parent / path if path else site[""] / name
            file = file / "index.html" if file.is_dir() else file
            assert file.is_file(), f"{name}: {target}"
            if anchor and not anchor.startswith("__"):
                assert anchor in site[file.resolve().relative_to(site[""].resolve()).as_posix()].ids, f"{name}: {target}"


def test_nothing_is_left_of_the_source_s_marks(site):
    """Tables, lists, fences and cross-references of docstrings have become what they stand for."""
    for name, page in site.items():
        if name:
            text = "".join(page.words)
            assert not re.search(r"^\s*(```|:::|\|.*\||- \S)|\*\*\w|\]\(|\[$|::\s*$", text, flags=re.MULTILINE), name


def test_the_reference_has_what_the_package_offers(site):
    from vargpt_hf import __all__ as offered

    found = {anchor for name in site if name.startswith("api/") for anchor in site[name].ids}
    assert set(offered) <= {anchor.rpartition(".")[2] for anchor in found}
    assert "vargpt_hf.modeling.generation_vargpt.VargptGenerationMixin.generate" in found


def test_figures_are_those_that_the_script_draws(tmp_path):
    subprocess.run([sys.executable, DOCS / "concepts/figures.py", tmp_path], check=True)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {path.name for path in (DOCS / "concepts").glob("*.png")} and len(names) == 4
    for name in names:
        drawn, stored = (np.asarray(Image.open(folder / name).convert("RGB"), float) for folder in (tmp_path, DOCS / "concepts"))
        assert drawn.shape == stored.shape and np.abs(drawn - stored).mean() < 3, name


def test_the_drawn_mask_is_the_decoder_s():
    from vargpt_hf import ScaleSchedule
    from vargpt_hf.testing import tiny_model

    found = importlib.util.spec_from_file_location("concept_figures", DOCS / "concepts/figures.py")
    found.loader.exec_module(figures := importlib.util.module_from_spec(found))
    mask = figures.decoder_mask(tiny_model(), ScaleSchedule.of([1, 2]))
    assert mask.tolist() == [[True] + 4 * [False]] + 4 * [5 * [True]]
