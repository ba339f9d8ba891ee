"""Partition status is the checkpoint: shown by killing a run, and by watching one through the UI's own API."""

import signal
import sys
from collections.abc import Callable
from pathlib import Path

import dagster as dg
import pytest

from wiki_assets.keys import Shard
from wiki_assets_tests.defs.conftest import SNAPSHOT, Deployment
from wiki_assets_tests.graphql import ask_ui, is_up, launch_backfill
from wiki_assets_tests.processes import WIKI_ASSETS, end_group, free_port, running, wait_until

pytestmark = pytest.mark.ray
Deploy = Callable[..., Deployment]
SHARDS = 24
REPOSITORY = Path(__file__).parents[2]


def environment(wiki: Deployment) -> dict[str, str]:
    """For a process that works on the same root, slowly enough to be watched."""
    return {
        "WIKI_ASSETS_ROOT": wiki.settings.root,
        "WIKI_ASSETS_MIRROR": wiki.settings.mirror,
        "WIKI_ASSETS_ENGINE": "torch",
        "DAGSTER_HOME": wiki.instance.root_directory,
        "PYTHONUNBUFFERED": "1",
    }


def embedded(wiki: Deployment) -> dict[str, int]:
    """Shards whose embeddings are durable, and when their file was written."""
    shards = [Shard(SNAPSHOT, number) for number in range(SHARDS)]
    return {
        s.partition_key: wiki.store.file("embeddings", s).stat().st_mtime_ns
        for s in shards
        if wiki.book.made("embeddings", s)
    }


def test_a_run_killed_half_way_leaves_the_finished_shards_materialized_and_the_next_does_the_rest(
    deploy: Deploy, ray_cluster: None, tmp_path: Path
) -> None:
    wiki = deploy(shards=SHARDS)
    wiki.materialize(until="tokens")
    command = [*WIKI_ASSETS, "materialize", "tinywiki", "--snapshot", SNAPSHOT.date, "--until", "embeddings"]
    log = tmp_path / "run.log"
    with running(command, env=environment(wiki), log=log) as process:
        wait_until(
            lambda: len(wiki.materialized("embeddings")) >= SHARDS // 3 or process.poll() is not None, within_s=240
        )
        assert process.poll() is None, log.read_text()
        end_group(process, signal.SIGKILL)
        process.wait(10)
    done, durable = wiki.materialized("embeddings"), embedded(wiki)
    assert SHARDS // 3 <= len(done) < SHARDS
    assert done <= set(durable), "nothing is shown as done that is not"
    assert len(set(durable) - done) <= 4, "only what was in flight can be durable and not yet shown"
    runs = wiki.instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED]))
    assert len(runs) == 1

    log = tmp_path / "again.log"
    with running(command, env=environment(wiki), log=log) as process:
        assert process.wait(180) == 0, log.read_text()
    assert len(wiki.materialized("embeddings")) == SHARDS
    after = embedded(wiki)
    assert {cell: after[cell] for cell in durable} == durable, "no finished shard was made again"
    computed = [e for e in wiki.events("embeddings") if not e.metadata["reused"].value]
    assert len({e.partition for e in computed}) == len(computed), "each shard was computed and reported once"
    killed = wiki.instance.get_run_by_id(runs[0].run_id)
    assert killed is not None
    assert killed.status == dg.DagsterRunStatus.FAILURE, "the killed run does not stay started for ever"


WATCH = """
query($key: AssetKeyInput!, $backfill: String!) {
  assetNodeOrError(assetKey: $key) { ... on AssetNode { partitionStats { numMaterialized } } }
  partitionBackfillOrError(backfillId: $backfill) {
    ... on PartitionBackfill { status }
    ... on PythonError { message }
  }
}"""


def test_a_backfill_from_the_ui_turns_partitions_materialized_one_by_one(
    deploy: Deploy, ray_cluster: None, tmp_path: Path
) -> None:
    wiki = deploy(shards=SHARDS)
    wiki.materialize(until="tokens")
    first, last = 2, 19  # a range, not the whole row
    port, log = free_port(), tmp_path / "dagster.log"
    command = [sys.executable, "-m", "dagster", "dev", "-w", "workspace.yaml", "-h", "127.0.0.1", "-p", str(port)]
    with running(command, env=environment(wiki), log=log, cwd=REPOSITORY) as process:

        def up() -> bool:
            assert process.poll() is None, log.read_text()
            return is_up(port)

        wait_until(up, within_s=120, every_s=0.5, what="the webserver")
        cells = [f"{SNAPSHOT.date}|{number:05d}" for number in range(first, last + 1)]
        backfill = launch_backfill(port, ["embeddings"], cells)
        seen: list[int] = []

        def finished() -> str | None:
            found = ask_ui(port, WATCH, key={"path": ["tinywiki", "embeddings"]}, backfill=backfill)
            count = found["assetNodeOrError"]["partitionStats"]["numMaterialized"]
            if not seen or seen[-1] != count:
                seen.append(count)
            status = found["partitionBackfillOrError"]["status"]
            return status if status.startswith(("COMPLETED", "FAILED", "CANCELED")) else None

        status = wait_until(finished, within_s=240, every_s=0.1, what=f"the backfill; log: {log.read_text()[-2000:]}")
    assert status == "COMPLETED_SUCCESS", log.read_text()[-4000:]
    assert wiki.materialized("embeddings") == set(cells)
    assert len(seen) >= 5, f"partitions turned materialized in steps: {seen}"
    assert seen == sorted(seen)
    backfill_runs = wiki.instance.get_runs(dg.RunsFilter(tags={"dagster/backfill": backfill}))
    assert len(backfill_runs) == 1, "one run for the range, not one a shard"
