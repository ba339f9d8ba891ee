"""What Ray workers run in fault tests: real tasks at which something fails. Workers import this module."""

import os
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from wiki_assets import failpoints
from wiki_assets.defs import work
from wiki_assets.files import Manifest

RULES = "failpoints.txt"  # below the data root: what shall fail; a driver's variables do not reach workers that are up


def note_and_wait(note: str, until: str) -> int:
    """Leave this process's id in a file, and wait for another file, which may never come."""
    Path(note).write_text(str(os.getpid()))
    while not Path(until).exists():
        time.sleep(0.01)
    return os.getpid()


def square(number: int) -> int:
    return number * number


def note_and_die(note: str, how: int) -> None:
    """Leave a line in a file, and be gone."""
    with Path(note).open("a") as marks:
        marks.write(f"{os.getpid()}\n")
    os.kill(os.getpid(), how)


def panic() -> None:
    raise failpoints.Panic("called `Option::unwrap()` on a `None` value")


def make_tokens(task: work.Work) -> Manifest:
    with _armed(task):
        return _make_tokens(task)


def try_tokens(task: work.Work, rows: range, without: Collection[int]) -> None:
    with _armed(task):
        _try_tokens(task, rows, without)


def make_embeddings(task: work.Work) -> Manifest:
    with _armed(task):
        return _make_embeddings(task)


def try_embeddings(task: work.Work, rows: range, without: Collection[int]) -> None:
    with _armed(task):
        _try_embeddings(task, rows, without)


_make_tokens, _try_tokens = work.make_tokens, work.try_tokens  # a test puts those above in their place
_make_embeddings, _try_embeddings = work.make_embeddings, work.try_embeddings


@contextmanager
def _armed(task: work.Work) -> Iterator[None]:
    failpoints.arm((Path(task.store.root) / RULES).read_text())
    try:
        yield
    finally:
        failpoints.disarm()
