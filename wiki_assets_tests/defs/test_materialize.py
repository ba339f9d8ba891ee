"""The main job: a dump becomes articles, tokens, embeddings and a collection that answers."""

import json
import shutil
from collections.abc import Callable

import dagster as dg
import pyarrow.parquet as pq
import pytest

from wiki_assets.defs.publish import examine
from wiki_assets.errors import NotPublished, StoreLocked
from wiki_assets.files import read_json, verify_files
from wiki_assets.keys import Shard, Snapshot
from wiki_assets.resources.chroma import open_store, published_collection
from wiki_assets.search import ask
from wiki_assets_tests.defs.conftest import SNAPSHOT, Deployment
from wiki_assets_tests.tinywiki.build import HERE

pytestmark = [pytest.mark.ray, pytest.mark.chroma]
Deploy = Callable[..., Deployment]
EXPECTED = json.loads((HERE / "expected.json").read_text("utf-8"))


def cells(*numbers: int) -> list[Shard]:
    return [Shard(SNAPSHOT, number) for number in numbers]


def test_a_dump_becomes_an_index_that_answers_and_a_second_run_has_nothing_to_do(
    deploy: Deploy, ray_cluster: None
) -> None:
    wiki = deploy(shards=4)
    outcome = wiki.materialize()
    assert outcome.failures == []
    assert outcome.made == {
        "raw_dump": 1,
        "articles": 4,
        "tokens": 4,
        "embeddings": 4,
        "lexical_index": 1,
        "chroma_collection": 4,
        "evaluation": 1,
        "published_index": 1,
    }
    gate = examine(wiki.book, SNAPSHOT, wiki.settings)
    counts = EXPECTED[SNAPSHOT.date]
    documents = gate.results["documents_conserved"][1]
    assert gate.passed
    assert documents["documents"] == counts["documents"]
    assert documents["pages"] == counts["pages"]
    left_out = {name: documents.get(name, 0) for name in counts["filtered"] | counts["quarantined"]}
    assert left_out == counts["filtered"] | counts["quarantined"]
    for stage in ("articles", "tokens", "embeddings", "chroma_collection"):
        assert len(wiki.events(stage)) == 4, f"{stage}: one event a shard"
    questions = [json.loads(line) for line in (HERE / "questions.jsonl").read_text("utf-8").splitlines()]
    found = sum(q["page_id"] in [h.page_id for h in ask(q["question"], wiki.settings, k=5)] for q in questions)
    assert found >= 0.9 * len(questions)
    n_runs = len(wiki.instance.get_runs())
    assert wiki.materialize().nothing_to_do
    assert len(wiki.instance.get_runs()) == n_runs


def test_each_shard_is_reported_once_with_what_it_holds_and_what_it_was_made_from(
    deploy: Deploy, ray_cluster: None
) -> None:
    wiki = deploy(shards=2)
    wiki.materialize(until="tokens")
    event = wiki.events("tokens")[0]
    facts = event.metadata
    assert {
        "pages",
        "tokens",
        "passages",
        "size_bytes",
        "seconds",
        "rows_per_cpu_second",
        "sample_row",
        "fingerprint",
    } <= set(facts)
    tags = event.tags or {}
    manifest = wiki.store.manifest("tokens", Shard.from_partition_key("tinywiki", str(event.partition)))
    assert manifest is not None
    assert tags["dagster/data_version"] == manifest.data_version
    assert tags["dagster/input_data_version/tinywiki/articles"] == manifest.inputs["articles"]
    assert tags["dagster/input_event_pointer/tinywiki/articles"].isdigit()
    verify_files(wiki.store.wiki("tinywiki"), manifest)


def test_the_old_layout_gives_the_same_articles_tokens_and_passages(deploy: Deploy, ray_cluster: None) -> None:
    wiki = deploy(shards=2)
    old = Snapshot("tinywiki", "20241230")
    wiki.materialize(until="tokens")
    wiki.materialize(until="tokens", snapshot=old)
    for number in range(2):
        for artifact in ("articles", "tokens", "passages"):
            new_table, old_table = (pq.read_table(wiki.store.file(artifact, Shard(s, number))) for s in (SNAPSHOT, old))
            assert new_table.equals(old_table), artifact


