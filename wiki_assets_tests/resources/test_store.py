"""The data root knows its shard count for ever, and what is published."""

import json
import uuid

import pytest

from wiki_assets.errors import BadRequest, DamagedArtifact, NotPublished, Superseded
from wiki_assets.files import FileRecord, Manifest, whole_file, write_json
from wiki_assets.keys import Shard, Snapshot
from wiki_assets.resources.store import Store

SNAPSHOT = Snapshot("tinywiki", "20250105")
SHARD = Shard(SNAPSHOT, 3)


@pytest.fixture(params=["folder", "bucket"])
def store(request, tmp_path) -> Store:
    """A data root, in a folder and in an object store."""
    return Store(str(tmp_path / "data") if request.param == "folder" else f"memory://{uuid.uuid4().hex}")


def pointer(wiki: str) -> dict:
    return {"wiki": wiki, "snapshot": "20250105", "build": 1, "collection": f"{wiki}-20250105-1"}


def publish(store: Store, wiki: str) -> None:
    store.fix_shard_count(wiki, 2)
    store.publish(wiki, pointer(wiki), instead_of=None)


# The shard count


def test_the_first_data_fixes_the_shard_count_for_ever(store):
    assert store.shard_count("tinywiki") is None
    assert store.fix_shard_count("tinywiki", 2) == 2
    assert store.shard_count("tinywiki") == 2
    assert store.fix_shard_count("tinywiki", 2) == 2
    for count in (1, 3, 4, 4096):
        with pytest.raises(
            BadRequest, match=rf"tinywiki: {count} shards asked for, .* has 2: set WIKI_ASSETS_SHARDS=2"
        ) as refused:
            store.fix_shard_count("tinywiki", count)
        assert str(refused.value).isprintable()
    assert Store(store.root).shard_count("tinywiki") == 2


@pytest.mark.parametrize("count", [0, -1, 4097])
def test_a_count_that_cannot_be_is_not_recorded(store, count):
    with pytest.raises(BadRequest):
        store.fix_shard_count("tinywiki", count)
    assert store.wikis() == []


def test_each_wiki_has_its_own_count(store):
    store.fix_shard_count("tinywiki", 2)
    store.fix_shard_count("simplewiki", 32)
    assert store.wikis() == ["simplewiki", "tinywiki"]
    assert (store.shard_count("tinywiki"), store.shard_count("simplewiki")) == (2, 32)


@pytest.mark.parametrize("wiki", ["../..", "", "a/b", "tinywiki\n", "../tinywiki"])
def test_no_name_leads_out_of_the_root(store, wiki):
    for ask in (store.wiki, store.shard_count, store.dates, store.pointer, store.published):
        with pytest.raises(BadRequest):
            ask(wiki)


def test_a_damaged_record_is_named(tmp_path):
    store = Store(str(tmp_path))
    store.fix_shard_count("tinywiki", 2)
    (tmp_path / "tinywiki" / "wiki.json").write_text("{")
    with pytest.raises(DamagedArtifact, match=r"wiki\.json"):
        store.shard_count("tinywiki")


# Paths and manifests


def test_everything_lies_where_the_docstring_says(tmp_path):
    store = Store(str(tmp_path))
    found = [
        store.raw(SNAPSHOT),
        store.file("articles", SHARD),
        store.manifest_path("articles", SHARD),
        store.split(SNAPSHOT),
        store.manifest_path("index", SHARD, 2),
        store.build(SNAPSHOT, 2),
    ]
    assert [str(path.relative_to(store.wiki("tinywiki"))) for path in found] == [
        "raw/20250105",
        "articles/20250105/00003.parquet",
        "articles/20250105/00003.json",
        "articles/20250105/split",
        "index/20250105-2/shards/00003.json",
        "index/20250105-2",
    ]


def test_a_manifest_counts_only_beside_its_file(store):
    with whole_file(store.file("tokens", SHARD)) as out:
        out.write(b"tokens")
    manifest = Manifest(
        artifact="tokens", wiki="tinywiki", snapshot="20250105", shard=3, fingerprint="f", code_version="v",
        params={}, inputs={}, files={"tokens/20250105/00003.parquet": out.record}, counts={},
    )  # fmt: skip
    assert store.manifest("tokens", SHARD) is None
    write_json(store.manifest_path("tokens", SHARD), manifest)
    assert store.manifest("tokens", SHARD) == manifest
    with whole_file(store.file("tokens", SHARD)) as out:
        out.write(b"other tokens")
    assert store.manifest("tokens", SHARD) is None
    store.file("tokens", SHARD).unlink()
    assert store.manifest("tokens", SHARD) is None


def test_builds_and_dates_are_listed_in_order(tmp_path):
    store = Store(str(tmp_path))
    assert (store.builds(SNAPSHOT), store.dates("tinywiki")) == ([], [])
    for build in (10, 9, 1):
        write_json(store.build(SNAPSHOT, build) / "build.json", {})
    write_json(store.build(Snapshot("tinywiki", "20250112"), 4) / "build.json", {})
    store.build(SNAPSHOT, 11).mkdir()  # not begun
    assert store.builds(SNAPSHOT) == [1, 9, 10]
    for date in ("20250112", "20250105"):
        store.raw(Snapshot("tinywiki", date)).mkdir(parents=True)
    assert store.dates("tinywiki") == ["20250105", "20250112"]


def test_a_file_record_travels_as_json(tmp_path):
    write_json(tmp_path / "x.json", FileRecord(3, "abc"))
    assert json.loads((tmp_path / "x.json").read_text()) == {"sha256": "abc", "size_bytes": 3}


# What is published


def test_the_only_published_wiki_needs_no_name(store):
    publish(store, "tinywiki")
    assert store.published(None) == store.published("tinywiki") == store.pointer("tinywiki") == pointer("tinywiki")


def test_where_nothing_is_published_the_next_move_is_told(store):
    with pytest.raises(NotPublished, match=r"nothing is published under .*: run wiki-assets materialize"):
        store.published(None)
    with pytest.raises(
        NotPublished, match=r"tinywiki: nothing is published .*no wiki\): run wiki-assets materialize tinywiki"
    ):
        store.published("tinywiki")


def test_of_several_wikis_one_must_be_named(store):
    publish(store, "tinywiki")
    publish(store, "simplewiki")
    with pytest.raises(BadRequest, match="name one with --wiki: simplewiki, tinywiki"):
        store.published(None)
    assert store.published("simplewiki")["wiki"] == "simplewiki"
    with pytest.raises(NotPublished, match="published there: simplewiki, tinywiki"):
        store.published("enwiki")


def test_a_wiki_with_data_is_not_yet_published(store):
    publish(store, "tinywiki")
    store.fix_shard_count("simplewiki", 2)
    assert store.published(None)["wiki"] == "tinywiki"


def test_of_two_that_publish_at_once_one_is_told(store):
    publish(store, "tinywiki")
    with pytest.raises(Superseded, match="tinywiki-20250105-1 is published, where this run saw nothing"):
        store.publish("tinywiki", pointer("tinywiki") | {"build": 2}, instead_of=None)
    assert store.pointer("tinywiki") == pointer("tinywiki")


def test_publishing_moves_the_pointer(store):
    publish(store, "tinywiki")
    store.publish("tinywiki", pointer("tinywiki") | {"build": 2}, instead_of=pointer("tinywiki"))
    assert store.published("tinywiki")["build"] == 2
