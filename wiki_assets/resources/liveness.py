"""Whether the Ray that this process has joined still answers; and leaving it when it does not.

A driver whose head is gone waits for a minute and then leaves without a word: no Python exception, so Dagster shows
its run as started for ever. So whoever waits for Ray looks after the head meanwhile, and fails in time.

Asking through Ray would wait with it. The head is asked for the first frame of HTTP/2 instead, which any gRPC server
sends by itself: a head that is stopped, or on a machine that is gone, accepts a connection but sends nothing.

Source: RFC 9113, sections 3.4 (connection preface) and 6.5 (SETTINGS).
"""

import atexit
import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from wiki_assets.errors import ComputeLost, Overdue, WikiAssetsError

if TYPE_CHECKING:
    import psutil

T = TypeVar("T")

EVERY_S = 3.0
PATIENCE_S = 12.0  # of silence; Ray's own driver gives up after 60 s, and takes the process with it
KNOCK_S = 3.0
CALL_S = 120.0  # one question to Ray
LEAVE_S = 20.0
_CENSUS_S = 15.0
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes.fromhex("000000 04 00 00000000")  # and empty settings
_SETTINGS = 4
_CORE = {"gcs_server", "raylet"}  # without these nothing of a Ray goes on

logger = logging.getLogger(__name__)


def answers(address: str, timeout_s: float = KNOCK_S) -> bool:
    """Whether a gRPC server at `HOST:PORT` speaks.

    With TLS it would want a handshake first; there it is enough that somebody listens.
    """
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=timeout_s) as line:
            if os.environ.get("RAY_USE_TLS") == "1":
                return True
            line.settimeout(timeout_s)
            line.sendall(_PREFACE)
            frame = line.recv(9)
            return len(frame) > 3 and frame[3] == _SETTINGS
    except (OSError, ValueError):
        return False


@dataclass
class Watch:
    """Looks after a Ray head while somebody waits for its tasks.

    Attributes:
        address: of the head, `HOST:PORT`.
        answers: knocks there.
        clock: seconds.
        here: the processes of that Ray that this process has started; none where it joined a cluster.
    """

    address: str
    answers: Callable[[str], bool] = answers
    clock: Callable[[], float] = time.monotonic
    here: "LocalProcesses | None" = None
    every_s: float = EVERY_S
    patience_s: float = PATIENCE_S
    _last_look: float | None = field(default=None, init=False)
    _silent_since: float | None = field(default=None, init=False)

    def check(self) -> None:
        """Knock, if it is time to; cheap when called often.

        Raises:
            ComputeLost: if the head has been silent for `patience_s`, or one of our own Ray's two cores has ended.
        """
        now = self.clock()
        if self._last_look is not None and now - self._last_look < self.every_s:
            return
        self._last_look = now
        if self.here is not None and (ended := self.here.look(now)):
            raise ComputeLost(f"this machine's Ray has lost its {ended}: {_AGAIN}")
        if self.answers(self.address):
            self._silent_since = None
            return
        self._silent_since = now if self._silent_since is None else self._silent_since
        silent_s = self.clock() - self._silent_since
        if silent_s >= self.patience_s:
            raise ComputeLost(f"Ray's head at {self.address} has not answered for {silent_s:.0f} s: {_AGAIN}")

    def during(self, call: Callable[[], T], within_s: float = CALL_S) -> T:
        """Return what `call` returns, as long as the head is there; for what asks the head, and would wait with it.

        Raises:
            ComputeLost: if the head is lost meanwhile, or the call fails because it is.
            Overdue: if the call takes longer than `within_s`.
        """
        answer = _InThread(call)
        deadline = self.clock() + within_s
        while not answer.wait(0.5):
            self.check()
            if self.clock() > deadline:
                raise Overdue(
                    f"Ray at {self.address} took longer than {within_s:,.0f} s over one question, though its head is "
                    "there: look at the head's load, then run again"
                )
        try:
            return answer.result()
        except Exception as error:
            from ray.exceptions import RayError

            if isinstance(error, RayError | WikiAssetsError) or self.answers(self.address):
                raise
            raise ComputeLost(f"Ray at {self.address} is gone ({type(error).__name__}): {_AGAIN}") from error


