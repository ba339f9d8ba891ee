"""K4, K5, K6, P2: what dies, hangs or panics costs what it was at, and is told; nothing waits for ever."""

import json
import re
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow.parquet as pq
import pytest

from wiki_assets.definitions import build
from wiki_assets.defs.headless import Outcome, materialize_snapshot
from wiki_assets_tests.chaos import checks_compute as checks
from wiki_assets_tests.chaos import ray_tasks
from wiki_assets_tests.chaos.children import OK, in_child
from wiki_assets_tests.chaos.kept import SNAPSHOT, Kept, dagster_home, make_kept
from wiki_assets_tests.chaos.plain import STEPS
from wiki_assets_tests.conftest import REPOSITORY
from wiki_assets_tests.graphql import is_up, launch_backfill
from wiki_assets_tests.processes import WIKI_ASSETS, free_port, running, wait_until
from wiki_assets_tests.stages.test_tokens import HUGE, POISON
from wiki_assets_tests.tinywiki.serve import serving

SHARDS = 6


@pytest.fixture(scope="module")
def articles(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    """Tinywiki with its articles made, and Dagster told."""
    with serving() as mirror:
        kept = make_kept(tmp_path_factory.mktemp("articles") / "root", mirror, shards=SHARDS, until="articles")
    return kept


@pytest.fixture
def wiki(articles: Kept, tmp_path: Path) -> Kept:
    """A copy to break."""
    return articles.copy(tmp_path / "root")


def materialize(kept: Kept, until: str, **settings: Any) -> Outcome:
    """What `wiki-assets materialize` does, on the Ray that the tests share."""
    from dataclasses import replace

    with kept.instance() as instance:
        return materialize_snapshot(
            SNAPSHOT,
            kept.book.config,
            replace(kept.plain.settings, **settings),
            instance=instance,
            build=build,
            until=until,
            ray_is_up=True,
        )


# --- poison, without Ray


@pytest.mark.chaos("poison")
@pytest.mark.parametrize(("action", "reason"), [("panic", "panic"), ("raise", "error")])
def test_a_page_that_fails_costs_only_itself(wiki: Kept, action: str, reason: str) -> None:
    checks.a_page_that_fails_costs_only_itself(wiki.plain, action, reason)


@pytest.mark.chaos("poison")
def test_pages_that_kill_their_worker_are_set_aside(
    wiki: Kept, chaos_seed: int, chaos_tier: str, record_property
) -> None:
    n_poison = 5 if chaos_tier == "nightly" else 2
    record_property("pages", n_poison)
    record_property("trials", checks.pages_that_kill_are_set_aside(wiki.plain, n_poison, chaos_seed))


@pytest.mark.chaos("poison")
def test_nothing_else_is_blamed_on_a_row(chaos_seed: int, record_property) -> None:
    checks.nothing_else_is_blamed_on_a_row(chaos_seed)
    record_property("cases", 1_000)


@pytest.mark.chaos("poison")
def test_a_lost_row_stops_publication(wiki: Kept) -> None:
    for step in ("tokens", "embeddings"):
        assert in_child(lambda step=step: wiki.plain.step(step)) == OK
    checks.a_lost_row_stops_publication(wiki.plain)


@pytest.mark.chaos("P2")
def test_any_text_is_taken_in(articles: Kept, tmp_path: Path, chaos_tier: str, record_property) -> None:
    texts = POISON | HUGE if chaos_tier == "nightly" else POISON  # test_tokens has the huge ones, in one shard
    took = checks.any_text_is_taken_in(articles.plain, texts, tmp_path)
    for what, place in (("CPU s", 0), ("MiB", 1)):
        worst = max(took, key=lambda name: took[name][place])
        record_property(f"most {what} of a document", f"{took[worst][place]:.1f} ({worst})")
    record_property("documents", len(took))


@pytest.mark.chaos("K5")
def test_a_silent_head_is_noticed(record_property) -> None:
    for kind, seconds in checks.a_silent_head_is_noticed().items():
        record_property(f"seconds, {kind}, patience 0.5", round(seconds, 2))


@pytest.mark.chaos("K6")
def test_only_listed_errors_are_tried_again(record_property) -> None:
    record_property("errors", checks.only_listed_errors_are_tried_again())


# --- workers of the Ray that tests share


@pytest.mark.ray
@pytest.mark.chaos("K4")
def test_killed_workers_cost_nothing(
    articles: Kept, tmp_path: Path, ray_cluster: None, chaos_seed: int, chaos_tier: str, record_property
) -> None:
    undisturbed, wiki = articles.copy(tmp_path / "oracle"), articles.copy(tmp_path / "root")
    assert in_child(lambda: undisturbed.plain.step("tokens")) == OK
    n_kills = 10 if chaos_tier == "nightly" else 3
    figures = checks.killed_workers_cost_nothing(wiki.plain, undisturbed.plain.bytes_made(), n_kills, chaos_seed)
    for name, value in figures.items():
        record_property(name, value)
    assert figures["kills"] == n_kills


@pytest.mark.ray
@pytest.mark.chaos("K6")
def test_a_stuck_task_is_ended_and_its_worker_too(tmp_path: Path, ray_cluster: None, record_property) -> None:
    record_property("overrun, s", round(checks.a_stuck_task_is_ended(tmp_path)["overrun"], 1))


@pytest.mark.ray
@pytest.mark.chaos("K6")
def test_a_task_that_dies_is_tried_three_times(tmp_path: Path, ray_cluster: None, record_property) -> None:
    record_property("attempts", checks.attempts_are_counted(tmp_path))


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The assets' tasks fail where a file in the data root says so."""
    from wiki_assets.defs import work

    for name in ("make_tokens", "try_tokens", "make_embeddings", "try_embeddings"):
        monkeypatch.setattr(work, name, getattr(ray_tasks, name))


@pytest.mark.ray
@pytest.mark.chroma
@pytest.mark.chaos("poison")
def test_a_page_that_kills_its_workers_costs_only_itself(
    wiki: Kept, ray_cluster: None, failing: None, record_property
) -> None:
    shard = wiki.plain.shard(1)
    poison = checks.pages_of(wiki.plain, shard)[1]
    (wiki.root / ray_tasks.RULES).write_text(f"tokens.page[{poison}]=segv")
    assert materialize(wiki, "tokens").failures == []
    checks.only_these_are_missing(wiki.plain, {poison: "killed_worker"})
    (row,) = checks.quarantined(wiki.plain, "tokens", shard)
    assert row.title
    assert materialize(wiki, "tokens").nothing_to_do, "a page that was set aside is not tried for ever"
    for step in STEPS[STEPS.index("embeddings") :]:  # as their assets do, with a small model
        wiki.plain.step(step)
    pointer = wiki.store.pointer("tinywiki") or {}
    n_pages = sum(len(checks.pages_of(wiki.plain, shard)) for shard in wiki.book.shards(SNAPSHOT))
    assert pointer["pages"] == n_pages - 1
    assert wiki.verify().whole
    with wiki.instance() as instance:
        assert checks.runs_by_status(instance).keys() == {"SUCCESS"}
    record_property("pages published of", f"{pointer['pages']}/{n_pages}")


@pytest.mark.ray
@pytest.mark.nightly
@pytest.mark.chaos("poison")
def test_passages_that_kill_their_workers_cost_only_themselves(
    wiki: Kept, ray_cluster: None, failing: None, record_property
) -> None:
    (wiki.root / ray_tasks.RULES).write_text("")
    assert materialize(wiki, "tokens").failures == []
    shard = wiki.plain.shard(2)
    names = pq.read_table(str(wiki.store.file("passages", shard)), columns=["passage_id"])["passage_id"].to_pylist()
    bad = {names[3], names[-1]}
    (wiki.root / ray_tasks.RULES).write_text("; ".join(f"embeddings.passage[{name}]=kill" for name in bad))
    assert materialize(wiki, "published_index").failures == []
    assert {(row.passage_id, row.reason) for row in checks.quarantined(wiki.plain, "embeddings", shard)} == {
        (name, "killed_worker") for name in bad
    }
    assert all(row.title for row in checks.quarantined(wiki.plain, "embeddings", shard))
    pointer = wiki.store.pointer("tinywiki") or {}
    total = sum(m.counts["passages"] for s in wiki.book.shards(SNAPSHOT) if (m := wiki.store.manifest("tokens", s)))
    assert pointer["passages"] == total - 2
    with wiki.instance() as instance:
        assert wiki.verify(instance).whole
    record_property("passages published of", f"{pointer['passages']}/{total}")


@pytest.mark.ray
@pytest.mark.nightly
@pytest.mark.chaos("K6")
def test_a_shard_that_hangs_fails_alone_and_is_named(
    wiki: Kept, ray_cluster: None, failing: None, record_property
) -> None:
    shard = wiki.plain.shard(0)
    (wiki.root / ray_tasks.RULES).write_text(f"tokens.page[{checks.pages_of(wiki.plain, shard)[0]}]=hang")
    began = time.monotonic()
    (failure,) = materialize(wiki, "tokens", task_seconds=30).failures
    record_property("seconds, 30 allowed", round(time.monotonic() - began, 1))
    assert f"1 of {SHARDS} shards failed: {shard.partition_key}" in failure
    assert "allowed: cancelled, and its worker ended" in failure
    made = checks.stamps(wiki, "tokens")
    assert len(made) == SHARDS - 1, "all others were made"
    (wiki.root / ray_tasks.RULES).write_text("")
    assert materialize(wiki, "tokens").made == {"tokens": 1}
    assert made.items() <= checks.stamps(wiki, "tokens").items(), "what was made is not made again"


# --- a Ray of one's own is lost


LOSSES = {
    "gcs_server killed": ("gcs_server", signal.SIGKILL),
    "raylet killed": ("raylet", signal.SIGKILL),
    "gcs_server stopped": ("gcs_server", signal.SIGSTOP),
}


def losing(kept: Kept, who: str, how: signal.Signals, log: Path, **env: str) -> Iterator[dict[str, Any]]:
    """Materialize tokens on a Ray of its own, and take a part of Ray away when all shards but the last are done.

    A generator, so that several can be under way at once: it yields when its process has started, when Ray is hurt,
    and at the end what it found.
    """
    last = checks.pages_of(kept.plain, kept.plain.shard(SHARDS - 1))
    env |= dagster_home(kept.root) | {"WIKI_ASSETS_FAILPOINTS": f"tokens.page[{last[0]}]=hang", "WIKI_ASSETS_CPUS": "1"}
    command = [*WIKI_ASSETS, "materialize", "tinywiki", "--snapshot", SNAPSHOT.date, "--until", "tokens"]
    with running(command, env=env, log=log) as process:
        yield {}
        wait_until(
            lambda: process.poll() is not None or len(checks.stamps(kept, "tokens")) == SHARDS - 1,
            within_s=240,
            every_s=0.2,
            what="all shards but the last",
        )
        assert process.poll() is None, log.read_text()
        done = checks.stamps(kept, "tokens")
        family = checks.Family.of(process.pid)
        part = family.member(who)
        assert part is not None, log.read_text()
        part.send_signal(how)
        hurt = time.monotonic()
        yield {}
        assert process.wait(120) == 1, log.read_text()
        seconds = time.monotonic() - hurt
        wait_until(lambda: not family.alive(), within_s=20, every_s=0.2, what="the end of Ray's processes")
        said = log.read_text()
    (line,) = [line for line in said.splitlines() if line.startswith("wiki-assets:")]
    assert line.startswith("wiki-assets: tokens: ")
    assert line.endswith("what was finished is kept; run again, and the rest is made")
    with kept.instance() as instance:
        statuses = checks.runs_by_status(instance)
        (failed,) = instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE]))
        assert "Ray" in checks.failure_of(instance, failed)
    assert kept.plain.phantoms() == []
    assert checks.stamps(kept, "tokens") == done
    yield {
        "seconds to a failed run": round(seconds, 1),
        "runs left started": statuses.get("STARTED", 0),
        "orphans": len(family.alive()),
    }


