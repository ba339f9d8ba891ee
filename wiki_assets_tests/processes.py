"""Real processes in tests: started in a session of their own, waited for with a deadline, ended by group."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


def wait_until(
    condition: Callable[[], T | None], *, within_s: float, every_s: float = 0.02, what: str = "the condition"
) -> T:
    """Return what `condition` returns as soon as it is true; fail at the deadline."""
    deadline = time.monotonic() + within_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what}: not within {within_s} s"
        time.sleep(every_s)
    return found


@contextmanager
def running(
    command: Sequence[str], *, env: Mapping[str, str], log: Path, cwd: Path | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command in its own session; at the end of the block its whole process group is gone."""
    with log.open("wb") as out:
        process = subprocess.Popen(
            command,
            env={**os.environ, **env},
            stdout=out,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            start_new_session=True,
            stdin=subprocess.DEVNULL,
        )
        try:
            yield process
        finally:
            end_group(process, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(20)
            end_group(process, signal.SIGKILL)
            process.wait(20)


def end_group(process: "subprocess.Popen[bytes]", how: signal.Signals) -> None:
    """Signal the process group that `running` made, if any of it is left."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, how)


def free_port() -> int:
    """A loopback port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


WIKI_ASSETS = (sys.executable, "-m", "wiki_assets.cli")
