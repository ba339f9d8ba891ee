"""Object storage: claims, commits, the pointer and a whole pipeline on a real server of the S3 protocol."""

import hashlib
import json
import os
import threading
import uuid
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from unittest import mock

import pytest
from click.testing import CliRunner
from upath import UPath

from wiki_assets import s3 as s3_client
from wiki_assets.claims import Claim, claim
from wiki_assets.cli import main
from wiki_assets.defs.indexing import index_shards
from wiki_assets.defs.lexical import made_lexical
from wiki_assets.defs.own import import_tables
from wiki_assets.defs.raw import fetch_snapshot
from wiki_assets.defs.recipes import Recipe
from wiki_assets.defs.retention import _folders, _out_of_sight
from wiki_assets.defs.upkeep.proof import State
from wiki_assets.defs.upkeep.verify import verify
from wiki_assets.errors import BadRequest, StoreAway, StoreRefused, Superseded, WikiAssetsError
from wiki_assets.files import (
    Manifest,
    make_file,
    names_in,
    read_manifest,
    remove,
    root_path,
    sizes_agree,
    verify_files,
    whole_file,
)
from wiki_assets.keys import Shard, Snapshot
from wiki_assets.resources.local_copy import local_copy
from wiki_assets.resources.mirror import DumpMirror
from wiki_assets.resources.store import Store
from wiki_assets.stages.lexical import LexicalIndex
from wiki_assets_tests.chaos.children import OK, in_child
from wiki_assets_tests.chaos.plain import PARQUET_STEPS, Plain
from wiki_assets_tests.processes import free_port, wait_until
from wiki_assets_tests.s3_server import forget_clients, s3_server
from wiki_assets_tests.tinywiki.serve import DUMPS, serving

STEPS = (*PARQUET_STEPS, "lexical_index")


@pytest.fixture(scope="module")
def s3(tmp_path_factory):
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        server.bucket("wikis")
        yield server


@pytest.fixture
def url(s3):
    """A data root of its own in the bucket."""
    yield f"s3://wikis/{uuid.uuid4().hex[:8]}"
    s3.release()


@pytest.fixture
def hasty(monkeypatch):
    """A client that soon gives up."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    forget_clients()
    yield
    forget_clients()


@pytest.fixture(scope="module")
def laid_out(tmp_path_factory) -> Plain:
    return Plain.laid_out(tmp_path_factory.mktemp("plain") / "wiki")


@pytest.fixture(scope="module")
def made(laid_out) -> Plain:
    """The pipeline's result on a disk."""
    for name in STEPS:
        laid_out.step(name)
    return laid_out


def on_s3(laid_out: Plain, url: str) -> Plain:
    """The same wiki in a bucket, with the raw dump fetched and nothing made."""
    there = laid_out.at(url)  # type: ignore[arg-type]
    for path in sorted([*laid_out.root.rglob("raw/**/*.*"), *laid_out.root.rglob("wiki.json")]):
        (root_path(url) / str(path.relative_to(laid_out.root))).write_bytes(path.read_bytes())
    return there


def files_under(root: UPath | Path, ending: str) -> dict[str, bytes]:
    """By path below the root; redirects and the pages of a split are gone once they are merged."""
    if isinstance(root, UPath) and root.protocol == "s3":
        paths = {
            str(path).removeprefix(root.path).lstrip("/"): root.fs.cat_file(path) for path in root.fs.find(root.path)
        }
        return {name: data for name, data in paths.items() if name.endswith(ending)}
    return {str(path.relative_to(root)): path.read_bytes() for path in Path(root).rglob(f"*{ending}")}


def hashes(root: UPath | Path) -> dict[str, str]:
    found = files_under(root, ".parquet") | files_under(root, ".quarantine.jsonl")
    return {name: hashlib.sha256(data).hexdigest() for name, data in sorted(found.items())}


def phantoms(plain: Plain) -> list[str]:
    """Manifests that count as done over bytes that are others."""
    wiki, bad = plain.book.store.wiki(plain.snapshot.wiki), []
    for path in [p for p in wiki.fs.find(wiki.path) if p.endswith(".json")]:
        manifest = read_manifest(wiki / str(path).removeprefix(wiki.path).lstrip("/"))
        if manifest and sizes_agree(wiki, manifest):
            with suppress_and_note(bad):
                verify_files(wiki, manifest)
    return bad


class suppress_and_note(suppress):  # reads like suppress
    def __init__(self, notes: list[str]) -> None:
        super().__init__(WikiAssetsError)
        self._notes = notes

    def __exit__(self, kind, error, trace):
        if error is not None:
            self._notes.append(str(error))
        return super().__exit__(kind, error, trace)


