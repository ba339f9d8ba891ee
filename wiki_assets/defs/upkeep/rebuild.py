"""Rebuild a snapshot's index from its Parquet files: nothing is embedded again."""

import dagster as dg

from wiki_assets.defs.headless import Build, Outcome, materialize_snapshot
from wiki_assets.defs.recipes import Cookbook
from wiki_assets.defs.wikis import WikiConfig
from wiki_assets.errors import BadRequest
from wiki_assets.keys import Snapshot
from wiki_assets.resources.store import Store
from wiki_assets.settings import Settings

_SOURCES = ("articles", "tokens", "embeddings")


def snapshot_to_rebuild(wiki: str, date: str | None, store: Store) -> Snapshot:
    """The snapshot asked for; else the published one, else the newest that has data.

    Raises:
        BadRequest: if there is no data.
    """
    if date is not None:
        return Snapshot(wiki, date)
    pointer = store.pointer(wiki)
    dates = [pointer["snapshot"]] if pointer else store.dates(wiki)
    if not dates:
        raise BadRequest(f"{wiki}: no data under {store.wiki(wiki).parent}: run wiki-assets materialize {wiki}")
    return Snapshot(wiki, dates[-1])


def rebuild_index(
    snapshot: Snapshot,
    config: WikiConfig,
    settings: Settings,
    *,
    instance: dg.DagsterInstance,
    build: Build,
) -> Outcome:
    """Put every vector of a snapshot into a fresh build of its index, and publish it if the gate opens.

    The build that is published goes on answering until then. Killed half-way, `materialize` goes on with it.

    Args:
        snapshot: which one.
        config: of its wiki.
        settings: of this deployment.
        instance: where runs and events are recorded.
        build: makes the definitions, given a Ray resource; none is started.

    Raises:
        BadRequest: if what the index is made from is not all there, or not up to date.
    """
    store = Store(settings.root)
    book = Cookbook(config, store, settings.chroma)
    raw = store.raw_manifest(snapshot)
    for artifact in _SOURCES:
        absent = [shard.name for shard in book.shards(snapshot) if book.made(artifact, shard, raw) is None]
        if absent:
            raise BadRequest(
                f"{snapshot}: {artifact} of {len(absent)} of {config.shards} shards are not there or not up to date "
                f"({', '.join(absent[:5])}): run wiki-assets materialize {snapshot.wiki} --snapshot {snapshot.date}"
            )
    pointer = store.pointer(snapshot.wiki)
    published = pointer["build"] if pointer and pointer["snapshot"] == snapshot.date else 0
    newest = max([*store.builds(snapshot), published])
    if newest:
        book.give_up_build(snapshot, newest, "rebuild-index was asked for another one")
    return materialize_snapshot(
        snapshot, config, settings, instance=instance, build=build, since="chroma_collection", ray_is_up=True
    )
