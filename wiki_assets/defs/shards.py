"""each_shard: fan a range of shards out over Ray, and report each one the moment it is durable.

Dagster's partition status is the checkpoint, so an event is written for each shard when its manifest is, not at
the end of the step: kill the run half-way, and exactly the finished shards are materialized. Shards go out in
order through a window, so that what a killed run leaves is one range, which the next run takes as one.
"""

import gc
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import dagster as dg

from wiki_assets.defs import provenance
from wiki_assets.defs.checks import CHECKS
from wiki_assets.defs.failures import may_pass, message_of
from wiki_assets.defs.recipes import Blocked, Cookbook, Recipe
from wiki_assets.defs.voice import say
from wiki_assets.defs.work import pin_threads
from wiki_assets.errors import WikiAssetsError
from wiki_assets.files import Manifest
from wiki_assets.keys import Shard, Snapshot

TASK_DEADLINE_S = 6 * 3600  # one shard of the largest wiki takes minutes
_POLL_S = 5.0
_SILENCE_S = 30.0  # without a result, before a sign of life

Done = tuple[Recipe, Manifest | Exception]
Make = Callable[[Snapshot, Sequence[Recipe]], Iterable[Done]]

logger = logging.getLogger(__name__)


def each_shard(context: dg.AssetExecutionContext, artifact: str, book: Cookbook, make: Make) -> Iterator[Any]:
    """Make an artifact for every shard of this run's range; yield an event for each as it becomes durable.

    A shard whose manifest is there with today's fingerprint is reported again as reused, and not made.

    Args:
        context: of a run over one cell of the grid, or a range of cells.
        artifact: one of `SHARD_ARTIFACTS`.
        book: the wiki's recipes.
        make: makes the given shards of one snapshot, and yields each result as soon as it is committed.

    Raises:
        Failure: naming the shards that failed, after all others are reported.
    """
    key = dg.AssetKey([book.config.wiki, artifact])
    _refuse_two_stages(context)
    shards = sorted(Shard.from_partition_key(book.config.wiki, cell) for cell in context.partition_keys)
    single = len(shards) == 1
    bad: dict[str, str] = {}  # failed, or blocked: the partition and why
    retry = False  # whether another attempt could help
    finished: list[Manifest] = []
    already = provenance.reported_in_run(context, key)
    for snapshot, group in groupby(shards, key=lambda shard: shard.snapshot):
        todo: list[Recipe] = []
        reused: list[tuple[Recipe, Manifest]] = []
        raw = book.store.raw_manifest(snapshot)
        for shard in group:
            try:
                recipe = book.recipe(artifact, shard, raw)
            except Blocked as reason:
                bad[shard.partition_key] = str(reason)
                continue
            manifest = book.made_by(recipe)
            if manifest is None:
                todo.append(recipe)
            else:
                reused.append((recipe, manifest))
        say(context, f"{snapshot} {artifact}: {len(todo)} shards to make, {len(reused)} up to date, {len(bad)} blocked")
        for recipe, manifest in reused:
            finished.append(manifest)
            if recipe.shard.partition_key not in already:
                yield _event(context, key, recipe, manifest, reused=True, single=single)
        n_made = 0
        for recipe, result in make(snapshot, todo) if todo else ():
            if isinstance(result, Manifest):
                finished.append(result)
                n_made += 1
                say(context, f"{_line(recipe, result)} ({n_made}/{len(todo)})")
                yield _event(context, key, recipe, result, reused=False, single=single)
            else:
                bad[recipe.shard.partition_key] = message_of(result)
                retry = retry or may_pass(result)
                say(context, f"{recipe.shard} {artifact}: {bad[recipe.shard.partition_key]}", logging.ERROR)
    for name, check in CHECKS[artifact].items():
        if finished:
            passed, facts = check(finished)
            yield dg.AssetCheckResult(asset_key=key, check_name=name, passed=passed, metadata=facts)
    if bad:
        names = ", ".join(list(bad)[:8]) + (" …" if len(bad) > 8 else "")
        raise dg.Failure(
            f"{len(bad)} of {len(shards)} shards failed: {names}: {next(iter(bad.values()))}",
            metadata={"failed": dg.MetadataValue.json(bad)},
            allow_retries=retry,
        )