def test_a_poisoned_shard_fails_alone_and_is_named(deploy: Deploy, ray_cluster: None) -> None:
    wiki = deploy(shards=4)
    wiki.materialize(until="articles")
    damaged = wiki.store.file("articles", Shard(SNAPSHOT, 2))
    size = damaged.stat().st_size
    damaged.write_bytes(b"\0" * size)  # the size is right, the bytes are not
    result = wiki.run("tokens", *cells(0, 1, 2, 3))
    assert not result.success
    assert wiki.materialized("tokens") == {c.partition_key for c in cells(0, 1, 3)}
    outcome = wiki.materialize(until="tokens")
    assert len(outcome.failures) == 1
    assert "20250105|00002" in outcome.failures[0]


def test_a_missing_input_blocks_its_shard_and_says_what_to_make_first(deploy: Deploy, ray_cluster: None) -> None:
    wiki = deploy(shards=2)
    wiki.materialize(until="articles")
    wiki.store.manifest_path("articles", Shard(SNAPSHOT, 1)).unlink()
    result = wiki.run("tokens", *cells(0, 1))
    assert not result.success
    assert wiki.materialized("tokens") == {"20250105|00000"}
    failure = next(e for e in result.all_events if e.is_step_failure).step_failure_data
    assert failure.user_failure_data is not None
    assert "materialize articles first" in str(failure.user_failure_data.description)


def test_one_run_over_a_range_refuses_two_stages(deploy: Deploy, ray_cluster: None) -> None:
    wiki = deploy(shards=2)
    wiki.materialize(until="articles")
    result = wiki.run(["tokens", "embeddings"], *cells(0, 1))
    assert not result.success
    assert wiki.materialized("tokens") == set()


def test_one_run_over_one_cell_takes_all_stages(deploy: Deploy, ray_cluster: None) -> None:
    wiki = deploy(shards=2)
    wiki.materialize(until="articles")
    assert wiki.run(["tokens", "embeddings", "chroma_collection"], *cells(1)).success
    for stage in ("tokens", "embeddings", "chroma_collection"):
        assert wiki.materialized(stage) == {"20250105|00001"}
        assert len(wiki.events(stage)) == 1


def test_a_change_of_settings_remakes_what_it_touches_and_nothing_else(deploy: Deploy, ray_cluster: None) -> None:
    wiki = deploy(shards=2)
    wiki.materialize()
    other = wiki.with_config(passage_word_pieces=64)
    outcome = other.materialize()
    made_again = {
        "tokens": 2,
        "embeddings": 2,
        "lexical_index": 1,
        "chroma_collection": 2,
        "evaluation": 1,
        "published_index": 1,
    }
    assert outcome.made == made_again
    assert wiki.store.builds(SNAPSHOT) == [1, 2], "changed vectors go into another build"
    pointer = wiki.store.pointer("tinywiki") or {}
    assert (pointer["build"], pointer["previous"]["build"]) == (2, 1)


def test_an_unchanged_shard_is_reported_as_reused_and_not_made_again(deploy: Deploy, ray_cluster: None) -> None:
    wiki = deploy(shards=2)
    wiki.materialize(until="tokens")
    path = wiki.store.file("tokens", Shard(SNAPSHOT, 0))
    before = path.stat().st_mtime_ns
    assert wiki.run("tokens", *cells(0, 1)).success
    assert path.stat().st_mtime_ns == before
    assert wiki.events("tokens")[0].metadata["reused"].value is True


def test_a_collection_that_lost_a_row_is_not_published(deploy: Deploy, ray_cluster: None) -> None:
    wiki = deploy(shards=2)
    wiki.materialize(until="chroma_collection")
    folder = wiki.store.build(SNAPSHOT, 1) / "chroma"
    with open_store(folder, write=True) as client:
        collection = published_collection(client, "tinywiki-20250105-1")
        collection.delete(ids=collection.get(limit=1, include=[])["ids"])
    outcome = wiki.materialize()
    assert "collection_answers" in outcome.failures[0]
    assert wiki.store.pointer("tinywiki") is None
    with pytest.raises(NotPublished, match="nothing is published"):
        ask("Which animals spit?", wiki.settings)
    assert wiki.materialize().made == {"chroma_collection": 2, "evaluation": 1, "published_index": 1}, (
        "another build takes its place"
    )
    assert (wiki.store.pointer("tinywiki") or {})["build"] == 2


