"""raw_dump → articles → tokens → embeddings → chroma_collection → published_index, for one wiki.

raw_dump[date]                the dump files as published, and their manifest
articles[date, shard]         one row a page; a page's shard is a hash of its id
tokens[date, shard]           token ids of every page, and its passages
embeddings[date, shard]       one vector a passage
chroma_collection[date, shard]  the shard's rows in the snapshot's collection, read back
published_index[date]         the pointer that queries follow; moves when the checks pass
"""

from collections.abc import Iterator, Sequence
from typing import Any

import dagster as dg
import pyarrow as pa
from dagster_ray import RayResource

from wiki_assets.defs import work
from wiki_assets.defs.checks import CHECKS
from wiki_assets.defs.failures import message_of, one_line_errors
from wiki_assets.defs.indexing import index_shards
from wiki_assets.defs.partitions import grid
from wiki_assets.defs.publish import GATE, examine, publish, refuse
from wiki_assets.defs.raw import fetch_snapshot
from wiki_assets.defs.recipes import Cookbook, Recipe, code_version
from wiki_assets.defs.shards import Done, each_shard, fan_out
from wiki_assets.defs.voice import say
from wiki_assets.defs.wikis import WikiConfig, require_shard_count
from wiki_assets.errors import WikiAssetsError
from wiki_assets.keys import Snapshot
from wiki_assets.resources.mirror import DumpMirror
from wiki_assets.resources.store import Store
from wiki_assets.settings import Settings
from wiki_assets.stages.articles import ARTICLES_SCHEMA
from wiki_assets.stages.embeddings import embeddings_schema
from wiki_assets.stages.tokens import PASSAGES_SCHEMA, TOKENS_SCHEMA

RETRY = dg.RetryPolicy(max_retries=1, delay=10, backoff=dg.Backoff.EXPONENTIAL)
# The daemon puts stages of equal partitions and equal policy into one run, in which all but the first would be
# skipped: so every stage has a number of its own. A run's loss on a kill is a few shards, whatever the number.
SHARDS_PER_RUN = {"articles": 4096, "tokens": 512, "embeddings": 256, "chroma_collection": 1024}