def fan_out(
    task: Callable[..., Any],
    payloads: Sequence[tuple[Any, Sequence[Any]]],
    *,
    num_cpus: float = 1,
    num_gpus: float = 0,
    deadline_s: float = TASK_DEADLINE_S,
) -> Iterator[tuple[Any, Any]]:
    """Run `task(*arguments)` in Ray for each `(name, arguments)`, in order, a window at a time.

    A lost worker or node costs a retry, by Ray, twice; an error of ours is a result and costs only its shard.

    Args:
        task: a module-level function of what a worker can import.
        payloads: what to run it on.
        num_cpus: of one task; its libraries get as many threads.
        num_gpus: of one task.
        deadline_s: a task that takes longer is cancelled.

    Yields:
        `(name, result)` or `(name, exception)`, as they finish.
    """
    import ray
    import ray.exceptions

    threads = max(1, int(num_cpus))
    remote = ray.remote(_in_worker).options(num_cpus=num_cpus, num_gpus=num_gpus, max_retries=2, name=task.__name__)
    waiting = iter(payloads)
    spoke = time.monotonic()
    running: dict[Any, tuple[Any, float]] = {}
    while True:
        window = _window(ray.cluster_resources(), {"CPU": num_cpus, "GPU": num_gpus})
        while len(running) < window and (item := next(waiting, None)) is not None:
            name, arguments = item
            running[remote.remote(task, threads, tuple(arguments))] = (name, time.monotonic() + deadline_s)
        if not running:
            return
        done, _ = ray.wait(list(running), num_returns=1, timeout=_POLL_S)
        if done:
            spoke = time.monotonic()
        elif time.monotonic() - spoke > _SILENCE_S:
            spoke = time.monotonic()
            logger.info("%s: %d at work", task.__name__, len(running))
        for reference in done:
            name, _ = running.pop(reference)
            try:
                yield name, ray.get(reference, timeout=60)
            except (ray.exceptions.RayError, WikiAssetsError) as error:
                yield name, error
        for reference, (name, deadline) in list(running.items()):
            if time.monotonic() > deadline:
                ray.cancel(reference, force=True)
                del running[reference]
                yield (
                    name,
                    WikiAssetsError(
                        f"no result in {deadline_s:,.0f} s: cancelled; look at the worker's memory, then run again"
                    ),
                )


def _window(cluster: Mapping[str, float], task: Mapping[str, float]) -> int:
    """How many tasks to have under way: what the cluster runs at once, and a few more, so that no slot waits for us."""
    slots = min((int(cluster.get(name, 0) // need) for name, need in task.items() if need), default=1)
    return max(1, slots) + max(1, slots // 4)


def _in_worker(task: Callable[..., Any], threads: int, arguments: tuple[Any, ...]) -> Any:
    pin_threads(threads)
    gc.freeze()  # the collector need not walk the tables that earlier tasks left; a tenth of the tokens stage
    return task(*arguments)


def _refuse_two_stages(context: dg.AssetExecutionContext) -> None:
    """A range run yields no Dagster output, so a second shard stage in the same run would be skipped in silence."""
    if len(context.partition_keys) == 1:
        return
    stages = {key for key in context.job_def.asset_layer.selected_asset_keys if key.path[-1] in CHECKS}
    if len(stages) > 1:
        raise dg.Failure(
            f"one run over a range of shards was given {len(stages)} stages "
            f"({', '.join(sorted(key.to_user_string() for key in stages))}), expected one: "
            "launch a backfill, which makes a run of each",
            allow_retries=False,
        )


def _event(
    context: dg.AssetExecutionContext,
    key: dg.AssetKey,
    recipe: Recipe,
    manifest: Manifest,
    *,
    reused: bool,
    single: bool,
) -> dg.AssetMaterialization | dg.MaterializeResult[Any]:
    """What Dagster is told of a finished shard: facts to read, and the tags that staleness is computed from."""
    metadata = {**_metadata(manifest), "reused": reused}
    if single:  # Dagster's own event, with its own provenance; a chain of single-cell stages can then be one run
        version = dg.DataVersion(manifest.data_version)
        return dg.MaterializeResult(asset_key=key, metadata=metadata, data_version=version)
    tags = provenance.tags(context, key, recipe, manifest)
    return dg.AssetMaterialization(key, partition=recipe.shard.partition_key, metadata=metadata, tags=tags)


def _metadata(manifest: Manifest) -> dict[str, Any]:
    counts, stats = dict(manifest.counts), manifest.stats
    sample = counts.pop("sample", None)
    size = sum(record.size_bytes for record in manifest.files.values())
    rows = next((counts[name] for name in ("vectors", "indexed", "pages") if name in counts), None)
    facts: dict[str, Any] = {name: value for name, value in counts.items() if isinstance(value, int | float)}
    facts |= {name: dg.MetadataValue.json(value) for name, value in counts.items() if isinstance(value, dict)}
    facts |= {name: value for name, value in stats.items() if isinstance(value, int | float | str)}
    facts |= {"size_bytes": size, "fingerprint": manifest.fingerprint}
    if rows is not None:
        facts["dagster/row_count"] = rows
        if stats.get("cpu_seconds"):
            facts["rows_per_cpu_second"] = round(rows / stats["cpu_seconds"], 1)
    if sample:
        facts["sample_row"] = dg.MetadataValue.json(sample)
    if manifest.files:
        facts["path"] = dg.MetadataValue.path(next(iter(manifest.files)))
    return facts


def _line(recipe: Recipe, manifest: Manifest) -> str:
    counts = manifest.counts
    facts = [
        f"{counts[name]:,} {name}" for name in ("pages", "tokens", "passages", "vectors", "indexed") if name in counts
    ]
    return f"{recipe.shard} {recipe.artifact}: {', '.join(facts)} in {manifest.stats.get('seconds', 0)} s"
