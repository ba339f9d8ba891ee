"""Dagster as a person has it on one machine, each part a process of its own, so that each can be killed alone."""

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from wiki_assets.defs.instance import DAEMON_SETTINGS
from wiki_assets_tests.chaos.kept import Kept
from wiki_assets_tests.graphql import ask_ui, is_up, launch_backfill
from wiki_assets_tests.processes import end_group, free_port, running, wait_until

START_SENSOR = """
mutation($sensor: SensorSelector!) {
  startSensor(sensorSelector: $sensor) { __typename ... on PythonError { message } }
}"""
COUNTS = """
query($key: AssetKeyInput!) {
  assetNodeOrError(assetKey: $key) {
    ... on AssetNode { partitionStats { numMaterialized numFailed numMaterializing } }
  }
}"""
Process = "subprocess.Popen[bytes]"


class Dagster:
    """A code server, whose children are the runs; a webserver; and a daemon that a test starts and kills."""

    def __init__(self, kept: Kept, folder: Path, stack: ExitStack) -> None:
        self._folder = folder
        self._stack = stack
        self._code_port, self._web_port = free_port(), free_port()
        self._env = {
            "WIKI_ASSETS_ROOT": str(kept.root),
            "WIKI_ASSETS_MIRROR": kept.mirror,
            "DAGSTER_HOME": str(kept.root / "dagster"),
            **DAEMON_SETTINGS,
            "PYTHONUNBUFFERED": "1",
        }
        self._n = 0
        self._workspace = folder / "workspace.yaml"
        server = {"host": "127.0.0.1", "port": self._code_port, "location_name": "wiki_assets"}
        self._workspace.write_text(json.dumps({"load_from": [{"grpc_server": server}]}))
        self.code = self._code_server()
        port = str(self._web_port)
        self._web = self._start("dagster_webserver", "-w", str(self._workspace), "-h", "127.0.0.1", "-p", port)

    def _start(self, *words: str) -> "subprocess.Popen[bytes]":
        self._n += 1
        log = self._folder / f"{self._n}-{words[0]}.log"
        return self._stack.enter_context(running([sys.executable, "-m", *words], env=self._env, log=log))

    def _code_server(self) -> "subprocess.Popen[bytes]":
        port = str(self._code_port)
        return self._start("dagster", "api", "grpc", "-m", "wiki_assets.definitions", "-h", "127.0.0.1", "-p", port)

    def daemon(self) -> "subprocess.Popen[bytes]":
        """Start the daemon; each of its parts looks at once for what there is to do."""
        return self._start("dagster._daemon", "run", "-w", str(self._workspace))

    def kill(self, *processes: "subprocess.Popen[bytes]") -> None:
        """SIGKILL processes and their children, at once."""
        for process in processes:
            end_group(process, signal.SIGKILL)
        for process in processes:
            process.wait(20)

    def restart_code_server(self) -> None:
        """Where the killed one was."""
        self.code = self._code_server()

    def code_server_answers(self) -> bool:
        """Whether anybody listens where the code server should."""
        assert self.code.poll() is None, self.logs()
        try:
            socket.create_connection(("127.0.0.1", self._code_port), timeout=1).close()
        except OSError:
            return False
        return True

    def wait_until_up(self) -> None:
        """Until the webserver has loaded our definitions."""

        def up() -> bool:
            assert self._web.poll() is None, self.logs()
            assert self.code.poll() is None, self.logs()
            return is_up(self._web_port)

        wait_until(up, within_s=180, every_s=0.3, what="the webserver")

    def ask(self, query: str, **variables: Any) -> dict[str, Any]:
        """One GraphQL request, as the UI makes it."""
        return ask_ui(self._web_port, query, **variables)

    def launch_backfill(self, assets: list[str], partitions: list[str]) -> str:
        """As from the UI; returns its id."""
        return launch_backfill(self._web_port, assets, partitions)

    def start_sensor(self, name: str) -> None:
        """Turn a sensor on."""
        place = {"repositoryLocationName": "wiki_assets", "repositoryName": "__repository__", "sensorName": name}
        started = self.ask(START_SENSOR, sensor=place)["startSensor"]
        assert started["__typename"] == "Sensor", started

    def counts(self, asset: str) -> dict[str, int]:
        """What the asset's page counts: materialized, failed, materializing."""
        return self.ask(COUNTS, key={"path": ["tinywiki", asset]})["assetNodeOrError"]["partitionStats"]

    def logs(self) -> str:
        """The end of what each process said."""
        return "\n".join(f"{log.name}: {log.read_text()[-1500:]}" for log in sorted(self._folder.glob("*.log")))


@contextmanager
def dagster_of(kept: Kept, folder: Path) -> Iterator[Dagster]:
    """Dagster's processes over a root; all are gone at the end of the block."""
    folder.mkdir()
    with ExitStack() as stack:
        yield Dagster(kept, folder, stack)