def wiki_assets(config: WikiConfig) -> list[dg.AssetsDefinition]:
    """The six assets of a wiki, one group."""
    wiki = config.wiki
    parts = grid(wiki, config.shards)

    def key(name: str) -> dg.AssetKey:
        return dg.AssetKey([wiki, name])

    def stage(
        name: str, *deps: dg.AssetDep, pool: str, kinds: set[str], columns: Sequence[Any] = (), about: str
    ) -> Any:
        """What every shard-level stage has in common."""
        return dg.multi_asset(
            name=f"{wiki}_{name}",
            specs=[
                dg.AssetSpec(
                    key(name),
                    deps=deps,
                    description=about,
                    partitions_def=parts.cells,
                    skippable=True,
                    code_version=code_version(name, config),
                    group_name=wiki,
                    kinds=kinds,
                    metadata={"dagster/column_schema": _columns(*columns)} if columns else None,
                )
            ],
            check_specs=[
                dg.AssetCheckSpec(check, asset=key(name), blocking=True, description=run.__doc__)
                for check, run in CHECKS[name].items()
            ],
            backfill_policy=dg.BackfillPolicy.multi_run(SHARDS_PER_RUN[name]),
            retry_policy=RETRY,
            pool=pool,
        )

    def book(store: Store, settings: Settings) -> Cookbook:
        require_shard_count(config, settings, store)
        return Cookbook(config, store, settings.chroma)

    def works(recipes: Sequence[Recipe], store: Store, settings: Settings, run: str) -> list[work.Work]:
        return [work.Work(recipe, config, store, settings, run) for recipe in recipes]

    @dg.asset(
        key=key("raw_dump"),
        partitions_def=parts.dates,
        code_version=code_version("raw_dump", config),
        group_name=wiki,
        kinds={"download"},
        pool="mirror",
        backfill_policy=dg.BackfillPolicy.multi_run(1),
        retry_policy=RETRY,
        description="The dump files as published, byte for byte, and their manifest.",
    )
    def raw_dump(
        context: dg.AssetExecutionContext,
        mirror: DumpMirror,
        store: dg.ResourceParam[Store],
        settings: dg.ResourceParam[Settings],
    ) -> dg.MaterializeResult[Any]:
        with one_line_errors():
            snapshot = Snapshot(wiki, context.partition_key)
            require_shard_count(config, settings, store)
            manifest = fetch_snapshot(snapshot, mirror, store, lambda line: say(context, line))
        facts = manifest.counts
        return dg.MaterializeResult(
            data_version=dg.DataVersion(manifest.data_version),
            metadata={
                "files": len(facts["files"]),
                "size_bytes": facts["size_bytes"],
                "decoded_bytes": facts["decoded_bytes"],
                "seconds": manifest.stats.get("seconds", 0.0),
                "path": dg.MetadataValue.path(str(store.raw(snapshot))),
                "published_files": dg.MetadataValue.json(
                    [{k: f[k] for k in ("name", "url", "size_bytes", "sha256")} for f in facts["files"]]
                ),
            },
        )

    @stage(
        "articles",
        dg.AssetDep(key("raw_dump"), partition_mapping=parts.by_date),
        pool="cpu",
        kinds={"ray", "parquet"},
        columns=[ARTICLES_SCHEMA],
        about="Pages by shard, each once, in its newest revision, with its redirect titles. One row a page.",
    )
    def articles(
        context: dg.AssetExecutionContext,
        ray: RayResource,
        store: dg.ResourceParam[Store],
        settings: dg.ResourceParam[Settings],
    ):
        with one_line_errors():
            cookbook = book(store, settings)

        def make(snapshot: Snapshot, todo: Sequence[Recipe]) -> Iterator[Done]:
            splits = work.splits_of(store, config, snapshot, context.run.run_id)
            to_split = [split for split in splits if not ((made := split.made()) and split.has_fragments(made))]
            say(context, f"{snapshot} articles: {len(to_split)} of {len(splits)} dump files to split")
            for split, result in fan_out(work.split_dump_file, [(split, (split,)) for split in to_split]):
                if isinstance(result, Exception):
                    raise WikiAssetsError(f"{split.file_name} could not be split: {message_of(result)}") from result
                counts = result.counts
                left_out = {**counts["filtered"], **counts["quarantined"]}
                say(
                    context,
                    f"{split.file_name}: {counts['pages']:,} pages of {counts['documents']:,} documents; "
                    f"left out {left_out or 'nothing'}",
                )
            tasks = works(todo, store, settings, context.run.run_id)
            yield from fan_out(work.make_articles, [(w.recipe, (w, splits)) for w in tasks])
            raw = store.raw_manifest(snapshot)
            if all(cookbook.made("articles", shard, raw) for shard in cookbook.shards(snapshot)):
                work.drop_fragments(splits)

        with one_line_errors():
            yield from each_shard(context, "articles", cookbook, make)

    @stage(
        "tokens",
        dg.AssetDep(key("articles")),
        pool="cpu",
        kinds={"ray", "parquet"},
        columns=[TOKENS_SCHEMA, PASSAGES_SCHEMA],
        about="Token ids of every page; and its passages, cut and tokenized as the embedding model reads them.",
    )
    def tokens(
        context: dg.AssetExecutionContext,
        ray: RayResource,
        store: dg.ResourceParam[Store],
        settings: dg.ResourceParam[Settings],
    ):
        def make(_: Snapshot, todo: Sequence[Recipe]) -> Iterator[Done]:
            tasks = works(todo, store, settings, context.run.run_id)
            yield from fan_out(work.make_tokens, [(w.recipe, (w,)) for w in tasks])

        with one_line_errors():
            yield from each_shard(context, "tokens", book(store, settings), make)

    @stage(
        "embeddings",
        dg.AssetDep(key("tokens")),
        pool="gpu",
        kinds={"ray", "parquet"},
        columns=[embeddings_schema(config.find_model().dim, config.vector_dtype)],
        about="One vector of unit length for each passage.",
    )
    def embeddings(
        context: dg.AssetExecutionContext,
        ray: RayResource,
        store: dg.ResourceParam[Store],
        settings: dg.ResourceParam[Settings],
    ):
        def make(_: Snapshot, todo: Sequence[Recipe]) -> Iterator[Done]:
            tasks = works(todo, store, settings, context.run.run_id)
            yield from fan_out(work.make_embeddings, [(w.recipe, (w,)) for w in tasks], num_gpus=gpus_per_task())

        with one_line_errors():
            yield from each_shard(context, "embeddings", book(store, settings), make)

    @stage(
        "chroma_collection",
        dg.AssetDep(key("embeddings")),
        pool="chroma",
        kinds={"chroma"},
        about="The shard's vectors, texts and metadata in the snapshot's collection, read back. One writer.",
    )
    def chroma_collection(
        context: dg.AssetExecutionContext, store: dg.ResourceParam[Store], settings: dg.ResourceParam[Settings]
    ):
        with one_line_errors():
            cookbook = book(store, settings)

        def make(snapshot: Snapshot, todo: Sequence[Recipe]) -> Iterator[Done]:
            yield from index_shards(cookbook, settings, snapshot, todo, run=context.run.run_id)

        with one_line_errors():
            yield from each_shard(context, "chroma_collection", cookbook, make)

    @dg.multi_asset(
        name=f"{wiki}_published_index",
        specs=[
            dg.AssetSpec(
                key("published_index"),
                deps=[dg.AssetDep(key("chroma_collection"), partition_mapping=parts.by_date)],
                partitions_def=parts.dates,
                code_version=code_version("published_index", config),
                group_name=wiki,
                kinds={"chroma"},
                description="The pointer that queries follow. Moves only when every check below has passed.",
            )
        ],
        check_specs=[dg.AssetCheckSpec(check, asset=key("published_index"), blocking=True) for check in GATE],
        backfill_policy=dg.BackfillPolicy.multi_run(1),
        pool="chroma",
    )
    def published_index(
        context: dg.AssetExecutionContext, store: dg.ResourceParam[Store], settings: dg.ResourceParam[Settings]
    ):
        with one_line_errors():
            cookbook = book(store, settings)
            snapshot = Snapshot(wiki, context.partition_key)
            gate = examine(cookbook, snapshot, settings)
            results = [
                dg.AssetCheckResult(asset_key=key("published_index"), check_name=name, passed=passed, metadata=facts)
                for name, (passed, facts) in gate.results.items()
            ]
            if not gate.passed:
                yield from results
                advice = refuse(cookbook, snapshot, gate)
                raise dg.Failure(f"{snapshot} is not published: {gate.reasons}: {advice}", allow_retries=False)
            pointer = publish(cookbook, snapshot, gate)
        say(
            context,
            f"{wiki}: {pointer['collection']} is published, "
            f"{pointer['passages']:,} passages of {pointer['pages']:,} pages",
        )
        yield dg.MaterializeResult(
            asset_key=key("published_index"),
            metadata={k: v for k, v in pointer.items() if isinstance(v, int | str)}
            | {"moved": pointer["snapshot"] == snapshot.date},
            check_results=results,
        )

    return [raw_dump, articles, tokens, embeddings, chroma_collection, published_index]


def gpus_per_task() -> int:
    """One where the Ray that this process has joined has any: embeddings then go to them alone."""
    import ray

    return 1 if ray.cluster_resources().get("GPU", 0) >= 1 else 0


def _columns(*schemas: pa.Schema) -> dg.TableSchema:
    """The columns of an artifact's files, as the UI shows them."""
    fields = {f.name: f for schema in schemas for f in schema}
    return dg.TableSchema(
        columns=[
            dg.TableColumn(f.name, str(f.type), constraints=dg.TableColumnConstraints(nullable=f.nullable))
            for f in fields.values()
        ]
    )
