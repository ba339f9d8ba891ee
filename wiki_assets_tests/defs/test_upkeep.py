"""The upkeep commands: what they print and return; what Dagster is told; the settings that are in force."""

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import dagster as dg
import pytest
from click.testing import CliRunner, Result
from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleStatus
from dagster._core.loader import LoadingContextForTest

from wiki_assets.cli import main
from wiki_assets.definitions import build
from wiki_assets.defs.instance import DAEMON_SETTINGS, open_instance
from wiki_assets.defs.recipes import STAGES
from wiki_assets.defs.upkeep import reap
from wiki_assets.defs.upkeep.reconcile import reconcile
from wiki_assets.defs.upkeep.sensor import reap_dead_runs
from wiki_assets.defs.upkeep.status import forget
from wiki_assets.keys import Shard
from wiki_assets.settings import Settings
from wiki_assets_tests.chaos.kept import CHROMA, Kept, make_kept
from wiki_assets_tests.defs.conftest import SNAPSHOT, Deployment

CELL = "20250105|00001"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, mirror: str) -> Kept:
    """Tinywiki with everything made; nobody changes this one."""
    return make_kept(tmp_path_factory.mktemp("whole") / "root", mirror, shards=2)


@pytest.fixture
def kept(whole: Kept, tmp_path: Path) -> Kept:
    """A copy of it."""
    return whole.copy(tmp_path / "root")


