"""What the fault suite is run with."""

import pytest


@pytest.fixture
def chaos_seed(request: pytest.FixtureRequest) -> int:
    """Where the random faults of a test come from."""
    return request.config.getoption("--chaos-seed")


@pytest.fixture
def chaos_tier(request: pytest.FixtureRequest) -> str:
    """`pr`: few faults, in minutes; `nightly`: all of them."""
    return request.config.getoption("--chaos-tier")
