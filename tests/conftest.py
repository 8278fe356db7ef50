"""Fixtures of all rooms' tests."""

import gc
import os
import random

# Before Hugging Face's libraries, which read it once, when they are imported: no test, and nothing that a test starts, looks for the Hub.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["VARGPT_MODEL"] = "vargpt-tiny"  # of commands that name none: the smallest model is the tests'

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from golden_helpers import released_weights, write_released_folder  # noqa: E402

from vargpt_hf import VargptForConditionalGeneration  # noqa: E402
from vargpt_hf.conversion.convert import convert_checkpoint  # noqa: E402

if "PYTEST_XDIST_WORKER" in os.environ:  # one process a core: more threads, here or in what tests start, would wait for each other
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)


def pytest_configure(config):
    config.option.loadscopereorder = False  # by pytest-xdist: files with many tests first, and at the end one process alone with the longest


def pytest_collection_modifyitems(items):
    """Files with long tests come first, so that processes that share the work end at about the same time."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish():
    """What was imported stays, and is looked through no more: every trainer that starts collects all garbage, which took half a second."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup():
    """Every test, and every fixture made for it, draws the same random numbers whatever ran before it in its process."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def golden_folder(tmp_path_factory):
    """The golden weights, converted from a released-format folder; a folder of ours."""
    parent = tmp_path_factory.mktemp("golden")
    source = write_released_folder(parent / "released", released_weights())
    convert_checkpoint(source, parent / "converted")
    return parent / "converted"


@pytest.fixture(scope="session")
def golden_model(golden_folder) -> VargptForConditionalGeneration:
    """The model with the golden weights, in evaluation mode; tests leave it as they find it."""
    return VargptForConditionalGeneration.from_pretrained(golden_folder).eval()