# Claims and commits


def manifest_of(text: str, out) -> Manifest:
    return Manifest(
        artifact="tokens", wiki="tinywiki", snapshot="20250105", shard=3, fingerprint=text, code_version="1",
        params={}, inputs={}, files={"00003.parquet": out.record}, counts={},
    )  # fmt: skip


def write(mine: Claim, text: str) -> Manifest:
    with whole_file(mine.manifest_path.with_suffix(".parquet"), fence=mine.fence) as out:
        out.write(text.encode())
    return mine.commit(manifest_of(text, out))


@pytest.fixture
def place(url) -> UPath:
    return root_path(url) / "00003.json"


def test_an_object_is_made_once(place):
    make_file(place, b"first")
    with pytest.raises(FileExistsError):
        make_file(place, b"second")
    assert place.read_bytes() == b"first"
    remove(place)
    remove(place)
    assert not place.exists()


def test_what_another_process_wrote_is_listed_at_once(place):
    assert names_in(place.parent) == []
    assert in_child(lambda: make_file(place, b"{}")) == OK
    assert names_in(place.parent) == [place.name]
    assert [path.name for path in place.parent.iterdir()] == [place.name]


def test_threads_and_processes_that_race_never_share_a_number(place, tmp_path):
    def contend(name: str) -> None:
        for n in range(4):
            with suppress(Superseded):
                (tmp_path / f"{name}-{n}").write_text(str(claim(place, name).number))

    with ThreadPoolExecutor(6) as pool:
        here = [pool.submit(contend, f"thread-{n}") for n in range(4)]
        there = [pool.submit(in_child, lambda n=n: contend(f"process-{n}")) for n in range(2)]
        assert [each.result() for each in here] == [None] * 4
        assert [each.result() for each in there] == [OK, OK]
    numbers = Counter(int(path.read_text()) for path in tmp_path.iterdir())
    assert numbers.most_common(1)[0][1] == 1
    assert claim(place).number > max(numbers)


def test_runs_that_contend_leave_one_whole_result(place):
    def contend(name: str) -> int:
        committed = 0
        for _ in range(3):
            with suppress(Superseded):
                committed = write(claim(place, name), name).claim
        return committed

    with ThreadPoolExecutor(4) as pool:
        last = max(pool.map(contend, [f"run-{n}" for n in range(4)]))
    left = read_manifest(place)
    assert left is not None
    assert left.claim == last
    verify_files(place.parent, left)


def test_a_run_that_was_claimed_over_is_told_and_puts_nothing_in_place(place):
    stale, fresh = claim(place, "run-a"), claim(place, "run-b")
    with pytest.raises(Superseded, match=r"run-b.*after run run-a.*claims 2 and 1"):
        write(stale, "stale")
    write(fresh, "fresh")
    with pytest.raises(Superseded, match="run-b"):
        write(stale, "stale")
    assert place.with_suffix(".parquet").read_bytes() == b"fresh"
    assert claim(place).number == 3


@pytest.mark.parametrize("commits", [True, False], ids=["the other commits", "the other dies before"])
@pytest.mark.parametrize("request_held", ["DELETE json", "DELETE parquet", "PUT parquet", "PUT json"])
def test_a_request_that_was_under_way_when_another_run_took_over_does_no_harm(s3, place, request_held, commits):
    """The worst moment: looked already, and the request arrives after all that the other run did."""
    write(claim(place, "old"), "old version, longer")
    stale = claim(place, "run-a")
    method, _, ending = request_held.partition(" ")
    s3.fault(method, rf"/00003\.{ending}", "hold")
    told: list[BaseException] = []

    def go_on() -> None:
        try:
            write(stale, "stale")
        except BaseException as error:
            told.append(error)

    worker = threading.Thread(target=go_on)
    worker.start()
    wait_until(s3.seen, within_s=20, what="the request to be held")
    fresh = claim(place, "run-b")
    if commits:
        write(fresh, "fresh")
    else:
        with whole_file(place.with_suffix(".parquet"), fence=fresh.fence) as out:
            out.write(b"fresh")
    s3.release()
    worker.join(30)
    assert [type(error) for error in told] == [Superseded]
    left = read_manifest(place)
    if left is not None and sizes_agree(place.parent, left):
        assert left.run == "run-b"
        verify_files(place.parent, left)
    if method == "PUT":
        assert (left is not None) == commits
        assert place.with_suffix(".parquet").read_bytes() == b"fresh"


