"""What fuzz tests share: how many examples run, and the policy that each example must meet."""

import functools
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis.strategies import SearchStrategy

EXAMPLES = 300
THOROUGH_EXAMPLES = 10_000  # pytest -m thorough tests/fuzz


def fuzzed(cost: int = 1, /, **strategies: SearchStrategy) -> Callable:
    """Runs a test with drawn arguments: `EXAMPLES` of them, and `THOROUGH_EXAMPLES` under the marker `thorough`.

    Without the marker the same examples are drawn in every run, but for constants that Hypothesis finds in what has been imported. A test
    whose examples each take a good part of a second draws one in `cost` of these numbers.
    """

    def decorate(test: Callable) -> Callable:
        @pytest.mark.parametrize("examples", [EXAMPLES, pytest.param(THOROUGH_EXAMPLES, marks=pytest.mark.thorough)])
        @functools.wraps(test)
        def run(examples: int) -> None:
            same = examples == EXAMPLES
            number = examples // cost
            chosen = settings(max_examples=number, deadline=None, database=None, derandomize=same, suppress_health_check=list(HealthCheck))
            chosen(given(**strategies)(test))()

        del run.__wrapped__  # pytest would take the drawn arguments for fixtures
        return run

    return decorate


@contextmanager
def policy(cpu_seconds: float = 10.0, grown_mib: float = 1024.0) -> Iterator[None]:
    """Asserts that what runs inside either works or ends in a ValueError, TypeError or OSError with a message.

    Subclasses of ValueError (JSONDecodeError, UnicodeDecodeError) count as raw: nobody has put them into words. It must also end within
    `cpu_seconds` of this process's time and leave the peak of its memory no more than `grown_mib` higher.
    """

    def stop(*_):
        pytest.fail(f"still running after {cpu_seconds} s of CPU time")

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    previous = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
    try:
        yield
    except (ValueError, TypeError, OSError) as error:
        assert type(error) in (ValueError, TypeError) or isinstance(error, OSError), f"raw {type(error).__name__}: {error}"
        assert str(error).strip(), f"{type(error).__name__} without a message"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, previous)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < grown_mib, f"memory grew by {grown:.0f} MiB"