def test_a_lost_collection_is_made_again_without_embedding_again(deploy: Deploy, ray_cluster: None) -> None:
    wiki = deploy(shards=2)
    wiki.materialize()
    shutil.rmtree(wiki.store.build(SNAPSHOT, 1) / "chroma")
    with pytest.raises(NotPublished, match="run wiki-assets materialize"):
        ask("Which animals spit?", wiki.settings)
    assert wiki.materialize().made == {"chroma_collection": 2, "evaluation": 1, "published_index": 1}
    assert ask("Which animals spit?", wiki.settings)


def test_a_second_writer_is_refused(deploy: Deploy, ray_cluster: None) -> None:
    wiki = deploy(shards=2)
    wiki.materialize(until="embeddings")
    book = wiki.book
    build = book.build_for(SNAPSHOT, [book.recipe("chroma_collection", c) for c in cells(0, 1)])
    with open_store(wiki.store.build(SNAPSHOT, build) / "chroma", write=True):
        with (
            pytest.raises(StoreLocked, match="another process"),
            open_store(wiki.store.build(SNAPSHOT, build) / "chroma", write=True),
        ):
            pass
        outcome = wiki.materialize(until="chroma_collection")
    assert "another process is writing" in outcome.failures[0]
    assert wiki.materialize(until="chroma_collection").failures == []


def test_an_older_snapshot_never_replaces_a_newer_one(deploy: Deploy, ray_cluster: None) -> None:
    wiki = deploy(shards=2)
    wiki.materialize()
    assert wiki.materialize(snapshot=Snapshot("tinywiki", "20241230")).failures == []
    assert (wiki.store.pointer("tinywiki") or {})["snapshot"] == "20250105"


def test_fragments_go_when_the_last_shard_is_merged_and_are_made_again_when_one_is_lost(
    deploy: Deploy, ray_cluster: None
) -> None:
    wiki = deploy(shards=4)
    wiki.materialize(until="raw_dump")
    assert wiki.run("articles", *cells(0, 1)).success
    split = wiki.store.split(SNAPSHOT)
    assert list(split.glob("*.arrow")), "two shards are still to be merged from these"
    assert wiki.run("articles", *cells(2, 3)).success
    assert not list(split.glob("*.arrow"))
    assert read_json(next(iter(split.glob("*.json"))))["counts"]["documents"] > 0
    wiki.store.file("articles", Shard(SNAPSHOT, 3)).unlink()
    assert wiki.materialize(until="articles").made == {"articles": 1}


def test_dagster_shows_what_a_new_encoding_makes_stale(deploy: Deploy, ray_cluster: None) -> None:
    from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleStatus

    wiki = deploy(shards=2)
    wiki.materialize(until="embeddings")

    def status(config: Deployment, stage: str) -> StaleStatus:
        from wiki_assets.definitions import build

        graph = build(config.settings, wikis=[config.config]).resolve_asset_graph()
        from dagster._core.loader import LoadingContextForTest

        resolver = CachingStaleStatusResolver(wiki.instance, graph, LoadingContextForTest(wiki.instance))
        return resolver.get_status(dg.AssetKey(["tinywiki", stage]), "20250105|00000")

    assert status(wiki, "tokens") == StaleStatus.FRESH
    assert status(wiki, "embeddings") == StaleStatus.FRESH
    changed = wiki.with_config(passage_word_pieces=64)
    assert status(changed, "tokens") == StaleStatus.STALE
    assert status(changed, "articles") == StaleStatus.FRESH
    changed.materialize(until="tokens")
    assert status(changed, "tokens") == StaleStatus.FRESH
    assert status(changed, "embeddings") == StaleStatus.STALE