@pytest.fixture
def command(kept: Kept) -> Iterator[Callable[..., Result]]:
    """Runs wiki-assets on the copy."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WIKI_ASSETS_ROOT", str(kept.root))
        patch.setenv("DAGSTER_HOME", str(kept.root / "dagster"))
        yield lambda *words: CliRunner().invoke(main, words)


# --- commands


def test_verify_shows_what_it_proved(command: Callable[..., Result]) -> None:
    shown = command("verify", "tinywiki")
    assert shown.exit_code == 0, shown.output
    assert [line.split()[1] for line in shown.stdout.splitlines()[1:]] == list(STAGES)
    rows = [json.loads(line) for line in command("verify", "--json").stdout.splitlines()]
    assert all(len(row["proven"]) == row["of"] for row in rows)
    indexed = next(row for row in rows if row["asset"] == CHROMA)
    assert indexed["rows"] == 271


def test_verify_names_what_is_damaged_and_the_next_move(kept: Kept, command: Callable[..., Result]) -> None:
    path = kept.wiki_folder / "embeddings" / SNAPSHOT.date / "00001.parquet"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    found = command("verify", "tinywiki", "--no-index")
    assert found.exit_code == 1
    assert f"tinywiki embeddings {CELL}: {path}: SHA-256" in found.stderr
    assert "run wiki-assets reconcile tinywiki, then wiki-assets materialize tinywiki" in found.stderr.lower()
    rows = [json.loads(line) for line in command("verify", "--json").stdout.splitlines()]
    damaged = {row["asset"]: list(row["damaged"]) for row in rows if row["damaged"]}
    assert damaged == {"embeddings": [CELL]}


def test_verify_needs_no_dagster_and_makes_none(kept: Kept, command: Callable[..., Result]) -> None:
    home = kept.root / "dagster"
    home.rename(kept.root / "elsewhere")
    (kept.wiki_folder / "tokens" / SNAPSHOT.date / "00001.json").unlink()
    found = command("verify", "--no-index")
    assert found.exit_code == 1
    assert f"tinywiki tokens {CELL}: its manifest is gone" in found.stderr
    assert "manifests alone" in found.stderr
    assert not home.exists()


def test_reconcile_says_what_it_changes_and_then_that_there_is_nothing(
    kept: Kept, command: Callable[..., Result]
) -> None:
    (kept.wiki_folder / "tokens" / SNAPSHOT.date / "00001.json").unlink()
    with kept.instance() as instance:
        forget(instance, "tinywiki", "articles", [CELL])
    would = command("reconcile", "tinywiki", "--dry-run").stdout
    did = command("reconcile", "tinywiki").stdout
    assert would == did
    assert f"tokens: forgot {CELL}" in did
    assert f"articles: told Dagster of {CELL}" in did
    again = command("reconcile")
    assert (again.exit_code, again.stdout) == (0, "tinywiki: nothing to change, Dagster and the files agree\n")


@pytest.mark.chroma
def test_rebuild_index_publishes_another_build(kept: Kept, command: Callable[..., Result]) -> None:
    made = command("rebuild-index", "tinywiki")
    assert made.exit_code == 0, made.output
    assert "tinywiki-20250105-2 is published, 271 passages put in again, 0 embedded again" in made.stdout
    assert kept.store.builds(SNAPSHOT) == [1, 2]


def test_rebuild_index_wants_its_vectors(kept: Kept, command: Callable[..., Result]) -> None:
    (kept.wiki_folder / "embeddings" / SNAPSHOT.date / "00001.json").unlink()
    refused = command("rebuild-index", "tinywiki")
    assert refused.exit_code == 2
    assert "embeddings of 1 of 2 shards" in refused.stderr
    assert kept.store.builds(SNAPSHOT) == [1], "the published build is as it was"


def test_reap_names_the_runs_it_failed(kept: Kept, command: Callable[..., Result]) -> None:
    assert "every unfinished run has its process" in command("reap").stdout
    with kept.instance() as instance:
        run = _run_of_a_dead_process(instance)
        assert f"{run}  STARTED  process" in command("reap", "--dry-run").stdout
        assert json.loads(command("reap", "--json").stdout)["run"] == run
        assert _status(instance, run) == dg.DagsterRunStatus.FAILURE


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["verify", "../x"], "is no wiki"),
        (["verify", "enwiki"], "run wiki-assets materialize enwiki"),
        (["verify", "--snapshot", "20250230"], "is no snapshot date"),
        (["reconcile", "enwiki"], "run wiki-assets materialize enwiki"),
        (["rebuild-index", "enwiki"], "no data"),
    ],
)
def test_a_mistake_gets_one_line(command: Callable[..., Result], words: list[str], says: str) -> None:
    refused = command(*words)
    assert refused.exit_code == 2
    assert says in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    assert refused.stdout == ""


def test_help_shows_an_example_of_each_command(command: Callable[..., Result]) -> None:
    for name in ("verify", "reconcile", "rebuild-index", "reap"):
        assert f"wiki-assets {name}" in command(name, "--help").stdout


# --- Dagster's side


def test_what_reconcile_tells_dagster_is_what_a_run_would(deploy: Callable[..., Deployment], ray_cluster: None) -> None:
    wiki = deploy(shards=2)
    wiki.materialize()
    told: dict[str, dict[str, dg.AssetMaterialization]] = {}
    by_run = {stage: {str(e.partition): e for e in wiki.events(stage)} for stage in STAGES}
    for stage in STAGES:
        forget(wiki.instance, "tinywiki", stage, by_run[stage])
        assert wiki.materialized(stage) == set()
    _, changes = reconcile("tinywiki", wiki.settings, wiki.store, instance=wiki.instance)
    assert {stage: set(cells) for stage, cells in changes.told.items()} == {s: set(by_run[s]) for s in STAGES}
    told = {stage: {str(e.partition): e for e in wiki.events(stage)} for stage in STAGES}
    for stage in STAGES:
        for partition, event in by_run[stage].items():
            ours = told[stage][partition]
            assert set(ours.metadata) <= set(event.metadata), stage
            assert set(ours.metadata) == set(event.metadata) or stage == "published_index", stage
            assert _lasting(ours.tags) == _lasting(event.tags), stage
    graph = build(wiki.settings, wikis=[wiki.config]).resolve_asset_graph()
    resolver = CachingStaleStatusResolver(wiki.instance, graph, LoadingContextForTest(wiki.instance))
    for stage in STAGES:
        for partition in told[stage]:
            key = dg.AssetKey(["tinywiki", stage])
            assert resolver.get_status(key, partition) == StaleStatus.FRESH, f"{stage} {partition}"
    assert wiki.materialize().nothing_to_do


def _lasting(tags: object) -> dict[str, str]:
    """Tags without the numbers of the events they point to, which are other ones."""
    assert isinstance(tags, dict)
    user = "dagster/data_version_is_user_provided"
    return {k: "" if "event_pointer" in k else v for k, v in tags.items() if k != user}


def test_a_partition_is_forgotten_alone_and_its_run_keeps_its_log(kept: Kept) -> None:
    key = dg.AssetKey(["tinywiki", "articles"])
    with kept.instance() as instance:
        events = instance.fetch_materializations(key, limit=10).records
        forget(instance, "tinywiki", "articles", [CELL])
        assert instance.get_materialized_partitions(key) == {"20250105|00000"}
        latest = instance.get_latest_materialization_event(key)
        assert latest is not None
        assert latest.asset_materialization is not None
        assert latest.asset_materialization.partition == "20250105|00000"
        forget(instance, "tinywiki", "articles", ["20250105|00000"])
        assert instance.get_materialized_partitions(key) == set()
        assert instance.get_latest_materialization_event(key) is None
        kept.reconcile(instance)
        assert instance.get_materialized_partitions(key) == {str(e.partition_key) for e in events}


def test_a_key_that_was_deleted_and_added_again_is_what_the_files_prove(kept: Kept) -> None:
    key = dg.AssetKey(["tinywiki", "tokens"])
    for number in range(2):
        kept.store.manifest_path("tokens", Shard(SNAPSHOT, number)).unlink()
    with kept.instance() as instance:
        instance.delete_dynamic_partition("tinywiki_dates", SNAPSHOT.date)
        instance.add_dynamic_partitions("tinywiki_dates", [SNAPSHOT.date])
        assert len(instance.get_materialized_partitions(key)) == 2, "Dagster alone still shows them"
        kept.reconcile(instance)
        assert instance.get_materialized_partitions(key) == set()


def test_the_sensor_fails_dead_runs_and_is_on_by_itself(tmp_path: Path) -> None:
    assert reap_dead_runs.default_status == dg.DefaultSensorStatus.RUNNING
    with dg.DagsterInstance.ephemeral() as instance:
        run = _run_of_a_dead_process(instance)
        ticked = reap_dead_runs(dg.build_sensor_context(instance=instance))
        assert isinstance(ticked, dg.SkipReason)
        assert run in str(ticked.skip_message)
        assert _status(instance, run) == dg.DagsterRunStatus.FAILURE
        quiet = reap_dead_runs(dg.build_sensor_context(instance=instance))
        assert "every unfinished run" in str(quiet.skip_message)


def _run_of_a_dead_process(instance: dg.DagsterInstance) -> str:
    @dg.job
    def nothing() -> None: ...

    with subprocess.Popen(["true"]) as process:
        tags = {**reap.process_tags(), reap.PID: str(process.pid), reap.BORN: "a moment ago"}
    return instance.create_run_for_job(nothing, status=dg.DagsterRunStatus.STARTED, tags=tags).run_id


def _status(instance: dg.DagsterInstance, run_id: str) -> dg.DagsterRunStatus:
    run = instance.get_run_by_id(run_id)
    assert run is not None
    return run.status


# --- settings


def test_the_instance_that_we_ship_has_these_settings_in_force(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    for name in DAEMON_SETTINGS:
        monkeypatch.delenv(name, raising=False)
    with open_instance(Settings(root=str(tmp_path / "root"))) as instance:
        assert instance.run_monitoring_enabled
        assert instance.run_monitoring_start_timeout_seconds == 300
        assert instance.run_monitoring_cancel_timeout_seconds == 180
        assert instance.run_monitoring_max_runtime_seconds == 21600
        assert instance.run_monitoring_max_resume_run_attempts == 0
        assert instance.run_monitoring_poll_interval_seconds == 60
        assert instance.get_settings("run_monitoring")["free_slots_after_run_end_seconds"] == 300
        assert instance.run_retries_enabled
        assert instance.run_retries_max_retries == 2
        assert instance.run_retries_retry_on_asset_or_op_failure is False
        assert instance.telemetry_enabled is False
        assert instance.nux_enabled is False
        concurrency = instance.get_concurrency_config()
        assert concurrency.run_queue_config is not None
        assert concurrency.run_queue_config.max_concurrent_runs == 2
        assert concurrency.pool_config.pool_granularity is not None
        assert concurrency.pool_config.pool_granularity.value == "run"
        storage = instance.event_log_storage
        assert {key: storage.get_concurrency_info(key).slot_count for key in ("mirror", "chroma")} == {
            "mirror": 1,
            "chroma": 1,
        }
    assert {name: os.environ[name] for name in DAEMON_SETTINGS} == DAEMON_SETTINGS


def test_headless_runs_are_not_timed_by_the_monitor_and_name_their_process() -> None:
    tags = reap.process_tags()
    assert tags["dagster/max_runtime"] == "0", "it could not end their process, only mark the run"
    assert tags[reap.PID] == str(os.getpid())
    assert tags[reap.BORN] == reap.birth(os.getpid())


def test_the_ui_listens_on_this_machine_alone(tmp_path: Path, monkeypatch) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda program, words: started.append(words))
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WIKI_ASSETS_ROOT", str(tmp_path / "root"))
    monkeypatch.setenv("WIKI_ASSETS_MIRROR", "http://127.0.0.1:1")
    assert CliRunner().invoke(main, ["ui"]).exit_code == 0
    words = started[0]
    assert words[words.index("-h") + 1] == "127.0.0.1"
