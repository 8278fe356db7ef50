"""Fixtures of this room's tests."""

import pytest
from processing_helpers import make_processor

from vargpt_hf.processing import VargptProcessor


@pytest.fixture(scope="session")
def processor() -> VargptProcessor:
    return make_processor()
