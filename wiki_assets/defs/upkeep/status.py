"""Dagster's side: which partitions it shows as made, how to tell it of one, and how to make it forget one.

Telling is public. Forgetting is not: `wipe_assets` forgets an asset whole, `wipe_asset_partitions` is not there for
the databases of open-source Dagster, and taking a date away and adding it again leaves its partitions materialized.
So the asset's name is taken off the partition's events, which stay in the log of their run. That is the one place
here that knows Dagster's tables; a test holds it to what the UI shows.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import dagster as dg
from dagster import AssetKey

from wiki_assets.defs import provenance
from wiki_assets.defs.checks import CHECKS
from wiki_assets.defs.evaluation import evaluation_facts
from wiki_assets.defs.lexical import lexical_facts
from wiki_assets.defs.partitions import dates_name, grid
from wiki_assets.defs.raw import raw_facts
from wiki_assets.defs.recipes import OF_DATE, STAGES, Recipe, code_version
from wiki_assets.defs.shards import manifest_facts
from wiki_assets.defs.upkeep.proof import Proof
from wiki_assets.defs.wikis import WikiConfig
from wiki_assets.errors import WikiAssetsError
from wiki_assets.files import Manifest
from wiki_assets.keys import Shard
from wiki_assets.resources.store import Store

MADE_FROM = {
    "lexical_index": ("articles", "tokens"),
    "evaluation": ("chroma_collection", "lexical_index"),
    "published_index": ("evaluation",),
}
_PER_STATEMENT = 500  # partitions


@dataclass(frozen=True)
class Shown:
    """What Dagster shows of one asset, by partition.

    `made` were materialized, and not forgotten; of these and others, a run is making the `busy` ones, and the last
    run of the `failed` ones did not finish them.
    """

    made: frozenset[str] = frozenset()
    busy: frozenset[str] = frozenset()
    failed: frozenset[str] = frozenset()


def known_wikis(instance: dg.DagsterInstance) -> set[str]:
    """Wikis of which Dagster has seen any asset."""
    return {key.path[0] for key in instance.all_asset_keys() if len(key.path) == 2 and key.path[1] in STAGES}


def shown(instance: dg.DagsterInstance, wiki: str, artifact: str, shards: int | None) -> Shown:
    """What Dagster shows of one asset of a wiki; `shards` None where nobody knows how many it has."""
    from dagster._core.storage.partition_status_cache import AssetPartitionStatus

    key = AssetKey([wiki, artifact])
    made = frozenset(instance.get_materialized_partitions(key))
    if shards is None:
        return Shown(made)
    parts = grid(wiki, shards)
    of_date = artifact in OF_DATE
    definition: Any = parts.dates if of_date else parts.cells
    partitions = definition.get_partition_keys(dynamic_partitions_store=instance)
    statuses = instance.get_status_by_partition(key, list(partitions), definition) or {}
    busy = frozenset(str(p) for p, status in statuses.items() if status == AssetPartitionStatus.IN_PROGRESS)
    failed = frozenset(str(p) for p, status in statuses.items() if status == AssetPartitionStatus.FAILED)
    return Shown(made, busy, failed)


# --- tell


def tell(instance: dg.DagsterInstance, config: WikiConfig, store: Store, proofs: Sequence[Proof]) -> None:
    """Report proven partitions as materialized, with what a run would say of them. In the order of the stages."""
    dates = sorted({proof.snapshot.date for proof in proofs})
    instance.add_dynamic_partitions(dates_name(config.wiki), dates)
    for proof in sorted(proofs, key=lambda p: (STAGES.index(p.artifact), p.partition)):
        instance.report_runless_asset_event(_event(instance, config, store, proof))


def tell_checks(instance: dg.DagsterInstance, wiki: str, artifact: str, manifests: Sequence[Manifest]) -> None:
    """Report what the asset's checks find over these manifests."""
    for name, check in CHECKS.get(artifact, {}).items():
        passed, facts = check(manifests)
        evaluation = dg.AssetCheckEvaluation(
            asset_key=AssetKey([wiki, artifact]),
            check_name=name,
            passed=passed,
            metadata={fact: dg.MetadataValue.json(value) if isinstance(value, dict | list) else value
                      for fact, value in facts.items()},
        )  # fmt: skip
        instance.report_runless_asset_event(evaluation)


