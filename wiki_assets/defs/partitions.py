"""The grid of a wiki: snapshot dates down, shards across."""

import warnings
from dataclasses import dataclass

import dagster as dg

from wiki_assets.keys import shard_name

# backfill policies and partition mappings are still called beta, and each use would say so
warnings.filterwarnings("ignore", category=dg.BetaWarning)
warnings.filterwarnings("ignore", category=dg.PreviewWarning)


@dataclass(frozen=True)
class Grid:
    """A wiki's partitions. `date` sorts before `shard`, so a cell's key reads `20251103|00003`."""

    dates: dg.DynamicPartitionsDefinition
    cells: dg.MultiPartitionsDefinition
    by_date: dg.MultiToSingleDimensionPartitionMapping


def dates_name(wiki: str) -> str:
    """The name under which Dagster keeps a wiki's snapshot dates."""
    return f"{wiki}_dates"


def grid(wiki: str, shards: int) -> Grid:
    """The partitions of a wiki that has so many shards."""
    dates = dg.DynamicPartitionsDefinition(name=dates_name(wiki))
    across = dg.StaticPartitionsDefinition([shard_name(number) for number in range(shards)])
    cells = dg.MultiPartitionsDefinition({"date": dates, "shard": across})
    return Grid(dates, cells, dg.MultiToSingleDimensionPartitionMapping("date"))