@pytest.mark.ray
@pytest.mark.timeout(1800)  # nightly, nine losses
@pytest.mark.nightly
@pytest.mark.chaos("K5")
def test_a_run_whose_ray_is_lost_fails_in_time_and_the_next_does_the_rest(
    articles: Kept, tmp_path: Path, ray_cluster: None, chaos_tier: str, record_property
) -> None:
    names = [*LOSSES] * 3 if chaos_tier == "nightly" else [*LOSSES][:2]
    for first in range(0, len(names), 2):  # two at a time: most of it is waiting
        wikis = {name: articles.copy(tmp_path / name.replace(" ", "-")) for name in names[first : first + 2]}
        runs = {name: losing(kept, *LOSSES[name], tmp_path / f"{name}.log") for name, kept in wikis.items()}
        for _ in ("start", "hurt"):
            for run in runs.values():
                next(run)
        for name, run in runs.items():
            for what, value in next(run).items():
                record_property(f"{name}: {what}", value)
        for name, kept in wikis.items():
            before = checks.stamps(kept, "tokens")
            outcome = materialize(kept, "tokens")
            assert outcome.failures == [], name
            assert outcome.made["tokens"] <= 2, "the last, and one that was durable but not yet reported"
            after = checks.stamps(kept, "tokens")
            assert len(after) == SHARDS
            assert before.items() <= after.items(), f"{name}: what was done is not done again"