def test_a_put_whose_answer_was_lost_is_not_taken_for_another_runs(s3, place):
    mine = claim(place, "run-a")
    for ending in ("parquet", "json"):
        s3.fault("PUT", rf"/00003\.{ending}", "cut_after")
    assert write(mine, "whole") == read_manifest(place)
    assert len(s3.seen()) == 2
    s3.fault("PUT", "/claims/", "cut_after")
    assert claim(place).number == 3  # the second was made, and not heard of
    assert names_in(place.parent / "claims") == ["00003.000003"]


def test_a_store_without_conditional_writes_is_refused(s3, url):
    s3.fault("PUT", "wiki.json", "unconditional", times=2)
    with pytest.raises(StoreRefused, match=r"asked not to \(If-None-Match: \*\).*conditional writes"):
        Store(url).fix_shard_count("tinywiki", 2)
    assert Store(url).shard_count("tinywiki") is None
    assert Store(url).fix_shard_count("tinywiki", 2) == 2


def test_of_two_first_runs_one_fixes_the_shard_count(url):
    def fix(count: int) -> int | str:
        try:
            return Store(url).fix_shard_count("tinywiki", count)
        except BadRequest:
            return "refused"

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(fix, [2, 3, 4, 5]))
    assert Counter(results)["refused"] == 3
    assert Store(url).shard_count("tinywiki") in results


# The pointer


def pointer(build: int) -> dict:
    return {"wiki": "tinywiki", "snapshot": "20250105", "build": build, "collection": f"tinywiki-20250105-{build}"}


def test_of_publishers_at_once_one_moves_the_pointer_and_the_others_are_told(url):
    store = Store(url)
    store.publish("tinywiki", pointer(1), instead_of=None)

    def publish(build: int) -> int | str:
        try:
            store.publish("tinywiki", pointer(build), instead_of=pointer(1))
        except Superseded as error:
            return str(error)
        return build

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(publish, [2, 3, 4, 5]))
    (won,) = [result for result in results if isinstance(result, int)]
    told = [result for result in results if isinstance(result, str)]
    assert all("is published, where this run saw tinywiki-20250105-1" in line for line in told)
    assert store.pointer("tinywiki") == pointer(won)
    assert sorted(names_in(store.wiki("tinywiki") / "published")) == ["000001.json", "000002.json"]


def test_a_pointer_that_was_moved_though_the_answer_was_lost_is_moved(s3, url):
    store = Store(url)
    s3.fault("PUT", "/published/", "cut_after")
    store.publish("tinywiki", pointer(1), instead_of=None)
    assert len(s3.seen()) == 1
    assert store.pointer("tinywiki") == pointer(1)


def test_a_pointer_that_is_withdrawn_points_to_nothing(url):
    store = Store(url)
    store.publish("tinywiki", pointer(1), instead_of=None)
    store.withdraw("tinywiki")
    assert store.pointer("tinywiki") is None
    store.publish("tinywiki", pointer(2), instead_of=None)
    assert store.pointer("tinywiki") == pointer(2)


# The pipeline


def test_the_whole_pipeline_gives_the_same_bytes_as_on_a_disk(laid_out, made, url, tmp_path):
    there = on_s3(laid_out, url)
    assert [there.step(name) for name in STEPS] == [1, 2, 2, 2, 1]
    assert hashes(root_path(url)) == hashes(made.root)
    assert [there.step(name) for name in STEPS] == [0] * 5
    assert phantoms(there) == []
    ours, theirs = made_lexical(made.book, made.snapshot), made_lexical(there.book, there.snapshot)
    assert ours and theirs and ours.counts == theirs.counts
    wiki = there.book.store.wiki(there.snapshot.wiki)
    copy = local_copy(wiki / f"lexical/{there.snapshot.date}/000001", theirs, wiki, tmp_path)
    assert LexicalIndex(copy, "en").documents == theirs.counts["documents"] > 10


def test_a_run_that_fails_now_and_then_gives_the_same_bytes(s3, laid_out, made, url):
    there = on_s3(laid_out, url)
    for n, kind in enumerate(("slow_down", "error", "cut", "cut_after", "slow")):
        s3.fault("PUT", ".", kind, after=4 * n)
        s3.fault("GET", r"\.parquet\?", kind, after=2 * n)
    s3.fault("DELETE", ".", "cut_after", after=2)
    s3.fault("GET", "list-type", "slow_down", after=5)
    assert [there.step(name) for name in PARQUET_STEPS] == [1, 2, 2, 2]
    assert len(s3.seen()) >= 8
    assert hashes(root_path(url)) == hashes(made.root)
    assert phantoms(there) == []


