"""Two sides of a comparison, each in processes of its own, and the CPU-seconds that each of them spends.

CPU-seconds and not wall time, since a shared machine inflates the second far more; and ratios of neighbouring
repeats, since it inflates the first as well.
"""

import multiprocessing
import os
import platform
import statistics
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self

import psutil

REPOSITORY = Path(__file__).resolve().parents[2]
_SAMPLE_S = 0.5  # Ray's workers come and go, and what one has spent goes with it


@dataclass(frozen=True)
class Row:
    """One line of the table. `ratios` has one value a repeat; a goal is met by their median."""

    subject: str
    ours: str
    other: str
    ratios: Sequence[float]
    goal: float | None = None
    at_most: bool = False  # the goal is an upper bound
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; None without one."""
        if self.goal is None or not self.ratios:
            return None
        middle = statistics.median(self.ratios)
        return middle <= self.goal if self.at_most else middle >= self.goal

    def cells(self) -> list[str]:
        """As the table shows it."""
        spread = (min(self.ratios), statistics.median(self.ratios), max(self.ratios)) if self.ratios else ()
        shown = (
            " / ".join(f"{value:.2f}" for value in spread)
            if len(set(spread)) > 1
            else f"{spread[0]:.2f}"
            if spread
            else ""
        )
        goal = "" if self.goal is None else f"{'<=' if self.at_most else '>='} {self.goal:g}"
        return [
            self.subject,
            self.ours,
            self.other,
            shown,
            goal,
            {None: "", True: "yes", False: "NO"}[self.met],
            self.note,
        ]

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {**asdict(self), "met": self.met}


def table(rows: Sequence[Row]) -> str:
    """The rows in columns."""
    head = ["subject", "ours", "other side", "ratio min / median / max", "goal", "met", "note"]
    lines = [head, *(row.cells() for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def best_rate(amount: float, seconds: Sequence[float], unit: str) -> str:
    """Amount per CPU-second of the cheapest repeat."""
    return f"{amount / min(seconds):,.0f} {unit}/CPU-s"


class CpuMeter:
    """CPU-seconds that a process and all below it spend from now on, those that end meanwhile included."""

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)
        self._before = self._read()
        self._last = dict(self._before)

    def _read(self) -> dict[tuple[int, float], float]:
        spent = {}
        for process in [self._root, *self._root.children(recursive=True)]:
            try:
                times = process.cpu_times()
                spent[process.pid, process.create_time()] = times.user + times.system
            except psutil.Error:  # it has just ended
                continue
        return spent

    @property
    def n_started(self) -> int:
        """Processes that were not there at the beginning."""
        return len(self._last.keys() - self._before.keys())

    def sample(self) -> float:
        """CPU-seconds since the beginning."""
        self._last |= self._read()
        return sum(spent - self._before.get(process, 0.0) for process, spent in self._last.items())


class Side:
    """An object that lives in a process of its own; its methods are called from here, and metered.

    Args:
        make: the object's class; it is made there, from `args`.
        args: pickled on the way.
    """

    def __init__(self, make: Callable[..., Any], *args: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._ours, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, make, args))
        self._process.start()
        self.n_started = 0  # processes, during the last call
        theirs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.is_alive():
            self._ours.send(None)
        self._process.join(60)
        if self._process.is_alive():
            self._process.terminate()

    def run(self, method: str, *args: Any) -> tuple[Any, float]:
        """Call a method there.

        Returns:
            What it returns, and the CPU-seconds of that process and all below it meanwhile.

        Raises:
            RuntimeError: with the traceback, if it raised.
        """
        meter = CpuMeter(self._process.pid or 0)
        self._ours.send((method, args))
        while not self._ours.poll(_SAMPLE_S):
            meter.sample()
        try:
            good, result = self._ours.recv()
        except EOFError:
            raise RuntimeError(f"{method}: its process ended, exit code {self._process.exitcode}") from None
        spent = meter.sample()
        if not good:
            raise RuntimeError(result)
        self.n_started = meter.n_started
        return result, spent


def _serve(pipe: Connection, make: Callable[..., Any], args: tuple[Any, ...]) -> None:
    thing: Any = None
    try:
        while (message := pipe.recv()) is not None:
            method, arguments = message
            try:
                thing = thing or make(*args)
                pipe.send((True, getattr(thing, method)(*arguments)))
            except Exception:
                pipe.send((False, traceback.format_exc()))
    finally:
        if hasattr(thing, "close"):
            thing.close()


def machine() -> str:
    """What this was measured on, in one line."""
    model = next(
        (line.partition(":")[2].strip() for line in _cpuinfo() if line.startswith("model name")), platform.machine()
    )
    packages = (
        "ray",
        "tiktoken",
        "tokenizers",
        "msgspec",
        "isal",
        "pyarrow",
        "torch",
        "sentence-transformers",
        "openvino",
        "chromadb",
    )
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return (
        f"{model}, {os.cpu_count()} cores, load {load}, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC, "
        f"Python {platform.python_version()}, " + ", ".join(f"{name} {_version(name)}" for name in packages)
    )


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"
