"""Dump to pages, token ids and passages: the platform on Ray, the bare loop, and the naive way."""

import os
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from wiki_assets.defs import work
from wiki_assets.defs.recipes import Cookbook
from wiki_assets.defs.shards import fan_out
from wiki_assets.keys import Snapshot
from wiki_assets.resources.models import DEFAULT_MODEL, find_model, load_encoding
from wiki_assets.settings import Settings
from wiki_assets_tests.bench.bare import Bare
from wiki_assets_tests.bench.dumps import SHARDS, Dump, fill_store, repeated, thinned, tiny_dump
from wiki_assets_tests.bench.measure import Row, Side, best_rate
from wiki_assets_tests.bench.naive import Naive, start_ray

N_NAIVE = 1500  # documents, evenly spaced: a few hundred show the rate per article
_WORD_PIECES = 128
RAY_CPUS = 2
TWO, ONE = "2 shards at once", "1 at a time"


class Platform:
    """The articles and tokens stages through Ray, as the assets run them, without Dagster."""

    def __init__(self) -> None:
        start_ray()
        self._settings = Settings.from_env()
        self._book: Cookbook | None = None

    def warm(self, folder: str) -> None:
        """Run tinywiki in each worker, so that it has imported and loaded what it needs."""
        for i, result in fan_out(warm_worker, [(i, (Path(folder) / str(i), self._settings)) for i in range(2)]):
            if isinstance(result, Exception):
                raise RuntimeError(f"warming worker {i}: {result}") from result

    def prepare(self, dump: Dump, root: Path, shards: int) -> None:
        """Lay out a store with the dump files."""
        self._book = fill_store(dump, root, shards)

    def run(self, snapshot: Snapshot, at_once: int) -> dict[str, Any]:
        """Split, merge and tokenize, one or two tasks at a time.

        Returns:
            Counts, and the CPU-seconds that the stages themselves measured.
        """
        assert self._book is not None
        found: dict[str, Any] = defaultdict(float)
        for step in (split_all, merge_all, tokenize_all):
            for manifest in step(self._book, snapshot, self._settings, RAY_CPUS // at_once):
                found[f"{step.__name__} CPU-s"] += manifest.stats["cpu_seconds"]
                if manifest.artifact == "tokens":
                    for name in ("pages", "text_chars", "tokens", "passages"):
                        found[name] += manifest.counts[name]
                    found["token_bytes"] += next(
                        r.size_bytes for name, r in manifest.files.items() if name.startswith("tokens/")
                    )
        return dict(found)

    def close(self) -> None:
        """Leave Ray."""
        import ray

        ray.shutdown()


def split_all(book: Cookbook, snapshot: Snapshot, settings: Settings, num_cpus: int) -> list[Any]:
    """Split every dump file."""
    splits = work.splits_of(book.store, book.config, snapshot)
    return _results(fan_out(work.split_dump_file, [(split, (split,)) for split in splits], num_cpus=num_cpus))


def merge_all(book: Cookbook, snapshot: Snapshot, settings: Settings, num_cpus: int) -> list[Any]:
    """Merge every shard."""
    splits = work.splits_of(book.store, book.config, snapshot)
    works = _works("articles", book, snapshot, settings)
    return _results(fan_out(work.make_articles, [(w, (w, splits)) for w in works], num_cpus=num_cpus))


def tokenize_all(book: Cookbook, snapshot: Snapshot, settings: Settings, num_cpus: int) -> list[Any]:
    """Token ids and passages of every shard."""
    works = _works("tokens", book, snapshot, settings)
    return _results(fan_out(work.make_tokens, [(w, (w,)) for w in works], num_cpus=num_cpus))


def _works(artifact: str, book: Cookbook, snapshot: Snapshot, settings: Settings) -> list[work.Work]:
    raw = book.store.raw_manifest(snapshot)
    return [
        work.Work(book.recipe(artifact, shard, raw), book.config, book.store, settings)
        for shard in book.shards(snapshot)
    ]


def _results(pairs: Any) -> list[Any]:
    found = []
    for name, result in pairs:
        if isinstance(result, Exception):
            raise RuntimeError(f"{name}: {result}") from result
        found.append(result)
    return found


def run_here(dump: Dump, root: Path, settings: Settings) -> Cookbook:
    """The same stages in this process, one after the other."""
    book, snapshot = fill_store(dump, root), dump.snapshot
    splits = work.splits_of(book.store, book.config, snapshot)
    for split in splits:
        work.split_dump_file(split)
    for w in _works("articles", book, snapshot, settings):
        work.make_articles(w, splits)
    for w in _works("tokens", book, snapshot, settings):
        work.make_tokens(w)
    return book


def warm_worker(root: Path, settings: Settings) -> None:
    """Tinywiki in this worker; long enough that another worker takes the next."""
    import time

    run_here(tiny_dump(), root, settings)
    time.sleep(3)


def compare_articles(samples: Sequence[Dump], repeats: int, times: int, folder: Path) -> list[Row]:
    """Run all three sides in turn, `repeats` times, over every dump, each of its articles `times` times."""
    dumps = []
    for i, sample in enumerate(samples):
        (folder / f"many-{i}").mkdir()
        dumps.append(repeated(sample, times, folder / f"many-{i}"))
    settings = Settings.from_env()
    model = find_model(DEFAULT_MODEL)
    load_encoding("cl100k_base", settings.cache_folder)  # copies the ranks to the cache
    ranks = os.environ.get("TIKTOKEN_CACHE_DIR") or str(settings.cache_folder / "tiktoken")
    few = {}
    for i, dump in enumerate(dumps):
        (folder / f"few-{i}").mkdir()
        few[dump] = thinned(dump, N_NAIVE, folder / f"few-{i}")
    cpu: dict[tuple[str, Dump], list[float]] = defaultdict(list)
    counts: dict[tuple[str, Dump], dict[str, Any]] = {}
    with (
        Side(Naive, ranks) as naive,
        Side(Bare, model, settings.cache_folder) as bare,
        Side(partial(Bare, word_table=False), model, settings.cache_folder) as libraries,
        Side(Platform) as ours,
    ):
        ours.run("warm", str(folder / "warm-ours"))
        bare.run("run", tiny_dump().files, str(folder / "warm-bare"), "tinywiki", _WORD_PIECES)
        for repeat in range(repeats):
            for i, dump in enumerate(dumps):
                at = folder / f"{repeat}-{i}"

                def measured(name: str, side: Side, *arguments: Any, dump: Dump = dump, repeat: int = repeat) -> None:
                    counts[name, dump], spent = side.run("run", *arguments)
                    cpu[name, dump].append(spent)
                    inside = {k: round(v, 2) for k, v in counts[name, dump].items() if k.endswith("CPU-s")}
                    print(f"  repeat {repeat + 1} {dump.label} {name}: {spent:.2f} CPU-s {inside or ''}", flush=True)
                    if side.n_started:
                        print(f"    in which {side.n_started} processes were started", flush=True)

                measured("bare", bare, dump.files, str(at / "bare"), dump.snapshot.wiki, _WORD_PIECES)
                measured("libraries", libraries, dump.files, str(at / "libraries"), dump.snapshot.wiki, _WORD_PIECES)
                ours.run("prepare", dump, at / "two", SHARDS * times)
                measured(TWO, ours, dump.snapshot, 2)  # first, so that both workers begin cold and end warm
                ours.run("prepare", dump, at / "one", SHARDS * times)
                measured(ONE, ours, dump.snapshot, 1)
                naive.run("warm", str(at / "warm"))
                measured("naive", naive, few[dump].files, str(at / "json"))
                plain, made = counts["bare", dump], counts[ONE, dump]
                if any(plain[key] != made[key] for key in plain):
                    raise RuntimeError(
                        f"{dump.label}: the bare loop made {plain}, the platform {made}: not the same work"
                    )
    return [row for i, dump in enumerate(dumps) for row in _rows(dump, cpu, counts, cold=i == 0)]


def _rows(
    dump: Dump, cpu: dict[tuple[str, Dump], list[float]], counts: dict[tuple[str, Dump], dict[str, Any]], *, cold: bool
) -> list[Row]:
    made, few = counts[ONE, dump], counts["naive", dump]
    pages, bare, naive = made["pages"], cpu["bare", dump], cpu["naive", dump]
    enough = pages >= 2_000  # in fewer, Ray's fixed costs are all there is
    mean = f"{pages:,.0f} pages of {made['text_chars'] / pages:,.0f} characters"

    def beside(other: str, name: str, which: slice, note: str) -> Row:
        ours, theirs = cpu[name, dump][which], cpu[other, dump][which]
        rates = best_rate(pages, ours, "pages"), best_rate(pages, theirs, "pages")
        ratios = [t / o for o, t in zip(ours, theirs, strict=True)]
        subject = f"{dump.label}: platform, {name} : {'bare loop' if other == 'bare' else 'bare loop, libraries alone'}"
        return Row(subject, *rates, ratios, 0.9 if enough else None, note=note)

    rows = [
        Row(
            f"{dump.label}: platform, {TWO} : naive",
            best_rate(pages, cpu[TWO, dump], "pages"),
            best_rate(few["pages"], naive, "pages"),
            [(pages / o) / (few["pages"] / n) for o, n in zip(cpu[TWO, dump], naive, strict=True)],
            10 if enough else None,
            note=f"{mean}; naive: {few['pages']:,} of them, evenly spaced, token ids only",
        )
    ]
    if cold:
        rows.append(beside("bare", TWO, slice(0, 1), "word tables cold on both sides"))
    warm = slice(int(cold), None)
    for name in (TWO, ONE):
        if bare[warm]:
            rows.append(beside("bare", name, warm, "word tables warm on both sides"))
    rows.append(beside("libraries", ONE, slice(None), "no word table there: the tokenizers library as it is"))
    size = made["token_bytes"] / made["tokens"]
    stages = sum(v for k, v in made.items() if k.endswith("CPU-s")) / cpu[ONE, dump][-1]
    rows.append(
        Row(
            f"{dump.label}: platform, inside its work functions", "", "", [stages], note="share of all CPU, last repeat"
        )
    )
    rows.append(
        Row(
            f"{dump.label}: bytes per token on disk",
            f"{size:.3f} B",
            "4 B (int32)",
            [size],
            1.75 if enough else None,
            at_most=True,
            note="the value itself",
        )
    )
    return rows
