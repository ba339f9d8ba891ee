"""K4, K5, K6, P2: what dies, hangs or panics costs what it was at, and is told; nothing waits for ever."""

import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from wiki_assets.definitions import build
from wiki_assets.defs.headless import Outcome, materialize_snapshot
from wiki_assets.files import verify_files
from wiki_assets.search import ask
from wiki_assets_tests.chaos import checks_compute as checks
from wiki_assets_tests.chaos import ray_tasks
from wiki_assets_tests.chaos.checks_compute import Family
from wiki_assets_tests.chaos.kept import SNAPSHOT, Kept, dagster_home, make_kept
from wiki_assets_tests.chaos.plain import OK, in_child
from wiki_assets_tests.processes import WIKI_ASSETS, running, wait_until
from wiki_assets_tests.tinywiki.serve import serving

SHARDS = 6


@pytest.fixture(scope="module")
def articles(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    """Tinywiki with its articles made, and Dagster told."""
    with serving() as mirror:
        return make_kept(tmp_path_factory.mktemp("articles") / "root", mirror, shards=SHARDS, until="articles")


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
    record_property("cases", 200)


@pytest.mark.chaos("poison")
def test_a_lost_row_stops_publication(wiki: Kept) -> None:
    for step in ("tokens", "embeddings", "chroma_collection"):
        assert in_child(lambda step=step: wiki.plain.step(step)) == OK
    checks.a_lost_row_stops_publication(wiki.plain)


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


@pytest.mark.ray
@pytest.mark.chroma
@pytest.mark.chaos("poison")
def test_one_page_that_kills_and_one_that_hangs_cost_only_themselves(
    wiki: Kept, ray_cluster: None, monkeypatch: pytest.MonkeyPatch, record_property
) -> None:
    from wiki_assets.defs import work

    for name in ("make_tokens", "try_tokens", "make_embeddings", "try_embeddings"):
        monkeypatch.setattr(work, name, getattr(ray_tasks, name))
    hanging, killing = wiki.plain.shard(0), wiki.plain.shard(1)
    hung, poison = checks.pages_of(wiki.plain, hanging)[0], checks.pages_of(wiki.plain, killing)[1]

    (wiki.root / ray_tasks.RULES).write_text(f"tokens.page[{hung}]=hang; tokens.page[{poison}]=segv")
    outcome = materialize(wiki, "tokens", task_seconds=20)
    (failure,) = outcome.failures
    assert hanging.partition_key in failure
    assert f"1 of {SHARDS} shards failed" in failure
    assert "allowed: cancelled, and its worker ended" in failure
    made = checks.stamps(wiki, "tokens")
    assert len(made) == SHARDS - 1, "all others were made"

    (wiki.root / ray_tasks.RULES).write_text(f"tokens.page[{poison}]=segv")  # it hangs no more
    assert materialize(wiki, "published_index").failures == []
    checks.only_these_are_missing(wiki.plain, {poison: "killed_worker"})
    assert made.items() <= checks.stamps(wiki, "tokens").items(), "what was made is not made again"
    (row,) = checks.quarantined(wiki.plain, "tokens", killing)
    assert row.title
    pointer = wiki.store.pointer("tinywiki") or {}
    n_pages = sum(len(checks.pages_of(wiki.plain, shard)) for shard in wiki.book.shards(SNAPSHOT))
    assert pointer["pages"] == n_pages - 1
    assert ask(row.title, wiki.plain.settings, k=5), "everything else answers"
    with wiki.instance() as instance:
        statuses = checks.runs_by_status(instance)
        assert wiki.verify(instance).whole
    assert statuses.get("STARTED", 0) == 0
    assert materialize(wiki, "published_index").nothing_to_do, "a page that was set aside is not tried for ever"
    record_property("pages published of", f"{pointer['pages']}/{n_pages}")


# --- a Ray of one's own loses its head


@pytest.fixture(scope="module")
def tokens(articles: Kept, tmp_path_factory: pytest.TempPathFactory) -> Kept:
    """Tinywiki with its tokens made, and Dagster told."""
    kept = articles.copy(tmp_path_factory.mktemp("tokens") / "root")
    kept.plain.step("tokens")
    with kept.instance() as instance:
        kept.reconcile(instance)
    return kept


def environment(kept: Kept) -> dict[str, str]:
    """Of a process that works on a root, slowly enough to be disturbed."""
    return {**dagster_home(kept.root), "WIKI_ASSETS_ENGINE": "torch", "RAY_AUTH_MODE": "token"}


def lose(kept: Kept, who: str, how: signal.Signals, log: Path) -> Iterator[dict[str, Any]]:
    """Materialize embeddings on a Ray of its own, and take a part of Ray away when the first shard is done.

    A generator, so that several can wait at the same time: it yields when the run is under way, and when it is over.
    """
    command = [*WIKI_ASSETS, "materialize", "tinywiki", "--snapshot", SNAPSHOT.date, "--until", "embeddings"]
    with running(command, env=environment(kept), log=log) as process:
        yield {}
        family = Family.of(process.pid)
        wait_until(
            lambda: process.poll() is not None or (family.look() and checks.stamps(kept, "embeddings")),
            within_s=180,
            what="the first shard",
        )
        assert process.poll() is None, log.read_text()
        done = checks.stamps(kept, "embeddings")
        part = family.member(who)
        assert part is not None, log.read_text()
        part.send_signal(how)
        killed = time.monotonic()
        yield {}
        code = process.wait(60)
        seconds = time.monotonic() - killed
        assert code == 1, log.read_text()
        wait_until(lambda: not family.alive(), within_s=20, what=f"the end of {family.alive()}")
        said = log.read_text()
    assert "wiki-assets: embeddings: " in said
    assert "run again, and the rest is made" in said
    assert len(said.splitlines()[-1]) < 300, "one line for a person"
    with kept.instance() as instance:
        statuses = checks.runs_by_status(instance)
        (failed,) = instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE]))
        assert "Ray" in checks.failure_of(instance, failed)
    assert statuses == {"FAILURE": 1}
    assert kept.plain.phantoms() == []
    assert done.items() <= checks.stamps(kept, "embeddings").items()
    yield {"seconds": round(seconds, 1), "started": statuses.get("STARTED", 0), "orphans": len(family.alive())}


