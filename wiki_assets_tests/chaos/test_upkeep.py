"""K7, R4, S1: what is damaged is found and made again, and nothing else; what is derived can be lost."""

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dagster as dg
import pytest

from wiki_assets.defs.recipes import OF_DATE, SHARD_ARTIFACTS
from wiki_assets.defs.sensors import new_snapshots
from wiki_assets.resources.mirror import DumpMirror
from wiki_assets.resources.store import Store
from wiki_assets_tests.chaos import checks_upkeep as checks
from wiki_assets_tests.chaos.kept import SNAPSHOT, Kept, make_kept
from wiki_assets_tests.chaos.mutants_upkeep import MUTANTS
from wiki_assets_tests.tinywiki.serve import serving

pytestmark = pytest.mark.chroma
SHARDS = 4


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kept]:
    """Tinywiki, whole."""
    with serving() as mirror:
        yield make_kept(tmp_path_factory.mktemp("kept") / "root", mirror, shards=SHARDS)


def test_a_wiki_that_nobody_damaged_is_whole(kept: Kept) -> None:
    with kept.instance() as instance:
        report = kept.verify(instance)
    assert report.whole
    assert report.untold() == []
    assert len(list(report.proofs())) == len(OF_DATE) + len(SHARD_ARTIFACTS) * SHARDS


@pytest.mark.chaos("K7")
def test_damage_is_found_and_exactly_that_is_made_again(
    kept: Kept, tmp_path: Path, chaos_seed: int, chaos_tier: str, record_property
) -> None:
    n = len(checks.all_faults()) if chaos_tier == "nightly" else 20
    groups = checks.chosen_faults(chaos_seed, n)
    found = sum(
        checks.damage_is_found_and_made_again(kept, tmp_path / "trial", group, chaos_seed + number)
        for number, group in enumerate(groups)
    )
    assert found == n
    record_property("faults", n)
    record_property("found", found)


@pytest.mark.chaos("K7")
def test_a_manifest_with_a_changed_number_is_found(kept: Kept, tmp_path: Path) -> None:
    checks.changed_number_is_found(kept, tmp_path / "trial")


@pytest.mark.chaos("K7")
def test_status_follows_the_files_when_they_or_the_database_are_lost(kept: Kept, tmp_path: Path) -> None:
    checks.status_follows_the_files(kept, tmp_path / "trial")


@pytest.mark.chaos("K9")
def test_runs_whose_process_is_gone_are_reaped(record_property) -> None:
    n = checks.dead_runs_are_reaped_and_living_ones_are_not(10)
    record_property("zombies", n)
    record_property("reaped", n)


@pytest.fixture(scope="module")
def not_indexed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kept]:
    """Tinywiki up to its vectors, in many shards, so that indexing takes a while."""
    with serving() as mirror:
        yield make_kept(tmp_path_factory.mktemp("many") / "root", mirror, shards=24, until="embeddings")


@pytest.mark.timeout(1200)  # waits on conditions, each with its own deadline
@pytest.mark.nightly
@pytest.mark.chaos("K9")
def test_backfills_survive_kills_of_the_daemon_and_of_everything(
    not_indexed: Kept, tmp_path: Path, chaos_tier: str, record_property
) -> None:
    nightly = chaos_tier == "nightly"
    figures = checks.backfills_survive_kills(not_indexed, tmp_path, 10 if nightly else 4, server_late=nightly)
    for name, value in figures.items():
        record_property(name, value)


@pytest.mark.timeout(1200)
@pytest.mark.chaos("K9")
def test_two_runs_of_one_partition_publish_once(
    not_indexed: Kept, tmp_path: Path, chaos_tier: str, record_property
) -> None:
    refused = 0
    n = 20 if chaos_tier == "nightly" else 1
    for number in range(n):
        (tmp_path / str(number)).mkdir()
        figures = checks.two_runs_of_one_partition_publish_once(not_indexed, tmp_path / str(number))
        refused += figures["refused by name"]
    record_property("pairs", n)
    record_property("refused by name", refused)
    record_property("published twice", 0)


LOSSES = {
    "both": lambda kept: [shutil.rmtree(kept.wiki_folder / "index"), shutil.rmtree(kept.root / "dagster")],
    "Chroma": lambda kept: shutil.rmtree(kept.wiki_folder / "index"),
    "Dagster's database": lambda kept: shutil.rmtree(kept.root / "dagster"),
}


@pytest.mark.chaos("R4")
@pytest.mark.parametrize("what", LOSSES)
def test_what_is_lost_is_rebuilt_without_embedding_again(
    kept: Kept, tmp_path: Path, what: str, chaos_tier: str, record_property
) -> None:
    if chaos_tier == "pr" and what != "both":
        pytest.skip("one loss alone: nightly")
    seconds = checks.lost_is_rebuilt(kept, tmp_path / "trial", LOSSES[what])
    record_property(f"{what} lost: seconds", round(seconds, 1))
    record_property(f"{what} lost: re-embedded rows", 0)


@pytest.mark.chaos("S1")
def test_a_sensor_that_ticks_twice_registers_a_date_once_and_starts_nothing(kept: Kept, tmp_path: Path) -> None:
    trial = kept.copy(tmp_path / "trial")
    sensor = new_snapshots(trial.book.config)
    resources = {"mirror": DumpMirror(base_url=trial.mirror), "store": Store(str(tmp_path / "nothing published"))}
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:

        def tick() -> dg.SensorResult:
            result = sensor(dg.build_sensor_context(instance=instance, resources=resources))
            assert isinstance(result, dg.SensorResult)
            return result

        def apply(result: dg.SensorResult) -> None:
            for request in result.dynamic_partitions_requests or ():
                instance.add_dynamic_partitions(request.partitions_def_name, list(request.partition_keys))

        tick()  # killed here, nothing is registered; the next one offers the same
        with ThreadPoolExecutor(2) as pool:
            results = list(pool.map(lambda _: tick(), range(2)))
            list(pool.map(apply, results))
        dates = instance.get_dynamic_partitions("tinywiki_dates")
        assert len(dates) == len(set(dates))
        assert SNAPSHOT.date in dates
        assert all(not result.run_requests for result in results)
        again = sensor(dg.build_sensor_context(instance=instance, resources=resources))
        assert isinstance(again, dg.SkipReason)


@pytest.mark.chaos("mutants")
@pytest.mark.parametrize("name", MUTANTS)
def test_a_broken_build_is_caught(kept: Kept, tmp_path: Path, name: str) -> None:
    broken, check = MUTANTS[name]
    with pytest.MonkeyPatch.context() as patch:
        broken(patch)
        with pytest.raises(AssertionError):
            check(kept, tmp_path / "trial")
