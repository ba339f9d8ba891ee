"""What nobody needs goes, what somebody needs stays; in the store, and in Dagster."""

from collections.abc import Callable, Iterator
from pathlib import Path

import dagster as dg
import msgspec
import pytest

from wiki_assets.defs.partitions import dates_name
from wiki_assets.defs.recipes import Recipe
from wiki_assets.defs.retention import carry_out, plan
from wiki_assets.defs.upkeep.prune import dates_at_work, prune
from wiki_assets.failpoints import Panic, arm, disarm
from wiki_assets.files import read_json, write_json
from wiki_assets.keys import Snapshot
from wiki_assets.resources.pins import pinned
from wiki_assets_tests.defs.kept_wiki import WIKI, KeptWiki

WEEKS = ("20260104", "20260111", "20260118", "20260125", "20260201")


@pytest.fixture
def wiki(tmp_path: Path) -> Callable[..., KeptWiki]:
    """Five weeks, each with a build, the last one published after the one before."""

    def make(**config: int) -> KeptWiki:
        found = KeptWiki(tmp_path, **config)
        for date in WEEKS:
            found.snapshot(date)
        found.publish((WEEKS[4], 1), (WEEKS[3], 1))
        return found

    return make


def test_the_newest_snapshots_and_builds_stay(wiki) -> None:
    kept = wiki()
    planned = plan(kept.book)
    assert (planned.dates, planned.builds) == (list(WEEKS[:2]), [(WEEKS[2], 1)])
    assert planned.size_bytes > 3_000
    assert kept.dates() == list(WEEKS), "a plan removes nothing"
    assert carry_out(kept.book).dates == planned.dates
    for artifact in ("raw", "articles", "tokens", "passages", "embeddings"):
        assert kept.dates(artifact) == list(WEEKS[2:])
    assert kept.indexes() == [f"{WEEKS[3]}-1", f"{WEEKS[4]}-1"]
    assert not (kept.root / ".trash").exists()
    assert not carry_out(kept.book), "done twice"


@pytest.mark.parametrize(("snapshots", "builds"), [(1, 1), (2, 1), (1, 3), (5, 5), (9, 9)])
def test_as_many_stay_as_are_asked_for(wiki, snapshots: int, builds: int) -> None:
    kept = wiki(keep_snapshots=snapshots, keep_builds=builds)
    carry_out(kept.book)
    assert len(kept.dates()) == max(min(snapshots, 5), 2), "the published one and the one to roll back to stay"
    assert len(kept.indexes()) == max(min(builds, len(kept.dates())), 2)


def test_a_retired_index_leaves_a_note_and_its_number_is_not_used_again(wiki) -> None:
    kept = wiki()
    carry_out(kept.book)
    snapshot = Snapshot(WIKI, WEEKS[2])
    note = read_json(kept.book.store.build(snapshot, 1) / "build.json")
    assert note["retired"] is True
    assert kept.book.current_build(snapshot) is None
    assert kept.book.build_for(snapshot, []) == 2


def test_what_a_rollback_needs_stays_however_old(wiki) -> None:
    kept = wiki(keep_snapshots=1)
    kept.publish((WEEKS[4], 1), (WEEKS[0], 1))
    assert plan(kept.book).keep == {WEEKS[0]: "to roll back to", WEEKS[4]: "published"}
    carry_out(kept.book)
    assert kept.indexes() == [f"{WEEKS[0]}-1", f"{WEEKS[4]}-1"]


def test_what_was_rolled_back_stays_until_something_newer_is_published(wiki) -> None:
    kept = wiki(keep_snapshots=1, keep_builds=1)
    kept.publish((WEEKS[3], 1), rolled_back=((WEEKS[4], 1),))
    carry_out(kept.book)
    assert kept.indexes() == [f"{WEEKS[3]}-1", f"{WEEKS[4]}-1"]
    kept.snapshot("20260208")
    kept.publish(("20260208", 1), (WEEKS[3], 1))
    carry_out(kept.book)
    assert kept.indexes() == [f"{WEEKS[3]}-1", "20260208-1"]


def test_what_is_being_made_stays(wiki) -> None:
    kept = wiki()
    kept.snapshot("20260208", artifacts=("raw",), builds=())
    kept.build("20260208", 1)
    kept.build(WEEKS[4], 2)
    carry_out(kept.book)
    assert {"20260208-1", f"{WEEKS[4]}-2"} <= set(kept.indexes())
    assert kept.dates("raw") == [*WEEKS[3:], "20260208"]


def test_a_build_that_was_given_up_goes(wiki) -> None:
    kept = wiki()
    kept.build(WEEKS[4], 2, given_up="spoiled")
    carry_out(kept.book)
    assert f"{WEEKS[4]}-2" not in kept.indexes()
    assert read_json(kept.root / "index" / f"{WEEKS[4]}-2" / "build.json")["given_up"] == "spoiled"


def test_what_an_unfinished_snapshot_takes_its_vectors_from_stays(wiki) -> None:
    kept = wiki(keep_snapshots=1, keep_builds=1)
    kept.publish((WEEKS[3], 1))
    kept.vectors(WEEKS[0], 0, 1)
    kept.vectors(WEEKS[1], 1)
    found = plan(kept.book)
    assert set(found.keep) == {WEEKS[0], WEEKS[1], WEEKS[3], WEEKS[4]}
    assert found.keep[WEEKS[0]] == f"{WEEKS[4]} takes its vectors over"
    kept.vectors(WEEKS[2], 0, 1)
    assert set(plan(kept.book).keep) == {*WEEKS[2:]}, "the newest that has them is enough"