_AGAIN = "what was finished is kept; run again, and the rest is made"


class _InThread:
    """A call in a thread of its own, which may be left behind."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._call = call
        self._value: Any = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._value = self._call()
        except BaseException as error:
            self._error = error

    def wait(self, timeout_s: float) -> bool:
        """Whether it has ended, at the latest after `timeout_s`."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def result(self) -> Any:
        if self._error is not None:
            raise self._error
        return self._value


class LocalProcesses:
    """The processes of the Ray that this process has started: its children that run Ray's files, and theirs.

    A child's parent may die before it, so whoever was seen once is remembered.
    """

    def __init__(self) -> None:
        self._seen: dict[tuple[int, float], psutil.Process] = {}
        self._next_census = 0.0
        self.census()
        self._core = [p for p in self._seen.values() if _name(p) in _CORE]

    def __bool__(self) -> bool:
        return bool(self._seen)

    def census(self) -> None:
        """Remember who is there now."""
        import psutil
        import ray

        folder = str(Path(ray.__file__).parent)
        ours = set[int]()
        for process in psutil.Process().children(recursive=True):  # one walk over all processes, parents first
            try:
                if process.ppid() in ours or any(folder in part for part in process.cmdline()):
                    ours.add(process.pid)
                    self._seen[process.pid, process.create_time()] = process
            except psutil.Error:
                continue  # gone meanwhile

    def look(self, now: float) -> str | None:
        """The name of a core process that has ended; None while both are there."""
        ended = next((p for p in self._core if not _runs(p)), None)
        if ended is None and now >= self._next_census:
            self._next_census = now + _CENSUS_S
            self.census()
        return None if ended is None else f"{_name(ended) or 'core'} (process {ended.pid})"

    def end(self, pid: int) -> None:
        """End one of them, if it is there."""
        self.census()
        for process in self._seen.values():
            if process.pid == pid:
                _kill([process])

    def end_all(self) -> int:
        """End every one that is still there; returns how many were."""
        self.census()
        return _kill([p for p in self._seen.values() if _runs(p)])


def _kill(processes: "list[psutil.Process]") -> int:
    import psutil

    alive = [p for p in processes if _runs(p)]
    for process in alive:
        try:
            process.kill()  # psutil kills nobody who only has the same number
        except psutil.Error:
            continue
    psutil.wait_procs(alive, timeout=10)
    return len(alive)


def _runs(process: "psutil.Process") -> bool:
    import psutil

    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _name(process: "psutil.Process") -> str:
    import psutil

    try:
        return process.name()
    except psutil.Error:
        return ""


def watch_ray() -> Watch:
    """Begin to look after the Ray that this process has joined.

    Raises:
        ComputeLost: if it has joined none, or has left it because it was lost.
    """
    import ray

    if not ray.is_initialized():
        raise ComputeLost(f"this process has no Ray, or has lost it: {_AGAIN}")
    here = LocalProcesses()
    return Watch(_head_address(), here=here or None)


def _head_address() -> str:
    """Where the head can be reached from here."""
    import ray
    from ray.util.client import ray as client

    if client.is_connected():  # the head's own address may lead nowhere from outside its cluster
        worker: Any = client.get_context().client_worker
        return str(worker._conn_str)
    return str(ray.get_runtime_context().gcs_address)


def leave_ray(here: LocalProcesses | None = None, *, lost: bool = False, within_s: float = LEAVE_S) -> None:
    """Leave Ray, whether it answers or not. Of one that is lost, nothing that this process has started stays.

    Args:
        here: whom to end; looked up, if not given.
        lost: that it does not answer, so that it is not asked for anything first.
        within_s: to wait for Ray's own way of leaving.
    """
    import ray

    if not ray.is_initialized():
        return
    here = here or LocalProcesses()
    if lost:
        here.end_all()  # a head that is stopped would keep its driver
    leaving = _InThread(ray.shutdown)
    if leaving.wait(within_s):
        leaving.result()
        return
    logger.warning("Ray did not let go within %.0f s: left behind", within_s)
    atexit.unregister(ray.shutdown)  # it would wait again
    here.end_all()
