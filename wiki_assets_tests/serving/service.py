"""`wiki-assets serve` as a process of its own, as people run it."""

import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from wiki_assets_tests.processes import WIKI_ASSETS, free_port, running, wait_until


@dataclass
class Service:
    """One that answers."""

    port: int
    process: "subprocess.Popen[bytes]"
    log: Path
    seconds_to_ready: float

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def serving(
    env: Mapping[str, str], log: Path, *options: str, ready: str = "/readyz", within_s: float = 180
) -> Iterator[Service]:
    """Start it on a free port; it ends with the block.

    Args:
        env: its settings.
        log: gets what it prints.
        options: of the command.
        ready: the path that answers 200 when the block may begin.
        within_s: to become ready.
    """
    port, began = free_port(), time.monotonic()
    command = [*WIKI_ASSETS, "serve", "--port", str(port), *options]
    with running(command, env=env, log=log) as process, httpx.Client(timeout=30) as http:

        def answers() -> bool:
            assert process.poll() is None, log.read_text()
            try:
                return http.get(f"http://127.0.0.1:{port}{ready}").status_code == 200
            except httpx.TransportError:
                return False

        wait_until(answers, within_s=within_s, every_s=0.2, what="the service")
        yield Service(port, process, log, time.monotonic() - began)
