"""Small packages that all tests of emoji read."""

import pytest
from small_packages import write_packages


@pytest.fixture(scope="session")
def packages(tmp_path_factory):
    return write_packages(tmp_path_factory.mktemp("packages"))