@pytest.mark.parametrize("rule", ["file.replace=kill@6", "file.done=kill@7", "file.done=kill@11"])
def test_what_was_killed_goes_on_from_there(laid_out, made, url, rule):
    there = on_s3(laid_out, url)
    assert in_child(lambda: [there.step(name) for name in PARQUET_STEPS], rule) == -9
    assert phantoms(there) == []
    done = there.done()
    assert 0 < sum(there.step(name) for name in PARQUET_STEPS) < 7
    assert done.items() <= there.done().items()
    assert hashes(root_path(url)) == hashes(made.root)
    assert phantoms(there) == []


@pytest.mark.parametrize("kind", ["cut", "denied"])
def test_a_store_that_fails_for_good_ends_the_run_in_one_line_and_leaves_nothing_half_done(
    s3, hasty, laid_out, made, url, kind
):
    there = on_s3(laid_out, url)
    s3.fault("PUT", r"/tokens/.*\.json", kind, times=1_000)
    with pytest.raises(StoreRefused if kind == "denied" else StoreAway) as failed:
        _all(there.step, PARQUET_STEPS)
    assert str(failed.value).isprintable()
    assert phantoms(there) == []
    assert not any(name.startswith("tokens") for name in there.done())
    s3.release()
    _all(there.step, PARQUET_STEPS)
    assert hashes(root_path(url)) == hashes(made.root)


def _all(step: Callable[[str], int], names: tuple[str, ...]) -> None:
    for name in names:
        step(name)


