"""Snapshots that are made here: laid out as a dump is, each title and row accounted for, and no dump's place taken."""

import json
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from wiki_assets.defs import own
from wiki_assets.defs.census import census, drift
from wiki_assets.defs.own import fetch_pages, import_tables, source_of
from wiki_assets.defs.raw import fetch_snapshot
from wiki_assets.defs.recipes import Cookbook
from wiki_assets.defs.wikis import wiki_config
from wiki_assets.errors import BadRequest, SourceUnavailable, StoreLocked
from wiki_assets.files import verify_files
from wiki_assets.keys import Snapshot
from wiki_assets.resources.api import WikiApi
from wiki_assets.resources.mirror import DumpMirror
from wiki_assets.resources.session import Patience
from wiki_assets.resources.store import Store
from wiki_assets.settings import Settings
from wiki_assets_tests.chaos.plain import Plain
from wiki_assets_tests.resources.fake_wiki import FakeWiki, Page, Say, error

API = Snapshot("xwiki", "10260905")
PAGES = {"Llama": Page(12, "A llama spits."), "Lake Baikal": Page(7, "A deep lake."), "Glacier": Page(9, "Ice.")}


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path / "root"))


@pytest.fixture
def wiki():
    with FakeWiki(PAGES, {"Baikal": "Lake Baikal"}) as wiki:
        yield wiki


def api_of(wiki: FakeWiki) -> WikiApi:
    patience = Patience(backoff_s=0, max_attempts=4, max_wait_s=5)
    return WikiApi(wiki.url, "x/0 (me@example.org)", patience=patience, maxlag_s=0, requests_per_minute=10**9)


def quiet(line: str) -> None:
    """Nobody listens."""


def articles_of(snapshot: Snapshot, store: Store, *, shards: int = 2, until: str = "articles") -> list[dict]:
    """The articles that the stages make of a raw snapshot; everything else up to `until` is made too."""
    settings = Settings(root=store.root)
    store.fix_shard_count(snapshot.wiki, shards)
    plain = Plain(Cookbook(wiki_config(snapshot.wiki, settings, store), store), settings, snapshot)
    for step in ("split", "articles", "tokens"):
        plain.step(step)
        if step == until:
            break
    files = [store.file("articles", shard) for shard in plain.book.shards(snapshot)]
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def left_out(snapshot: Snapshot, store: Store) -> list[dict]:
    return [json.loads(line) for line in (store.raw(snapshot) / "left_out.jsonl").read_bytes().splitlines()]


def test_titles_become_articles_and_every_title_is_accounted_for(wiki, store):
    titles = ["llama", "Baikal", "Lake_Baikal", "Glacier", "Glacier", "Nowhere", "a|b"]
    manifest = fetch_pages(API, titles, api_of(wiki), store, quiet)
    assert manifest.counts["ledger"] == {
        "titles": 7,
        "pages": 3,
        "left_out": {"duplicate": 2, "missing": 1, "invalid": 1},
        "sources": {"cirrusdoc": 3},
    }
    assert sorted(each["title"] for each in left_out(API, store)) == ["Glacier", "Lake_Baikal", "Nowhere", "a|b"]
    verify_files(store.wiki("xwiki"), manifest)
    found = articles_of(API, store, until="tokens")
    assert {(row["page_id"], row["title"], row["text"], row["url"]) for row in found} == {
        (12, "Llama", "A llama spits.", "https://x.wikipedia.org/wiki/Llama"),
        (7, "Lake Baikal", "A deep lake.", "https://x.wikipedia.org/wiki/Lake_Baikal"),
        (9, "Glacier", "Ice.", "https://x.wikipedia.org/wiki/Glacier"),
    }


def test_the_same_titles_are_not_fetched_twice_and_others_need_another_snapshot(wiki, store):
    fetch_pages(API, ["Llama"], api_of(wiki), store, quiet)
    n_asked = len(wiki.asked)
    fetch_pages(API, ["Llama"], api_of(wiki), store, quiet)
    assert len(wiki.asked) == n_asked
    with pytest.raises(BadRequest, match="other pages are kept under it, 1 from api: take another --snapshot"):
        fetch_pages(API, ["Glacier"], api_of(wiki), store, quiet)


def test_a_call_that_was_cut_short_goes_on_where_it_was(wiki, store, monkeypatch):
    monkeypatch.setattr(own, "TITLES_A_FILE", 2)
    titles = ["Nowhere", "Llama", "Baikal", "Glacier", "Lake Baikal", "Elsewhere"]
    wiki.poison = {"Elsewhere": Say(error("readapidenied"))}
    with pytest.raises(SourceUnavailable):
        fetch_pages(API, titles, api_of(wiki), store, quiet)
    assert store.raw_manifest(API) is None
    wiki.poison.clear()
    wiki.asked.clear()
    manifest = fetch_pages(API, titles, api_of(wiki), store, quiet)
    assert [asked.titles for asked in wiki.asked] == [["Lake Baikal", "Elsewhere"]]
    assert manifest.counts["ledger"]["left_out"] == {"missing": 2, "duplicate": 1}
    assert len(articles_of(API, store)) == 3
    assert [path.name for path in store.raw(API).iterdir() if path.suffix == ".json"] == ["manifest.json"]