def only_last_missing(kept: Kept) -> dict[str, int]:
    """Make the tokens of all shards but the last."""
    assert in_child(lambda: kept.plain.step("tokens")) == OK
    kept.store.manifest_path("tokens", kept.plain.shard(SHARDS - 1)).unlink()
    return checks.stamps(kept, "tokens")


@pytest.mark.ray
@pytest.mark.nightly
@pytest.mark.chaos("K6")
def test_workers_over_the_memory_limit_are_given_up_after_some_attempts(
    wiki: Kept, tmp_path: Path, record_property
) -> None:
    done = only_last_missing(wiki)
    log = tmp_path / "run.log"
    always_over = {"RAY_memory_usage_threshold": "0.01", "RAY_memory_monitor_refresh_ms": "100"}
    command = [*WIKI_ASSETS, "materialize", "tinywiki", "--snapshot", SNAPSHOT.date, "--until", "tokens"]
    with running(command, env=dagster_home(wiki.root) | always_over, log=log) as process:
        began = time.monotonic()
        assert process.wait(280) == 1, log.read_text()
    said = log.read_text()
    assert "its workers die (OutOfMemoryError)" in said
    assert "workers die before they read a row: look at the machine's memory" in said
    assert checks.stamps(wiki, "tokens") == done
    attempts = [int(n) for n in re.findall(r"its worker was lost; attempt (\d+)", said)]
    assert max(attempts, default=1) <= 4
    record_property("seconds to the end", round(time.monotonic() - began, 1))
    record_property("attempts seen", max(attempts, default=1))


