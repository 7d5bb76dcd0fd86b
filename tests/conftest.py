"""Settings of the whole test suite."""

import os
import resource
from collections.abc import Iterator

import pytest
from hypothesis import settings

os.environ.setdefault("ETR_PLUGINS", "none")  # a plugin of the developer's own must not change the suite

# No deadline: how long an example takes says something about the machine, not about the code. Derandomised: a red test
# is red again on the next run.
settings.register_profile("etr", deadline=None, derandomize=True)
settings.load_profile("etr")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Takes back a limit on file sizes (a disk that fills up) before pytest writes its own next line to a file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        return (yield)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