def test_titles_without_any_page_leave_nothing(wiki, store):
    with pytest.raises(SourceUnavailable, match="none of 2 titles has a page: invalid 1, missing 1"):
        fetch_pages(API, ["Nowhere", "["], api_of(wiki), store, quiet)
    assert store.raw_manifest(API) is None
    with pytest.raises(BadRequest, match="no titles"):
        fetch_pages(API, [], api_of(wiki), store, quiet)


def test_one_process_makes_a_snapshot(wiki, store):
    with own._alone(store.raw(API)), pytest.raises(StoreLocked, match="another process"):
        fetch_pages(API, ["Llama"], api_of(wiki), store, quiet)
    assert fetch_pages(API, ["Llama"], api_of(wiki), store, quiet)


# Tables


@pytest.fixture
def table(tmp_path):
    rows = [
        {"id": str(n), "url": f"https://example.org/{n}", "title": f"Page {n}", "text": f"Text {n}.\n\nMore of {n}."}
        for n in range(1, 41)
    ]
    rows += [{**rows[0], "id": "not a number", "title": "Named"}, {**rows[0], "id": None}, {**rows[0], "text": " "}]
    path = tmp_path / "articles.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=10)
    return path


def test_rows_become_articles_and_every_row_is_accounted_for(table, store, monkeypatch):
    monkeypatch.setattr(own, "TEXT_A_FILE", 1_000)
    manifest = import_tables(API, [str(table)], {}, store, quiet)
    assert manifest.counts["ledger"] == {"rows": 43, "pages": 41, "left_out": {"no_id": 1, "no_text": 1}}
    assert [(each["row"], each["reason"]) for each in left_out(API, store)] == [(42, "no_id"), (43, "no_text")]
    assert len(manifest.counts["files"]) > 3 and manifest.inputs.keys() == {str(table)}
    found = {row["title"]: row for row in articles_of(API, store, until="tokens")}
    assert len(found) == 41
    assert found["Page 7"]["text"] == "Text 7.\n\nMore of 7." and found["Page 7"]["page_id"] == 7
    assert found["Page 7"]["url"] == "https://example.org/7"
    assert found["Named"]["page_id"] > 2**40


def test_the_same_rows_are_not_read_twice_and_others_need_another_snapshot(table, store):
    import_tables(API, [str(table)], {}, store, quiet)
    told: list[str] = []
    import_tables(API, [str(table)], {}, store, told.append)
    assert told == ["xwiki-10260905: these rows are here already"]
    with pytest.raises(BadRequest, match="41 from tables"):
        import_tables(API, [str(table)], {"title": "url"}, store, quiet)


def test_rows_that_are_no_pages_leave_nothing(tmp_path, store):
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": 1, "title": "T", "text": ""}\n')
    with pytest.raises(BadRequest, match="no row of 1 is a page: no_text 1"):
        import_tables(API, [str(path)], {}, store, quiet)
    assert not store.raw(API).exists() and store.raw_manifest(API) is None


# Beside dumps


def test_a_lost_file_is_not_asked_of_a_dump_server(table, store):
    manifest = import_tables(API, [str(table)], {}, store, quiet)
    (store.raw(API) / manifest.counts["files"][0]["name"]).unlink()
    with pytest.raises(SourceUnavailable, match="make it with wiki-assets fetch-pages xwiki or wiki-assets import"):
        fetch_snapshot(API, DumpMirror(base_url="http://127.0.0.1:9"), store, quiet)


def test_what_was_asked_for_by_title_is_not_held_against_anything(wiki, store, table):
    fetch_pages(API, ["Llama"], api_of(wiki), store, quiet)
    tables, dump = Snapshot("xwiki", "10260906"), Snapshot("xwiki", "20260823")
    import_tables(tables, [str(table)], {}, store, quiet)
    assert [source_of(store, snapshot) for snapshot in (API, tables, dump)] == ["api", "tables", "dump"]
    store.fix_shard_count("xwiki", 2)
    book = Cookbook(wiki_config("xwiki", Settings(root=store.root), store), store)
    pointer = {"collection": "x-1", "pages": 10**6, "passages": 10**6}
    made = {"articles": [], "tokens": [], "embeddings": []}
    for snapshot, published, compared in [
        (dump, API, False), (tables, API, False), (dump, tables, False), (Snapshot("xwiki", "10260907"), tables, False),
        (Snapshot("xwiki", "20260830"), dump, True),
    ]:  # fmt: skip
        for check in (census, drift):
            passed, _ = check(book, snapshot, made, {**pointer, "snapshot": published.date})
            assert passed is not compared, (snapshot, published)