@pytest.mark.ray
@pytest.mark.nightly
@pytest.mark.chaos("K6")
def test_lost_messages_within_ray_cost_nothing(articles: Kept, tmp_path: Path, record_property) -> None:
    undisturbed, wiki = articles.copy(tmp_path / "oracle"), articles.copy(tmp_path / "root")
    assert in_child(lambda: undisturbed.plain.step("tokens")) == OK
    lossy = {
        f"{service}.grpc_client.{call}": {"num_failures": 5, "req_failure_prob": 25, "resp_failure_prob": 25}
        for service, call in (
            ("ray::rpc::InternalKVGcsService", "InternalKVPut"),
            ("ray::rpc::InternalKVGcsService", "InternalKVGet"),
            ("ray::rpc::InternalKVGcsService", "InternalKVKeys"),
            ("NodeManagerService", "RequestWorkerLease"),
            ("NodeManagerService", "ReturnWorkerLease"),
            ("CoreWorkerService", "PushTask"),
        )
    }
    log = tmp_path / "run.log"
    command = [*WIKI_ASSETS, "materialize", "tinywiki", "--snapshot", SNAPSHOT.date, "--until", "tokens"]
    env = dagster_home(wiki.root) | {"RAY_testing_rpc_failure": json.dumps(lossy)}
    with running(command, env=env, log=log) as process:
        assert process.wait(280) == 0, log.read_text()
    oracle = undisturbed.plain.bytes_made()
    made = wiki.plain.bytes_made()
    assert {path: made[path] for path in oracle} == oracle
    record_property("calls that fail at random", len(lossy))


@pytest.mark.ray
@pytest.mark.nightly
@pytest.mark.chaos("K5")
def test_a_run_of_the_ui_whose_ray_is_lost_is_shown_as_failed(wiki: Kept, tmp_path: Path, record_property) -> None:
    last = checks.pages_of(wiki.plain, wiki.plain.shard(SHARDS - 1))
    env = dagster_home(wiki.root) | {"WIKI_ASSETS_FAILPOINTS": f"tokens.page[{last[0]}]=hang", "WIKI_ASSETS_CPUS": "1"}
    port, log = free_port(), tmp_path / "dagster.log"
    command = [sys.executable, "-m", "dagster", "dev", "-w", "workspace.yaml", "-h", "127.0.0.1", "-p", str(port)]
    cells = [shard.partition_key for shard in wiki.book.shards(SNAPSHOT)]
    with running(command, env=env, log=log, cwd=REPOSITORY) as process, wiki.instance() as instance:

        def up() -> bool:
            assert process.poll() is None, log.read_text()
            return is_up(port)

        wait_until(up, within_s=180, every_s=1, what="the webserver")
        launch_backfill(port, ["tokens"], cells)
        wait_until(
            lambda: len(checks.stamps(wiki, "tokens")) == SHARDS - 1, within_s=280, every_s=0.5, what="all but one"
        )
        family = checks.Family.of(process.pid)
        head = family.member("gcs_server")
        assert head is not None, log.read_text()
        ray_processes = [p for p in family.seen.values() if p.name() in ("gcs_server", "raylet") or "ray::" in p.name()]
        (run,) = instance.get_runs()
        assert run.status == dg.DagsterRunStatus.STARTED
        head.kill()
        began = time.monotonic()

        def failed() -> bool:
            found = instance.get_run_by_id(run.run_id)
            return found is not None and found.status == dg.DagsterRunStatus.FAILURE

        wait_until(failed, within_s=120, every_s=0.2, what=f"the run's failure; {log.read_text()[-3000:]}")
        seconds = time.monotonic() - began
        assert "has lost its gcs_server" in checks.failure_of(instance, run)
        wait_until(lambda: all(map(checks.gone, ray_processes)), within_s=60, every_s=0.2, what="the end of Ray")
        assert len(instance.get_materialized_partitions(dg.AssetKey(["tinywiki", "tokens"]))) == SHARDS - 1
        assert checks.runs_by_status(instance).get("STARTED", 0) == 0
    record_property("seconds to a failed run", round(seconds, 1))
