"""raw_dump → articles → tokens → embeddings → chroma_collection → published_index, for one wiki.

raw_dump[date]                the dump files as published, and their manifest
articles[date, shard]         one row a page; a page's shard is a hash of its id
tokens[date, shard]           token ids of every page, and its passages
embeddings[date, shard]       one vector a passage
chroma_collection[date, shard]  the shard's rows in the snapshot's collection, read back
lexical_index[date]           the snapshot's passages in one BM25 index
evaluation[date]              how well the two answer, before anybody is sent to them
published_index[date]         the pointer that queries follow; moves when the checks pass
"""

import logging
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import dagster as dg
import pyarrow as pa
from dagster_ray import RayResource

from wiki_assets.defs import work
from wiki_assets.defs.automation import WHEN_ALL_IS_THERE, WHEN_INPUT_IS_THERE, WHEN_REGISTERED
from wiki_assets.defs.checks import CHECKS
from wiki_assets.defs.deadlines import deadlines
from wiki_assets.defs.evaluation import (
    evaluation_facts,
    evaluation_line,
    evaluation_recipe,
    made_evaluation,
    make_evaluation,
)
from wiki_assets.defs.failures import may_pass, message_of, one_line_errors
from wiki_assets.defs.indexing import index_shards
from wiki_assets.defs.lexical import (
    MAX_THREADS,
    LexicalWork,
    lexical_facts,
    lexical_recipe,
    made_lexical,
    make_lexical,
)
from wiki_assets.defs.partitions import grid
from wiki_assets.defs.pods import step_pod
from wiki_assets.defs.publish import GATE, examine, publish, refuse
from wiki_assets.defs.raw import fetch_snapshot, raw_facts
from wiki_assets.defs.recipes import Cookbook, Recipe, code_version, collection_name
from wiki_assets.defs.rescue import Maker
from wiki_assets.defs.rollback import standing
from wiki_assets.defs.shards import Done, each_shard, fan_out
from wiki_assets.defs.upkeep.prune import prune
from wiki_assets.defs.voice import say
from wiki_assets.defs.week import week_of
from wiki_assets.defs.wikis import WikiConfig, require_shard_count
from wiki_assets.errors import DamagedArtifact, NotPublished, WikiAssetsError
from wiki_assets.files import Manifest
from wiki_assets.keys import Snapshot
from wiki_assets.resources.compute import capacity
from wiki_assets.resources.liveness import watch_ray
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
    """The eight assets of a wiki, one group."""
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
                    automation_condition=WHEN_INPUT_IS_THERE,
                )
            ],
            check_specs=[
                dg.AssetCheckSpec(check, asset=key(name), blocking=True, description=run.__doc__)
                for check, run in CHECKS[name].items()
            ],
            backfill_policy=dg.BackfillPolicy.multi_run(SHARDS_PER_RUN[name]),
            retry_policy=RETRY,
            pool=pool,
            op_tags=step_pod(name),
        )

    def of_date(name: str, *deps: Any, pool: str, kinds: set[str], about: str, when: Any = WHEN_ALL_IS_THERE) -> Any:
        """What assets of a whole snapshot have in common."""
        return dg.asset(
            key=key(name),
            deps=deps,
            description=about,
            partitions_def=parts.dates,
            code_version=code_version(name, config),
            group_name=wiki,
            kinds=kinds,
            pool=pool,
            op_tags=step_pod(name),
            backfill_policy=dg.BackfillPolicy.multi_run(1),
            retry_policy=RETRY,
            automation_condition=when,
        )

    def book(store: Store, settings: Settings) -> Cookbook:
        require_shard_count(config, settings, store)
        return Cookbook(config, store, settings.chroma)

    def works(recipes: Sequence[Recipe], store: Store, settings: Settings, run: str) -> list[work.Work]:
        return [work.Work(recipe, config, store, settings, run) for recipe in recipes]

    @of_date(
        "raw_dump",
        pool="mirror",
        kinds={"download"},
        about="The dump files as published, byte for byte, and their manifest.",
        when=WHEN_REGISTERED,
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
        return dg.MaterializeResult(
            data_version=dg.DataVersion(manifest.data_version), metadata=raw_facts(manifest, str(store.raw(snapshot)))
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
            say(context, f"{snapshot} articles: {len(to_split)} of {len(splits)} {_parts(splits)} to split")
            limit = deadlines(settings)
            for split, result in fan_out(work.split_dump_file, [(s, (s,)) for s in to_split], deadline_s=limit):
                if isinstance(result, Exception):
                    raise WikiAssetsError(f"{split.name} could not be split: {message_of(result)}") from result
                counts = result.counts
                left_out = {**counts["filtered"], **counts["quarantined"]}
                say(
                    context,
                    f"{split.name}: {counts['pages']:,} pages of {counts['documents']:,} documents; "
                    f"left out {left_out or 'nothing'}",
                )
            tasks = works(todo, store, settings, context.run.run_id)
            yield from fan_out(work.make_articles, [(w.recipe, (w, splits)) for w in tasks], deadline_s=limit)
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
            warn = partial(say, context, level=logging.WARNING)
            yield from Maker(work.make_tokens, work.try_tokens, deadlines(settings), say=warn).shards(tasks)

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
            warn, gpus = partial(say, context, level=logging.WARNING), gpus_per_task()
            limit = deadlines(settings, gpu=gpus > 0)
            yield from Maker(work.make_embeddings, work.try_embeddings, limit, num_gpus=gpus, say=warn).shards(tasks)

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

    @of_date(
        "lexical_index",
        *(dg.AssetDep(key(name), partition_mapping=parts.by_date) for name in ("articles", "tokens")),
        pool="cpu",
        kinds={"ray", "rust"},
        about="Every passage of the snapshot in one BM25 index, with the titles and redirects of its page.",
    )
    def lexical_index(
        context: dg.AssetExecutionContext,
        ray: RayResource,
        store: dg.ResourceParam[Store],
        settings: dg.ResourceParam[Settings],
    ) -> dg.MaterializeResult[Any]:
        with one_line_errors():
            cookbook = book(store, settings)
            snapshot = Snapshot(wiki, context.partition_key)
            manifest = made_lexical(cookbook, snapshot)
            if reused := manifest is not None:
                say(context, f"{snapshot} lexical_index: up to date")
            else:
                recipe, threads = lexical_recipe(cookbook, snapshot), cpus_of_a_node()
                task = LexicalWork(recipe, cookbook.shards(snapshot), store, context.run.run_id, threads)
                limit = task.deadline_s(settings)
                for _, made in fan_out(make_lexical, [(task, (task,))], num_cpus=threads, deadline_s=limit):
                    if isinstance(made, Exception):
                        raise dg.Failure(f"{task}: {message_of(made)}", allow_retries=may_pass(made)) from made
                    manifest = made
                    counts, seconds = made.counts, made.stats["seconds"]
                    say(context, f"{snapshot} lexical_index: {counts['documents']:,} passages in {seconds} s")
        assert manifest is not None, "fan_out yields a result for each task"
        return dg.MaterializeResult(
            data_version=dg.DataVersion(manifest.data_version), metadata=lexical_facts(manifest) | {"reused": reused}
        )

    @of_date(
        "evaluation",
        dg.AssetDep(key("chroma_collection"), partition_mapping=parts.by_date),
        key("lexical_index"),
        pool="chroma",
        kinds={"chroma"},
        about="How often the right page and passage come first: the questions that the wiki keeps, or its own.",
    )
    def evaluation(
        context: dg.AssetExecutionContext, store: dg.ResourceParam[Store], settings: dg.ResourceParam[Settings]
    ) -> dg.MaterializeResult[Any]:
        with one_line_errors():
            cookbook = book(store, settings)
            snapshot = Snapshot(wiki, context.partition_key)
            manifest = made_evaluation(cookbook, snapshot)
            if reused := manifest is not None:
                say(context, f"{snapshot} evaluation: up to date")
            else:
                manifest = _evaluated(context, cookbook, snapshot, settings)
        return dg.MaterializeResult(
            data_version=dg.DataVersion(manifest.data_version),
            metadata=evaluation_facts(manifest, store) | {"reused": reused},
        )

    @dg.multi_asset(
        name=f"{wiki}_published_index",
        specs=[
            dg.AssetSpec(
                key("published_index"),
                deps=[key("evaluation")],
                partitions_def=parts.dates,
                code_version=code_version("published_index", config),
                group_name=wiki,
                kinds={"chroma"},
                description="The pointer that queries follow. Moves only when every check below has passed.",
                automation_condition=WHEN_ALL_IS_THERE,
            )
        ],
        check_specs=[dg.AssetCheckSpec(check, asset=key("published_index"), blocking=True) for check in GATE],
        backfill_policy=dg.BackfillPolicy.multi_run(1),
        pool="chroma",
        op_tags=step_pod("published_index"),
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
        for line in standing(pointer):
            say(context, line)
        moved = pointer["collection"] == collection_name(snapshot, cookbook.current_build(snapshot) or 0)
        if moved:
            _prune(context, cookbook)
        yield dg.MaterializeResult(
            asset_key=key("published_index"),
            metadata={k: v for k, v in pointer.items() if isinstance(v, int | str)}
            | week_of(gate.made)
            | {"moved": moved},
            check_results=results,
        )

    return [raw_dump, articles, tokens, embeddings, lexical_index, chroma_collection, evaluation, published_index]


def _parts(splits: Sequence[work.Split]) -> str:
    """What is split: files, or ranges of them."""
    return "dump files" if all(split.part is None for split in splits) else "ranges of dump files"


def _evaluated(context: dg.AssetExecutionContext, book: Cookbook, snapshot: Snapshot, settings: Settings) -> Manifest:
    """Evaluate a snapshot's current build. One that cannot be asked is given up, if it is not what was made."""
    try:
        recipe = evaluation_recipe(book, snapshot)
        manifest = make_evaluation(
            recipe, book.store, settings, run=context.run.run_id, say=lambda line: say(context, line)
        )
    except (NotPublished, DamagedArtifact) as error:
        advice = refuse(book, snapshot, examine(book, snapshot, settings))
        raise dg.Failure(f"{snapshot} cannot be evaluated: {error}: {advice}", allow_retries=False) from error
    say(context, f"{snapshot} evaluation: {evaluation_line(manifest)} in {manifest.stats['seconds']} s")
    return manifest


def _prune(context: dg.AssetExecutionContext, book: Cookbook) -> None:
    """What retention does not keep goes. What is published stays published, whatever comes of that."""
    try:
        pruned = prune(book, context.instance)
    except (WikiAssetsError, OSError) as error:
        say(context, f"{book.config.wiki}: old data was not removed, next time it is: {error}", logging.WARNING)
        return
    for line in pruned.lines():
        say(context, f"{book.config.wiki}: removed {line}")


def gpus_per_task() -> int:
    """One where the Ray that this process has joined has any, or can get some: embeddings then go to them alone."""
    return 1 if watch_ray().during(capacity)["GPU"] >= 1 else 0


def cpus_of_a_node() -> int:
    """Threads to write an index with: what the largest node has that Ray has now, and no more than are of use."""
    import ray

    nodes = watch_ray().during(ray.nodes)
    return max([1, *(min(int(n["Resources"].get("CPU", 0)), MAX_THREADS) for n in nodes if n["Alive"])])


def _columns(*schemas: pa.Schema) -> dg.TableSchema:
    """The columns of an artifact's files, as the UI shows them."""
    fields = {f.name: f for schema in schemas for f in schema}
    return dg.TableSchema(
        columns=[
            dg.TableColumn(f.name, str(f.type), constraints=dg.TableColumnConstraints(nullable=f.nullable))
            for f in fields.values()
        ]
    )