def _event(instance: dg.DagsterInstance, config: WikiConfig, store: Store, proof: Proof) -> dg.AssetMaterialization:
    key = AssetKey([proof.snapshot.wiki, proof.artifact])
    manifest = proof.manifest
    if proof.artifact == "published_index":
        pointer = store.pointer(proof.snapshot.wiki) or {}
        metadata: dict[str, Any] = {k: v for k, v in pointer.items() if isinstance(v, int | str)} | {"moved": False}
        tags = _tags_of_date(instance, config, proof)
    elif manifest is None:
        raise ValueError(f"{proof.name}: a proven partition has a manifest")
    elif proof.artifact == "lexical_index":
        metadata = lexical_facts(manifest) | {"reused": True}
        tags = _tags_of_date(instance, config, proof) | _own(manifest.data_version, manifest.code_version)
    elif proof.artifact == "evaluation":
        metadata = evaluation_facts(manifest, store) | {"reused": True}
        tags = _tags_of_date(instance, config, proof) | _own(manifest.data_version, manifest.code_version)
    elif proof.shard is None:
        metadata = raw_facts(manifest, str(store.raw(proof.snapshot)))
        tags = _own(manifest.data_version, f"{manifest.code_version}:n{config.shards}")
    else:
        recipe = Recipe(proof.artifact, proof.shard, manifest.code_version, manifest.params, manifest.inputs)
        metadata = {**manifest_facts(manifest), "reused": True}
        tags = provenance.shard_tags(instance, recipe, manifest)
    return dg.AssetMaterialization(key, partition=proof.partition, metadata=metadata, tags=tags)


def _own(data_version: str, code: str) -> dict[str, str]:
    return {
        "dagster/data_version": data_version,
        "dagster/data_version_is_user_provided": "true",
        "dagster/code_version": code,
    }


def _tags_of_date(instance: dg.DagsterInstance, config: WikiConfig, proof: Proof) -> dict[str, str]:
    """Tags of what is made from a whole snapshot: its version is a hash of its code's and of its inputs'."""
    shards = [Shard(proof.snapshot, number).partition_key for number in range(config.shards)]
    tags: dict[str, str] = {}
    versions: list[str] = []
    for name in sorted(MADE_FROM[proof.artifact]):
        partitions = [proof.partition] if name in OF_DATE else shards
        version, found = provenance.input_tags(instance, AssetKey([config.wiki, name]), partitions)
        versions.append(version)
        tags |= found
    code = code_version(proof.artifact, config)
    version = sha256("".join([code, *versions]).encode()).hexdigest()
    return {**tags, "dagster/data_version": version, "dagster/code_version": code}


# --- forget


def forget(instance: dg.DagsterInstance, wiki: str, artifact: str, partitions: Collection[str]) -> None:
    """Make partitions of an asset not materialized; the others, and the logs of runs, stay as they are.

    Raises:
        WikiAssetsError: if this instance's database is none that we know.
    """
    key = AssetKey([wiki, artifact])
    names = sorted(partitions)
    try:
        instance.wipe_asset_partitions(key, names)
    except NotImplementedError:
        _take_off(instance, key, names)
    instance.wipe_asset_cached_status([key])


def _take_off(instance: dg.DagsterInstance, key: AssetKey, partitions: Sequence[str]) -> None:
    from dagster._core.storage.event_log.schema import AssetEventTagsTable, AssetKeyTable, SqlEventLogStorageTable
    from dagster._core.storage.event_log.sql_event_log import SqlEventLogStorage
    from dagster._serdes import serialize_value
    from sqlalchemy import select, update

    storage = instance.event_log_storage
    if not isinstance(storage, SqlEventLogStorage):
        raise WikiAssetsError(
            f"{type(storage).__name__}: expected one of Dagster's SQL event logs: "
            f"wipe {key.to_user_string()} with dagster asset wipe, then run wiki-assets reconcile"
        )
    events, tags = SqlEventLogStorageTable, AssetEventTagsTable
    for start in range(0, len(partitions), _PER_STATEMENT):
        some = partitions[start : start + _PER_STATEMENT]
        ours = (events.c.asset_key == key.to_string()) & events.c.partition.in_(some)
        with storage.index_transaction() as connection:
            connection.execute(tags.delete().where(tags.c.event_id.in_(select(events.c.id).where(ours))))
            connection.execute(update(events).where(ours).values(asset_key=None, partition=None))
    left = instance.fetch_materializations(key, limit=1).records
    if not left:
        instance.wipe_assets([key])
        return
    with storage.index_transaction() as connection:
        connection.execute(
            update(AssetKeyTable)
            .where(AssetKeyTable.c.asset_key == key.to_string())
            .values(last_materialization=serialize_value(left[0]), last_run_id=left[0].run_id)
        )