LOSSES = {
    "gcs_server killed": ("gcs_server", signal.SIGKILL),
    "raylet killed": ("raylet", signal.SIGKILL),
    "gcs_server stopped": ("gcs_server", signal.SIGSTOP),
    "raylet stopped": ("raylet", signal.SIGSTOP),
}


@pytest.mark.ray
@pytest.mark.chaos("K5")
def test_a_run_whose_ray_is_lost_fails_in_time_and_the_next_does_the_rest(
    tokens: Kept, tmp_path: Path, ray_cluster: None, record_property
) -> None:
    wikis = {name: tokens.copy(tmp_path / name) for name in list(LOSSES)[:2]}
    runs = {name: lose(kept, *LOSSES[name], tmp_path / f"{name}.log") for name, kept in wikis.items()}
    for _ in range(2):  # at the same time: start both, then disturb both
        for run in runs.values():
            next(run)
    for name, run in runs.items():
        for what, value in next(run).items():
            record_property(f"{name}: {what}", value)
    for name, kept in wikis.items():
        before = checks.stamps(kept, "embeddings")
        assert materialize(kept, "embeddings", engine="torch").failures == []
        after = checks.stamps(kept, "embeddings")
        assert len(after) == SHARDS
        assert before.items() <= after.items(), f"{name}: what was done is not done again"
        for shard in kept.book.shards(SNAPSHOT):
            manifest = kept.store.manifest("embeddings", shard)
            assert manifest is not None
            verify_files(kept.wiki_folder, manifest)
