"""Our errors as Dagster's: one line for a person, retried only where waiting may help."""

import errno
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import dagster as dg

from wiki_assets.defs.recipes import Blocked
from wiki_assets.errors import StoreAway, TransientSource, WikiAssetsError

# What another attempt of the step may get past, after Ray's own retries, and why. Nothing else is tried again: a
# full disk or memory stays full, a bug stays a bug, and where Ray itself is gone (ComputeLost) so is this process's.
TRANSIENT_RAY: Mapping[str, str] = {
    "NodeDiedError": "a node that was evicted or bought back; its tasks find another",
    "WorkerCrashedError": "somebody ended the worker: rows that do so by themselves are found and set aside before",
    "ObjectLostError": "the result went with its node, before it was fetched",
    "ObjectFetchTimedOutError": "the result's node did not send it in time",
    "OwnerDiedError": "who held the result went away",
    "RpcError": "a line within the cluster broke",
}
TRANSIENT_OS: Mapping[int, str] = {
    errno.EIO: "a disk over the network, for a moment",
    errno.ESTALE: "NFS: the folder was replaced behind the handle",
    errno.ETIMEDOUT: "storage over the network",
    errno.ECONNRESET: "the same",
    errno.ECONNREFUSED: "the same, restarting",
    errno.ECONNABORTED: "the same",
    errno.EPIPE: "the same",
    errno.EHOSTUNREACH: "the same",
    errno.ENETUNREACH: "the same",
    errno.EAGAIN: "a lock or a buffer that is taken now",
    errno.EBUSY: "the same",
    errno.EINTR: "a signal came in between",
}


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn an error that we foresee into a step failure that says it, without a traceback of ours."""
    try:
        yield
    except Blocked as error:
        raise dg.Failure(str(error), allow_retries=False) from error
    except WikiAssetsError as error:
        raise dg.Failure(str(error), allow_retries=may_pass(error)) from error


def may_pass(error: BaseException) -> bool:
    """Whether another attempt could help: what is listed above, and a bad moment of the dump server or the store."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, BaseException):
        return may_pass(cause)
    if isinstance(error, WikiAssetsError):
        return isinstance(error, TransientSource | StoreAway)
    if type(error).__module__ == "ray.exceptions":
        return type(error).__name__ in TRANSIENT_RAY
    if isinstance(error, OSError):
        return error.errno in TRANSIENT_OS if error.errno else isinstance(error, ConnectionError | TimeoutError)
    return False


def message_of(error: Exception) -> str:
    """One line for the person who reads it; Ray wraps ours."""
    cause: BaseException = getattr(error, "cause", None) or error
    text = str(cause).strip().splitlines()
    kind = "" if isinstance(cause, WikiAssetsError) else f"{type(cause).__name__}: "
    return kind + (text[0] if text else "")
