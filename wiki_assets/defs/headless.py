"""Materialize a snapshot without the UI: the same assets, run one stage after the other in this process.

Each stage is a Dagster run of its own over exactly the shards that are not done, so that the UI shows the same
history, and Ray is started once for all of them.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import groupby

import dagster as dg

from wiki_assets.defs.evaluation import made_evaluation
from wiki_assets.defs.lexical import made_lexical, pointer_part
from wiki_assets.defs.partitions import dates_name
from wiki_assets.defs.recipes import OF_DATE, STAGES, Cookbook, collection_name
from wiki_assets.defs.rollback import was_rolled_back
from wiki_assets.defs.upkeep.reap import process_tags, reap
from wiki_assets.defs.voice import SILENT_CONSOLE
from wiki_assets.defs.wikis import WikiConfig
from wiki_assets.keys import Shard, Snapshot
from wiki_assets.resources.store import Store
from wiki_assets.settings import Settings

NEEDS_RAY = ("articles", "tokens", "embeddings", "lexical_index")
_WRAPPERS = ("RetryRequestedFromPolicy", "DagsterExecutionStepExecutionError")  # around what a step has raised
Build = Callable[..., dg.Definitions]


@dataclass
class Outcome:
    """What a headless materialization did."""

    made: dict[str, int] = field(default_factory=dict)  # by stage: partitions made now
    failures: list[str] = field(default_factory=list)

    @property
    def nothing_to_do(self) -> bool:
        """Whether everything was done before."""
        return not self.made and not self.failures


def materialize_snapshot(
    snapshot: Snapshot,
    config: WikiConfig,
    settings: Settings,
    *,
    instance: dg.DagsterInstance,
    build: Build,
    since: str = "raw_dump",
    until: str = "published_index",
    ray_is_up: bool = False,
) -> Outcome:
    """Make what is not done of a snapshot, stage by stage; stop at the first stage with a failure.

    Args:
        snapshot: which one.
        config: of its wiki.
        settings: of this deployment.
        instance: where runs and events are recorded.
        build: makes the definitions, given a Ray resource.
        since: the first stage to look at, one of `STAGES`; those before it are taken as they are.
        until: the last stage to make.
        ray_is_up: whether this process has joined Ray already; if not, that happens when a stage first needs it.
    """
    from wiki_assets.resources.compute import joined_ray, ray_session

    store = Store(settings.root)
    book = Cookbook(config, store, settings.chroma)
    reap(instance)
    instance.add_dynamic_partitions(dates_name(snapshot.wiki), [snapshot.date])
    job = build(settings, wikis=[config], ray=joined_ray()).resolve_implicit_global_asset_job_def()
    outcome = Outcome()
    with ExitStack() as ray:
        started = ray_is_up
        for stage in STAGES[STAGES.index(since) : STAGES.index(until) + 1]:
            key = dg.AssetKey([snapshot.wiki, stage])
            if stage not in NEEDS_RAY:
                ray.close()  # a head that is lost takes its driver with it, and nothing needs it any more
            for tags, count in _missing(stage, key, book, snapshot, instance):
                if stage in NEEDS_RAY and not started:
                    ray.enter_context(ray_session(settings))
                    started = True
                single = tags.get("dagster/partition")
                result = job.execute_in_process(
                    instance=instance,
                    asset_selection=[key],
                    partition_key=single,
                    tags=process_tags() | ({} if single else tags),
                    run_config=SILENT_CONSOLE,
                    raise_on_error=False,
                )
                if result.success:
                    outcome.made[stage] = outcome.made.get(stage, 0) + count
                else:
                    outcome.failures += list(_failures(result, stage))
            if outcome.failures:
                break
    return outcome


def _missing(
    stage: str, key: dg.AssetKey, book: Cookbook, snapshot: Snapshot, instance: dg.DagsterInstance
) -> Iterator[tuple[dict[str, str], int]]:
    """The runs that a stage needs: for each range of shards that are not done, its run tags and its size."""
    recorded = instance.get_materialized_partitions(key)
    if stage in OF_DATE:
        if snapshot.date not in recorded or not _is_made(stage, book, snapshot):
            yield {"dagster/partition": snapshot.date}, 1
        return
    raw = book.store.raw_manifest(snapshot)
    shards = [s for s in book.shards(snapshot) if s.partition_key not in recorded or book.made(stage, s, raw) is None]
    for _, run in groupby(enumerate(shards), key=lambda item: item[1].number - item[0]):
        cells: Sequence[Shard] = [shard for _, shard in run]
        first, last = cells[0].partition_key, cells[-1].partition_key
        if len(cells) == 1:
            yield {"dagster/partition": first}, 1
        else:
            yield {"dagster/asset_partition_range_start": first, "dagster/asset_partition_range_end": last}, len(cells)


def _is_made(stage: str, book: Cookbook, snapshot: Snapshot) -> bool:
    """Whether a stage of one partition a snapshot has its output."""
    if stage == "raw_dump":
        return book.store.raw_manifest(snapshot) is not None
    if stage == "lexical_index":
        return made_lexical(book, snapshot) is not None
    if stage == "evaluation":
        return made_evaluation(book, snapshot) is not None
    return is_published(book, snapshot)


def is_published(book: Cookbook, snapshot: Snapshot) -> bool:
    """Whether the pointer is at this snapshot's current build and lexical index, or at a newer snapshot.

    A build that somebody rolled back was published, too: by itself it is not published again.
    """
    pointer = book.store.pointer(snapshot.wiki)
    if pointer is None:
        return False
    build, words = book.current_build(snapshot), made_lexical(book, snapshot)
    if build is not None and was_rolled_back(pointer, collection_name(snapshot, build)):
        return True
    return pointer["snapshot"] > snapshot.date or (
        build is not None
        and words is not None
        and pointer.get("lexical") == pointer_part(words)
        and pointer["snapshot"] == snapshot.date
        and pointer["collection"] == collection_name(snapshot, build)
    )


def _failures(result: dg.ExecuteInProcessResult, stage: str) -> Iterator[str]:
    """What each failed step said."""
    for event in result.all_events:
        if event.is_step_failure:
            data = event.step_failure_data
            error = data.error
            if error and error.cause and error.cls_name in _WRAPPERS:
                error = error.cause
            text = (data.user_failure_data.description if data.user_failure_data else None) or (
                error.message if error else ""
            )
            yield f"{stage}: {(text or 'failed').strip().splitlines()[0]}"
            return
    yield f"{stage}: the run failed before its step began; see wiki-assets ui"
