"""A new snapshot on the mirror becomes a row of the wiki's grid."""

import dagster as dg

from wiki_assets.defs.partitions import dates_name, grid
from wiki_assets.defs.wikis import WikiConfig
from wiki_assets.errors import SourceUnavailable
from wiki_assets.resources.mirror import DumpMirror

_HOUR_S = 3600


def new_snapshots(config: WikiConfig) -> dg.SensorDefinition:
    """Registers a wiki's complete snapshots as partitions. Off until somebody turns it on; starts no run."""

    @dg.sensor(
        name=f"{config.wiki}_new_snapshots",
        minimum_interval_seconds=_HOUR_S,
        description=f"Registers complete snapshots of {config.wiki} as partitions, so that they can be materialized.",
    )
    def sensor(context: dg.SensorEvaluationContext, mirror: DumpMirror) -> dg.SensorResult | dg.SkipReason:
        known = set(context.instance.get_dynamic_partitions(dates_name(config.wiki)))
        try:
            offered = {snapshot.date for snapshot in mirror.snapshots(config.wiki)}
        except SourceUnavailable as error:
            return dg.SkipReason(str(error))
        fresh = sorted(offered - known)
        if not fresh:
            return dg.SkipReason(f"{mirror.base_url} offers nothing beyond the {len(known)} registered")
        dates = grid(config.wiki, config.shards).dates
        return dg.SensorResult(dynamic_partitions_requests=[dates.build_add_request(fresh)])

    return sensor
