"""Retention, in the store and in Dagster: what is removed is no partition any more.

A date that is taken away and added again would still be shown as materialized (dagster#29861), so its partitions are
forgotten too, after the date is gone: while it is there, a partition that is suddenly missing would be asked for again.
The index of a snapshot that is kept without it stays as Dagster shows it: it was made, and its note says that it was
retired.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import dagster as dg
from dagster._core.execution.backfill import BulkActionsFilter, BulkActionStatus
from dagster._core.storage.dagster_run import NOT_FINISHED_STATUSES

from wiki_assets.defs.partitions import dates_name
from wiki_assets.defs.recipes import STAGES, Cookbook
from wiki_assets.defs.retention import Plan, carry_out, plan
from wiki_assets.defs.upkeep.status import forget

_PARTITION, _FIRST, _LAST = (
    "dagster/partition",
    "dagster/asset_partition_range_start",
    "dagster/asset_partition_range_end",
)


@dataclass(frozen=True)
class Pruned:
    """What was removed, or would be: of the store, and of Dagster's partitions."""

    plan: Plan
    keys: list[str] = field(default_factory=list)  # dates that Dagster knew
    forgotten: dict[str, int] = field(default_factory=dict)  # by asset: partitions it showed as made

    def __bool__(self) -> bool:
        return bool(self.plan or self.keys or self.forgotten)

    def lines(self) -> list[str]:
        """One a removal, for a person."""
        lines = list(self.plan.lines())
        if self.keys:
            lines.append(f"partition keys {', '.join(self.keys)}")
        if self.forgotten:
            lines.append(f"{sum(self.forgotten.values()):,} partitions that Dagster showed as made")
        return lines


def prune(book: Cookbook, instance: dg.DagsterInstance | None, *, dry_run: bool = False) -> Pruned:
    """Remove what retention does not keep; done twice, the second time changes nothing.

    Args:
        book: the wiki's recipes; its config says how much is kept.
        instance: Dagster's; without one its partitions are left for the next time.
        dry_run: only say what would go.

    Raises:
        SourceUnavailable: if a Chroma server that has collections to be deleted does not answer.
        StoreLocked: if somebody holds the pointer's lock.
    """
    wiki = book.config.wiki
    busy = dates_at_work(instance, wiki) if instance else ()
    found = (plan if dry_run else carry_out)(book, busy=busy)
    if instance is None or not found.published:
        return Pruned(found)
    name = dates_name(wiki)
    registered = instance.get_dynamic_partitions(name)
    oldest = min(found.keep)
    keys = sorted(date for date in registered if date in found.dates or (date < oldest and date not in busy))
    if not dry_run:
        for date in keys:
            instance.delete_dynamic_partition(name, date)
    forgotten: dict[str, int] = {}
    known = set(registered) - set(keys)
    for artifact in STAGES:
        shown = instance.get_materialized_partitions(dg.AssetKey([wiki, artifact]))
        gone = [cell for cell in shown if cell[:8] not in known and cell[:8] not in found.keep]
        if gone:
            forgotten[artifact] = len(gone)
            if not dry_run:
                forget(instance, wiki, artifact, gone)
    return Pruned(found, keys, forgotten)


def dates_at_work(instance: dg.DagsterInstance, wiki: str) -> set[str]:
    """Snapshots of a wiki that unfinished runs and backfills are about."""
    registered = instance.get_dynamic_partitions(dates_name(wiki))
    found: set[str] = set()
    for run in instance.get_runs(dg.RunsFilter(statuses=list(NOT_FINISHED_STATUSES))):
        if run.asset_selection is None or _about(run.asset_selection, wiki):
            first = run.tags.get(_FIRST) or run.tags.get(_PARTITION, "")
            last = run.tags.get(_LAST) or first
            found |= {date for date in registered if first[:8] <= date <= last[:8]}
    for backfill in instance.get_backfills(BulkActionsFilter(statuses=[BulkActionStatus.REQUESTED])):
        data = backfill.asset_backfill_data
        for key, subset in (data.target_subset.partitions_subsets_by_asset_key if data else {}).items():
            if _about([key], wiki):
                found |= {str(cell)[:8] for cell in subset.get_partition_keys()}
    return found


def _about(keys: Iterable[dg.AssetKey], wiki: str) -> bool:
    return any(key.path[0] == wiki for key in keys)