def test_retention_counts_own_snapshots_apart(store):
    from wiki_assets.defs.retention import plan

    dates = ["10260901", "10260902", "20260816", "20260823", "20260830"]
    for date in dates:
        (store.raw(Snapshot("xwiki", date))).mkdir(parents=True)
    store.fix_shard_count("xwiki", 2)
    settings = Settings(root=store.root)
    config = wiki_config("xwiki", settings, store)
    config = type(config)(**{name: getattr(config, name) for name in config.__struct_fields__} | {"keep_snapshots": 1})
    pointer = {"wiki": "xwiki", "snapshot": "20260830", "build": 1, "collection": "xwiki-20260830-1"}
    store.publish("xwiki", pointer, instead_of=None)
    assert plan(Cookbook(config, store)).dates == ["10260901", "20260816", "20260823"]


# The command line


@pytest.fixture
def terminal(tmp_path):
    from click.testing import CliRunner

    from wiki_assets.cli import main

    def run(*words: str, stdin: str | None = None):
        root = ["--root", str(tmp_path / "root")]
        return CliRunner().invoke(main, [words[0], *root, *words[1:]], input=stdin)

    return run


def test_commands_say_what_became_of_titles_and_rows_and_what_is_next(terminal, wiki, table, tmp_path, monkeypatch):
    monkeypatch.setattr(
        WikiApi.__init__, "__kwdefaults__", {**WikiApi.__init__.__kwdefaults__, "requests_per_minute": 10**9}
    )
    (tmp_path / "titles.txt").write_text("\ufeffLlama\n\n  Baikal \nNowhere\n", "utf-8")
    done = terminal("fetch-pages", "xwiki", "Glacier", "--titles", str(tmp_path / "titles.txt"), "--api", wiki.url)
    assert done.exit_code == 0, done.output
    first, second = [line for line in done.stdout.splitlines() if "xwiki-10" in line or line.startswith("next")]
    assert re.match(r"xwiki-1\d{7}: 3 pages of 4 titles; left out: missing 1 \(see .*left_out\.jsonl\)", first)
    assert re.fullmatch(r"next: wiki-assets materialize xwiki --snapshot 1\d{7}", second)
    assert Store(str(tmp_path / "root")).shard_count("xwiki") == 32, "of 270,000 articles"
    done = terminal("import", "mywiki", str(table), "--snapshot", "10260905")
    assert done.exit_code == 0 and "mywiki-10260905: 41 pages of 43 rows" in done.output
    assert Store(str(tmp_path / "root")).shard_count("mywiki") == 2
    piped = terminal(
        "fetch-pages", "xwiki", "--titles", "-", "--api", wiki.url, "--snapshot", "10200101", stdin="Llama\n"
    )
    assert "1 pages of 1 titles; left out: nothing" in piped.output


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["import", "mywiki", "nowhere.parquet"], 2, "no such file or folder"),
        (["import", "mywiki", "x", "--map", "id"], 2, "expected FIELD=COLUMN"),
        (["import", "../x", "x"], 2, "is no wiki"),
        (["import", "mywiki", "x", "--snapshot", "20260905"], 2, "take 10260905"),
        (["fetch-pages", "xwiki"], 2, "no titles"),
        (["fetch-pages", "xwiki", "A", "--snapshot", "20260905"], 2, "take 10260905"),
        (["fetch-pages", "xwiki", "A", "--api", "http://example.org"], 2, "plain http is only for this machine"),
        (["fetch-pages", "xwiki", "--titles", "/nowhere"], 2, "expected a text file"),
        (["materialize", "xwiki", "--snapshot", "10260905"], 1, "wiki-assets fetch-pages xwiki"),
    ],
)
def test_a_mistake_gets_one_line(terminal, words, code, says, tmp_path):
    done = terminal(*words)
    assert (done.exit_code, done.stdout) == (code, ""), done.output
    assert len(done.stderr.strip().splitlines()) == 1 and says in done.stderr
    assert not (tmp_path / "root").exists() or not any((tmp_path / "root").rglob("*.json"))


@pytest.mark.chroma
def test_own_pages_are_published_where_nothing_is_and_never_take_a_dumps_place(table, tmp_path):
    dump = Plain.laid_out(tmp_path / "dump")
    dump.all_steps()
    wiki = dump.snapshot.wiki
    before = dump.book.store.pointer(wiki)
    snapshot = Snapshot(wiki, "10260905")
    import_tables(snapshot, [str(table)], {}, dump.book.store, quiet)
    own_pages = Plain(dump.book, dump.settings, snapshot)
    assert own_pages.all_steps() > 4
    assert dump.book.store.pointer(wiki) == before, "the dump stays published"
    alone = Store(str(tmp_path / "alone"))
    import_tables(snapshot, [str(table)], {}, alone, quiet)
    alone.fix_shard_count(wiki, 2)
    settings = Settings(root=alone.root)
    Plain(Cookbook(wiki_config(wiki, settings, alone), alone), settings, snapshot).all_steps()
    pointer = alone.pointer(wiki)
    assert pointer is not None and (pointer["snapshot"], pointer["pages"]) == ("10260905", 41)
