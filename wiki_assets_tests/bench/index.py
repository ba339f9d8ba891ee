"""Vectors to a Chroma collection: the platform's load and a bare upsert loop of the same rows."""

import os
import shutil
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from wiki_assets.defs import indexing, worker
from wiki_assets.defs.recipes import Cookbook
from wiki_assets.files import Manifest, whole_file, write_json
from wiki_assets.keys import Shard
from wiki_assets.settings import Settings
from wiki_assets.stages.embeddings import embeddings_schema
from wiki_assets.stages.index import HNSW, shard_rows
from wiki_assets_tests.bench.articles import run_here
from wiki_assets_tests.bench.dumps import Dump
from wiki_assets_tests.bench.measure import Row, Side, best_rate

_CENTRES = 200
_ENOUGH = 8_000  # vectors; whole shards are loaded until there are as many


class Indexing:
    """One process that loads the same rows into a new store each time, one way or the other.

    Passages are the dump's own; vectors are random around 200 centres, which costs no minutes of embedding.
    """

    def __init__(self, dump: Dump, folder: Path) -> None:
        worker.pin_threads(1)
        self._folder = folder
        self._settings = Settings.from_env()
        self._book = run_here(dump, folder / "made", self._settings)
        self._snapshot = dump.snapshot
        self._shards: list[Shard] = []
        n_vectors = 0
        for shard in self._book.shards(self._snapshot):
            if n_vectors < _ENOUGH:
                n_vectors += _write_vectors(self._book, shard)
                self._shards.append(shard)

    def bare(self, number: int) -> dict[str, float]:
        """The loop that anyone would write, on rows that lie in memory."""
        import chromadb
        from chromadb.config import Settings as ChromaSettings

        client = chromadb.PersistentClient(
            str(self._folder / f"bare-{number}"), settings=ChromaSettings(anonymized_telemetry=False)
        )
        collection = client.create_collection("bare", embedding_function=None, configuration={"hnsw": HNSW})  # type: ignore[typeddict-item]
        batches = [rows for shard in self._shards for rows in _rows(self._book, shard)]
        before = time.process_time()
        for rows in batches:
            collection.upsert(ids=rows.ids, embeddings=rows.vectors, documents=rows.documents, metadatas=rows.metadatas)  # type: ignore[arg-type]
        loaded = time.process_time() - before
        time.sleep(0.5)
        settled = time.process_time() - before
        found = {"load": loaded, "later": settled - loaded, "vectors": collection.count()}
        client.close()  # type: ignore[attr-defined]
        return found

    def ours(self, number: int) -> dict[str, float]:
        """The chroma_collection stage on a copy of the store; `load` is what it says of itself."""
        root = self._folder / f"ours-{number}"
        shutil.copytree(self._folder / "made", root, copy_function=os.link)
        book = Cookbook(self._book.config, type(self._book.store)(str(root)))
        recipes = [book.recipe("chroma_collection", shard) for shard in self._shards]
        found: dict[str, float] = defaultdict(float)
        for _, manifest in indexing.index_shards(book, self._settings, self._snapshot, recipes):
            if not isinstance(manifest, Manifest):
                raise manifest
            found["load"] += manifest.stats["load_cpu_seconds"]
            found["whole"] += manifest.stats["cpu_seconds"]
            found["vectors"] += manifest.counts["indexed"]
        return dict(found)


def _rows(book: Cookbook, shard: Shard) -> list[Any]:
    with (
        book.store.file("articles", shard).open("rb") as articles,
        book.store.file("passages", shard).open("rb") as passages,
        book.store.file("embeddings", shard).open("rb") as embeddings,
    ):
        return list(shard_rows(articles, passages, embeddings, shard=shard, batch_size=indexing._BATCH_ROWS))


def _write_vectors(book: Cookbook, shard: Shard) -> int:
    """An embeddings file and its manifest, with random vectors for the shard's passages; returns how many."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    recipe = book.recipe("embeddings", shard)
    dim = recipe.params["dim"]
    schema = embeddings_schema(dim, "float32")
    random = np.random.default_rng(shard.number)
    centres = np.random.default_rng(7).standard_normal((_CENTRES, dim), np.float32)
    with book.store.file("passages", shard).open("rb") as source:
        table = pq.read_table(source, columns=["passage_id", "text_hash"])
    names, hashes = (table[name].combine_chunks() for name in ("passage_id", "text_hash"))
    vectors = centres[random.integers(0, _CENTRES, len(names))] + 0.5 * random.standard_normal(
        (len(names), dim), np.float32
    )
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), type=schema.field("vector").type)
    with whole_file(book.store.file("embeddings", shard)) as out:
        pq.write_table(pa.Table.from_arrays([names, hashes, column], schema=schema), out, use_dictionary=False)
    target = book.store.file("embeddings", shard)
    counts = dict.fromkeys(("passages", "vectors", "passages_embedded"), len(names))
    write_json(
        book.store.manifest_path("embeddings", shard),
        recipe.manifest({book.store.name(target): out.record}, counts, {}),
    )
    return len(names)


def compare_index(dump: Dump, repeats: int, folder: Path) -> list[Row]:
    """Load a fresh store either way, in turn."""
    cpu: dict[str, list[float]] = defaultdict(list)
    found: dict[str, dict[str, float]] = {}
    with Side(Indexing, dump, folder) as side:
        for repeat in range(repeats):
            for way in ("bare", "ours"):
                found[way], _ = side.run(way, repeat)
                cpu[way].append(found[way]["load"])
                print(f"  repeat {repeat + 1} {way}: { ({k: round(v, 2) for k, v in found[way].items()}) }", flush=True)
    n = int(found["bare"]["vectors"])
    if n != found["ours"]["vectors"]:
        raise RuntimeError(
            f"the bare loop has {n} vectors, the platform {found['ours']['vectors']:.0f}: not the same work"
        )
    reading_back = found["ours"]["whole"] / found["ours"]["load"]
    return [
        Row(
            "chroma_collection, load : bare upsert loop",
            best_rate(n, cpu["ours"], "vectors"),
            best_rate(n, cpu["bare"], "vectors"),
            [b / o for o, b in zip(cpu["ours"], cpu["bare"], strict=True)],
            0.9 if n >= 2_000 else None,
            note=f"{n:,} vectors in batches of {indexing._BATCH_ROWS:,}; ours reads and joins the files too; "
            f"reading every row back, not counted, makes it x {reading_back:.2f}",
        )
    ]
