"""One writer puts shards into a collection, one after the other, and reads each one back."""

import time
from collections.abc import Iterator, Sequence

from wiki_assets.claims import claim
from wiki_assets.defs.recipes import Cookbook, Recipe, collection_name
from wiki_assets.errors import LedgerBroken, WikiAssetsError
from wiki_assets.files import Manifest
from wiki_assets.keys import Snapshot
from wiki_assets.resources.chroma import open_collection, open_store
from wiki_assets.settings import Settings
from wiki_assets.stages.articles import LICENCE
from wiki_assets.stages.index import HNSW, add_rows, check_rows, has_shard, rows_of_shard, shard_rows

_BATCH_ROWS = 2_000


def index_shards(
    book: Cookbook, settings: Settings, snapshot: Snapshot, todo: Sequence[Recipe], *, run: str = ""
) -> Iterator[tuple[Recipe, Manifest | Exception]]:
    """Add shards to the current build of a snapshot's index; yield each one when it was read back.

    Raises:
        StoreLocked: if another process is writing this build, or has claimed a shard of it meanwhile.
    """
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
    with open_store(book.store.build(snapshot, build) / "chroma", settings.chroma, write=True) as client:
        collection = open_collection(client, collection_name(snapshot, build), hnsw=HNSW, metadata=about)
        batch_rows = min(_BATCH_ROWS, client.get_max_batch_size())
        for recipe in todo:
            shard = recipe.shard
            started, cpu = time.perf_counter(), time.process_time()
            mine = claim(book.store.manifest_path("chroma_collection", shard, build), run)
            try:
                fresh = not has_shard(collection, shard.number)
                added = verified = 0
                with (
                    book.store.file("articles", shard).open("rb") as articles,
                    book.store.file("passages", shard).open("rb") as passages,
                    book.store.file("embeddings", shard).open("rb") as embeddings,
                ):
                    batches = list(shard_rows(articles, passages, embeddings, shard=shard, batch_size=batch_rows))
                for rows in batches:
                    added += add_rows(collection, rows, fresh=fresh)
                loaded = time.process_time() - cpu
                for rows in batches:
                    check_rows(collection, rows)
                    verified += len(rows.ids)
                vectors = _vectors(book, recipe)
                indexed = rows_of_shard(collection, shard.number)
                if not vectors == verified == indexed:
                    raise LedgerBroken(
                        f"{shard}: {vectors} vectors, {indexed} rows in {collection.name}, {verified} read back"
                    )
            except WikiAssetsError as error:
                book.give_up_build(snapshot, build, str(error))
                yield recipe, WikiAssetsError(f"{error}. Build {build} is given up: run again, it makes another")
                return
            stats = {
                "seconds": round(time.perf_counter() - started, 3),
                "cpu_seconds": round(time.process_time() - cpu, 3),
                "load_cpu_seconds": round(loaded, 3),
                "build": build,
            }
            counts = {
                "vectors": vectors,
                "added": added,
                "indexed": indexed,
                "verified": verified,
                "sample": {**batches[0].metadatas[0], "document": batches[0].documents[0]} if batches else None,
            }
            yield recipe, mine.commit(recipe.manifest({}, counts, stats))


def _vectors(book: Cookbook, recipe: Recipe) -> int:
    """How many vectors the shard has, by their own manifest."""
    manifest = book.store.manifest("embeddings", recipe.shard)
    return int(manifest.counts["vectors"]) if manifest else 0
