"""Which version of what each shard was made from, in the tags that Dagster computes staleness from.

Dagster's own provenance gives every partition of a range run the same version and the same inputs. These tags
are the ones its events carry, written per shard. They lean on reads of the event log that are not public;
they are all here, and a test holds them to what the UI shows.
"""

from collections.abc import Collection, Sequence
from hashlib import sha256

import dagster as dg
from dagster._core.definitions.data_version import SKIP_PARTITION_DATA_VERSION_DEPENDENCY_THRESHOLD

from wiki_assets.defs.recipes import Recipe
from wiki_assets.files import Manifest


def tags(context: dg.AssetExecutionContext, key: dg.AssetKey, recipe: Recipe, manifest: Manifest) -> dict[str, str]:
    """The tags of one shard's materialization: its version, its code's, and those of its inputs."""
    return shard_tags(context.instance, recipe, manifest)


def shard_tags(instance: dg.DagsterInstance, recipe: Recipe, manifest: Manifest) -> dict[str, str]:
    """The same, for an event that no run reports."""
    wiki = recipe.shard.snapshot.wiki
    found = {
        "dagster/data_version": manifest.data_version,
        "dagster/data_version_is_user_provided": "true",
        "dagster/code_version": recipe.code_version,
        "dagster/partition/date": recipe.shard.snapshot.date,
        "dagster/partition/shard": recipe.shard.name,
    }
    for name, version in recipe.inputs.items():
        parent = dg.AssetKey([wiki, name])
        partition = recipe.shard.snapshot.date if name == "raw_dump" else recipe.shard.partition_key
        found[f"dagster/input_data_version/{parent.to_user_string()}"] = version
        event = _latest_event(instance, parent, partition)
        if event is not None:
            found[f"dagster/input_event_pointer/{parent.to_user_string()}"] = str(event)
    return found


def input_tags(
    instance: dg.DagsterInstance, parent: dg.AssetKey, partitions: Sequence[str]
) -> tuple[str, dict[str, str]]:
    """An input that is many partitions: its version, and the tags that say so, as Dagster's own events have them.

    The version is a hash of theirs, in order; of a hundred or more it is that of the asset's latest event.
    """
    latest = instance.fetch_materializations(parent, limit=1).records
    if not latest:
        return "", {}
    kind, tag = dg.DagsterEventType.ASSET_MATERIALIZATION, "dagster/data_version"
    if len(partitions) < SKIP_PARTITION_DATA_VERSION_DEPENDENCY_THRESHOLD:
        storage = instance.event_log_storage
        found = storage.get_latest_tags_by_partition(parent, kind, [tag], asset_partitions=list(partitions))
        version = sha256("".join(tags[tag] for _, tags in sorted(found.items())).encode()).hexdigest()
    else:
        version = (latest[0].asset_materialization.tags or {})[tag] if latest[0].asset_materialization else ""
    name = parent.to_user_string()
    pointer = str(latest[0].storage_id)
    return version, {f"dagster/input_data_version/{name}": version, f"dagster/input_event_pointer/{name}": pointer}


def _latest_event(instance: dg.DagsterInstance, key: dg.AssetKey, partition: str) -> int | None:
    """Storage id of a partition's latest materialization."""
    found = instance.fetch_materializations(dg.AssetRecordsFilter(asset_key=key, asset_partitions=[partition]), limit=1)
    return found.records[0].storage_id if found.records else None


def reported_in_run(context: dg.AssetExecutionContext, key: dg.AssetKey) -> Collection[str]:
    """Partitions that an earlier attempt of this run reported already, so that a retry does not double them."""
    if not context.retry_number:
        return ()
    found: set[str] = set()
    cursor = None
    while True:
        page = context.instance.fetch_materializations(
            dg.AssetRecordsFilter(asset_key=key, asset_partitions=list(context.partition_keys)),
            limit=1_000,
            cursor=cursor,
        )
        found |= {r.partition_key for r in page.records if r.run_id == context.run.run_id and r.partition_key}
        if not page.has_more:
            return found
        cursor = page.cursor
