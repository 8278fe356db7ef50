"""The policy of the fuzz tests can fail."""

import json

import pytest
from fuzzing import policy

RAW = [KeyError("a"), AttributeError("a"), IndexError("a"), RuntimeError("a"), ZeroDivisionError("a"), ValueError("")]


@pytest.mark.parametrize("error", RAW)
def test_raw_and_wordless_errors_fail(error):
    with pytest.raises((AssertionError, type(error))), policy():
        raise error


def test_errors_of_parsers_are_raw():
    with pytest.raises(AssertionError, match="raw JSONDecodeError"), policy():
        json.loads("{")


def test_hanging_fails():
    with pytest.raises(pytest.fail.Exception, match="still running"), policy(cpu_seconds=0.1):
        while True:
            pass


def test_eating_memory_fails():
    with pytest.raises(AssertionError, match="memory grew"), policy(grown_mib=-1):
        pass


def test_errors_in_words_pass():
    with policy():
        raise FileNotFoundError("no file a.png")
    with policy():
        raise ValueError("`scale` must be positive, got -1.")
