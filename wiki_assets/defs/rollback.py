"""Back to the build before, at once; and what the pointer remembers for it.

    previous       what was published before, as it was, and in it what was published before that
    rolled_back    what was taken back: not published again by itself, until something newer is published

A rollback moves the pointer and nothing else, so questions that are being answered end on the build they began on.
"""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import dagster as dg

from wiki_assets.defs.wikis import wiki_config
from wiki_assets.errors import BadRequest, DamagedArtifact, WikiAssetsError
from wiki_assets.files import read_manifest
from wiki_assets.keys import Shard, Snapshot
from wiki_assets.resources.chroma import open_store, published_collection
from wiki_assets.resources.local_copy import local_copy
from wiki_assets.resources.store import Store
from wiki_assets.settings import Settings
from wiki_assets.stages.lexical import LexicalIndex

Pointer = dict[str, Any]
_PARQUET = ("articles", "tokens", "embeddings")
_ALL = 1_000


def with_history(pointer: Pointer | None, depth: int) -> Pointer | None:
    """A pointer as the next one remembers it: with at most `depth` builds to go back to, itself the first of them."""
    if pointer is None or depth < 1:
        return None
    return {**_bare(pointer), "previous": with_history(pointer.get("previous"), depth - 1)}


def history(pointer: Pointer | None) -> Iterator[Pointer]:
    """What a wiki's pointer needs to be kept: what it points to, what it can go back to, and what was taken back."""
    if pointer is None:
        return
    yield from pointer.get("rolled_back", ())
    while pointer:
        yield pointer
        pointer = pointer.get("previous")


def was_rolled_back(pointer: Pointer | None, collection: str) -> bool:
    """Whether a build was taken back, and nothing newer was published since."""
    return collection in [taken["collection"] for taken in (pointer or {}).get("rolled_back", ())]


def standing(pointer: Pointer | None) -> list[str]:
    """What a person should know of what was taken back, a line each."""
    return [
        f"{taken['wiki']}: {taken['collection']} was rolled back at {taken['rolled_back_at']} and is not published "
        f"by itself; to publish it again: wiki-assets rollback {taken['wiki']} --undo"
        for taken in (pointer or {}).get("rolled_back", ())
    ]


def rollback(wiki: str, settings: Settings, *, undo: bool = False) -> Pointer:
    """Point to the build before the published one, if it is whole.

    Args:
        wiki: which one.
        settings: of this deployment.
        undo: publish again what was taken back last.

    Returns:
        The pointer as it stands now.

    Raises:
        NotPublished: if nothing is published.
        BadRequest: if there is nothing to go back to, or nothing to take back.
        DamagedArtifact: if what there is cannot answer questions any more.
        Superseded: if the pointer is moved at this moment.
    """
    store = Store(settings.root)
    now = store.published(wiki)
    taken: list[Pointer] = list(now.get("rolled_back", ()))
    if undo:
        if not taken:
            raise BadRequest(f"{wiki}: nothing was rolled back since {now['collection']} was published")
        target = {**_bare(taken.pop()), "previous": with_history(now, _ALL)}
    else:
        if not now.get("previous"):
            raise BadRequest(
                f"{wiki}: {now['collection']} is published, and no build before it is kept: publish a newer one, "
                "and keep more of them (keep_builds in the wiki's line)"
            )
        target = now["previous"]
        taken.append({**_bare(now), "rolled_back_at": datetime.now(UTC).isoformat(timespec="seconds")})
    if problem := what_is_missing(store, target, settings):
        raise DamagedArtifact(
            f"{wiki}: {target['collection']} cannot be published again: {problem}; {now['collection']} stays: "
            f"run wiki-assets rebuild-index {wiki}, or materialize a newer snapshot"
        )
    pointer = {**target, "rolled_back": taken} if taken else target
    store.publish(wiki, pointer, instead_of=now)
    return pointer


def note_in_dagster(instance: dg.DagsterInstance, pointer: Pointer) -> None:
    """Show a move of the pointer that no run made, beside the partition's materializations; they stay as they are."""
    facts = {name: value for name, value in pointer.items() if isinstance(value, int | str)}
    taken = ", ".join(p["collection"] for p in pointer.get("rolled_back", ()))
    instance.report_runless_asset_event(
        dg.AssetObservation(
            dg.AssetKey([pointer["wiki"], "published_index"]),
            partition=pointer["snapshot"],
            metadata={**facts, "rolled_back": taken},
            description="published again by wiki-assets rollback",
        )
    )


def what_is_missing(store: Store, target: Pointer, settings: Settings) -> str:
    """Why a build that was published once cannot answer any more; nothing if it can. Asks the model nothing."""
    snapshot = Snapshot(target["wiki"], target["snapshot"])
    model = wiki_config(snapshot.wiki, settings, store).find_model()
    if model.sha256 != target["model"]["sha256"]:
        return f"it was made with {target['model']['name']!r}, the model is {model.name!r} now (WIKI_ASSETS_MODEL)"
    for artifact in _PARQUET:
        shards = [Shard(snapshot, number) for number in range(int(target["shards"]))]
        if absent := [shard.name for shard in shards if store.manifest(artifact, shard) is None]:
            return f"{artifact} of shard {', '.join(absent[:5])} are gone"
    try:
        return _count_rows(store, target, settings) or _count_documents(store, target, settings)
    except WikiAssetsError as error:
        return str(error).partition(": run ")[0]


def _count_rows(store: Store, target: Pointer, settings: Settings) -> str:
    folder = store.build(Snapshot(target["wiki"], target["snapshot"]), target["build"]) / "chroma"
    try:
        with open_store(folder, settings.chroma or target["server"]) as client:
            rows = published_collection(client, target["collection"]).count()
    except BaseException as error:  # Chroma's core raises what is no Exception
        if isinstance(error, WikiAssetsError | KeyboardInterrupt | SystemExit):
            raise
        return f"its collection cannot be read ({type(error).__name__}: {str(error).splitlines()[0]})"
    expected = target["passages"]
    return "" if rows == expected else f"its collection has {rows:,} rows, {expected:,} were published"


def _count_documents(store: Store, target: Pointer, settings: Settings) -> str:
    about = target.get("lexical")
    if not about:  # published before there were any
        return ""
    wiki = store.wiki(target["wiki"])
    manifest = read_manifest(wiki / about["folder"] / "manifest.json")
    if manifest is None:
        return f"{about['folder']} is gone"
    folder = local_copy(wiki / about["folder"], manifest, wiki, settings.cache_folder)
    found = LexicalIndex(folder, about["language"]).documents
    expected = about["documents"]
    return "" if found == expected else f"its lexical index has {found:,} documents, {expected:,} were published"


def _bare(pointer: Pointer) -> Pointer:
    """A pointer without what it remembers."""
    return {k: v for k, v in pointer.items() if k not in ("previous", "rolled_back", "rolled_back_at")}
