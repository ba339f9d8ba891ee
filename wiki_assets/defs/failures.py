"""Our errors as Dagster's: one line for a person, retried only where waiting may help."""

from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

from wiki_assets.errors import TransientSource, WikiAssetsError


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn an error that we foresee into a step failure that says it, without a traceback of ours."""
    try:
        yield
    except WikiAssetsError as error:
        raise dg.Failure(str(error), allow_retries=isinstance(error, TransientSource)) from error


def may_pass(error: BaseException) -> bool:
    """Whether another attempt could help: a lost worker, a disk or a network, but not damaged data or a bug."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, BaseException):
        return may_pass(cause)
    if isinstance(error, WikiAssetsError):
        return isinstance(error, TransientSource)
    return isinstance(error, OSError) or type(error).__module__.startswith("ray.")


def message_of(error: Exception) -> str:
    """One line for the person who reads it; Ray wraps ours."""
    cause: BaseException = getattr(error, "cause", None) or error
    text = str(cause).strip().splitlines()
    kind = "" if isinstance(cause, WikiAssetsError) else f"{type(cause).__name__}: "
    return kind + (text[0] if text else "")
