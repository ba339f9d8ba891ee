"""Named points at which a test makes this process fail. Without a test they cost a test of a flag.

    WIKI_ASSETS_FAILPOINTS="file.replace=kill@3; tokens.page[117]=segv"

is: die at the third file to be replaced, and at every page 117. A point may be followed by a `[key]`, which must be
the one it is reached with, and by `@n`, its n-th time here and no other.
"""

import ctypes
import errno
import os
import re
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

COMMIT = ("file.create", "file.write", "file.fsync", "file.check", "file.replace", "file.sync_folder", "file.done")
"""The points of the commit protocol, in the order in which each file passes them."""
POINTS = (*COMMIT, "tokens.page", "embeddings.passage", "retention.remove")
"""Every point there is."""


class Panic(BaseException):
    """What a native library raises that no `except Exception` sees, as tiktoken's does."""


def _kill(point: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _segv(point: str) -> None:
    ctypes.string_at(0)


def _no_space(point: str) -> None:
    raise OSError(errno.ENOSPC, "No space left on device", point)


def _io_error(point: str) -> None:
    raise OSError(errno.EIO, "Input/output error", point)


def _raise(point: str) -> None:
    raise RuntimeError(f"failpoint {point}")


def _panic(point: str) -> None:
    raise Panic(f"failpoint {point}")


def _stop(point: str) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)  # until somebody sends SIGCONT


def _hang(point: str) -> None:
    while True:
        time.sleep(3600)


_ACTIONS: Mapping[str, Callable[[str], None]] = {
    "kill": _kill,
    "segv": _segv,
    "enospc": _no_space,
    "eio": _io_error,
    "raise": _raise,
    "panic": _panic,
    "stop": _stop,
    "hang": _hang,
}
_RULE = re.compile(r"(?P<point>[\w.]+)(\[(?P<key>[^\]]*)\])?=(?P<action>\w+)(@(?P<nth>[0-9]+))?")


@dataclass(frozen=True)
class _Rule:
    point: str
    key: str | None
    action: Callable[[str], None]
    nth: int | None


armed = False
"""Whether any point may fail, or is being counted; loops over pages ask this before they name a point."""
hits: Counter[str] = Counter()
"""How often each point was reached since `arm`."""
_rules: list[_Rule] = []


def arm(rules: str) -> None:
    """Set what fails from now on in this process; an empty text only counts what is reached.

    Raises:
        ValueError: if a rule is none.
    """
    global armed
    parsed = []
    for text in filter(None, (part.strip() for part in rules.split(";"))):
        match = _RULE.fullmatch(text)
        if match is None or match["action"] not in _ACTIONS:
            raise ValueError(f"failpoint {text!r}: expected point=action, one of {', '.join(_ACTIONS)}")
        nth = int(match["nth"]) if match["nth"] else None
        parsed.append(_Rule(match["point"], match["key"], _ACTIONS[match["action"]], nth))
    _rules[:] = parsed
    hits.clear()
    armed = True


def disarm() -> None:
    """Let nothing fail any more."""
    global armed
    _rules.clear()
    armed = False


def failpoint(point: str, key: object = None) -> None:
    """Fail here, if a test asked for it."""
    if not armed:
        return
    hits[point] += 1
    for rule in _rules:
        if rule.point == point and rule.key in (None, str(key)) and rule.nth in (None, hits[point]):
            rule.action(point)


if os.environ.get("WIKI_ASSETS_FAILPOINTS"):
    arm(os.environ["WIKI_ASSETS_FAILPOINTS"])
