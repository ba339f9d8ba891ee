"""What a tick of the automation costs when years of a wiki are known.

    python -m wiki_assets_tests.bench.tick [--snapshots 157] [--shards 64]

fills an instance in memory with so many weekly snapshots, 157 x 64 = 10,048 cells of the grid, all made, which takes
minutes; then evaluates both sensors of the wiki as the daemon does, and prints what each tick took in wall and CPU
seconds, how many statements it put to Dagster's database, and what it asked for.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta

import dagster as dg
from sqlalchemy import Engine, event

from wiki_assets.definitions import build
from wiki_assets.defs.partitions import dates_name
from wiki_assets.defs.recipes import SHARD_ARTIFACTS, STAGES
from wiki_assets.defs.sensors import new_snapshots
from wiki_assets.defs.wikis import WikiConfig
from wiki_assets.keys import Shard, Snapshot
from wiki_assets.resources.mirror import DumpMirror
from wiki_assets.resources.models import DEFAULT_MODEL
from wiki_assets.resources.store import Store
from wiki_assets.settings import Settings
from wiki_assets_tests.bench.measure import machine
from wiki_assets_tests.tinywiki.serve import serving

WIKI = "tinywiki"
LAST = "20241229"  # of the snapshots that are known; the server of the tests offers the next one


@dataclass(frozen=True)
class Tick:
    """What one took, and what it asked for: partitions by asset."""

    name: str
    seconds: float
    cpu_s: float
    statements: int
    requested: dict[str, int]

    def __str__(self) -> str:
        asked = ", ".join(f"{n} of {asset}" for asset, n in self.requested.items()) or "nothing"
        took = f"{self.seconds:6.2f} s  {self.cpu_s:6.2f} CPU-s  {self.statements:6,} statements"
        return f"{self.name:44}{took}  asked for {asked}"


class Automation:
    """A wiki whose snapshots are known to an instance, and its two sensors."""

    def __init__(self, instance: dg.DagsterInstance, shards: int) -> None:
        self.instance = instance
        self.config = WikiConfig(WIKI, shards, DEFAULT_MODEL)
        self.defs = build(Settings(root="nowhere"), wikis=[self.config])
        self._cursor: dg.AssetDaemonCursor | None = None

    def know(self, dates: Iterable[str], stages: Iterable[str] = STAGES) -> None:
        """Register snapshots, and report these stages of them as made."""
        dates = list(dates)
        self.instance.add_dynamic_partitions(dates_name(WIKI), dates)
        for date in dates:
            for stage in stages:
                for partition in self.partitions(date) if stage in SHARD_ARTIFACTS else (date,):
                    self.made(stage, partition)

    def partitions(self, date: str) -> list[str]:
        """The cells of a snapshot."""
        return [Shard(Snapshot(WIKI, date), number).partition_key for number in range(self.config.shards)]

    def made(self, stage: str, partition: str) -> None:
        """Report one partition as made."""
        tags = {"dagster/data_version": "1", "dagster/data_version_is_user_provided": "true"}
        key = dg.AssetKey([WIKI, stage])
        self.instance.report_runless_asset_event(dg.AssetMaterialization(key, partition=partition, tags=tags))

    def keep_up_to_date(self, name: str) -> Tick:
        """One evaluation of the conditions, as the daemon does it."""

        def evaluate() -> dict[str, int]:
            found = dg.evaluate_automation_conditions(self.defs, self.instance, cursor=self._cursor)
            self._cursor = found.cursor
            asked = {stage: found.get_num_requested(dg.AssetKey([WIKI, stage])) for stage in STAGES}
            return {stage: n for stage, n in asked.items() if n}

        return measured(name, evaluate)

    def look_for_new_snapshots(self, name: str, mirror: str, root: str) -> Tick:
        """One tick of the sensor; what it registers is registered."""

        def look() -> dict[str, int]:
            resources = {"mirror": DumpMirror(base_url=mirror), "store": Store(root)}
            result = new_snapshots(self.config)(dg.build_sensor_context(self.instance, resources=resources))
            requests = (result.dynamic_partitions_requests or ()) if isinstance(result, dg.SensorResult) else ()
            for request in requests:
                self.instance.add_dynamic_partitions(request.partitions_def_name, list(request.partition_keys))
            dates = [key for request in requests for key in request.partition_keys]
            return {"the dates": len(dates)} if dates else {}

        return measured(name, look)


def measured(name: str, act: Callable[[], dict[str, int]]) -> Tick:
    """Do something; note what it took."""
    with counted() as statements:
        began, cpu = time.perf_counter(), time.process_time()
        requested = act()
        seconds, cpu_s = time.perf_counter() - began, time.process_time() - cpu
    return Tick(name, seconds, cpu_s, len(statements), requested)


@contextmanager
def counted() -> Iterator[list[str]]:
    """The statements that are put to databases meanwhile."""
    statements: list[str] = []

    def note(connection: object, cursor: object, statement: str, *_: object) -> None:
        statements.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield statements
    finally:
        event.remove(Engine, "before_cursor_execute", note)


def weeks(n: int) -> list[str]:
    """So many weekly dates, the last of them `LAST`."""
    last = datetime.strptime(LAST, "%Y%m%d")
    return [(last - timedelta(weeks=week)).strftime("%Y%m%d") for week in reversed(range(n))]


def main() -> None:
    """Print a line a tick."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--snapshots", type=int, default=157)
    parser.add_argument("--shards", type=int, default=64)
    chosen = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="wiki_assets-bench-") as root,
        dg.DagsterInstance.ephemeral(tempdir=root) as instance,
        serving() as mirror,
    ):
        wiki = Automation(instance, chosen.shards)
        began = time.monotonic()
        wiki.know(weeks(chosen.snapshots))
        cells = chosen.snapshots * chosen.shards
        print(f"{chosen.snapshots} snapshots x {chosen.shards} shards: {cells:,} cells, all made", end="; ")
        print(f"{time.monotonic() - began:.0f} s to fill the instance; {machine()}", flush=True)
        print(wiki.keep_up_to_date("keep_up_to_date, the first ever"), flush=True)
        print(wiki.keep_up_to_date("keep_up_to_date, nothing new"), flush=True)
        print(wiki.look_for_new_snapshots("new_snapshots, a new one", mirror, root), flush=True)
        print(wiki.look_for_new_snapshots("new_snapshots, nothing new", mirror, root), flush=True)
        print(wiki.keep_up_to_date("keep_up_to_date, a snapshot was registered"), flush=True)
        new = max(instance.get_dynamic_partitions(dates_name(WIKI)))
        wiki.made("raw_dump", new)
        print(wiki.keep_up_to_date("keep_up_to_date, its dump is here"), flush=True)
        for partition in wiki.partitions(new):
            wiki.made("articles", partition)
        print(wiki.keep_up_to_date("keep_up_to_date, its articles are made"), flush=True)
        print(wiki.keep_up_to_date("keep_up_to_date, nothing new"), flush=True)


if __name__ == "__main__":
    main()
