"""Runs whose process is gone are failed; Dagster itself shows them as started for ever.

Where a run's process is known from: a headless run names it in its tags; a run that the webserver or the daemon
launched, and any other, in its first events. A process id is handed out again after its process, so a process is
the run's only if it was there before the run said so.
"""

import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import psutil
from dagster._core.storage.tags import GRPC_INFO_TAG

RUNNING = (dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING)
HOST, PID, BORN = "wiki_assets/host", "wiki_assets/pid", "wiki_assets/born"
_CLOCK_S = 10.0  # a wall clock may be corrected by so much while a run goes on
_ANSWER_S = 5

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DeadRun:
    """A run whose process is gone. `status` is what Dagster showed."""

    run_id: str
    status: str
    reason: str


def process_tags() -> dict[str, str]:
    """Which process a headless run lives in, so that a later one can tell whether it still does.

    Dagster's limit of a run's time is not for these: the monitor could not end their process, only mark the run.
    """
    pid = os.getpid()
    return {HOST: socket.gethostname(), PID: str(pid), BORN: birth(pid) or "", "dagster/max_runtime": "0"}


def reap(instance: dg.DagsterInstance, *, dry_run: bool = False) -> list[DeadRun]:
    """Fail every unfinished run whose process is gone, and give back the places it held in pools.

    A run that somebody was cancelling becomes canceled. A run that another machine works on is left to it.

    Args:
        instance: where the runs are recorded.
        dry_run: only say which.
    """
    dead = []
    for run in instance.get_runs(dg.RunsFilter(statuses=list(RUNNING))):
        reason = _gone(instance, run)
        if reason is None:
            continue
        now = instance.get_run_by_id(run.run_id)
        if now is None or now.is_finished:
            continue
        dead.append(DeadRun(run.run_id, now.status.value, reason))
        if dry_run:
            continue
        logger.warning("run %s: %s", run.run_id, reason)
        if now.status == dg.DagsterRunStatus.CANCELING:
            instance.report_run_canceled(now, reason)
        else:
            instance.report_run_failed(now, reason)
    if not dry_run:
        _free_slots(instance)
    return dead


def _free_slots(instance: dg.DagsterInstance) -> None:
    """Give back places in pools that runs hold which are over."""
    storage = instance.event_log_storage
    for run_id in storage.get_concurrency_run_ids():
        run = instance.get_run_by_id(run_id)
        if run is None or run.is_finished:
            storage.free_concurrency_slots_for_run(run_id)


def _gone(instance: dg.DagsterInstance, run: dg.DagsterRun) -> str | None:
    """Why a run cannot be alive; None if it is, or if that cannot be told from here."""
    if host := run.tags.get(HOST):
        if host != socket.gethostname():
            return None
        pid, born = int(run.tags[PID]), run.tags.get(BORN)
        now = birth(pid)
        if now is None:
            return f"process {pid} is gone"
        return f"process {pid} is gone; another one has its number" if born and now and born != now else None
    if not _on_this_machine(instance, run) or _server_runs(run):
        return None
    seen = list(_sightings(instance, run))
    if not seen:
        return _never_began(instance, run)
    if any(was_there(pid, at) for pid, at in seen):
        return None
    pids = ", ".join(sorted({str(pid) for pid, _ in seen}))
    return f"process {pids} is gone"


def _on_this_machine(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool:
    """Whether the run's process ids are this machine's: its server is, and so is the instance's database."""
    server = json.loads(run.tags.get(GRPC_INFO_TAG, "{}")).get("host", "localhost")
    storage = type(instance.event_log_storage).__name__.lower()
    return server in ("localhost", "127.0.0.1", "::1") and ("sqlite" in storage or "inmemory" in storage)


def _sightings(instance: dg.DagsterInstance, run: dg.DagsterRun) -> Iterator[tuple[int, float]]:
    """Processes that said they execute the run, and when, in seconds of Unix time."""
    for event in instance.all_logs(run.run_id, of_type=dg.DagsterEventType.ENGINE_EVENT):
        data = event.dagster_event.event_specific_data if event.dagster_event else None
        pid = getattr(data, "metadata", {}).get("pid")
        if pid is not None and str(pid.value).isdecimal():
            yield int(str(pid.value)), event.timestamp


def _server_runs(run: dg.DagsterRun) -> bool:
    """Whether the code server that started the run says that it still executes it."""
    info = json.loads(run.tags.get(GRPC_INFO_TAG, "{}"))
    if not info:
        return False
    from dagster._core.errors import DagsterUserCodeProcessError, DagsterUserCodeUnreachableError
    from dagster._grpc.client import DagsterGrpcClient
    from dagster._grpc.types import CanCancelExecutionRequest, CanCancelExecutionResult
    from dagster._serdes import deserialize_value

    client = DagsterGrpcClient(port=info.get("port"), socket=info.get("socket"), host=info.get("host", "localhost"))
    with suppress(DagsterUserCodeUnreachableError, DagsterUserCodeProcessError):
        answer = client.can_cancel_execution(CanCancelExecutionRequest(run_id=run.run_id), timeout=_ANSWER_S)
        return deserialize_value(answer, CanCancelExecutionResult).can_cancel
    return False


def _never_began(instance: dg.DagsterInstance, run: dg.DagsterRun) -> str | None:
    """Why a run that no process has spoken for is dead: it had as long to begin as the instance allows."""
    patience_s = instance.run_monitoring_start_timeout_seconds
    launched = instance.get_run_stats(run.run_id).launch_time
    if not patience_s or launched is None or time.time() - launched < patience_s:
        return None
    return f"no process began it within {patience_s} s"


def was_there(pid: int, at: float) -> bool:
    """Whether process `pid` is alive, and was born before `at` (seconds of Unix time): else it is another one."""
    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and process.create_time() <= at + _CLOCK_S
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


def birth(pid: int) -> str | None:
    """When a living process was born, in words that no other process of that number shares; None if it is gone.

    On Linux by the kernel's own clock, which nobody sets.
    """
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        with suppress(OSError):
            ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
            return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}/{ticks}"
        return f"{process.create_time():.2f}"
    except psutil.NoSuchProcess:
        return None
    except psutil.AccessDenied:
        return ""
