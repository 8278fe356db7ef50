"""One model and one server of it for the tests of this folder."""

import pytest
from openai import OpenAI
from served import serving

from vargpt_hf import VargptForConditionalGeneration, VargptProcessor
from vargpt_hf.tiny import TINY_FOLDER


@pytest.fixture(scope="session")
def tiny():
    """vargpt-tiny and its processor."""
    model = VargptForConditionalGeneration.from_pretrained(TINY_FOLDER, dtype="float32").eval()
    return model, VargptProcessor.from_pretrained(TINY_FOLDER)


@pytest.fixture(scope="session")
def address(tiny):
    """Of a server with the limits that it has by default, but few images."""
    with serving(*tiny, max_images=3, max_pixels=200_000, max_prompt_chars=5000, max_body_bytes=2**20) as (_, address):
        yield address


@pytest.fixture(scope="session")
def client(address):
    """OpenAI's own client of that server; it tries nothing twice."""
    with OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


def pytest_addoption(parser):
    parser.addoption("--screenshots", metavar="FOLDER", help="where test_browser.py writes the screenshots of docs/demo.md")
