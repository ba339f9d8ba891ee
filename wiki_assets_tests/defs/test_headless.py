"""What a failed run says on the terminal."""

import dagster as dg
import pytest

from wiki_assets.defs.headless import _failures

ATTEMPTS = dg.RetryPolicy(max_retries=1, delay=0)


@pytest.mark.parametrize("policy", [None, ATTEMPTS], ids=["once", "again"])
@pytest.mark.parametrize(
    ("error", "says"),
    [
        (dg.Failure("no such dump: take another"), "raw_dump: no such dump: take another"),
        (dg.Failure("no room", allow_retries=False), "raw_dump: no room"),
        (ValueError("a bug\nof many lines"), "raw_dump: ValueError: a bug"),
    ],
)
def test_a_failure_says_what_went_wrong_however_often_it_was_tried(
    error: Exception, says: str, policy: dg.RetryPolicy | None
) -> None:
    @dg.asset(retry_policy=policy)
    def raw_dump() -> None:
        raise error

    result = dg.materialize([raw_dump], raise_on_error=False)
    assert list(_failures(result, "raw_dump")) == [says]
