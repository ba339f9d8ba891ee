"""A new snapshot on the mirror becomes a row of the wiki's grid."""

from collections.abc import Collection

import dagster as dg

from wiki_assets.defs.partitions import dates_name, grid
from wiki_assets.defs.wikis import WikiConfig
from wiki_assets.errors import SourceUnavailable
from wiki_assets.keys import Snapshot
from wiki_assets.resources.mirror import DumpMirror
from wiki_assets.resources.store import Store


def new_snapshots(config: WikiConfig) -> dg.SensorDefinition:
    """Registers a wiki's newest complete snapshot as a partition. Off until somebody turns it on; starts no run."""

    @dg.sensor(
        name=f"{config.wiki}_new_snapshots",
        minimum_interval_seconds=config.check_minutes * 60,
        description=(
            f"Registers the newest complete snapshot of {config.wiki} as a partition. "
            f"With {config.wiki}_keep_up_to_date it is then made and published."
        ),
    )
    def sensor(
        context: dg.SensorEvaluationContext, mirror: DumpMirror, store: dg.ResourceParam[Store]
    ) -> dg.SensorResult | dg.SkipReason:
        registered = context.instance.get_dynamic_partitions(dates_name(config.wiki))
        try:
            found = newest_to_make(config.wiki, registered, mirror, store)
        except SourceUnavailable as error:
            return dg.SkipReason(str(error))
        if isinstance(found, str):
            return dg.SkipReason(found)
        dates = grid(config.wiki, config.shards).dates
        return dg.SensorResult(dynamic_partitions_requests=[dates.build_add_request([found.date])])

    return sensor


def newest_to_make(wiki: str, registered: Collection[str], mirror: DumpMirror, store: Store) -> Snapshot | str:
    """The newest complete snapshot, if it is newer than every one known here; else why there is nothing to do.

    Args:
        wiki: its database name.
        registered: dates that are known already, whoever made them known.
        mirror: is asked.
        store: knows what is published.

    Raises:
        SourceUnavailable: if the mirror cannot be asked, or has no complete snapshot.
    """
    newest = mirror.latest(wiki)
    pointer = store.pointer(wiki)
    known = max(registered, default="")
    if pointer:
        known = max(known, str(pointer["snapshot"]))
    if newest.date > known:
        return newest
    what = "is the newest" if newest.date == known else f"is newer than {newest}, the newest complete one"
    return f"{wiki}: nothing to do: {known} is known here and {what} on {mirror.base_url}"
