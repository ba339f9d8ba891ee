"""What the fault suite found, by row, as JSON, as Markdown, and as the README's table of promises."""

import os
import platform
import re
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from wiki_assets_tests.chaos.promises import NOT_PROMISED, PROMISES
from wiki_assets_tests.conftest import REPOSITORY

MUTANTS = "mutants"  # the row whose tests plant a broken build each, or say how many
PLANTED, CAUGHT = "mutants planted", "mutants caught"
BEGIN, END = "<!-- promises: made by python -m wiki_assets_tests.chaos -->", "<!-- end of promises -->"


@dataclass
class Row:
    """The tests of one row of the plan."""

    passed: int = 0
    failed: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    seconds: float = 0
    figures: dict[str, Any] = field(default_factory=dict)

    def add(self, properties: Iterable[tuple[str, Any]]) -> None:
        """Take a test's figures in: numbers of one name add up, of words the last stays."""
        for name, value in properties:
            known = self.figures.get(name)
            both = isinstance(value, int | float) and isinstance(known, int | float) and not isinstance(value, bool)
            self.figures[name] = known + value if both else value


class Collector:
    """A pytest plugin: keeps the tests of some rows (all, if none is named) and what they report."""

    def __init__(self, only: set[str]) -> None:
        self.rows: dict[str, Row] = {}
        self._only = only
        self._row_of: dict[str, str] = {}

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Learn each test's row."""
        kept = []
        for item in items:
            mark = item.get_closest_marker("chaos")
            if mark and (not self._only or mark.args[0] in self._only):
                self._row_of[item.nodeid] = mark.args[0]
                kept.append(item)
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = kept

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note a result."""
        row = self.rows.setdefault(self._row_of.get(report.nodeid, "?"), Row())
        row.seconds += report.duration
        name = report.nodeid.rpartition("::")[2]
        if report.failed:
            row.failed.append(name)
        elif report.skipped:
            row.skipped.append(name)
        elif report.when == "call":
            row.passed += 1
        if report.when == "call":
            row.add(report.user_properties)
            if self._row_of.get(report.nodeid) == MUTANTS and PLANTED not in dict(report.user_properties):
                row.add([(PLANTED, 1), (CAUGHT, int(report.passed))])


def document(rows: dict[str, Row], *, tier: str, seed: int, seconds: float) -> dict[str, Any]:
    """Everything, as JSON has it."""
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "commit": _commit(),
        "machine": _machine(),
        "tier": tier,
        "seed": seed,
        "seconds": round(seconds),
        "mutants": {"planted": _total(rows, PLANTED), "caught": _total(rows, CAUGHT)},
        "rows": {
            name: {
                "passed": row.passed,
                "failed": row.failed,
                "skipped": row.skipped,
                "seconds": round(row.seconds, 1),
                "figures": {key: value for key, value in row.figures.items() if key not in (PLANTED, CAUGHT)},
            }
            for name, row in sorted(rows.items())
        },
    }


def _total(rows: dict[str, Row], name: str) -> int:
    return sum(int(row.figures.get(name, 0)) for row in rows.values())


def markdown(found: dict[str, Any]) -> str:
    """The same as a table of rows."""
    lines = [
        f"Fault suite, tier {found['tier']}, seed {found['seed']}: commit {found['commit']}, {found['date']}, "
        f"{found['machine']}, {found['seconds']} s. Mutants caught: {found['mutants']['caught']} of "
        f"{found['mutants']['planted']}.",
        "",
        "| row | tests | figures | seconds |",
        "| --- | --- | --- | --- |",
    ]
    for name, row in found["rows"].items():
        tests = f"{row['passed']} passed"
        tests += "".join(f", {len(row[kind])} {kind}" for kind in ("failed", "skipped") if row[kind])
        lines.append(f"| {name} | {tests} | {_figures(row)} | {row['seconds']} |")
    skipped = [name for row in found["rows"].values() for name in row["skipped"]]
    if skipped:
        lines += ["", f"Skipped: {', '.join(skipped)}."]
    return "\n".join(lines) + "\n"


def _figures(row: dict[str, Any]) -> str:
    return ", ".join(f"{name} {_short(value)}" for name, value in row["figures"].items())


def _short(value: Any) -> str:
    return (
        f"{value:,.2f}".rstrip("0").rstrip(".")
        if isinstance(value, float)
        else f"{value:,}"
        if isinstance(value, int)
        else str(value)
    )


def promises_table(found: dict[str, Any]) -> str:
    """The README's table: a promise, the rows that show it, and what they last gave."""
    rows = found["rows"]
    lines = ["| promise | shown by | last measured |", "| --- | --- | --- |"]
    for promise in PROMISES:
        seen = [name for name in promise.rows if name in rows and (rows[name]["passed"] or rows[name]["failed"])]
        figures = "; ".join(f"{name}: {_figures(rows[name]) or 'passed'}" for name in seen) or "not run"
        broken = [name for name in seen if rows[name]["failed"]]
        shown = f"**broken: {', '.join(broken)}** {figures}" if broken else figures
        lines.append(f"| **{promise.title}.** {promise.text} | {', '.join(promise.rows)} | {shown} |")
    mutants = found["mutants"]
    about = (
        f"Tier {found['tier']}, seed {found['seed']}, commit {found['commit']}, {found['date']}, {found['machine']}."
    )
    if mutants["planted"]:
        about += f" Deliberately broken builds caught: {mutants['caught']} of {mutants['planted']}."
    return "\n".join([*lines, "", about, "", f"Not promised: {NOT_PROMISED[0].lower()}{NOT_PROMISED[1:]}"])


def put_into_readme(path: Path, found: dict[str, Any]) -> None:
    """Replace what stands between the two marks.

    Raises:
        ValueError: if the file does not have them.
    """
    text = path.read_text()
    if BEGIN not in text or END not in text:
        raise ValueError(f"{path}: expected the lines {BEGIN} and {END}")
    pattern = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
    path.write_text(pattern.sub(lambda _: f"{BEGIN}\n{promises_table(found)}\n{END}", text))


def _commit() -> str:
    git = ["git", "-C", str(REPOSITORY)]
    found = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout
    return found.strip() or "unknown"


def _machine() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    model = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine()
    )
    return f"{model}, {os.cpu_count()} cores, Python {platform.python_version()}"