def test_what_a_question_is_answered_from_stays_until_it_is_answered(wiki) -> None:
    kept = wiki()
    with pinned(kept.root / "index" / f"{WEEKS[0]}-1"), pinned(kept.root / "index" / f"{WEEKS[2]}-1"):
        carry_out(kept.book)
        assert kept.indexes() == [f"{date}-1" for date in (WEEKS[0], *WEEKS[2:])]
        assert kept.dates() == [WEEKS[0], *WEEKS[2:]]
    carry_out(kept.book)
    assert kept.indexes() == [f"{date}-1" for date in WEEKS[3:]]
    assert kept.dates() == list(WEEKS[2:])


def test_superseded_lexical_indexes_go_but_not_those_that_a_pointer_names(wiki) -> None:
    kept = wiki()
    folder = kept.root / "lexical" / WEEKS[4]
    for number in (1, 2, 3, 4):
        (folder / f"{number:06d}").mkdir(parents=True)
    shard = kept.book.shards(Snapshot(WIKI, WEEKS[4]))[0]
    manifest = Recipe("lexical_index", shard, "1", {}, {}).manifest({}, {}, {})
    write_json(folder / "manifest.json", msgspec.structs.replace(manifest, claim=3))
    pointer = kept.pointer(WEEKS[4], 1) | {"lexical": {"folder": f"lexical/{WEEKS[4]}/000001"}, "previous": None}
    kept.book.store.publish(WIKI, pointer, instead_of=kept.book.store.pointer(WIKI))
    carry_out(kept.book)
    left = sorted(path.name for path in folder.iterdir() if path.is_dir())
    assert left == ["000001", "000003", "000004"], "named, the newest, and one that is being written"


def test_where_nothing_is_published_everything_stays(tmp_path: Path) -> None:
    kept = KeptWiki(tmp_path)
    for date in WEEKS:
        kept.snapshot(date)
    assert not carry_out(kept.book)
    assert kept.dates() == list(WEEKS)


@pytest.mark.parametrize("nth", range(1, 12))
def test_what_a_killed_one_left_goes_the_next_time(wiki, nth: int) -> None:
    kept = wiki()
    arm(f"retention.remove=panic@{nth}")
    try:
        with pytest.raises(Panic):
            carry_out(kept.book)
    finally:
        disarm()
    carry_out(kept.book)
    assert (kept.dates(), kept.dates("raw")) == (list(WEEKS[2:]), list(WEEKS[2:]))
    assert kept.indexes() == [f"{WEEKS[3]}-1", f"{WEEKS[4]}-1"]
    assert not (kept.root / ".trash").exists()


# Dagster


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    (tmp_path / "dagster").mkdir()
    with dg.DagsterInstance.local_temp(str(tmp_path / "dagster")) as found:
        found.add_dynamic_partitions(dates_name(WIKI), list(WEEKS))
        for date in WEEKS:
            for artifact, cells in (("raw_dump", [date]), ("articles", [f"{date}|00000", f"{date}|00001"])):
                for cell in cells:
                    found.report_runless_asset_event(
                        dg.AssetMaterialization(dg.AssetKey([WIKI, artifact]), partition=cell)
                    )
        yield found


def shown(instance: dg.DagsterInstance, artifact: str) -> set[str]:
    return {cell[:8] for cell in instance.get_materialized_partitions(dg.AssetKey([WIKI, artifact]))}


def test_what_is_removed_is_no_partition_any_more_even_if_its_date_comes_again(wiki, instance) -> None:
    kept = wiki()
    assert prune(kept.book, instance, dry_run=True).keys == list(WEEKS[:2])
    assert instance.get_dynamic_partitions(dates_name(WIKI)) == list(WEEKS), "a dry run changes nothing"
    pruned = prune(kept.book, instance)
    assert pruned.forgotten == {"raw_dump": 2, "articles": 4}
    assert sorted(instance.get_dynamic_partitions(dates_name(WIKI))) == list(WEEKS[2:])
    instance.add_dynamic_partitions(dates_name(WIKI), list(WEEKS[:1]))
    for artifact in ("raw_dump", "articles"):
        assert shown(instance, artifact) == set(WEEKS[2:])
    assert prune(kept.book, instance).keys == [WEEKS[0]]
    assert not prune(kept.book, instance)


def test_a_snapshot_that_a_run_works_on_stays(wiki, instance) -> None:
    kept = wiki()
    run = instance.create_run_for_job(
        job_def=dg.GraphDefinition("job").to_job(), tags={"dagster/partition": f"{WEEKS[0]}|00001"}
    )
    assert dates_at_work(instance, WIKI) == {WEEKS[0]}
    prune(kept.book, instance)
    assert kept.dates() == [WEEKS[0], *WEEKS[2:]]
    assert shown(instance, "articles") == {WEEKS[0], *WEEKS[2:]}
    instance.report_run_canceled(run)
    prune(kept.book, instance)
    assert kept.dates() == list(WEEKS[2:])
