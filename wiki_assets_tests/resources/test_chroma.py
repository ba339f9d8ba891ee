"""A store that a killed writer left: what it had begun is taken back, and whoever finds that goes on."""

import pytest
from chromadb.errors import InternalError

from wiki_assets.resources.chroma import patiently

LOCKED = InternalError("Database error: error returned from database: (code: 5) database is locked")


def failing(errors: list[Exception]) -> list[str]:
    """Calls until one ends well; what they were told."""
    told: list[str] = []

    def call() -> list[str]:
        if len(told) < len(errors):
            told.append(str(errors[len(told)]))
            raise errors[len(told) - 1]
        return told

    return patiently(call, within_s=5, every_s=0.01)


def test_a_lock_that_passes_is_waited_for():
    assert len(failing([LOCKED, LOCKED])) == 2


def test_any_other_error_is_raised_at_once():
    with pytest.raises(InternalError, match="malformed"):
        failing([LOCKED, InternalError("database disk image is malformed")])


def test_a_lock_that_stays_is_an_error():
    with pytest.raises(InternalError, match="locked"):
        patiently(lambda: (_ for _ in ()).throw(LOCKED), within_s=0.05, every_s=0.01)
