"""Our errors as Dagster's: one line for a person, retried only where waiting may help."""

from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

from wiki_assets.errors import StoreLocked, TransientSource, WikiAssetsError


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn an error that we foresee into a step failure that says it, without a traceback of ours."""
    try:
        yield
    except WikiAssetsError as error:
        raise dg.Failure(str(error), allow_retries=isinstance(error, TransientSource | StoreLocked)) from error
