"""Parts of a test in processes of their own, to be killed or to hold what cannot be held twice.

A process that has threads must not fork: a child waits for ever for what a thread held. So a server that never uses
what starts threads imports and loads everything once (`warm`), and forks for each child. What a child does travels to
it as bytes, with this process's environment and what is broken in it on purpose.
"""

import io
import multiprocessing
import os
from collections import ChainMap
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from typing import Any, ClassVar

import cloudpickle

from wiki_assets import failpoints
from wiki_assets.errors import WikiAssetsError

CHILDREN = multiprocessing.get_context("forkserver")
CHILDREN.set_forkserver_preload(["wiki_assets_tests.chaos.warm"])
OK, FORESEEN, OS_ERROR, CRASHED = 0, 3, 4, 5

Broken = Callable[[], AbstractContextManager[Any]]
_planted: list[Broken] = []


@contextmanager
def planted(broken: Broken) -> Iterator[None]:
    """Break the build, here and in every child that is started meanwhile."""
    with broken():
        _planted.append(broken)
        try:
            yield
        finally:
            _planted.pop()


def start(act: Callable[[], object], rules: str | None = None) -> BaseProcess:
    """Do something in another process, with failpoints armed.

    It exits with OK; FORESEEN after an error of ours; OS_ERROR after one of the system's; CRASHED after any other.

    Args:
        act: what to do; it may close over pipes, queues and events of `CHILDREN`.
        rules: failpoints to arm; None leaves them as they are.
    """
    process = CHILDREN.Process(target=_live, args=(_Packed(act, [*_planted]), rules, dict(os.environ)))
    process.start()
    return process


def in_child(act: Callable[[], object], rules: str | None = None) -> int:
    """The same to its end; returns its exit code, a negative number after a signal."""
    process = start(act, rules)
    process.join(120)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise AssertionError(f"{rules}: no end within 120 s")
    return process.exitcode


def found_in_child(act: Callable[[], Any]) -> Any:
    """What a function returns in another process."""
    ours, theirs = CHILDREN.Pipe(duplex=False)
    process = start(lambda: theirs.send(act()))
    theirs.close()
    try:
        assert ours.poll(120), "no answer within 120 s"
        return ours.recv()
    except EOFError:
        raise AssertionError("the other process failed; its error is above") from None
    finally:
        process.join(60)


class _Packed:
    """A function and what is broken, pickled with what they close over; a pair of them when it arrives."""

    def __init__(self, act: Callable[[], object], broken: list[Broken]) -> None:
        self._parts = act, broken

    def __reduce__(self) -> Any:
        out = io.BytesIO()
        _Pickler(out).dump(self._parts)
        return cloudpickle.loads, (out.getvalue(),)


class _Pickler(cloudpickle.Pickler):
    """Takes closures, and pipes too."""

    _of_pipes: ClassVar[Any] = ForkingPickler._extra_reducers  # type: ignore[attr-defined]
    dispatch_table: ClassVar[Any] = ChainMap(_of_pipes, cloudpickle.Pickler.dispatch_table)


def _live(parts: tuple[Callable[[], object], list[Broken]], rules: str | None, environment: dict[str, str]) -> None:
    """The body of a child."""
    os.environ.clear()
    os.environ.update(environment)
    act, all_broken = parts
    if rules is not None:
        failpoints.arm(rules)
    code = OK
    try:
        with ExitStack() as stack:
            for broken in all_broken:
                stack.enter_context(broken())
            act()
    except WikiAssetsError:
        code = FORESEEN
    except OSError:
        code = OS_ERROR
    except BaseException:
        import traceback

        traceback.print_exc()
        code = CRASHED
    os._exit(code)
