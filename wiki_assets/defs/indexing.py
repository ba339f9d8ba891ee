"""One writer puts shards into a collection, one after the other, and reads each one back."""

import shutil
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from upath import UPath

from wiki_assets.claims import claim
from wiki_assets.defs.recipes import Cookbook, Recipe, collection_name
from wiki_assets.defs.work import passages_set_aside
from wiki_assets.errors import LedgerBroken, NoSpace, SourceUnavailable, StoreLocked, WikiAssetsError
from wiki_assets.files import Manifest, is_local, local_path
from wiki_assets.keys import Snapshot
from wiki_assets.resources.chroma import is_away, open_collection, open_store, patiently, require_disk, sync_after
from wiki_assets.settings import Settings
from wiki_assets.stages.articles import LICENCE
from wiki_assets.stages.index import HNSW, add_rows, check_rows, has_shard, rows_of_shard, shard_rows

if TYPE_CHECKING:
    from chromadb import Collection

_BATCH_ROWS = 2_000
_ROW_BYTES = 4_000  # of a row beside its vector: text, metadata and their indexes, about
_SPACE_FACTOR = 3


def index_shards(
    book: Cookbook, settings: Settings, snapshot: Snapshot, todo: Sequence[Recipe], *, run: str = ""
) -> Iterator[tuple[Recipe, Manifest | Exception]]:
    """Add shards to the current build of a snapshot's index; yield each one when it was read back.

    A store that fails while it is written is not trusted again: its build is given up, and the next run makes another.

    Raises:
        StoreLocked: if another process is writing this build, or has claimed a shard of it meanwhile.
        SourceUnavailable: if the Chroma server does not answer.
        NoSpace: if the disk has too little room to begin.
        BadRequest: if the data root is an object store, and there is no Chroma server.
    """
    if not settings.chroma:
        require_disk(book.store.wiki(snapshot.wiki))
    build = book.build_for(snapshot, todo)
    model = book.config.find_model()
    about = {
        "wiki": snapshot.wiki,
        "snapshot": snapshot.date,
        "build": build,
        "model": model.name,
        "model_sha256": model.sha256,
        "dim": model.dim,
        "licence": LICENCE,
    }
    at_work: Recipe | None = None
    folder = book.store.build(snapshot, build) / "chroma"
    _require_space(book, settings, todo, folder)
    try:
        with open_store(folder, settings.chroma, write=True) as client:
            name = collection_name(snapshot, build)
            collection = patiently(partial(open_collection, client, name, hnsw=HNSW, metadata=about))
            patiently(partial(sync_after, collection, HNSW["sync_threshold"]))
            batch_rows = min(_BATCH_ROWS, client.get_max_batch_size())
            for at_work in todo:
                claimed = claim(book.store.manifest_path("chroma_collection", at_work.shard, build), run)
                counts, stats = patiently(partial(_index_shard, book, at_work, collection, batch_rows))
                yield at_work, claimed.commit(at_work.manifest({}, counts, {**stats, "build": build}))
            sync_after(collection, 2)
    except (StoreLocked, SourceUnavailable):
        raise  # another process has the store, or its server is away: it is as it was
    except BaseException as error:  # Chroma's core raises what is no Exception
        if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit):
            raise
        if settings.chroma and is_away(error):
            raise SourceUnavailable(
                f"{settings.chroma}: the Chroma server went away ({type(error).__name__}): start it, then run again: "
                "it goes on from there"
            ) from error
        reason = str(error) if isinstance(error, WikiAssetsError) else f"{type(error).__name__}: {error}"
        _give_up(book, snapshot, build, reason)
        failure = WikiAssetsError(f"{reason}. Build {build} is given up: run again, it makes another")
        if at_work is None:
            raise failure from error
        yield at_work, failure


def _index_shard(
    book: Cookbook, recipe: Recipe, collection: "Collection", batch_rows: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Add what is missing of one shard, and read all of it back.

    Returns:
        Counts and stats of its manifest.

    Raises:
        LedgerBroken: if vectors, rows and rows read back are not equally many.
        DamagedArtifact: if a row is not what was written.
    """
    shard = recipe.shard
    started, cpu = time.perf_counter(), time.process_time()
    fresh = not has_shard(collection, shard.number)
    with (
        book.store.file("articles", shard).open("rb") as articles,
        book.store.file("passages", shard).open("rb") as passages,
        book.store.file("embeddings", shard).open("rb") as embeddings,
    ):
        files = {"articles": articles, "passages": passages, "embeddings": embeddings}
        aside = passages_set_aside(book.store, shard)
        batches = list(shard_rows(**files, shard=shard, batch_size=batch_rows, set_aside=aside))
    added = sum(add_rows(collection, rows, fresh=fresh) for rows in batches)
    loaded = time.process_time() - cpu
    for rows in batches:
        check_rows(collection, rows)
    verified = sum(len(rows.ids) for rows in batches)
    vectors, indexed = _vectors(book, recipe), rows_of_shard(collection, shard.number)
    if not vectors == verified == indexed:
        raise LedgerBroken(f"{shard}: {vectors} vectors, {indexed} rows in {collection.name}, {verified} read back")
    stats = {
        "seconds": round(time.perf_counter() - started, 3),
        "cpu_seconds": round(time.process_time() - cpu, 3),
        "load_cpu_seconds": round(loaded, 3),
    }
    counts = {
        "vectors": vectors,
        "added": added,
        "indexed": indexed,
        "verified": verified,
        "sample": {**batches[0].metadatas[0], "document": batches[0].documents[0]} if batches else None,
    }
    return counts, stats


def _require_space(book: Cookbook, settings: Settings, todo: Sequence[Recipe], folder: UPath) -> None:
    """A store that runs out of space is ruined, so the space is looked for before anything is written.

    Raises:
        NoSpace: if the disk has less than three times what the rows will take.
    """
    if settings.chroma or not is_local(folder):
        return
    dim = book.config.find_model().dim
    needed = _SPACE_FACTOR * sum(_vectors(book, recipe) for recipe in todo) * (dim * 4 + _ROW_BYTES)
    local_path(folder).parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(local_path(folder).parent).free
    if free < needed:
        raise NoSpace(
            f"{folder}: {free / 1e6:,.0f} MB are free, the index may need {needed / 1e6:,.0f} MB while it is made: "
            "free some space, then run again"
        )


def _give_up(book: Cookbook, snapshot: Snapshot, build: int, reason: str) -> None:
    """Mark a build as given up, and take its store away unless queries are reading it."""
    pointer = book.store.pointer(snapshot.wiki)
    published = pointer is not None and (pointer["snapshot"], pointer["build"]) == (snapshot.date, build)
    folder = book.store.build(snapshot, build) / "chroma"
    if not published and is_local(folder):
        shutil.rmtree(local_path(folder), ignore_errors=True)  # first: it makes room to write the next line
    book.give_up_build(snapshot, build, reason)


def _vectors(book: Cookbook, recipe: Recipe) -> int:
    """How many vectors the shard has, by their own manifest."""
    manifest = book.store.manifest("embeddings", recipe.shard)
    return int(manifest.counts["vectors"]) if manifest else 0