def test_verify_names_an_object_that_is_gone_and_one_that_was_changed(laid_out, url):
    there = on_s3(laid_out, url)
    _all(there.step, PARQUET_STEPS)
    store = there.book.store
    first, second = (Shard(there.snapshot, number) for number in (0, 1))
    remove(store.file("tokens", first))
    changed = store.file("embeddings", second)
    data = bytearray(changed.read_bytes())
    data[len(data) // 2] ^= 1
    changed.write_bytes(bytes(data))  # of the same size
    report = verify(there.snapshot.wiki, there.settings, store, index=False)
    found = {(p.artifact, p.shard.number): p.problem for p in report.proofs() if p.state is State.DAMAGED and p.shard}
    assert set(found) == {("tokens", 0), ("embeddings", 1)}
    assert store.manifest("tokens", first) is None  # seen without hashing as well


def test_a_dump_is_fetched_into_a_bucket_and_not_twice(url):
    snapshot, store = Snapshot("tinywiki", "20250105"), Store(url)
    with serving(DUMPS) as mirror:
        made = fetch_snapshot(snapshot, DumpMirror(base_url=mirror), store, lambda line: None)
    verify_files(store.wiki("tinywiki"), made)
    assert len(made.files) == 3
    assert fetch_snapshot(snapshot, DumpMirror(base_url="http://127.0.0.1:9"), store, lambda line: None) == made
    assert sorted(names_in(store.raw(snapshot))) == sorted(["manifest.json", *(Path(n).name for n in made.files)])


def test_of_two_that_import_one_snapshot_the_last_one_vouches(s3, url, tmp_path):
    snapshot, store = Snapshot("xwiki", "10260905"), Store(url)
    tables = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for n, table in enumerate(tables):
        table.write_text(json.dumps({"id": 7, "title": "Seven", "text": f"From table {n}. " * (n + 1)}) + "\n")
    s3.fault("PUT", r"json\.gz", "hold")
    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(import_tables, snapshot, [str(tables[0])], {}, store, lambda line: None)
        wait_until(s3.seen, within_s=20, what="the first import to put its file")
        made = import_tables(snapshot, [str(tables[1])], {}, store, lambda line: None)
        s3.release()
        assert isinstance(late.exception(30), Superseded)
    assert store.raw_manifest(snapshot) == made
    verify_files(store.wiki("xwiki"), made)


def test_what_retention_removes_from_a_bucket_is_gone(laid_out, url):
    there = on_s3(laid_out, url)
    _all(there.step, ("split", "articles"))
    wiki = there.book.store.wiki(there.snapshot.wiki)
    for folder in list(_folders(there.book, there.snapshot.date)):
        _out_of_sight(folder, wiki)
    assert list(files_under(root_path(url), "")) == ["tinywiki/wiki.json"]


def test_an_embedded_index_is_refused_before_anything_is_begun(made, url):
    there = on_s3(made, url)
    book, shards = there.book, there.book.shards(there.snapshot)
    todo = [Recipe("chroma_collection", shard, "1", {}, {}) for shard in shards]
    with pytest.raises(BadRequest, match="needs a local disk: set WIKI_ASSETS_CHROMA"):
        list(index_shards(book, there.settings, there.snapshot, todo))
    assert book.store.builds(there.snapshot) == []


# Uploads in parts


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(s3_client, "PART_BYTES", 5 << 20)  # the least that S3 takes


BIG = os.urandom(1 << 20) * 11


def uploads(bucket: UPath) -> list:
    return bucket.fs.call_s3("list_multipart_uploads", Bucket="wikis").get("Uploads", [])


def put_big(mine: Claim) -> None:
    with whole_file(mine.manifest_path.with_suffix(".parquet"), fence=mine.fence) as out:
        out.write(BIG)


def test_an_upload_in_parts_goes_on_after_a_cut(s3, place, small_parts):
    s3.fault("PUT", "partNumber=2", "cut")
    put_big(claim(place))
    assert s3.seen()
    assert place.with_suffix(".parquet").read_bytes() == BIG


def test_an_upload_in_parts_that_fails_leaves_no_object_and_no_parts(s3, hasty, place, small_parts):
    s3.fault("PUT", "partNumber=2", "cut", times=1_000)
    with pytest.raises(StoreAway, match="check the address and the network, then run again"):
        put_big(claim(place))
    assert not place.with_suffix(".parquet").exists()
    assert uploads(place) == []


def test_an_upload_in_parts_replaces_nothing_that_appeared_meanwhile(s3, place, small_parts):
    stale = claim(place, "run-a")
    s3.fault("POST", "uploadId", "hold")
    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(put_big, stale)
        wait_until(s3.seen, within_s=20, what="the upload to be complete but for one request")
        write(claim(place, "run-b"), "fresh")
        s3.release()
        assert isinstance(late.exception(30), Superseded)
    assert place.with_suffix(".parquet").read_bytes() == b"fresh"


# What a person sees


def cli(*args: str) -> tuple[int, str]:
    """Exit code and the one line."""
    result = CliRunner().invoke(main, args)
    assert isinstance(result.exception, SystemExit | None), result.exception
    assert "Traceback" not in result.output
    lines = result.output.splitlines()
    assert len(lines) == 1, result.output
    return result.exit_code, lines[0]


def test_a_bucket_that_is_not_there_is_named(s3):
    code, line = cli("wikis", "--root", "s3://misspelt/data")
    assert (code, line) == (
        1, f"wiki-assets: s3://misspelt: no such bucket at {s3.url}: make it, or correct WIKI_ASSETS_ROOT",
    )  # fmt: skip
    with pytest.raises(StoreRefused, match="no such bucket"):
        claim(root_path("s3://misspelt/data/00003.json"))
    with pytest.raises(StoreRefused, match="no such bucket"):
        Store("s3://misspelt").fix_shard_count("tinywiki", 2)


def test_wrong_credentials_are_named(s3, url):
    s3.fault("GET", ".", "denied", times=1_000)
    code, line = cli("status", "tinywiki", "--root", url)
    assert code == 1
    assert "does not let us in (AccessDenied): check the credentials" in line


def test_no_credentials_are_named(s3, url, monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    forget_clients()
    code, line = cli("wikis", "--root", url)
    forget_clients()
    assert code == 1
    assert "no credentials at" in line and "set AWS_ACCESS_KEY_ID" in line


def test_a_store_that_does_not_answer_is_named(s3, hasty, monkeypatch, url):
    with mock.patch.dict(os.environ, {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{free_port()}"}):
        forget_clients()
        code, line = cli("wikis", "--root", url)
    assert code == 1
    assert "no answer, or half of one" in line and "check the address and the network, then run again" in line


def test_a_busy_store_is_asked_a_few_times_and_then_named(s3, hasty, url):
    s3.fault("GET", "list-type", "slow_down", times=1_000)
    code, line = cli("wikis", "--root", url)
    assert code == 1
    assert "still answers SlowDown after several attempts: run again later" in line
    assert 3 <= len(s3.seen()) <= 20


def test_a_root_that_cannot_be_opened_is_a_usage_error():
    code, line = cli("wikis", "--root", "nowhere://bucket")
    assert code == 2
    assert "nowhere://bucket: cannot be opened" in line and "name a folder, or s3://, gs://, az://" in line
    with mock.patch("wiki_assets.files.get_filesystem_class", side_effect=ImportError("no gcsfs")):
        code, line = cli("wikis", "--root", "gs://bucket/x")
    assert (code, line) == (
        2, "wiki-assets: gs://bucket/x: cannot be opened (no gcsfs): pip install 'wiki_assets[gcs]'",
    )  # fmt: skip
