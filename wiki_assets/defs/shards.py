"""each_shard: fan a range of shards out over Ray, and report each one the moment it is durable.

Dagster's partition status is the checkpoint, so an event is written for each shard when its manifest is, not at
the end of the step: kill the run half-way, and exactly the finished shards are materialized. Shards go out in
order through a window, so that what a killed run leaves is one range, which the next run takes as one.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any

import dagster as dg

from wiki_assets.defs import provenance
from wiki_assets.defs.checks import CHECKS
from wiki_assets.defs.failures import may_pass, message_of
from wiki_assets.defs.fan_out import TASK_DEADLINE_S, fan_out
from wiki_assets.defs.recipes import Blocked, Cookbook, Recipe
from wiki_assets.defs.voice import say
from wiki_assets.defs.week import percent
from wiki_assets.files import Manifest
from wiki_assets.keys import Shard, Snapshot

Done = tuple[Recipe, Manifest | Exception]
Make = Callable[[Snapshot, Sequence[Recipe]], Iterable[Done]]

__all__ = ["TASK_DEADLINE_S", "Done", "Make", "each_shard", "fan_out"]


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
    metadata = {**manifest_facts(manifest), "reused": reused}
    if single:  # Dagster's own event, with its own provenance; a chain of single-cell stages can then be one run
        version = dg.DataVersion(manifest.data_version)
        return dg.MaterializeResult(asset_key=key, metadata=metadata, data_version=version)
    tags = provenance.tags(context, key, recipe, manifest)
    return dg.AssetMaterialization(key, partition=recipe.shard.partition_key, metadata=metadata, tags=tags)


def manifest_facts(manifest: Manifest) -> dict[str, Any]:
    """What Dagster is told of a shard: its counts, what it took, and a row of it."""
    counts, stats = dict(manifest.counts), manifest.stats
    sample = counts.pop("sample", None)
    size = sum(record.size_bytes for record in manifest.files.values())
    rows = next((counts[name] for name in ("vectors", "indexed", "pages") if name in counts), None)
    facts: dict[str, Any] = {name: value for name, value in counts.items() if isinstance(value, int | float)}
    facts |= {name: dg.MetadataValue.json(value) for name, value in counts.items() if isinstance(value, dict)}
    facts |= {name: value for name, value in stats.items() if isinstance(value, int | float | str)}
    if date := counts.get("compared_with"):
        facts["compared_with"] = date
    if "passages_reused" in counts:
        facts["passages_reused_percent"] = percent(counts["passages_reused"], counts["passages"])
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
